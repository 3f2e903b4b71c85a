"""The world keeps the contract between a core and its driver, with cores of a few lines in the place of nodes.

A chatterer dials the address it is given, greets, pings everybody it knows once a second, trains, and counts its
starts on its disk.
"""

import random
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gossip.dht.ids import NodeId
from gossip.errors import LocalError
from gossip.events import (
    Compute,
    Dial,
    DialFailed,
    Done,
    Drop,
    Effect,
    Event,
    Job,
    JobResult,
    Join,
    Leave,
    Offer,
    Offered,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    Save,
    Saved,
    Send,
    Train,
    Trained,
    Woken,
)
from gossip.learning.saved import SavedModel
from simulation.machines import Host, address_of
from simulation.scenario import Scenario, parse
from simulation.seeds import Seeds
from simulation.varied import VariedLinks
from simulation.world import World

RUN = bytes(32)


class Chatterer:
    def __init__(self, host: Host, rng: random.Random, now: float) -> None:
        self.rng = rng
        self.starts = int.from_bytes(host.disk.get("starts", b""), "big")
        self.peers: dict[NodeId, bool] = {}
        self.deadline = now + rng.random()
        self.log: list[Event] = []
        self.ticket = 0
        self.known: tuple[str, ...] = ()

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.log.append(event)
        match event:
            case Join():
                self.starts += 1
                self.known = event.addresses
                return [
                    Persist((("starts", self.starts.to_bytes(4, "big")),)),
                    *(Dial(address, None) for address in event.addresses),
                ]
            case PeerUp():
                self.peers[event.peer] = event.inbound
                return [Send(event.peer, b"hello")]
            case PeerDown():
                self.peers.pop(event.peer, None)
                return [] if self.peers else [Dial(address, None) for address in self.known]
            case DialFailed():
                return [Dial(event.address, None)] if not self.peers else []
            case Woken():
                self.deadline = now + 1.0 + self.rng.random() * 0.1
                self.ticket += 2
                return [
                    *(Send(peer, b"ping %d" % self.ticket) for peer in self.peers),
                    Compute(self.ticket, Train(2), RUN),
                    Compute(self.ticket + 1, Offer(0, "f32"), RUN),
                    Compute(self.ticket + 2, Save(), RUN),
                ]
            case Received() | Done() | Leave():
                pass
        return []


class Counter:
    """A worker whose weights are the number of steps taken."""

    def __init__(self, saved: SavedModel | None) -> None:
        self.steps = 0 if saved is None else saved.steps

    def run(self, job: Job) -> JobResult:
        assert isinstance(job, Offer)
        return Offered(payload=b"%d" % self.steps, clip=inf)

    def train_input(self, steps: int) -> int:
        return steps

    def trained(self, output: int) -> Trained:
        self.steps += output
        return Trained(output, 0.5)

    def dump(self) -> SavedModel:
        return SavedModel(bytes(32), self.steps, (), {})


class FakeParts:
    run_id = bytes(32)

    def __init__(self, make: Callable[[Host, random.Random, float], Any] = Chatterer) -> None:
        self.make = make
        self.calls: list[int] = []

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Any:
        return self.make(host, seeds.random("node", host.index, host.life), now)

    def worker(self, host: Host) -> Counter:
        return Counter(host.saved)

    def train(self, inputs: Sequence[int]) -> list[int]:
        self.calls.append(len(inputs))
        return list(inputs)


def scenario(**tree: Any) -> Scenario:
    base: dict[str, Any] = {"nodes": 5, "duration_s": 20.0, "start_s": 1.0}
    return parse({**base, **tree}, "test.toml")


def world(seed: int = 1, parts: FakeParts | None = None, **tree: Any) -> World:
    return World(scenario(**tree), Seeds(seed), parts or FakeParts(), check=False)


@pytest.fixture
def ran() -> World:
    one = world()
    one.run(20.0)
    return one


def core(host: Host) -> Chatterer:
    assert isinstance(host.core, Chatterer)
    return host.core


def of_kind(host: Host, kind: type) -> list[Any]:
    return [event for event in core(host).log if type(event) is kind]


def test_everybody_starts_and_meets_whom_it_was_told_of(ran: World) -> None:
    assert len(ran.up()) == 5
    assert ran.hosts[0].id in core(ran.hosts[1]).peers, "these two were told of each other"
    for host in ran.hosts[2:]:
        assert core(host).peers == {ran.hosts[0].id: False}
        assert core(ran.hosts[0]).peers[host.id] is True, "inbound at the other end"


def test_connection_is_told_to_both_ends_before_any_frame_and_once(ran: World) -> None:
    first = ran.hosts[0]
    for host in ran.hosts[2:]:
        kinds = [type(event) for event in core(host).log if type(event) in (PeerUp, Received)]
        assert kinds[0] is PeerUp
        assert kinds.count(PeerUp) == 1
        (up,) = of_kind(host, PeerUp)
        assert (up.peer, up.key, up.address, up.inbound) == (first.id, first.key, first.address, False)
        assert of_kind(host, Received)[0] == Received(first.id, b"hello")


def test_messages_and_bytes_are_counted(ran: World) -> None:
    received = [event for host in ran.hosts for event in of_kind(host, Received)]
    assert 0 < len(received) <= ran.messages
    assert ran.bytes_sent >= sum(len(event.frame) for event in received)


def test_a_core_is_woken_at_its_deadline_and_not_between() -> None:
    dates: list[float] = []

    class Sleeper:
        def __init__(self, host: Host, rng: random.Random, now: float) -> None:
            self.deadline = now + 2.0

        def handle(self, event: Event, now: float) -> list[Effect]:
            if type(event) is Woken:
                dates.append(now)
                # Forth and back: the driver looks at the deadline after each event.
                self.deadline = {2.0: 3.5, 3.5: 10.0}.get(now, inf)
            return []

    one = world(parts=FakeParts(Sleeper), nodes=2, start_s=0.0)
    one.run(20.0)
    assert dates == [2.0, 2.0, 3.5, 3.5, 10.0, 10.0]


def test_a_deadline_that_moves_away_wakes_nobody_and_one_that_moves_nearer_does() -> None:
    dates: list[float] = []

    class Mover:
        def __init__(self, host: Host, rng: random.Random, now: float) -> None:
            self.deadline = 4.0
            self.index = host.index

        def handle(self, event: Event, now: float) -> list[Effect]:
            match event:
                case Join():
                    return [Compute(1, Train(1), RUN)]  # ends at 1.0
                case Done():
                    self.deadline = 2.0 if self.index == 0 else 7.0
                case Woken():
                    dates.append(now)
                    self.deadline = inf
            return []

    one = world(parts=FakeParts(Mover), nodes=2, start_s=0.0, compute={"train_s": 1.0, "spread_sigma": 0.0})
    one.run(20.0)
    assert dates == [2.0, 7.0]


def test_a_core_that_never_sleeps_is_a_bug_and_not_a_hang() -> None:
    class Sleepless:
        def __init__(self, host: Host, rng: random.Random, now: float) -> None:
            self.deadline = now

        def handle(self, event: Event, now: float) -> list[Effect]:
            return []

    with pytest.raises(LocalError, match="again and again"):
        world(parts=FakeParts(Sleepless)).run(1.0)


def test_effects_are_carried_out_in_order_and_results_follow_the_list() -> None:
    seen: list[object] = []

    class Orderly:
        deadline = inf

        def __init__(self, host: Host, rng: random.Random, now: float) -> None:
            self.host = host

        def handle(self, event: Event, now: float) -> list[Effect]:
            match event:
                case Join():
                    return [
                        Compute(1, Offer(0, "f32"), RUN),
                        Persist((("a", b"1"), ("b", b"2"))),
                        Persist((("a", b""),)),
                        Compute(2, Save(), RUN),
                    ]
                case Done():
                    seen.append((event.ticket, type(event.result), dict(self.host.disk)))
            return []

    world(parts=FakeParts(Orderly), nodes=2, start_s=0.0).run(0.0)
    assert seen == [(1, Offered, {"b": b"2"}), (2, Saved, {"b": b"2"})] * 2


def test_results_of_training_come_after_its_duration_and_jobs_run_together() -> None:
    parts = FakeParts()
    one = world(parts=parts, nodes=40, compute={"train_s": 0.9, "lanes": 16})
    one.run(20.0)
    trained = [event for host in one.hosts for event in of_kind(host, Done) if type(event.result) is Trained]
    assert len(trained) == pytest.approx(40 * 18, rel=0.1)
    assert max(parts.calls) == 16
    assert sum(parts.calls) / len(parts.calls) > 8, "lazily: many jobs in one call"
    for host in one.hosts:
        for event in of_kind(host, Done):
            if type(event.result) is Offered:
                steps = int(event.result.payload)
                before = 2 * sum(
                    type(e.result) is Trained for e in of_kind(host, Done)[: of_kind(host, Done).index(event)]
                )
                assert steps == before, "nothing of a job shows before it is due"


def test_work_on_exchanges_may_take_time() -> None:
    one = world(compute={"exchange_s": 0.25, "train_s": 0.1}, nodes=2)
    dates: list[tuple[float, type]] = []
    one._tap = lambda now, host, event: dates.append((now, type(event))) if host.index == 0 else None
    one.run(3.0)
    woken = [now for now, kind in dates if kind is Woken]
    done = [now for now, kind in dates if kind is Done]
    assert [pytest.approx(woken[0] + 0.25)] * 2 == [
        now for now in done if now < woken[0] + 0.3 and now > woken[0] + 0.2
    ]


def test_a_wrong_address_and_a_wrong_name_fail_to_connect() -> None:
    class Lost(Chatterer):
        deadline = inf

        def __init__(self, host: Host, rng: random.Random, now: float) -> None:
            self.log = []

        def handle(self, event: Event, now: float) -> list[Effect]:
            if type(event) is Join:
                return [
                    Dial("10.9.9.9:1", None),
                    Dial(address_of(1), NodeId(bytes(32))),
                    Dial(address_of(0), None),
                ]
            self.log.append(event)
            return []

    one = world(parts=FakeParts(Lost), nodes=2, start_s=0.0)
    one.run(10.0)
    failed = {event.address: event.reason for event in of_kind(one.hosts[0], DialFailed)}
    assert failed == {
        "10.9.9.9:1": "no answer",
        address_of(1): "another node answered",
        address_of(0): "the address is our own",
    }


def test_who_dials_whom_at_the_same_time_gets_one_connection() -> None:
    class Eager(Chatterer):
        def handle(self, event: Event, now: float) -> list[Effect]:
            self.log.append(event)
            other = {address_of(0): address_of(1), address_of(1): address_of(0)}
            return [Dial(other[self.own], None)] if type(event) is Join else []

        def __init__(self, host: Host, rng: random.Random, now: float) -> None:
            super().__init__(host, rng, now)
            self.own = host.address
            self.deadline = inf

    one = world(parts=FakeParts(Eager), nodes=2, start_s=0.0)
    one.run(5.0)
    for host in one.hosts:
        assert len(of_kind(host, PeerUp)) == 1
        assert len(host.links) == 1
    reasons = [e.reason for host in one.hosts for e in of_kind(host, DialFailed)]
    assert reasons in (["already connected"], ["connection refused"], [])


def test_dropping_closes_both_ends_behind_what_was_sent() -> None:
    class Curt(Chatterer):
        def handle(self, event: Event, now: float) -> list[Effect]:
            if type(event) is PeerUp and event.inbound:
                self.log.append(event)
                return [Send(event.peer, b"bye"), Drop(event.peer, "enough")]
            return super().handle(event, now)

    one = world(parts=FakeParts(Curt), nodes=3, start_s=0.0)
    one.run(5.0)
    first, _, third = one.hosts
    ends = [e for e in core(first).log if isinstance(e, PeerUp | PeerDown) and e.peer == third.id]
    assert [type(e) for e in ends[:2]] == [PeerUp, PeerDown]
    assert ends[1] == PeerDown(third.id, "enough")
    kinds = [type(e) for e in core(third).log if type(e) in (PeerUp, PeerDown, Received)]
    assert kinds[:3] == [PeerUp, Received, PeerDown]


def test_a_node_that_was_away_comes_back_from_its_disk() -> None:
    one = world(faults={"churn": 0.2, "crash": 0.4, "start_s": 5.0, "stop_s": 15.0, "away_s_mean": 2.0})
    one.run(14.99)
    one.run(20.0)
    assert len(one.up()) == 5
    assert one.faults["churn"] == 1
    assert one.faults["crash"] == 2
    starts = sorted(core(host).starts for host in one.hosts)
    assert starts == [1, 1, 2, 2, 2]
    for host in one.hosts:
        assert isinstance(host.worker, Counter)
        assert host.worker.steps >= 2 * 5, "weights go on from the snapshot"


def test_others_learn_that_a_node_has_gone() -> None:
    one = world(faults={"crash": 1.0, "start_s": 2.0, "stop_s": 3.0, "silence_s": 4.0, "away_s_mean": 0.5})
    one.run(20.0)
    downs = [event.reason for host in one.hosts for event in of_kind(host, PeerDown)]
    assert one.faults["crash"] == 5
    assert set(downs) <= {"timed out", "closed by the peer", "replaced by a newer connection"}
    for host in one.hosts:
        for peer in core(host).peers:
            (other,) = [h for h in one.hosts if h.id == peer]
            assert other.links[host.id].name == host.links[peer].name, (
                "nobody believes in a dead connection for ever"
            )


def test_a_leaving_node_hears_that_it_should_and_a_killed_one_does_not() -> None:
    heard: list[int] = []

    class Listening(Chatterer):
        def handle(self, event: Event, now: float) -> list[Effect]:
            if type(event) is Leave:
                heard.append(1)
            return super().handle(event, now)

    one = world(parts=FakeParts(Listening), faults={"churn": 0.4, "crash": 0.4, "stop_s": 15.0})
    one.run(20.0)
    assert len(heard) == 2
    assert one.faults["crash"] == 2


def test_a_killed_node_carries_out_a_prefix_of_its_effects() -> None:
    """Over many deaths every length of the prefix occurs, and never a later effect without the earlier."""
    lengths: dict[int, int] = {}

    class Writer:
        def __init__(self, host: Host, rng: random.Random, now: float) -> None:
            self.host = host
            self.deadline = now + 0.1
            if host.life > 1:
                lengths[len(host.disk)] = lengths.get(len(host.disk), 0) + 1
                assert sorted(host.disk) == ["a", "b", "c"][: len(host.disk)]
            host.disk.clear()

        def handle(self, event: Event, now: float) -> list[Effect]:
            if type(event) is not Woken:
                return []
            self.host.disk.clear()
            self.deadline = now + 0.1
            return [Persist(((key, b"1"),)) for key in ("a", "b", "c")]

    one = world(
        parts=FakeParts(Writer),
        nodes=60,
        faults={"crash": 1.0, "start_s": 2.0, "stop_s": 10.0, "away_s_mean": 0.5},
    )
    one.run(20.0)
    assert set(lengths) == {0, 1, 2, 3}


def test_cut_off_nodes_lose_their_connections_and_find_back() -> None:
    cut = {"share": 0.4, "start_s": 5.0, "end_s": 14.0}
    one = world(faults={"silence_s": 2.0, "partitions": [cut]}, join="first")
    one.run(13.0)
    assert one.faults["partition"] > 0
    connected = sum(len(host.links) for host in one.hosts)
    one.run(40.0)
    assert sum(len(host.links) for host in one.hosts) > connected


def test_every_fault_of_frames_is_counted_as_often_as_it_struck() -> None:
    one = world(network={"loss": 0.1, "duplication": 0.1, "reorder": 0.1, "spike": 0.1})
    one.run(20.0)
    received = sum(len(of_kind(host, Received)) for host in one.hosts)
    assert set(one.faults) == {"loss", "duplication", "reorder", "delay"}
    assert received == pytest.approx(one.messages - one.faults["loss"] + one.faults["duplication"], abs=30)


def test_the_digest_is_that_of_the_seed() -> None:
    faults = {"churn": 0.2, "crash": 0.2, "start_s": 5.0, "stop_s": 15.0}
    digests = []
    for seed in (1, 1, 2):
        one = world(seed, faults=faults, network={"loss": 0.05, "reorder": 0.05})
        one.run(20.0)
        digests.append(one.digest)
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_the_digest_sees_every_event_and_its_date() -> None:
    one, other = world(), world()
    one.run(10.0)
    other.run(10.0)
    assert one.digest == other.digest
    core(other.hosts[0]).deadline += 1e-9
    one.run(12.0)
    other.run(12.0)
    assert one.digest != other.digest


def test_addresses_are_all_different() -> None:
    addresses = [address_of(index) for index in range(2_000)]
    assert len(set(addresses)) == 2_000
    assert msgspec.json.encode(addresses[257]) == b'"10.1.1.1:7400"'


# --- machines that are not alike ---------------------------------------------------------------------


def test_stragglers_are_slower_by_what_the_scenario_says_and_the_others_stay_as_they_were() -> None:
    plain = world(nodes=40)
    slow = world(nodes=40, compute={"stragglers": 0.25, "slowdown": 7.0})
    ratios = [
        round(other.train_s / one.train_s, 6) for one, other in zip(plain.hosts, slow.hosts, strict=True)
    ]
    assert (ratios.count(7.0), ratios.count(1.0)) == (10, 30)


def test_who_is_away_at_the_beginning_comes_later_and_nobody_is_sent_to_him() -> None:
    settings = {"model": "sessions", "session_s_mean": 20.0, "absence_s_mean": 20.0}
    one = world(nodes=30, join="random", churn=settings, duration_s=60.0)
    late = dict(one._late)
    assert 5 < len(late) < 25
    told = [one._known(host)[0] for host in one.hosts[1:]]
    assert not {one.by_address[address].index for address in told} & late.keys()
    one.run(1.0)
    assert {host.index for host in one.up()} <= set(range(30)) - late.keys()
    one.run(60.0)
    assert one.faults["churn"] > 20


def test_a_newcomer_is_sent_to_somebody_who_can_be_dialled() -> None:
    one = world(nodes=30, join="random", nat={"symmetric": 0.6})
    assert isinstance(one.network, VariedLinks)
    assert one.network.nat is not None
    for host in one.hosts[1:]:
        assert one.network.nat.kind(one.by_address[one._known(host)[0]].index) == ""
    one.run(20.0)
    assert all(core(host).peers for host in one.hosts[1:]), "everybody found somebody"


def test_a_trace_of_sessions_starts_and_stops_nodes_at_its_dates(tmp_path: Path) -> None:
    path = tmp_path / "sessions.csv"
    path.write_text("node,up_s,down_s\n2,3,6\n2,10,\n3,0,4\n")
    one = world(churn={"model": "trace", "file": str(path)}, start_s=0.5)
    seen = {}
    for date in (1.0, 5.5, 8.0, 11.0):
        one.run(date)
        seen[date] = [host.index for host in one.up()]
    assert seen == {1.0: [0, 1, 3, 4], 5.5: [0, 1, 2, 4], 8.0: [0, 1, 4], 11.0: [0, 1, 2, 4]}
