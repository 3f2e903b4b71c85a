"""TCP: the real network.

`trio.open_tcp_stream` tries all A and AAAA records of a name, staggered (Happy Eyeballs, RFC 8305), and sockets come
with TCP_NODELAY: an offer of 200 bytes must not wait for Nagle's algorithm.
"""

import errno
import socket

import trio

from p2pnode.address import AddressError, format_address, parse_address
from p2pnode.transport import Link

# Out of file descriptors or memory: accepting again at once would spin.
ACCEPT_PAUSE_S = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Of a listening socket that is gone or was never one: ours to fix. Everything else is the pending error of a connection
# that died in the backlog (accept(2), "error handling"), and the next one may be fine.
_OURS = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
_ALL_INTERFACES = ("0.0.0.0", "::")
# Linux and macOS. Elsewhere the system takes as many bytes as its buffer holds, and a ping waits behind them.
_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class TcpLink(Link):
    """A connected socket that remembers the addresses of both ends: after a reset the system has forgotten them.

    Raises:
        OSError: it has forgotten them already.
    """

    def __init__(self, stream: trio.SocketStream, remote: str) -> None:
        self._stream = stream
        self._remote = remote
        self._local = format_address(*stream.socket.getsockname()[:2])

    @property
    def remote(self) -> str:
        return self._remote

    @property
    def local(self) -> str:
        return self._local

    def hold_unsent(self, size_bytes: int) -> None:
        if _NOTSENT_LOWAT is not None:
            try:
                self._stream.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, size_bytes)
            except OSError:
                pass  # the connection has ended, which the next read or write will say

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class TcpListener:
    """A listening socket, whose `accept` outlives every mistake of those who knock."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        host, port = listener.socket.getsockname()[:2]
        self._address = format_address(host, port)

    @property
    def address(self) -> str:
        return self._address

    async def accept(self) -> Link:
        while True:
            try:
                stream = await self._listener.accept()
            except OSError as error:
                if error.errno in _OURS:
                    raise
                await trio.sleep(ACCEPT_PAUSE_S if error.errno in _EXHAUSTED else 0)
                continue
            try:
                return TcpLink(stream, format_address(*stream.socket.getpeername()[:2]))
            except OSError:  # gone again before we looked
                await trio.aclose_forcefully(stream)

    async def aclose(self) -> None:
        await self._listener.aclose()


class TcpTransport:
    """`transport.Transport` over sockets of this machine."""

    async def listen(self, address: str) -> TcpListener:
        host, port = parse_address(address)
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except UnicodeError as error:
            raise _no_name(address) from error
        # A name with several addresses: the first is ours. Whoever wants all interfaces says 0.0.0.0 or [::].
        for spare in listeners[1:]:
            await spare.aclose()
        return TcpListener(listeners[0])

    async def dial(self, address: str) -> Link:
        host, port = parse_address(address)
        try:
            stream = await trio.open_tcp_stream(host, port)
        except UnicodeError as error:
            raise _no_name(address) from error
        try:
            return TcpLink(stream, address)
        except OSError:
            await trio.aclose_forcefully(stream)
            raise


def _no_name(address: str) -> AddressError:
    """Python encodes names for the resolver by IDNA, and raises UnicodeError for "a..b" or a label of 64 characters:
    names that peers may put into their records."""
    return AddressError(f"expected a host name, whose labels have 1 to 63 characters, got {address!r}")


def reachable_address(address: str) -> str:
    """`address`, with the address of this machine on the way to others in place of "all interfaces".

    Empty where there is no way to everywhere: then connections tell how we are reached (`own_address`). Behind a router
    that translates addresses it is the inner one; then people must say what to advertise.
    """
    host, port = parse_address(address)
    if host not in _ALL_INTERFACES:
        return address
    # Blocks for documentation: connecting a datagram socket sends nothing, it only asks the routing table.
    family, target = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    source = _source(family, target)
    return format_address(source, port) if source else ""


def own_address(local: str, listening: str) -> str:
    """Where those on the network that a connection comes from can reach us; empty where they cannot.

    Args:
        local: Our end of the connection.
        listening: Where we listen.
    """
    host, _ = parse_address(local)
    bound, port = parse_address(listening)
    if bound not in _ALL_INTERFACES:
        return listening if host == bound else ""
    # We listen in one family only, and a zone ("%eth0") means something else on every machine.
    if (":" in host) != (":" in bound) or "%" in host:
        return ""
    return format_address(host, port)


def _source(family: socket.AddressFamily, target: str) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return ""
        source: str = probe.getsockname()[0]
        return source
