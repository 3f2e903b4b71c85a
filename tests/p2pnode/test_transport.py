"""Addresses, and the parts of TCP that memory does not have."""

import errno
import shlex

import pytest
import trio
import trio.testing

from p2pnode.address import format_address, is_near, parse_address
from p2pnode.launch import join_command
from p2pnode.settings import Settings
from p2pnode.tcp import ACCEPT_PAUSE_S, TcpListener, TcpTransport, own_address, reachable_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7400", "127.0.0.1", 7400),
        ("[::1]:0", "::1", 0),
        ("node.example:65535", "node.example", 65535),
    ],
)
def test_addresses_are_read_and_written_alike(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True),
        ("192.168.4.1", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:10.0.0.1", True),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("::ffff:8.8.8.8", False),
    ],
)
def test_loopback_and_private_networks_are_near(host: str, near: bool) -> None:
    assert is_near(host) is near


async def test_running_out_of_descriptors_pauses_accepting(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """EMFILE neither ends the accept loop nor makes it spin."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    tries: list[float] = []

    async def exhausted() -> trio.SocketStream:
        tries.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(listener, "accept", exhausted)
    with trio.move_on_after(2.5 * ACCEPT_PAUSE_S):
        await TcpListener(listener).accept()
    assert len(tries) == 3
    await listener.aclose()


async def test_a_connection_that_died_in_the_backlog_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    real = listener.accept
    errors = [
        OSError(errno.EHOSTUNREACH, "No route to host"),
        OSError(errno.EPERM, "forbidden by a firewall"),
    ]

    async def accept() -> trio.SocketStream:
        if errors:
            raise errors.pop()
        return await real()

    monkeypatch.setattr(listener, "accept", accept)
    ours = TcpListener(listener)
    near = await TcpTransport().dial(ours.address)
    far = await ours.accept()
    await near.send_all(b"x")
    assert await far.receive_some(1) == b"x"
    for end in (near, far, ours):
        await end.aclose()


def test_the_address_of_all_interfaces_becomes_one_that_others_can_dial_or_none() -> None:
    """Never loopback, which means another machine to everyone else; without a way out there is nothing to say."""
    assert reachable_address("127.0.0.1:1") == "127.0.0.1:1"
    assert reachable_address("[::1]:2") == "[::1]:2"
    for address, bad in (("0.0.0.0:3", ("0.0.0.0", "127.0.0.1")), ("[::]:3", ("::", "::1"))):
        found = reachable_address(address)
        assert found == "" or (parse_address(found)[0] not in bad and parse_address(found)[1] == 3)


@pytest.mark.parametrize(
    ("local", "listening", "own"),
    [
        ("10.0.0.2:50000", "0.0.0.0:7400", "10.0.0.2:7400"),  # we dialled: the port is another
        ("10.0.0.2:7400", "0.0.0.0:7400", "10.0.0.2:7400"),
        ("127.0.0.1:5", "0.0.0.0:7400", "127.0.0.1:7400"),
        ("[fd00::2]:5", "[::]:7400", "[fd00::2]:7400"),
        ("[fd00::2]:5", "0.0.0.0:7400", ""),  # nobody listens in that family
        ("10.0.0.2:5", "[::]:7400", ""),
        ("[fe80::1%eth0]:5", "[::]:7400", ""),  # a zone means something else on every machine
        ("10.0.0.2:5", "10.0.0.2:7400", "10.0.0.2:7400"),
        ("10.0.0.2:5", "192.168.0.1:7400", ""),
    ],
)
def test_the_end_of_a_connection_tells_where_we_are_reached(local: str, listening: str, own: str) -> None:
    assert own_address(local, listening) == own


@pytest.mark.parametrize("address", ["0.0.0.0:7400", "[::]:7400"])
def test_without_a_way_out_the_join_line_leaves_the_host_to_the_operator(address: str) -> None:
    """Which of the two families has none depends on the machine; tests/live/test_lan.py makes one that has none."""
    wanted = reachable_address(address) or "HOST:7400"
    assert join_command(Settings(), address) == shlex.join(["p2pnode", "run", "--join", wanted])
