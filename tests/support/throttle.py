"""A slow link in front of a real address: so many bits a second, so much delay, and hardly any buffer.

    proxy = await nursery.start(Throttle(target, bits_per_s=1e6, delay_s=0.1).run)     # -> where to dial

Each connection through it has a bottleneck of its own in each direction. What waits before a bottleneck is at most
QUEUE_BYTES, kernel buffers included: more would hide from the daemon under test that the link is full. What has passed
it is on a delay line, which holds whatever is in flight, as a long cable does; it loses nothing.
"""

import socket
from collections import deque

import trio

# Before the bottleneck: the receive buffer of the system, which doubles what it is asked for and fills up to about
# half, and what was read from it and has not passed.
QUEUE_BYTES = 8 * 1024
_RECEIVE_BUFFER = 4096
_READ_BYTES = 1024
# Segments of a real link: those of loopback are 64 KiB, and would come and go in bursts.
_SEGMENT_BYTES = 1400
# A target that does not read holds up the sender when so much is behind the delay line.
_BEHIND_BYTES = 65_536


class Throttle:
    """Args:
    target: host:port of the listener behind the link; may be set later, before the first dial.
    bits_per_s: Of each direction of each connection.
    delay_s: One way.
    """

    def __init__(self, target: str = "", *, bits_per_s: float, delay_s: float) -> None:
        self.target = target
        self.bits_per_s = bits_per_s
        self.delay_s = delay_s
        self.connections = 0  # ever
        self.carried = [0, 0]  # bytes through the bottlenecks: towards the target, and back

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept until cancelled. Reports the address to dial."""
        listener = trio.socket.socket()
        _shrink(listener)
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        task_status.started(f"127.0.0.1:{listener.getsockname()[1]}")
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    near, _ = await listener.accept()
                    self.connections += 1
                    nursery.start_soon(self._carry, near)

    async def _carry(self, near: trio.socket.SocketType) -> None:
        far = trio.socket.socket()
        _shrink(far)
        host, _, port = self.target.rpartition(":")
        with near, far:
            try:
                await far.connect((host, int(port)))
            except OSError:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._way, near, far, 0)
                nursery.start_soon(self._way, far, near, 1)

    async def _way(self, source: trio.socket.SocketType, target: trio.socket.SocketType, way: int) -> None:
        line = _DelayLine(self.delay_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.deliver, target)
            free_at = -1.0
            while True:
                await line.room()
                try:
                    data = await source.recv(_READ_BYTES)
                except OSError:
                    data = b""
                free_at = max(free_at, trio.current_time()) + len(data) * 8 / self.bits_per_s
                await trio.sleep_until(free_at)
                self.carried[way] += len(data)
                line.put(data)
                if not data:
                    return


class _DelayLine:
    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._flying: deque[tuple[float, bytes]] = deque()  # (date of arrival, what); b"": the end
        self._behind = 0  # bytes that have arrived and were not taken
        self._changed = trio.lowlevel.ParkingLot()

    def put(self, data: bytes) -> None:
        self._flying.append((trio.current_time() + self._delay_s, data))
        self._changed.unpark_all()

    async def room(self) -> None:
        while self._behind > _BEHIND_BYTES:
            await self._changed.park()

    async def deliver(self, target: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            arrived, take = trio.open_memory_channel[bytes](float("inf"))
            nursery.start_soon(self._hand_over, take, target)
            async with arrived:
                while True:
                    while not self._flying:
                        await self._changed.park()
                    date, data = self._flying.popleft()
                    await trio.sleep_until(date)
                    self._behind += len(data)
                    arrived.send_nowait(data)
                    if not data:
                        return

    async def _hand_over(
        self, take: trio.MemoryReceiveChannel[bytes], target: trio.socket.SocketType
    ) -> None:
        stream = trio.SocketStream(target)
        try:
            async for data in take:
                if data:
                    await stream.send_all(data)
                else:
                    target.shutdown(socket.SHUT_WR)
                self._behind -= len(data)
                self._changed.unpark_all()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._behind = 0  # nobody reads any more: what still comes is thrown away
            self._changed.unpark_all()
            async for _ in take:
                pass


def _shrink(end: trio.socket.SocketType) -> None:
    """Before listening or connecting: what is agreed on with the other end depends on it."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
