"""A `p2pnode run` that works, and a peer that breaks every rule of the protocol: tests/live/bad_peer.py.

Whatever is sent, the process lives, one counter with the right reason moves by one, the model is what it was, and the
peer is told why. The daemon does not train (learning.local_steps = 0) and shows its weights as they are, so that the
exported model tells of every change.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from crypto.errors import CryptoError
from gossip import wire
from p2pnode.control import ControlClient
from p2pnode.home import Home

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
# A slow machine imports JAX in 5 s, and tests may share it.
PATIENCE_S = 90.0
SETTINGS = (
    "learning.local_steps=0",
    "learning.readout_decay=0.0",
    "learning.round_interval_s=0.02",
    "exchange.join_patience_s=0.05",
    "membership.walk_interval_s=3600.0",
)


def _bad_peer() -> Any:
    """The program beside this file; tests are no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("bad_peer", Path(__file__).with_name("bad_peer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bad_peer"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


bad: Any = _bad_peer()


class Victim:
    """The daemon as its operator sees it: process, control socket, log."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.log = folder / "log"
        self._model = folder / "model.safetensors"
        words = [word for setting in SETTINGS for word in ("--set", setting)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "p2pnode", "run", "--home", str(self.home)),
                    *("--listen", "127.0.0.1:0", "--task", "digits", "--set", "log.format=json", *words),
                ],
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
                | {"JAX_PLATFORMS": "cpu"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("listening on "), self.log.read_text()[-2000:]
        self.address = ready.removeprefix("listening on ").partition(";")[0]
        self._control = ControlClient(Home(self.home), timeout_s=PATIENCE_S)
        end = time.monotonic() + PATIENCE_S
        while self.status()["state"] == "starting" and time.monotonic() < end:
            time.sleep(0.02)

    def status(self) -> dict[str, Any]:
        """What `p2pnode status --json` prints, without its start of 0.3 s."""
        status: dict[str, Any] = self._control.call("status")
        return status

    def model(self) -> np.ndarray:
        """What `p2pnode export` writes, as one vector, after the rounds that are under way."""
        begun = self.status()["counters"]["jobs"].get("train", 0)
        while self.status()["counters"]["jobs"].get("train", 0) < begun + 2:
            time.sleep(0.005)
        self._control.call("export", path=str(self._model))
        leaves = load_file(self._model)
        return np.concatenate([leaves[name].ravel() for name in sorted(leaves)])

    def moved(self, counter: str, before: dict[str, Any]) -> dict[str, int]:
        """By how much which labels of a counter have moved since the status `before`; waits for the first."""
        end = time.monotonic() + PATIENCE_S
        while not (found := _difference(before, self.status(), counter)):
            assert time.monotonic() < end, f"{counter} does not move"
            time.sleep(0.005)
        return found

    def lines(self, **facts: str) -> list[dict[str, Any]]:
        """Lines of the log in which all `facts` hold."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if facts.items() <= line.items()]

    def close(self) -> None:
        self._control.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    victim = Victim(tmp_path_factory.mktemp("victim"))
    yield victim
    victim.close()


@pytest.fixture(scope="module")
def target(victim: Victim) -> Any:
    """What a peer learns that behaves until it has an offer."""
    with bad.BadPeer(victim.address) as peer:
        peer.meet(shards=(0,))
        return peer.learn()[0]


@pytest.fixture
def unharmed(victim: Victim) -> Iterator[None]:
    """The process lives and its model is what it was, bit by bit."""
    before = victim.model()
    yield
    assert victim.process.poll() is None
    np.testing.assert_array_equal(victim.model(), before)


def _difference(before: dict[str, Any], after: dict[str, Any], counter: str) -> dict[str, int]:
    was, now = ({**status, **status["counters"]}[counter] for status in (before, after))
    return {label: count - was.get(label, 0) for label, count in now.items() if count != was.get(label, 0)}


# --- peers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(bad.BREAKS))
@pytest.mark.usefixtures("unharmed")
def test_a_broken_rule_moves_one_counter_and_is_answered(victim: Victim, target: Any, name: str) -> None:
    rule = bad.BREAKS[name]
    before = victim.status()
    with bad.BadPeer(victim.address) as peer:
        peer.meet()
        answer = peer.verdict(rule.does(peer, target))
        assert answer.kind == rule.answer
        if answer.kind == "bye":  # it says why, closes, and logs one line
            assert answer.text.startswith(f"{rule.reason}: ")
            assert peer.ended()
            assert len(victim.lines(event="refused", peer=peer.node.hex()[:16], reason=rule.reason)) == 1
        elif answer.kind == "refused":
            assert answer.text == rule.reason
            assert peer.verdict() == bad.Answer("nothing")  # still connected: one fault may be an accident
        assert victim.moved("refused", before) == dict.fromkeys((rule.reason, *rule.also), 1)


@pytest.mark.parametrize("name", list(bad.BAD_REPLIES))
@pytest.mark.usefixtures("unharmed")
def test_a_bad_reply_moves_one_counter_and_no_weight(victim: Victim, name: str) -> None:
    forge, reason = bad.BAD_REPLIES[name]
    with bad.BadPeer(victim.address) as peer:
        peer.meet(shards=(0,))
        target, offer = peer.learn()
        before = victim.status()
        peer.send(forge(peer, target, offer.header))
        assert peer.verdict() == bad.Answer("nothing")
        assert victim.moved("refused", before) == {reason: 1}


@pytest.mark.usefixtures("unharmed")
def test_the_true_reply_counts_after_a_forged_one(victim: Victim) -> None:
    with bad.BadPeer(victim.address) as peer:
        peer.meet(shards=(0,))
        target, offer = peer.learn()
        before = victim.status()
        peer.send(bad.BAD_REPLIES["forged signature"][0](peer, target, offer.header))
        peer.send(peer.reply(target, offer.header))  # of a change of zero
        assert peer.verdict() == bad.Answer("nothing")
        assert victim.moved("refused", before) == {"bad_signature": 1}
        end = time.monotonic() + PATIENCE_S
        while victim.status()["initiated"] == before["initiated"]:
            assert time.monotonic() < end, "the true reply was not taken"


@pytest.mark.usefixtures("unharmed")
def test_a_refused_offer_sent_again_gets_the_same_signed_answer(victim: Victim, target: Any) -> None:
    with bad.BadPeer(victim.address) as peer:
        peer.meet()
        offer = peer.offer(target, shard=7)
        peer.send(offer)
        first = peer.verdict(offer)
        before = victim.status()
        peer.send(offer)
        assert peer.verdict(offer) == first
        assert _difference(before, victim.status(), "refused") == {}


@pytest.mark.usefixtures("unharmed")
def test_ten_faults_are_no_accident(victim: Victim, target: Any) -> None:
    """The tenth on one connection ends it, and the peer's next one too."""
    with bad.BadPeer(victim.address) as peer:
        peer.meet()
        before = victim.status()
        for _ in range(10):
            peer.send(peer.offer(target, reference=bytes(32)))
        assert peer.ended()
        assert victim.moved("refused", before) == {"unknown_reference": 10}


@pytest.mark.usefixtures("unharmed")
def test_a_frame_beyond_the_limit_ends_the_connection_before_it_is_read(victim: Victim) -> None:
    with bad.BadPeer(victim.address) as peer:
        peer.meet()
        before = victim.status()
        with suppress(bad.GoneError):  # it may not even read all of it
            peer.send(bytes(2**23))
        assert peer.ended()
        assert victim.moved("connections_lost", before) == {"pieces": 1}
        (line,) = victim.lines(event="connection_lost", peer=peer.node.hex()[:16])
        assert "4259840" in line["detail"]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "pieces",
    [
        [b"\x02\x01" + bytes(4) + bytes(4)],  # no such lane
        [b"\x00\x01\x00\x00\x00\x09" + bytes(4)],  # not its turn
        [b"\x01\x02" + bytes(4)],  # gives up what has not begun
        [b"\x01\x00" + bytes(4) + (2000).to_bytes(4, "big") + b"crumb"],
    ],
)
def test_pieces_that_no_sender_sends_end_the_connection(victim: Victim, pieces: list[bytes]) -> None:
    with bad.BadPeer(victim.address) as peer:
        peer.meet()
        before = victim.status()
        for piece in pieces:
            peer.piece(piece)
        assert peer.ended()
        assert victim.moved("connections_lost", before) == {"pieces": 1}


@pytest.mark.usefixtures("unharmed")
def test_bytes_altered_on_the_way_end_the_connection(victim: Victim) -> None:
    with bad.BadPeer(victim.address) as peer:
        peer.meet()
        before = victim.status()
        peer.raw((400).to_bytes(2, "big") + os.urandom(400))
        assert peer.ended()
        assert victim.moved("connections_lost", before) == {"crypto": 1}
        assert len(victim.lines(event="connection_lost", peer=peer.node.hex()[:16])) == 1


# --- strangers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(bad.JUNK))
@pytest.mark.usefixtures("unharmed")
def test_junk_costs_one_connection_and_one_line(victim: Victim, name: str) -> None:
    before = victim.status()
    us, closed = bad.stranger(victim.address, bad.JUNK[name]())
    assert closed
    assert victim.moved("handshakes_failed", before) == {"crypto": 1}
    (line,) = victim.lines(address=us)
    assert (line["event"], line["reason"]) == ("handshake_failed", "crypto")


@pytest.mark.usefixtures("unharmed")
def test_another_network_and_another_version_end_at_the_door(victim: Victim) -> None:
    for claims, failure in (({"network": "other"}, "crypto"), ({"version": 1}, "version")):
        before = victim.status()
        with bad.BadPeer(victim.address, **claims) as peer:
            with pytest.raises(CryptoError):  # we are told its version; of another network, we find out first
                peer.prove()
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.ended()
        assert victim.moved("handshakes_failed", before) in ({failure: 1}, {"closed": 1})
        assert len(victim.lines(address=peer.address, event="handshake_failed")) == 1


@pytest.mark.usefixtures("unharmed")
def test_who_says_nothing_or_half_is_sent_away(victim: Victim) -> None:
    """Silence, half a handshake, and a peer that proves its key and then says no word: all three at once."""
    before = victim.status()
    own = bytes.fromhex(victim.status()["id"])
    host, _, port = victim.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as silent,
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as half,
        bad.BadPeer(victim.address, smaller_than=own) as wordless,
    ):
        addresses = ["{}:{}".format(*link.getsockname()) for link in (silent, half)] + [wordless.address]
        half.sendall(bad.first_message())
        wordless.prove()
        begun = time.monotonic()
        assert silent.recv(1) == b""
        assert 1.0 < time.monotonic() - begun < 5.0
        assert len(half.recv(1000)) > 300
        assert half.recv(1) == b""
        assert wordless.ended()
    victim.model()  # some rounds later
    assert victim.moved("handshakes_failed", before) == {"silent": 1, "slow": 2}
    for address, reason in zip(addresses, ("silent", "slow", "slow"), strict=True):
        assert [line["reason"] for line in victim.lines(address=address)] == [reason]


# --- and yet -------------------------------------------------------------------------------------------------


def test_an_honest_offer_of_the_same_program_is_taken_once(victim: Victim, target: Any) -> None:
    """Last, because it moves the model: without it, all of the above would prove nothing."""
    before = victim.model()
    payload = bad._of(target, 1.0)
    with bad.BadPeer(victim.address) as peer:
        peer.meet()
        offer = peer.offer(target, payload=payload)
        peer.send(offer)
        first = peer.verdict(offer)
        assert first.kind == "change"
        after = victim.model()
        change = after - before
        assert np.count_nonzero(change) == 1
        assert change.max() == pytest.approx(0.5, abs=1e-6)

        peer.send(offer)  # the reply was lost, it says
        assert peer.verdict(offer) == first
        seq = wire.decode_offer_header(offer.header).seq
        again = peer.offer(target, payload=payload, seq=seq)  # the same number for another one
        peer.send(again)
        assert peer.verdict(again).text == "replayed"
        np.testing.assert_array_equal(victim.model(), after)
    assert victim.process.poll() is None


def test_the_command_line_tells_the_same_counters(victim: Victim) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "p2pnode", "status", "--home", str(victim.home), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["refused"] == victim.status()["refused"]
    assert {rule.reason for rule in bad.BREAKS.values()} <= told["refused"].keys()
    assert victim.lines(level="critical") == []
