"""One connection for each peer, whatever happens: whole `Peers` over memory, in virtual time."""

import gc
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest
import structlog
import trio
import trio.testing

from crypto.identity import Identity
from crypto.signing import network_id
from gossip.dht.ids import NodeId, node_id
from gossip.events import (
    Dial,
    DialFailed,
    Event,
    PeerDown,
    PeerUp,
    Progress,
    Recall,
    Received,
    Send,
    Sent,
    Unsent,
)
from gossip.net.lanes import Lane
from gossip.net.pace import WINDOW_S
from gossip.net.simultaneous_open import SETTLED_S
from p2pnode.door import Door, Limits
from p2pnode.metrics import Counters, Failure, Turned
from p2pnode.peers import FLUSH_S, Peers
from simulation.memory import PIPE_BYTES, REPEAT_S, MemoryNetwork
from simulation.network import LinkModel, LinkSettings

Clock: TypeAlias = trio.testing.MockClock

FLOOR = 2000.0

entropy = random.Random("peers").randbytes
# In the order of their ids: the first decides.
SMALL, LARGE, OTHER = sorted(
    (Identity.generate(entropy) for _ in range(3)), key=lambda identity: node_id(identity.public_key)
)


class Side:
    """`Peers` with an owner that writes down what it is told."""

    def __init__(
        self, network: MemoryNetwork, identity: Identity, host: str, limits: Limits | None = None
    ) -> None:
        self.id = node_id(identity.public_key)
        self.address = f"{host}:1"
        self.counters = Counters()
        self.events: list[Event] = []
        self.awake = trio.Event()  # while set, the owner handles events
        self.awake.set()
        self._post, self._inbox = trio.open_memory_channel[Event](4)
        self._transport = network.host(host)
        self.peers = Peers(
            identity=identity,
            network=network_id("main"),
            transport=self._transport,
            post=self._post.send,
            entropy=entropy,
            counters=self.counters,
            limits=limits,
            floor_bytes_s=FLOOR,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.peers.run)
            nursery.start_soon(self.peers.accept_from, await self._transport.listen(self.address))
            nursery.start_soon(self._own)
            task_status.started()

    async def _own(self) -> None:
        while True:
            event = await self._inbox.receive()
            await self.awake.wait()
            if isinstance(event, PeerUp):
                self.peers.told(event)
            self.events.append(event)

    def up(self) -> list[NodeId]:
        """Who is up, by the events; fails on a second PeerUp or PeerDown in a row."""
        alive: dict[NodeId, None] = {}
        for event in self.events:
            if isinstance(event, PeerUp):
                assert event.peer not in alive, "two PeerUp without a PeerDown in between"
                alive[event.peer] = None
            elif isinstance(event, PeerDown):
                del alive[event.peer]
        return list(alive)

    def frames(self) -> list[bytes]:
        return [event.frame for event in self.events if isinstance(event, Received)]

    def failed(self) -> list[DialFailed]:
        return [event for event in self.events if isinstance(event, DialFailed)]


@asynccontextmanager
async def running(*sides: Side) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for side in sides:
            await nursery.start(side.run)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(link: LinkModel | None = None) -> AsyncIterator[tuple[Side, Side]]:
    network = MemoryNetwork(link)
    small, large = Side(network, SMALL, "10.0.0.1"), Side(network, LARGE, "10.0.0.2")
    async with running(small, large):
        small.peers.dial(Dial(large.address, large.id))
        await trio.sleep(1)
        yield small, large


async def test_a_dial_becomes_one_connection_that_both_ends_report(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        [up] = small.events
        assert up == PeerUp(large.id, LARGE.public_key, large.address, False)
        [up] = large.events
        assert isinstance(up, PeerUp)
        assert (up.peer, up.key, up.inbound) == (small.id, SMALL.public_key, True)
        assert up.address.startswith("10.0.0.1:")


async def test_frames_go_both_ways_in_order(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        for number in range(20):
            small.peers.send(Send(large.id, b"s%d" % number))
            large.peers.send(Send(small.id, b"l%d" % number))
        await trio.sleep(1)
        assert large.frames() == [b"s%d" % number for number in range(20)]
        assert small.frames() == [b"l%d" % number for number in range(20)]


@pytest.mark.parametrize("seed", range(12))
async def test_simultaneous_dials_end_with_exactly_one_connection(seed: int, autojump_clock: Clock) -> None:
    """Both dial in the same moment, the network delays each dial as it likes; both ends keep the same connection."""
    link = LinkModel(LinkSettings(delay_s_mean=0.05, delay_s_min=0.001), random.Random(seed))
    network = MemoryNetwork(link)
    small, large = Side(network, SMALL, "10.0.0.1"), Side(network, LARGE, "10.0.0.2")
    async with running(small, large):
        small.peers.dial(Dial(large.address, large.id))
        large.peers.dial(Dial(small.address, small.id if seed % 2 else None))
        await trio.sleep(20)
        assert small.up() == [large.id]
        assert large.up() == [small.id]
        [mine], [theirs] = ([e for e in side.events if isinstance(e, PeerUp)] for side in (small, large))
        assert mine.inbound != theirs.inbound, "each end keeps another connection"
        # The dial that came to nothing is answered, after the PeerUp that makes its reason true.
        loser = small if mine.inbound else large
        assert [failure.reason for failure in loser.failed()] == ["already connected"]
        assert isinstance(loser.events[0], PeerUp)
        # And the one connection carries frames both ways.
        small.peers.send(Send(large.id, b"to the large"))
        large.peers.send(Send(small.id, b"to the small"))
        await trio.sleep(1)
        assert (small.frames(), large.frames()) == ([b"to the small"], [b"to the large"])


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_they_dial_both_ends_agree_in_the_end(seed: int, autojump_clock: Clock) -> None:
    """A minute of dials in both directions at random moments: never two at once, and the same one at the end."""
    rng = random.Random(seed)
    link = LinkModel(LinkSettings(delay_s_mean=0.2, delay_s_min=0.001), random.Random(seed))
    network = MemoryNetwork(link)
    small, large = Side(network, SMALL, "10.0.0.1"), Side(network, LARGE, "10.0.0.2")
    async with running(small, large):
        for _ in range(60):
            one, another = rng.sample((small, large), 2)
            one.peers.dial(Dial(another.address, None))
            await trio.sleep(rng.choice((0.0, 0.1, 1.0, 4.0)))
        await trio.sleep(30)
        assert small.up() == [large.id]
        assert large.up() == [small.id]
        small.peers.send(Send(large.id, b"1"))
        large.peers.send(Send(small.id, b"2"))
        await trio.sleep(1)
        assert (small.frames(), large.frames()) == ([b"2"], [b"1"])


@pytest.mark.parametrize("decider_survives", [True, False])
async def test_a_peer_that_comes_back_from_the_dead_replaces_its_old_connection(
    decider_survives: bool, autojump_clock: Clock
) -> None:
    """The old machine lost power: its connection is silent, nobody closed it. The new process dials."""
    network = MemoryNetwork()
    here, there = (SMALL, LARGE) if decider_survives else (LARGE, SMALL)
    survivor, before, after = (
        Side(network, here, "10.0.0.1"),
        Side(network, there, "10.0.0.2"),
        Side(network, there, "10.0.0.3"),
    )
    async with running(survivor, before, after):
        survivor.peers.dial(Dial(before.address, before.id))
        await trio.sleep(SETTLED_S + 1)
        after.peers.dial(Dial(survivor.address, survivor.id))
        await trio.sleep(1)
        kinds = [type(event) for event in survivor.events]
        assert kinds == [PeerUp, PeerDown, PeerUp]
        assert after.up() == [survivor.id]
        after.peers.send(Send(survivor.id, b"I am back"))
        await trio.sleep(1)
        assert survivor.frames() == [b"I am back"]


async def test_a_peer_that_reconnects_again_and_again_costs_no_memory(autojump_clock: Clock) -> None:
    """Each connection replaces the one before; what was replaced is free, and does not hang on its successor."""
    network = MemoryNetwork()
    survivor = Side(network, LARGE, "10.0.0.2")
    processes = [Side(network, SMALL, f"10.0.1.{number}") for number in range(30)]  # of one peer
    async with running(survivor, *processes):
        for process in processes:
            process.peers.dial(Dial(survivor.address, survivor.id))
            await trio.sleep(1)
        assert [type(event) for event in survivor.events] == [PeerUp, *[PeerDown, PeerUp] * 29]
        gc.collect()
        held = [one for one in gc.get_objects() if type(one).__name__ == "_Held"]
        assert len(held) == 2, "the survivor's end and the last process's"


async def test_dials_to_nobody_to_a_stranger_and_to_ourselves_are_answered(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        small.peers.dial(Dial("10.0.0.9:1", None))
        small.peers.dial(Dial("not an address", None))
        small.peers.dial(Dial(small.address, None))
        large.peers.dial(Dial(small.address, node_id(OTHER.public_key)))
        await trio.sleep(1)
        reasons = {failure.address: failure.reason for failure in small.failed()}
        assert "nobody listens" in reasons["10.0.0.9:1"]
        assert "expected host:port" in reasons["not an address"]
        assert "ourselves" in reasons[small.address]
        [failure] = large.failed()
        assert failure.peer == node_id(OTHER.public_key)
        assert "reached" in failure.reason
        assert (small.up(), large.up()) == ([large.id], [small.id])


async def test_an_address_is_dialled_once_at_a_time(autojump_clock: Clock) -> None:
    network = MemoryNetwork()
    small, large = Side(network, SMALL, "10.0.0.1"), Side(network, LARGE, "10.0.0.2")
    async with running(small, large):
        for _ in range(5):
            small.peers.dial(Dial(large.address, None))
        await trio.sleep(1)
        assert [type(event) for event in small.events] == [PeerUp]
        assert large.counters.connections == {"accepted": 1}


async def test_a_full_inbox_makes_the_sender_wait_and_a_full_lane_takes_no_more(
    autojump_clock: Clock,
) -> None:
    async with connected() as (small, large):
        large.awake = trio.Event()
        frames = [bytes([number]) * 50_000 for number in range(200)]
        for number, frame in enumerate(frames):
            small.peers.send(Send(large.id, frame, Lane.BULK, number + 1))
            await trio.sleep(0.001)
        lost = [event.ticket for event in small.events if isinstance(event, Unsent)]
        assert len(lost) == small.counters.frames_dropped > 0
        large.awake.set()
        await trio.sleep(1)
        assert large.frames() == [frame for number, frame in enumerate(frames) if number + 1 not in lost]
        sent = [event.ticket for event in small.events if isinstance(event, Sent)]
        assert sorted(sent + lost) == list(range(1, 201)), "each ticket is answered, and once"
        assert sent == sorted(sent)


async def test_control_overtakes_what_is_large(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        model = bytes(2**22)
        small.peers.send(Send(large.id, model, Lane.BULK))
        small.peers.send(Send(large.id, b"ping"))
        await trio.sleep(1)
        assert large.frames() == [b"ping", model]


async def test_what_cannot_be_sent_is_answered(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        small.peers.send(Send(node_id(OTHER.public_key), b"nobody", ticket=1))
        small.peers.drop(large.id, "done")
        small.peers.send(Send(large.id, b"too late", ticket=2))
        await trio.testing.wait_all_tasks_blocked()
        assert Unsent(node_id(OTHER.public_key), 1) in small.events
        assert Unsent(large.id, 2) in small.events


def slow(rate: float = 50_000.0) -> LinkModel:
    return LinkModel(LinkSettings(bandwidth_bytes_s=rate), random.Random(4))


async def test_a_frame_that_was_recalled_in_time_does_not_arrive(autojump_clock: Clock) -> None:
    """In the middle, before it began, and too late."""
    async with connected(slow()) as (small, large):
        for ticket in (1, 2):
            small.peers.send(Send(large.id, bytes([ticket]) * 2**20, Lane.BULK, ticket))
        await trio.sleep(5)
        for ticket in (1, 2):
            small.peers.recall(Recall(large.id, ticket))
        small.peers.send(Send(large.id, b"instead", Lane.BULK, 3))
        await trio.sleep(10)
        small.peers.recall(Recall(large.id, 3))
        await trio.sleep(10)
        assert large.frames() == [b"instead"]
        answers = [event for event in small.events if isinstance(event, Sent | Unsent)]
        assert sorted(answers, key=lambda answer: answer.ticket) == [
            Unsent(large.id, 1),
            Unsent(large.id, 2),
            Sent(large.id, 3),
        ]


async def test_both_ends_hear_once_a_second_that_something_large_moves(autojump_clock: Clock) -> None:
    async with connected(slow()) as (small, large):
        size = 10 * 50_000
        small.peers.send(Send(large.id, bytes(size), Lane.BULK, 1))
        await trio.sleep(5)
        for side, direction in ((small, "out"), (large, "in")):
            [transfer] = side.peers.transfers()
            assert transfer["direction"] == direction
            assert transfer["of"] == size
            assert 0.3 * size < transfer["bytes"] < 0.7 * size
            assert transfer["bytes_per_s"] == pytest.approx(50_000, rel=0.4)
        await trio.sleep(10)
        for side, peer in ((small, large.id), (large, small.id)):
            heard = side.events.count(Progress(peer))
            assert 7 <= heard <= 11
        assert small.events[-1] == Sent(large.id, 1)
        assert small.peers.transfers() == large.peers.transfers() == []


async def test_a_connection_below_the_floor_is_given_up_with_a_sentence(autojump_clock: Clock) -> None:
    async with connected(slow(0.5 * FLOOR)) as (small, large):
        small.peers.send(Send(large.id, bytes(2**20), Lane.BULK))
        await trio.sleep(2 * WINDOW_S + 2 * PIPE_BYTES / FLOOR)
        downs = [event for side in (small, large) for event in side.events if isinstance(event, PeerDown)]
        assert len(downs) == 2
        assert any(down.slow and f"less than {FLOOR:g} bytes a second" in down.reason for down in downs)


async def test_dropping_lets_what_was_sent_arrive_first(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        small.peers.send(Send(large.id, b"goodbye"))
        small.peers.drop(large.id, "we are done")
        small.peers.send(Send(large.id, b"too late"))
        await trio.sleep(FLUSH_S)
        assert large.frames() == [b"goodbye"]
        assert small.events[-1] == PeerDown(large.id, "we are done")
        assert isinstance(large.events[-1], PeerDown)
        assert small.up() == large.up() == []


async def test_dropping_does_not_wait_for_a_peer_that_does_not_read(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        large.awake = trio.Event()
        for _ in range(20):
            small.peers.send(Send(large.id, bytes(100_000), Lane.BULK))
        await trio.sleep(0.1)
        small.peers.drop(large.id, "too slow")
        await trio.sleep(FLUSH_S + 0.1)
        assert small.events[-1] == PeerDown(large.id, "too slow")


async def test_frames_meant_for_an_older_connection_do_not_reach_a_newer_one(autojump_clock: Clock) -> None:
    """The core must say hello first, so nothing may be sent before it has heard of the connection."""
    network = MemoryNetwork()
    small, large = Side(network, SMALL, "10.0.0.1"), Side(network, LARGE, "10.0.0.2")
    async with running(small, large):
        small.awake = trio.Event()
        small.peers.dial(Dial(large.address, None))
        await trio.sleep(1)
        small.peers.send(Send(large.id, b"for an older connection"))
        small.awake.set()
        await trio.sleep(1)
        small.peers.send(Send(large.id, b"hello"))
        await trio.sleep(1)
        assert large.frames() == [b"hello"]


async def test_junk_costs_one_connection_and_one_log_line(autojump_clock: Clock) -> None:
    network = MemoryNetwork()
    small, large = Side(network, SMALL, "10.0.0.1"), Side(network, LARGE, "10.0.0.2")
    stranger = network.host("10.0.0.66")
    async with running(small, large):
        large.peers.dial(Dial(small.address, None))
        await trio.sleep(1)
        with structlog.testing.capture_logs() as lines:
            for junk in (b"GET / HTTP/1.1\r\n\r\n", b"", (288).to_bytes(2, "big") + bytes(100)):
                link = await stranger.dial(small.address)
                await link.send_all(junk)
                assert await link.receive_some(1) == b"", "expected to be shown the door"
                await trio.testing.wait_all_tasks_blocked()
        assert [line["event"] for line in lines] == ["handshake_failed"] * 3
        assert small.counters.handshakes_failed == {Failure.CRYPTO: 1, Failure.SILENT: 1, Failure.SLOW: 1}
        large.peers.send(Send(small.id, b"and nobody else noticed"))
        await trio.sleep(1)
        assert small.frames() == [b"and nobody else noticed"]


async def test_silent_strangers_cannot_take_all_places(autojump_clock: Clock) -> None:
    network = MemoryNetwork()
    small, large = Side(network, SMALL, "10.0.0.1", Limits(unproven_max=3)), Side(network, LARGE, "10.0.0.2")
    stranger = network.host("10.0.0.66")
    async with running(small, large):
        for _ in range(5):
            await stranger.dial(small.address)
        await trio.sleep(0.1)
        assert small.counters.turned_away == {Turned.CROWDED: 2}
        await trio.sleep(3)  # the silent ones have lost their places
        large.peers.dial(Dial(small.address, None))
        await trio.sleep(1)
        assert small.up() == [large.id]
        assert small.peers.facts() == {"connected": 1, "inbound": 1, "unproven": 0, "dialling": 0}


async def test_a_network_that_loses_makes_frames_late_and_loses_none(autojump_clock: Clock) -> None:
    """As over TCP: what is lost is repeated, and what follows waits for it."""
    link = LinkModel(
        LinkSettings(delay_s_mean=0.05, delay_s_min=0.05, loss=0.3, duplication=0.3), random.Random(3)
    )
    async with connected(link) as (small, large):
        await trio.sleep(30)
        assert (small.up(), large.up()) == ([large.id], [small.id])
        arrivals = [(0.0, 0)]  # (date, how many are there)
        began = trio.current_time()
        frames = [b"%d" % number for number in range(200)]
        for frame in frames:
            small.peers.send(Send(large.id, frame))
            await trio.sleep(0.01)
            arrivals.append((trio.current_time() - began, len(large.frames())))
        await trio.sleep(30)
        assert large.frames() == frames
        assert max(number for date, number in arrivals if date < 0.049) == 0, (
            "nothing is sooner than the link"
        )
        longest = max(Counter(number for _, number in arrivals).values())
        assert longest * 0.01 > 0.9 * REPEAT_S, "what follows a lost piece waits for its repetition"


async def test_stopping_says_goodbye_to_all_and_takes_nobody_new(autojump_clock: Clock) -> None:
    async with connected() as (small, large):
        small.peers.send(Send(large.id, b"goodbye"))
        start = trio.current_time()
        await small.peers.stop()
        assert trio.current_time() - start <= FLUSH_S
        await trio.sleep(0.1)
        assert large.frames() == [b"goodbye"]
        assert small.up() == large.up() == []
        large.peers.dial(Dial(small.address, None))
        await trio.sleep(1)
        assert len(large.failed()) == 1
        assert small.counters.turned_away == {Turned.STOPPING: 1}


# --- the parts ---------------------------------------------------------------------------------------


def test_the_door_limits_hosts_and_networks_but_not_neighbours() -> None:
    door = Door(Limits())
    assert [door.enter(f"9.9.9.9:{port}", 0.0) for port in range(5)] == [None] * 4 + [Turned.ADDRESS]
    assert [door.enter(f"9.9.9.8:{port}", 0.0) for port in range(4)] == [None] * 4
    assert door.enter("9.9.9.7:1", 0.0) is Turned.ADDRESS  # nine from one /24
    assert door.enter("[2001:db9::1]:1", 0.0) is None
    for port in range(20):
        assert door.enter(f"127.0.0.1:{port}", 0.0) is None
    door.leave("9.9.9.9:0", proven=False)
    assert door.enter("9.9.9.9:7", 0.0) is None


def test_the_door_rations_handshakes_before_any_cryptography() -> None:
    door = Door(Limits())
    turned = []
    for number in range(10):
        turned.append(door.enter(f"9.9.9.9:{number}", 0.0))
        if turned[-1] is None:
            door.leave(f"9.9.9.9:{number}", proven=False)
    assert turned == [None] * 5 + [Turned.RATE] * 5
    assert door.enter("9.9.9.9:1", 0.1) is None  # 20 a second: two more after a tenth
    assert door.inside == 1


def test_the_door_is_crowded_at_its_limits_and_counts_the_proven_apart() -> None:
    door = Door(Limits(inbound_max=3, unproven_max=2))
    assert [door.enter(f"10.0.0.{n}:1", 0.0) for n in range(3)] == [None, None, Turned.CROWDED]
    door.prove()
    assert door.enter("10.0.0.3:1", 0.0) is None
    assert door.enter("10.0.0.4:1", 0.0) is Turned.CROWDED  # three inside
    door.leave("10.0.0.0:1", proven=True)
    door.leave("10.0.0.1:1", proven=False)
    assert (door.inside, door.unproven) == (1, 1)


async def test_dials_to_one_address_are_all_answered(autojump_clock: Clock) -> None:
    """A dial without an answer would be waited for for ever: the core never dials that peer again."""
    network = MemoryNetwork()
    small, large = Side(network, SMALL, "10.0.0.1"), Side(network, LARGE, "10.0.0.2")
    nobody = "10.0.0.9:1"
    stale = node_id(OTHER.public_key)
    async with running(small, large):
        for peer in (None, stale, large.id):
            small.peers.dial(Dial(nobody, peer))
        await trio.sleep(30)
        assert [failed.peer for failed in small.failed()] == [None, stale, large.id]
        for peer in (stale, large.id, None):
            small.peers.dial(Dial(large.address, peer))
        await trio.sleep(30)
        assert small.up() == [large.id]
        assert [failed.peer for failed in small.failed()[3:]] == [stale]
        assert small.peers.facts()["dialling"] == 0
