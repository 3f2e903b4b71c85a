"""Links with a bandwidth: what leaves when, what overtakes, and what nodes hear of it."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Any

import pytest

from gossip.dht.ids import NodeId
from gossip.events import (
    Dial,
    Drop,
    Effect,
    Event,
    Join,
    PeerDown,
    PeerUp,
    Progress,
    Recall,
    Received,
    Send,
    Sent,
    Unsent,
    Woken,
)
from gossip.net.lanes import LIMITS, Lane
from gossip.net.pace import WRITE_BYTES_START, WRITE_S
from simulation.machines import Host
from simulation.scenario import parse
from simulation.seeds import Seeds
from simulation.uplinks import FLUSH_S, PROGRESS_S
from simulation.world import World

RATE = 10_000.0
DELAY_S = 0.25
# Header and length of a frame that fits one piece.
OVERHEAD = 10
# When all connections are open, whatever their handshakes took.
READY_S = 5.0


class Talker:
    """Connects to whom it is told of, and sends what a test orders, when it orders it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.deadline = inf
        self.heard: list[tuple[float, Event]] = []
        self.peers: list[NodeId] = []
        self.orders: list[Effect] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.heard.append((now, event))
        if isinstance(event, Join):
            return [Dial(address, None) for address in event.addresses]
        if isinstance(event, PeerUp):
            self.peers.append(event.peer)
        if isinstance(event, Woken):
            return self.orders
        return []

    def frames(self) -> list[tuple[float, bytes]]:
        return [(now, event.frame) for now, event in self.heard if isinstance(event, Received)]

    def dates(self, kind: type) -> list[float]:
        return [now for now, event in self.heard if isinstance(event, kind)]


class Idle:
    """A worker that nobody asks for anything."""

    def dump(self) -> bytes:
        return b""


class TalkingParts:
    run_id = bytes(32)

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Any:
        return Talker(host)

    def worker(self, host: Host) -> Any:
        return Idle()

    def train(self, inputs: Sequence[Any]) -> list[Any]:
        return list(inputs)


class Pair:
    """A world of a few talkers, of which the first sends to the others."""

    def __init__(self, nodes: int = 2) -> None:
        scenario = parse(
            {
                "nodes": nodes,
                "duration_s": 60.0,
                "start_s": 0.0,
                "join": "first",
                "network": {
                    "delay_s_mean": DELAY_S,
                    "jitter": "none",
                    "bandwidth_bytes_s": RATE,
                },
            },
            "uplinks",
        )
        self.world = World(scenario, Seeds(1), TalkingParts(), check=False)
        self.world.run(READY_S)
        self.first, *self.others = (self.talker(host) for host in self.world.hosts)
        self.second = self.others[0]
        assert all(other.host.id in self.first.peers for other in self.others)

    @staticmethod
    def talker(host: Host) -> Talker:
        assert isinstance(host.core, Talker)
        return host.core

    def order(self, after_s: float, *effects: Effect) -> None:
        """The first node orders these at READY_S + after_s."""

        def tell() -> None:
            self.first.orders = list(effects)
            self.world.deliver(self.first.host, Woken())

        self.world.agenda.call(READY_S + after_s, self.first.host, tell)

    def run(self, seconds: float = 30.0) -> None:
        self.world.run(READY_S + seconds)

    def since(self, dates: list[float]) -> list[float]:
        return [date - READY_S for date in dates]


def pieces(size: int) -> float:
    """Seconds for a large frame: its bytes, and the headers of its pieces, which are some."""
    return size / RATE * 1.01


def test_a_frame_arrives_when_its_last_byte_has_left_and_travelled() -> None:
    pair = Pair()
    pair.order(0.0, Send(pair.second.host.id, b"x" * 990))
    pair.run()
    [(date, frame)] = pair.second.frames()
    assert frame == b"x" * 990
    assert date - READY_S == pytest.approx(1000 / RATE + DELAY_S)


def test_control_overtakes_bulk_and_waits_for_one_piece_at_most() -> None:
    pair = Pair()
    there = pair.second.host.id
    model = bytes(100_000)
    pair.order(0.0, Send(there, model, Lane.BULK))
    for second in range(1, 9):
        pair.order(float(second), Send(there, b"%d" % second))
    pair.run()
    frames = pair.second.frames()
    assert [frame for _, frame in frames] == [*(b"%d" % second for second in range(1, 9)), model]
    waits = [date - READY_S - DELAY_S - second for second, (date, _) in enumerate(frames[:-1], 1)]
    assert max(waits) <= (WRITE_BYTES_START + OVERHEAD + 1) / RATE
    assert max(waits[2:]) <= 2 * WRITE_S, "pieces have the size that the rate allows, soon"
    assert pieces(100_000) > frames[-1][0] - READY_S - DELAY_S > 10.0


def test_a_node_hears_when_its_frame_has_left() -> None:
    pair = Pair()
    there = pair.second.host.id
    pair.order(0.0, Send(there, bytes(50_000), Lane.BULK, 1), Send(there, b"small", ticket=2))
    pair.run()
    sent = [(now - READY_S, event.ticket) for now, event in pair.first.heard if isinstance(event, Sent)]
    assert [ticket for _, ticket in sent] == [2, 1]
    assert sent[1][0] == pytest.approx(pieces(50_000), rel=0.02)


def test_both_ends_hear_once_a_second_that_something_large_moves() -> None:
    pair = Pair()
    pair.order(0.0, Send(pair.second.host.id, bytes(100_000), Lane.BULK))
    pair.run()
    for talker, delay in ((pair.first, 0.0), (pair.second, DELAY_S)):
        dates = pair.since(talker.dates(Progress))
        assert 7 <= len(dates) <= 10
        assert dates[-1] <= pieces(100_000) + delay
        assert all(later - date >= PROGRESS_S * 0.999 for date, later in pairwise(dates))


def test_connections_share_an_uplink() -> None:
    pair = Pair(3)
    sizes = {other.host.id: 50_000 for other in pair.others}
    pair.order(0.0, *(Send(peer, bytes(size), Lane.BULK) for peer, size in sizes.items()))
    pair.run()
    dates = [other.frames()[0][0] - READY_S - DELAY_S for other in pair.others]
    assert max(dates) == pytest.approx(pieces(100_000), rel=0.02)
    assert min(dates) > 0.85 * max(dates), "neither waits for the other one's frame"


def test_what_was_recalled_in_time_does_not_arrive_and_frees_the_uplink() -> None:
    pair = Pair()
    there = pair.second.host.id
    pair.order(0.0, *(Send(there, bytes(100_000), Lane.BULK, ticket) for ticket in (1, 2)))
    pair.order(3.0, Recall(there, 1), Recall(there, 2), Send(there, b"instead", Lane.BULK, 3))
    pair.order(6.0, Recall(there, 3))
    pair.run()
    assert [frame for _, frame in pair.second.frames()] == [b"instead"]
    answers = [event for _, event in pair.first.heard if isinstance(event, Sent | Unsent)]
    assert answers == [Unsent(there, 1), Unsent(there, 2), Sent(there, 3)]
    assert pair.second.frames()[0][0] - READY_S < 4.5


def test_a_full_lane_takes_nothing_more_and_the_node_is_told() -> None:
    pair = Pair()
    there = pair.second.host.id
    count = LIMITS[Lane.CONTROL].frames + 5
    pair.order(0.0, *(Send(there, b"%d" % n, ticket=n) for n in range(1, count + 1)))
    pair.run()
    lost = [event.ticket for _, event in pair.first.heard if isinstance(event, Unsent)]
    assert len(lost) == 4, "one has begun to leave"
    assert len(pair.second.frames()) == count - 4
    assert len(pair.first.dates(Sent)) == count - 4


def test_without_a_connection_nothing_is_sent_and_the_node_is_told() -> None:
    pair = Pair()
    nobody = NodeId(bytes(32))
    pair.order(0.0, Send(nobody, b"lost", ticket=1), Send(nobody, b"lost, and nobody asks"))
    pair.run()
    assert [event for _, event in pair.first.heard if isinstance(event, Sent | Unsent)] == [Unsent(nobody, 1)]


def test_what_is_small_leaves_before_a_connection_is_closed_and_what_takes_too_long_does_not() -> None:
    pair = Pair()
    there = pair.second.host.id
    pair.order(0.0, Send(there, bytes(100_000), Lane.BULK))
    pair.order(2.0, Send(there, b"goodbye"), Drop(there, "enough"))
    pair.run()
    assert [frame for _, frame in pair.second.frames()] == [b"goodbye"]
    [end] = pair.since(pair.second.dates(PeerDown))
    [(goodbye, _)] = pair.second.frames()
    assert goodbye - READY_S <= end
    assert goodbye - READY_S <= 2.0 + DELAY_S + FLUSH_S


def test_what_waits_when_a_connection_ends_is_lost() -> None:
    pair = Pair()
    there = pair.second.host.id
    pair.order(0.0, Send(there, bytes(100_000), Lane.BULK, 1))
    pair.world.agenda.call(READY_S + 2.0, pair.second.host, lambda: pair.world.leave(pair.second.host))
    pair.run()
    assert pair.second.frames() == []
    assert pair.first.dates(PeerDown)
    assert pair.first.dates(Sent) == []


def test_the_least_delay_of_a_world_is_still_the_least() -> None:
    """What a divided world rests on: nothing reaches another machine in less."""
    pair = Pair()
    pair.order(0.0, Send(pair.second.host.id, bytes(30_000), Lane.BULK, 1), Send(pair.second.host.id, b""))
    pair.run()
    arrivals = [*pair.since(pair.second.dates(Received)), *pair.since(pair.second.dates(Progress))]
    assert len(arrivals) > 3
    assert min(arrivals) >= pair.world.network.least_s() == DELAY_S
