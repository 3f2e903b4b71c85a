"""Addresses, and the parts of TCP that memory does not have."""

import errno

import pytest
import trio
import trio.testing

from p2pnode.address import format_address, is_near, parse_address
from p2pnode.tcp import ACCEPT_PAUSE_S, TcpListener, TcpTransport, reachable_address


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


def test_the_address_of_all_interfaces_becomes_one_that_others_can_dial() -> None:
    assert reachable_address("127.0.0.1:1") == "127.0.0.1:1"
    assert reachable_address("[::1]:2") == "[::1]:2"
    host, port = parse_address(reachable_address("0.0.0.0:3"))
    assert host != "0.0.0.0"
    assert port == 3
    host, port = parse_address(reachable_address("[::]:4"))
    assert host != "::"
    assert port == 4
