"""A network in memory for real daemons: bounded pipes, as late as a `LinkModel` makes them.

Under `trio.testing.MockClock` a handful of whole daemons run in virtual time, so that what the heap world cannot show
(framing, backpressure, cancellation, shutdown) is tested without sockets. A daemon cannot tell this transport from
TCP, so a lossy network does here what it does there: what is lost is repeated and comes later, and so does all that
was written behind it. What arrives is whole and in order.
"""

import errno
import math
import operator
from collections import deque

import trio

from p2pnode.address import format_address, parse_address
from p2pnode.transport import Link
from simulation.network import LinkModel

# Room in one direction, with what is on its way: what a socket of Linux holds by default, in order of magnitude. Small
# enough that tests with shards feel the backpressure.
PIPE_BYTES = 65_536
# What was lost is sent again after so long, then after twice that, and so on: Linux's smallest retransmission timeout.
REPEAT_S = 0.2
# ... and so often, 200 s in all, before nothing more arrives. Linux goes on for 15 minutes; nobody here waits for that.
REPEATS_MAX = 10
# Dials that wait to be accepted; the backlog of a socket.
BACKLOG = 128
# First port given to whoever does not care. From the range that IANA reserves for that.
EPHEMERAL_PORT = 49_152


class MemoryNetwork:
    """All hosts of one simulated network.

    Args:
        link: Says how long dials and bytes take between hosts, which it knows by name; None: no time.
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
        there, back = _Pipe(_Way(model, self._host, host)), _Pipe(_Way(model, host, self._host))
        own = format_address(self._host, self._network.free_port(self._host))
        near = MemoryLink(receive=back, send=there, local=own, remote=address)
        far = MemoryLink(receive=there, send=back, local=address, remote=own)
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
    """One end of a connection: a pipe each way."""

    def __init__(self, *, receive: "_Pipe", send: "_Pipe", local: str, remote: str) -> None:
        self._receive = receive
        self._send = send
        self._local = local
        self._remote = remote

    @property
    def remote(self) -> str:
        return self._remote

    @property
    def local(self) -> str:
        return self._local

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._send.put(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._send.wait_for_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._receive.take(max_bytes)

    async def send_eof(self) -> None:
        await self._send.finish()

    async def aclose(self) -> None:
        # One segment says both: that nothing more comes, and that nothing more is read.
        self._receive.close_reader(told_at=self._send.close_writer())
        await trio.lowlevel.checkpoint()


class _Way:
    """What TCP makes of one direction of a link that delays and loses: late, but whole and in order."""

    def __init__(self, model: LinkModel | None, source: str, target: str) -> None:
        self._model = model
        self._source = source
        self._target = target
        self._last = -math.inf  # when the last one arrives

    def arrival(self, size_bytes: int) -> float:
        """When what is sent now arrives; inf: never, nor does what follows."""
        date = trio.current_time()
        if self._model is not None:
            copies = self._model.fates(self._source, self._target, size_bytes, date)
            for repeat in range(REPEATS_MAX):
                if copies:
                    break
                date += REPEAT_S * 2**repeat
                copies = self._model.fates(self._source, self._target, size_bytes, date)
            date = date + min(copies) if copies else math.inf
        self._last = max(self._last, date)
        return self._last


class _Pipe:
    """One direction: at most PIPE_BYTES between a writer and a reader, each of them one task at a time.

    Args:
        way: Says when what is put in arrives.
    """

    def __init__(self, way: _Way) -> None:
        self._way = way
        self._travelling: deque[tuple[float, bytes]] = (
            deque()
        )  # (arrival, what), in both orders; b"": the end
        self._arrived = bytearray()
        self._size = 0  # bytes, arrived or not
        self._changed = trio.lowlevel.ParkingLot()
        self._ended = False  # the end has arrived: no more bytes will come
        self._finished = False  # ... or is on its way
        self._writer_closed = False
        self._reader_closed = False
        self._reader_told_at = math.inf  # when the writer learns of that
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
                room = PIPE_BYTES - self._size
                if room > 0 and sent < len(view):
                    piece = bytes(view[sent : sent + room])
                    self._travelling.append((self._way.arrival(len(piece)), piece))
                    self._size += len(piece)
                    sent += len(piece)
                    self._changed.unpark_all()
                if sent == len(view):
                    return
                await self._change(self._reader_told_at)
        finally:
            self._writing = False

    async def wait_for_room(self) -> None:
        self._check_writer()
        self._writing = True
        try:
            await trio.lowlevel.checkpoint()
            while self._size >= PIPE_BYTES and not self._reader_gone() and not self._writer_closed:
                await self._change(self._reader_told_at)
            if self._writer_closed:
                raise trio.ClosedResourceError("this end was closed")
        finally:
            self._writing = False

    async def finish(self) -> None:
        if self._writing:
            raise trio.BusyResourceError("another task is sending")
        if self._writer_closed:
            raise trio.ClosedResourceError("this end was closed")
        self._finish()
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
            self._arrive()
            while not self._arrived and not self._ended and not self._reader_closed:
                await self._change(self._travelling[0][0] if self._travelling else math.inf)
                self._arrive()
            if self._reader_closed:
                raise trio.ClosedResourceError("this end was closed")
            data = bytes(self._arrived[:size_max])
            del self._arrived[: len(data)]
            self._size -= len(data)
            self._changed.unpark_all()
            return data
        finally:
            self._reading = False

    def close_writer(self) -> float:
        """When the reader learns of it."""
        self._writer_closed = True
        self._finish()
        self._changed.unpark_all()
        return self._way.arrival(0)

    def close_reader(self, *, told_at: float) -> None:
        """`told_at`: when the writer learns of it."""
        self._reader_closed = True
        self._reader_told_at = min(self._reader_told_at, told_at)
        self._changed.unpark_all()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._travelling.append((self._way.arrival(0), b""))
            self._changed.unpark_all()

    def _arrive(self) -> None:
        now = trio.current_time()
        while self._travelling and self._travelling[0][0] <= now:
            _, piece = self._travelling.popleft()
            self._arrived += piece
            self._ended |= not piece

    async def _change(self, until: float) -> None:
        with trio.move_on_at(until):
            await self._changed.park()

    def _reader_gone(self) -> bool:
        return self._reader_told_at <= trio.current_time()

    def _check_writer(self) -> None:
        if self._writing:
            raise trio.BusyResourceError("another task is sending")
        if self._writer_closed or self._finished:
            raise trio.ClosedResourceError("this end was closed for sending")

    def _check_pipe(self) -> None:
        if self._writer_closed:
            raise trio.ClosedResourceError("this end was closed")
        if self._reader_gone():
            raise trio.BrokenResourceError("the other end was closed")
