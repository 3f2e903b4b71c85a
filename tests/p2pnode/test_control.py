"""The control socket: a real one, with the real client in a thread, and a small daemon behind it."""

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode import control, control_server
from p2pnode import home as homes
from p2pnode.control import ControlClient, ControlError
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home

T = TypeVar("T")


class SmallDaemon:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.stopped = False
        self.joined: tuple[str, ...] = ()
        self.exported = ""

    def status(self) -> dict[str, Any]:
        return {"state": "training", "loss": float("nan"), "id": b"\x01\xff"}

    def peers(self) -> list[dict[str, Any]]:
        return [{"id": "ab", "address": "127.0.0.1:1"}]

    def identity(self) -> dict[str, Any]:
        return {"id": "cd"}

    async def evaluate(self) -> dict[str, Any]:
        return {"accuracy": 0.5}

    async def export(self, path: str) -> dict[str, Any]:
        self.exported = path
        return {"path": path}

    async def save(self) -> dict[str, Any]:
        raise UserError(ExitCode.FAILED, "the disk is full.")

    async def join(self, addresses: tuple[str, ...]) -> dict[str, Any]:
        self.joined = addresses
        return {}

    def stop(self) -> None:
        self.stopped = True


def served(home: Home, conversation: Callable[[SmallDaemon], T], *, patience_s: float = 30.0) -> T:
    """Run `conversation` (blocking) against a server for `home`."""
    daemon = SmallDaemon()

    async def main() -> T:
        with trio.fail_after(patience_s):
            async with trio.open_nursery() as nursery:
                listener = control_server.listen(home)
                nursery.start_soon(control_server.ControlServer(daemon, listener).run)
                result = await trio.to_thread.run_sync(conversation, daemon)
                nursery.cancel_scope.cancel()
        return result

    return trio.run(main)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    homes.create(made)
    return made


def raw(home: Home, data: bytes) -> list[dict[str, Any]]:
    """Send bytes, hang up the sending side, return all answers."""
    with socket.socket(socket.AF_UNIX) as connection, control.socket_address(home.socket) as address:
        connection.connect(address)
        connection.settimeout(20)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused in the middle: the answer is there to be read all the same
        answer = b""
        try:
            while part := connection.recv(2**16):
                answer += part
        except ConnectionResetError:
            pass  # hung up with some of our bytes unread
    return [json.loads(line) for line in answer.splitlines()]


def test_every_method_answers(home: Home) -> None:
    def conversation(daemon: SmallDaemon) -> dict[str, Any]:
        with ControlClient(home) as client:
            return {
                "status": client.call("status"),
                "peers": client.call("peers"),
                "id": client.call("id"),
                "eval": client.call("eval"),
                "export": client.call("export", path="/x/y.safetensors"),
                "join": client.call("join", addresses=["a:1"]),
                "stop": client.call("stop"),
                "seen": (daemon.exported, daemon.joined, daemon.stopped),
            }

    answers = served(home, conversation)
    assert answers["status"] == {"state": "training", "loss": None, "id": "01ff"}  # NaN is not JSON
    assert answers["peers"][0]["id"] == "ab"
    assert answers["eval"] == {"accuracy": 0.5}
    assert answers["seen"] == ("/x/y.safetensors", ("a:1",), True)


def test_the_socket_is_ours_alone_whatever_the_umask(home: Home) -> None:
    old = os.umask(0)
    try:
        mode = served(home, lambda _: stat.S_IMODE(home.socket.stat().st_mode))
        after = os.umask(0)
    finally:
        os.umask(old)
    assert mode == 0o600
    assert after == 0, "the umask of the process was not put back"


def test_a_socket_left_by_a_killed_daemon_is_replaced(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as dead, control.socket_address(home.socket) as address:
        dead.bind(address)
    with pytest.raises(UserError) as caught:
        ControlClient(home)
    assert caught.value.code is ExitCode.NO_DAEMON
    assert served(home, lambda _: control.ask(home, "id")) == {"id": "cd"}


def test_anything_but_a_socket_at_its_place_is_left_alone(home: Home) -> None:
    home.socket.write_text("precious")

    async def main() -> None:
        control_server.listen(home)

    with pytest.raises(UserError) as caught:
        trio.run(main)
    assert caught.value.code is ExitCode.HOME
    assert home.socket.read_text() == "precious"


def test_a_home_deeper_than_a_socket_address_is_long_works(tmp_path: Path) -> None:
    deep = Home(tmp_path / ("d" * 100) / ("e" * 100))
    homes.create(deep)
    assert served(deep, lambda _: control.ask(deep, "id")) == {"id": "cd"}


def test_without_a_daemon_the_sentence_says_how_to_start_one(home: Home) -> None:
    with pytest.raises(UserError, match="p2pnode run") as caught:
        control.ask(home, "status")
    assert caught.value.code is ExitCode.NO_DAEMON


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"hello", "malformed"),
        (b"[]", "malformed"),
        (b'{"id": "x", "method": "status"}', "malformed"),
        (b'{"id": 1, "method": "status", "surprise": 1}', "malformed"),
        (b'{"id": 1, "method": "status", "params": ' + b"[" * 30_000, "malformed"),
        (b"\xff\xfe", "malformed"),
        (b'{"id": 1, "method": "status", "v": 2}', "version"),
        (b'{"id": 1, "method": "shutdown"}', "unknown_method"),
        (b'{"id": 1, "method": "status", "params": {"x": 1}}', "params"),
        (b'{"id": 1, "method": "export", "params": {"path": "relative"}}', "params"),
        (rb'{"id": 1, "method": "export", "params": {"path": "/tmp/a\u0000b"}}', "params"),
        (b'{"id": 1, "method": "export"}', "params"),
        (b'{"id": 1, "method": "export", "params": {"path": "/"}}', "params"),
        (b'{"id": 1, "method": "export", "params": {"path": "/tmp/x//"}}', None),
        (b'{"id": 1' + b"0" * 400 + b', "method": "id"}', "malformed"),
        (b'{"id": 1, "v": 1' + b"0" * 400 + b', "method": "id"}', "version"),
        (b'{"id": 1, "method": "join", "params": {"addresses": []}}', "params"),
        (b'{"id": 1, "method": "join", "params": {"addresses": [1]}}', "params"),
        (b'{"id": 1, "method": "join", "params": {"addresses": ["a:1", "foo"]}}', "params"),
        (b'{"id": 1, "method": "join", "params": {"addresses": ["::1:7400"]}}', "params"),
        (b'{"id": 1, "method": "join", "params": {"addresses": ["a:' + b"0" * 5000 + b'"]}}', "params"),
        (b'{"id": 1, "method": "subscribe", "params": {"interval_s": "often"}}', "params"),
        (b'{"id": 1, "method": "save"}', "failed"),
    ],
)
def test_a_bad_request_gets_its_reason_and_the_next_one_an_answer(
    home: Home, line: bytes, code: str | None
) -> None:
    answers = served(home, lambda _: raw(home, line + b"\n" + b'{"id": 9, "method": "id"}\n'))
    assert [answer.get("error", {}).get("code") for answer in answers] == [code, None]
    assert answers[1] == {"v": 1, "id": 9, "result": {"id": "cd"}}


@pytest.mark.parametrize("digits", [19, 400, 4000])
def test_an_interval_of_any_length_is_an_interval(home: Home, digits: int) -> None:
    def conversation(_: SmallDaemon) -> Any:
        with ControlClient(home) as client:
            return client.call("subscribe", interval_s=10**digits)

    assert served(home, conversation) == {"interval_s": control_server.SUBSCRIBE_INTERVAL_S_MAX}


class StrangeError(Exception):
    """Of no kind that anybody lists."""


@pytest.mark.parametrize(
    "fault",
    [StrangeError("why\nnot"), OSError(28, "full"), RecursionError(), ExceptionGroup("two", [KeyError(1)])],
)
def test_whatever_a_request_raises_is_its_answer_and_is_logged(
    home: Home, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> dict[str, Any]:
        raise fault

    def fails_at_once(*_: object) -> dict[str, Any]:
        raise fault

    for name in ("evaluate", "export", "save", "join"):
        monkeypatch.setattr(SmallDaemon, name, fails)
    for name in ("status", "peers", "identity", "stop"):
        monkeypatch.setattr(SmallDaemon, name, fails_at_once)
    params = {"export": {"path": "/x"}, "join": {"addresses": ["a:1"]}}
    methods = [*control.METHODS]

    def conversation(_: SmallDaemon) -> list[str]:
        said = []
        for method in methods:
            line = json.dumps({"id": 1, "method": method, "params": params.get(method, {})})
            # The first answer to `subscribe` is good.
            error = raw(home, line.encode() + b"\n")[-1]["error"]
            said.append(f"{error['code']}: {error['message']}")
        return said

    with structlog.testing.capture_logs() as events:
        said = served(home, conversation)
    assert len(said) == len(methods)
    assert all(f"failed: a fault of the daemon ({type(fault).__name__}" in sentence for sentence in said)
    assert {(event["event"], event["method"]) for event in events} == {("request_failed", m) for m in methods}


def test_an_answer_that_is_no_json_is_a_sentence_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallDaemon, "status", lambda _: {"steps": object()})
    monkeypatch.setattr(SmallDaemon, "peers", lambda _: [{"address": "\udcff"}])
    lines = b'{"id": 1, "method": "status"}\n{"id": 2, "method": "peers"}\n{"id": 3, "method": "id"}\n'
    answers = served(home, lambda _: raw(home, lines))
    assert [(answer["id"], "error" in answer) for answer in answers] == [(1, True), (2, True), (3, False)]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**450), 10**450) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PARAMETERS = st.sampled_from(("path", "addresses", "interval_s")) | st.text(max_size=3)
REQUESTS = (
    st.binary(max_size=40)
    | ANY_JSON
    | st.fixed_dictionaries(
        {"id": st.integers() | ANY_JSON, "method": st.sampled_from(control.METHODS) | ANY_JSON},
        optional={
            "v": st.just(1) | ANY_JSON,
            "params": st.dictionaries(PARAMETERS, ANY_JSON | st.just("/"), max_size=2) | ANY_JSON,
        },
    )
)


def test_no_request_at_all_ends_the_server(home: Home) -> None:
    """Fuzz: every line is answered, or ends its own connection; the next client is served."""

    def conversation(_: SmallDaemon) -> int:
        count = 0

        @given(request=REQUESTS)
        @settings(max_examples=300)
        def ask(request: Any) -> None:
            nonlocal count
            line = request if isinstance(request, bytes) else json.dumps(request).encode()
            answers = raw(home, line.replace(b"\n", b"") + b"\n")
            assert all("error" in answer or "result" in answer or "event" in answer for answer in answers)
            assert answers
            count += 1

        ask()
        assert control.ask(home, "id") == {"id": "cd"}
        return count

    assert served(home, conversation, patience_s=120.0) >= 100


def test_what_is_no_address_is_named_and_none_of_the_others_is_joined(home: Home) -> None:
    def conversation(daemon: SmallDaemon) -> tuple[str, object]:
        with ControlClient(home) as client, pytest.raises(ControlError) as caught:
            client.call("join", addresses=["a:1", "foo"])
        return str(caught.value), daemon.joined

    said, joined = served(home, conversation)
    assert "addresses: expected host:port, got 'foo'" in said
    assert not joined


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_beyond_the_limit_ends_the_connection(home: Home, end: bytes) -> None:
    data = b"x" * (control.REQUEST_BYTES_MAX + 2**15) + end
    answers = served(home, lambda _: raw(home, data))
    assert [answer["error"]["code"] for answer in answers] == ["oversized"]


def test_a_request_may_arrive_byte_by_byte(home: Home) -> None:
    def conversation(_: SmallDaemon) -> Any:
        with socket.socket(socket.AF_UNIX) as connection, control.socket_address(home.socket) as address:
            connection.connect(address)
            for byte in b'{"id": 5, "method": "id"}\n':
                connection.sendall(bytes([byte]))
            return json.loads(connection.recv(2**16))

    assert served(home, conversation)["result"] == {"id": "cd"}


def test_refusals_of_the_daemon_become_sentences(home: Home) -> None:
    def conversation(_: SmallDaemon) -> str:
        with ControlClient(home) as client, pytest.raises(ControlError) as caught:
            client.call("save")
        return str(caught.value)

    assert served(home, conversation) == "the disk is full."


def test_a_subscriber_gets_status_and_peers_at_most_four_times_a_second(home: Home) -> None:
    def conversation(_: SmallDaemon) -> list[dict[str, Any]]:
        with ControlClient(home) as client:
            client.send("subscribe", interval_s=0.001)
            answers: list[dict[str, Any]] = []
            while len(answers) < 5:
                answers += client.receive()
            return answers

    first, *events = served(home, conversation)
    assert first["result"] == {"interval_s": control_server.SUBSCRIBE_INTERVAL_S_MIN}
    assert [event["event"] for event in events[:4]] == ["status", "peers"] * 2
    assert events[0]["data"]["state"] == "training"


def test_more_clients_than_the_limit_are_turned_away_and_places_come_back(home: Home) -> None:
    def conversation(_: SmallDaemon) -> Any:
        clients = [ControlClient(home) for _ in range(control_server.CLIENTS_MAX)]
        for client in clients:
            client.call("id")
        with pytest.raises(UserError, match="closed the connection"):
            control.ask(home, "id")
        clients.pop().close()
        for _ in range(100):  # the server notices the hang-up when its task runs next
            try:
                return control.ask(home, "id")
            except UserError:
                continue
        return None

    assert served(home, conversation) == {"id": "cd"}


def test_an_idle_client_is_dropped(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "IDLE_TIMEOUT_S", 0.05)

    def conversation(_: SmallDaemon) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection, control.socket_address(home.socket) as address:
            connection.connect(address)
            connection.settimeout(20)
            return connection.recv(1)

    assert served(home, conversation) == b""


def test_a_client_that_does_not_read_is_dropped_and_the_others_are_served(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "WRITE_TIMEOUT_S", 0.05)

    def conversation(_: SmallDaemon) -> Any:
        with socket.socket(socket.AF_UNIX) as deaf, control.socket_address(home.socket) as address:
            deaf.connect(address)
            deaf.settimeout(20)
            with pytest.raises(OSError):
                deaf.sendall(b'{"id": 1, "method": "status"}\n' * 100_000)  # and never read
            return control.ask(home, "id")

    assert served(home, conversation) == {"id": "cd"}
