"""The slow link of the tests is as slow as it says, and no slower. Real sockets on loopback, real time."""

import pytest
import trio

from tests.support.throttle import QUEUE_BYTES, Throttle

RATE = 800_000.0  # bits a second: 100 KB
DELAY_S = 0.1


class Ends:
    """Both ends of one connection through a Throttle."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream, throttle: Throttle) -> None:
        self.near, self.far, self.throttle = near, far, throttle


async def joined(nursery: trio.Nursery) -> Ends:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    throttle = Throttle(f"127.0.0.1:{listener.socket.getsockname()[1]}", bits_per_s=RATE, delay_s=DELAY_S)
    address: str = await nursery.start(throttle.run)
    near = await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
    far = await listener.accept()
    await listener.aclose()
    return Ends(near, far, throttle)


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        assert part, "the connection ended early"
        data += part
    return bytes(data)


@pytest.mark.parametrize("forth", [True, False])
async def test_bytes_come_in_order_at_the_rate_and_after_the_delay(forth: bool) -> None:
    async with trio.open_nursery() as nursery:
        ends = await joined(nursery)
        source, target = (ends.near, ends.far) if forth else (ends.far, ends.near)
        sent = bytes(range(256)) * 400  # a second's worth
        began = trio.current_time()
        nursery.start_soon(source.send_all, sent)
        assert await exactly(target, 1) == sent[:1]
        first = trio.current_time() - began
        assert await exactly(target, len(sent) - 1) == sent[1:]
        whole = trio.current_time() - began
        assert first >= DELAY_S
        assert whole >= DELAY_S + len(sent) * 8 / RATE
        assert whole < 2.0 * (DELAY_S + len(sent) * 8 / RATE), "slower than it says"
        nursery.cancel_scope.cancel()


async def test_both_directions_are_full_at_once() -> None:
    async with trio.open_nursery() as nursery:
        ends = await joined(nursery)
        began = trio.current_time()
        async with trio.open_nursery() as both:
            for source, target in ((ends.near, ends.far), (ends.far, ends.near)):
                both.start_soon(source.send_all, bytes(100_000))
                both.start_soon(exactly, target, 100_000)
        took = trio.current_time() - began
        assert 1.1 <= took < 2.0
        assert ends.throttle.carried == [100_000, 100_000]
        nursery.cancel_scope.cancel()


async def test_little_waits_before_the_bottleneck_and_all_that_is_in_flight_is_held() -> None:
    """What a sender could hand over, less what has passed, is what waits: in its own buffer and before the bottleneck.

    Its own is set to the least there is, which the test measures by the kernel's count of bytes not taken by the other
    end.
    """
    import fcntl
    import struct
    import termios

    async with trio.open_nursery() as nursery:
        ends = await joined(nursery)
        handed = 0

        async def send() -> None:
            nonlocal handed
            while True:
                handed += await ends.near.socket.send(bytes(1000))

        nursery.start_soon(send)
        nursery.start_soon(exactly, ends.far, 10**9)
        before = []
        for _ in range(10):
            await trio.sleep(0.1)
            # SIOCOUTQ: bytes in the sender's kernel that the proxy's kernel has not acknowledged.
            queued = struct.unpack("i", fcntl.ioctl(ends.near.socket.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
            before.append(handed - queued - ends.throttle.carried[0])
        assert 0 < max(before) <= QUEUE_BYTES
        assert ends.throttle.carried[0] > 0.5 * RATE / 8
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_connection_passes_behind_what_was_sent() -> None:
    async with trio.open_nursery() as nursery:
        ends = await joined(nursery)
        await ends.near.send_all(b"goodbye")
        await ends.near.send_eof()
        assert await exactly(ends.far, 7) == b"goodbye"
        assert await ends.far.receive_some(1) == b""
        await ends.far.send_all(b"farewell")
        assert await exactly(ends.near, 8) == b"farewell"
        await ends.far.aclose()
        assert await ends.near.receive_some(1) == b""
        nursery.cancel_scope.cancel()
