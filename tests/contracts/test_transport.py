"""The contract of Transport, for sockets and for memory alike."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from p2pnode.address import AddressError
from p2pnode.tcp import TcpTransport
from p2pnode.transport import Link, Transport
from simulation.memory import MemoryNetwork
from simulation.network import LinkModel, LinkSettings

Pair = tuple[Link, Link]


class Place:
    """A transport and an address on which it may listen."""

    def __init__(self, transport: Transport, address: str) -> None:
        self.transport = transport
        self.address = address

    async def pair(self) -> Pair:
        listener = await self.transport.listen(self.address)
        dialled: list[Link] = []

        async def dial() -> None:
            dialled.append(await self.transport.dial(listener.address))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            accepted = await listener.accept()
        await listener.aclose()
        return dialled[0], accepted


@pytest.fixture(params=["tcp", "memory", "memory, late and lossy"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "tcp":
        return Place(TcpTransport(), "127.0.0.1:0")
    link = None
    if request.param != "memory":
        link = LinkModel(
            LinkSettings(
                delay_s_mean=0.002,
                delay_s_min=0.001,
                loss=0.005,
                duplication=0.05,
                reorder=0.01,
                reorder_s_max=0.01,
            ),
            random.Random(1),
        )
    return Place(MemoryNetwork(link).host("10.0.0.1"), "10.0.0.1:0")


async def _clogged(make: Callable[[], Awaitable[Pair]]) -> Pair:
    """A pair of which neither end can send any more."""
    first, second = await make()
    for end in (first, second):
        with trio.move_on_after(0.05):
            await end.send_all(bytes(2**20))
    return first, second


async def _send_for_ever(link: Link) -> None:
    while True:
        await link.send_all(bytes(2**20))


async def test_links_keep_the_contract_of_trio_streams(place: Place) -> None:
    """Conflicts, closing, cancellation, end of file: trio's own suite."""
    if isinstance(place.transport, TcpTransport):
        # A socket cannot be clogged to the byte, so that part of the suite is for memory.
        await trio.testing.check_half_closeable_stream(place.pair, None)
    else:
        await trio.testing.check_half_closeable_stream(place.pair, lambda: _clogged(place.pair))


async def test_a_link_knows_both_ends_even_when_it_is_closed(place: Place) -> None:
    first, second = await place.pair()
    async with first, second:
        assert (first.local, first.remote) == (second.remote, second.local)
    assert (first.local, first.remote) == (second.remote, second.local)
    assert first.local != first.remote


async def test_bytes_arrive_in_order_and_sending_waits_for_the_reader(place: Place) -> None:
    data = bytes(range(256)) * 2**16  # 16 MiB: more than any buffer in between
    first, second = await place.pair()
    sent = trio.Event()

    async def send() -> None:
        await first.send_all(data)
        sent.set()
        await first.send_eof()

    async with first, second, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert not sent.is_set()
        received = bytearray()
        while piece := await second.receive_some(100_000):
            received += piece
        assert received == data


async def test_each_end_knows_the_other(place: Place) -> None:
    listener = await place.transport.listen(place.address)
    async with trio.open_nursery() as nursery:
        links: list[Link] = []

        async def dial() -> None:
            links.append(await place.transport.dial(listener.address))

        nursery.start_soon(dial)
        accepted = await listener.accept()
    assert links[0].remote == listener.address
    assert accepted.remote.rpartition(":")[0] == listener.address.rpartition(":")[0]
    assert accepted.remote != listener.address
    for link in (*links, accepted):
        await link.aclose()
    await listener.aclose()


async def test_closing_one_end_ends_the_other(place: Place) -> None:
    first, second = await place.pair()
    await first.aclose()
    assert await second.receive_some(10) == b""
    with pytest.raises(trio.BrokenResourceError):
        await _send_for_ever(second)
    await second.aclose()


async def test_a_cancelled_receive_loses_nothing(place: Place) -> None:
    first, second = await place.pair()
    async with first, second:
        with trio.move_on_after(0.01) as scope:
            await second.receive_some(10)
        assert scope.cancelled_caught
        await first.send_all(b"still here")
        assert await second.receive_some(10) == b"still here"


async def test_two_listeners_cannot_share_an_address(place: Place) -> None:
    listener = await place.transport.listen(place.address)
    with pytest.raises(OSError):
        await place.transport.listen(listener.address)
    await listener.aclose()
    again = await place.transport.listen(listener.address)  # free again once closed
    await again.aclose()


async def test_dialling_nobody_is_an_os_error(place: Place) -> None:
    listener = await place.transport.listen(place.address)
    await listener.aclose()
    with pytest.raises(OSError):
        await place.transport.dial(listener.address)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:-1", "host:65536", "::1:1", "a b:1", "[]:1"]
)
async def test_what_is_no_address_is_refused(place: Place, address: str) -> None:
    with pytest.raises(AddressError):
        await place.transport.dial(address)
    with pytest.raises(AddressError):
        await place.transport.listen(address)


@pytest.mark.parametrize("host", ["a..b", "..", "a" * 64 + ".example"])
async def test_a_name_that_no_resolver_takes_is_refused(place: Place, host: str) -> None:
    """Peers write such names into their records, and Python raises UnicodeError for them."""
    with pytest.raises((OSError, AddressError)):
        await place.transport.dial(f"{host}:7400")
    with pytest.raises((OSError, AddressError)):
        await place.transport.listen(f"{host}:7400")


async def test_whoever_waits_in_the_backlog_sees_the_listener_close(place: Place) -> None:
    listener = await place.transport.listen(place.address)
    link = await place.transport.dial(listener.address)
    await listener.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await _send_for_ever(link)
    await link.aclose()
