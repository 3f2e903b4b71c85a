"""A network in memory for real daemons: bounded pipes, and the fates of frames from a `LinkModel`.

Under `trio.testing.MockClock` a handful of whole daemons run in virtual time, so that what the heap world cannot show
(framing, backpressure, cancellation, shutdown) is tested without sockets. Bytes of the handshake arrive at once;
what a dial costs is asked from the link model once, and every frame is, above the encryption (`Link.fates`).
"""

import errno
import math
import operator
from collections.abc import Sequence

import trio

from p2pnode.address import format_address, parse_address
from p2pnode.transport import Link
from simulation.network import LinkModel

# Room in one direction: what a socket of Linux holds by default, in order of magnitude. Small enough that tests with
# shards feel the backpressure.
PIPE_BYTES = 65_536
# Dials that wait to be accepted; the backlog of a socket.
BACKLOG = 128
# First port given to whoever does not care. From the range that IANA reserves for that.
EPHEMERAL_PORT = 49_152


class MemoryNetwork:
    """All hosts of one simulated network.

    Args:
        link: Decides over dials and frames between hosts, whom it knows by name; None: an ideal network.
    """

    def __init__(self, link: LinkModel | None = None) -> None:
        self.link = link
        self._listeners: dict[str, MemoryListener] = {}
        self._ports: dict[str, int] = {}

    def host(self, name: str) -> "MemoryTransport":
        """The transport of the host `name`: as good as an IP address; without colons."""
        return MemoryTransport(self, name)

    def free_port(self, host: str) -> int:
        port = self._ports.get(host, EPHEMERAL_PORT)
        self._ports[host] = port + 1
        return port

    def bind(self, address: str, listener: "MemoryListener") -> None:
        if address in self._listeners:
            raise OSError(errno.EADDRINUSE, f"{address} is taken")
        self._listeners[address] = listener

    def unbind(self, address: str) -> None:
        self._listeners.pop(address, None)

    def listener(self, address: str) -> "MemoryListener":
        if address not in self._listeners:
            raise OSError(errno.ECONNREFUSED, f"nobody listens at {address}")
        return self._listeners[address]


class MemoryTransport:
    """`transport.Transport` as one host of a `MemoryNetwork` sees it."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network = network
        self._host = host

    async def listen(self, address: str) -> "MemoryListener":
        host, port = parse_address(address)
        await trio.lowlevel.checkpoint()
        if host != self._host:
            raise OSError(errno.EADDRNOTAVAIL, f"{host} is not this host, {self._host}")
        listener = MemoryListener(self._network, format_address(host, port or self._network.free_port(host)))
        self._network.bind(listener.address, listener)
        return listener

    async def dial(self, address: str) -> Link:
        host, _ = parse_address(address)
        model = self._network.link
        took = 0.0 if model is None else model.handshake(self._host, host, trio.current_time())
        await trio.sleep(math.inf if took is None else took)
        there, back = _Pipe(), _Pipe()
        own = format_address(self._host, self._network.free_port(self._host))
        near = MemoryLink(receive=back, send=there, ends=(self._host, host), remote=address, model=model)
        far = MemoryLink(receive=there, send=back, ends=(host, self._host), remote=own, model=model)
        self._network.listener(address).knock(far)
        return near


class MemoryListener:
    """One listening address; dials wait in a queue of BACKLOG, as behind a socket."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._knocks, self._accepts = trio.open_memory_channel[MemoryLink](BACKLOG)

    @property
    def address(self) -> str:
        return self._address

    def knock(self, link: "MemoryLink") -> None:
        try:
            self._knocks.send_nowait(link)
        except trio.WouldBlock:
            raise OSError(errno.ECONNREFUSED, f"{self._address} has {BACKLOG} dials waiting") from None

    async def accept(self) -> Link:
        return await self._accepts.receive()

    async def aclose(self) -> None:
        self._network.unbind(self._address)
        while True:  # whoever was not accepted sees the end, as a socket's backlog does
            try:
                link = self._accepts.receive_nowait()
            except (trio.WouldBlock, trio.ClosedResourceError):
                break
            await trio.aclose_forcefully(link)
        self._accepts.close()
        await trio.lowlevel.checkpoint()


class MemoryLink(Link):
    """One end of a connection: a pipe each way, and the link model that decides what becomes of frames."""

    def __init__(
        self, *, receive: "_Pipe", send: "_Pipe", ends: tuple[str, str], remote: str, model: LinkModel | None
    ) -> None:
        self._receive = receive
        self._send = send
        self._ends = ends  # (here, there)
        self._remote = remote
        self._model = model

    @property
    def remote(self) -> str:
        return self._remote

    def fates(self, size_bytes: int) -> Sequence[float] | None:
        if self._model is None:
            return None
        return self._model.fates(*self._ends, size_bytes, trio.current_time())

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._send.put(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._send.wait_for_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._receive.take(max_bytes)

    async def send_eof(self) -> None:
        await self._send.finish()

    async def aclose(self) -> None:
        self._send.close_writer()
        self._receive.close_reader()
        await trio.lowlevel.checkpoint()


class _Pipe:
    """One direction: at most PIPE_BYTES between a writer and a reader, each of them one task at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
        self._finished = False  # no more bytes will come
        self._writer_closed = False
        self._reader_closed = False
        self._writing = False
        self._reading = False

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        self._check_writer()
        self._writing = True
        try:
            await trio.lowlevel.checkpoint()
            view = memoryview(data)
            sent = 0
            while True:
                self._check_pipe()
                room = PIPE_BYTES - len(self._buffer)
                if room > 0 and sent < len(view):
                    self._buffer += view[sent : sent + room]
                    sent += min(room, len(view) - sent)
                    self._changed.unpark_all()
                if sent == len(view):
                    return
                await self._changed.park()
        finally:
            self._writing = False

    async def wait_for_room(self) -> None:
        self._check_writer()
        self._writing = True
        try:
            await trio.lowlevel.checkpoint()
            while len(self._buffer) >= PIPE_BYTES and not self._reader_closed and not self._writer_closed:
                await self._changed.park()
            if self._writer_closed:
                raise trio.ClosedResourceError("this end was closed")
        finally:
            self._writing = False

    async def finish(self) -> None:
        if self._writing:
            raise trio.BusyResourceError("another task is sending")
        if self._writer_closed:
            raise trio.ClosedResourceError("this end was closed")
        self._finished = True
        self._changed.unpark_all()
        await trio.lowlevel.checkpoint()

    async def take(self, size_max: int | None) -> bytes:
        if size_max is not None and operator.index(size_max) < 1:
            raise ValueError(f"max_bytes must be at least 1, got {size_max}")
        if self._reading:
            raise trio.BusyResourceError("another task is receiving")
        if self._reader_closed:
            raise trio.ClosedResourceError("this end was closed")
        self._reading = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._buffer and not self._finished and not self._reader_closed:
                await self._changed.park()
            if self._reader_closed:
                raise trio.ClosedResourceError("this end was closed")
            data = bytes(self._buffer[:size_max])
            del self._buffer[: len(data)]
            self._changed.unpark_all()
            return data
        finally:
            self._reading = False

    def close_writer(self) -> None:
        self._writer_closed = self._finished = True
        self._changed.unpark_all()

    def close_reader(self) -> None:
        self._reader_closed = True
        self._changed.unpark_all()

    def _check_writer(self) -> None:
        if self._writing:
            raise trio.BusyResourceError("another task is sending")
        if self._writer_closed or self._finished:
            raise trio.ClosedResourceError("this end was closed for sending")

    def _check_pipe(self) -> None:
        if self._writer_closed:
            raise trio.ClosedResourceError("this end was closed")
        if self._reader_closed:
            raise trio.BrokenResourceError("the other end was closed")
