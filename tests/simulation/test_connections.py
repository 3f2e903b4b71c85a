"""How machines of a world connect: two ends never disagree for longer than what is on the way takes."""

import random
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from gossip.events import Dial, DialFailed, Effect, Event, PeerDown, PeerUp
from gossip.net.simultaneous_open import DIAL_S, SETTLED_S
from simulation.machines import Host, address_of
from simulation.scenario import parse
from simulation.seeds import Seeds
from simulation.world import World

# Dates at which each of two machines dials the other.
Dates = tuple[list[float], list[float]]


class Dialler:
    """Dials the other one of two machines at its dates, whatever else happens."""

    def __init__(self, host: Host, dates: list[float]) -> None:
        self.other = address_of(1 - host.index)
        self.dates = dates
        self.log: list[Event] = []

    @property
    def deadline(self) -> float:
        return self.dates[0] if self.dates else inf

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.log.append(event)
        if self.dates and self.dates[0] <= now:
            del self.dates[0]
            return [Dial(self.other, None)]
        return []


class Parts:
    run_id = bytes(32)

    def __init__(self, dates: Dates) -> None:
        self.dates = dates

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Any:
        return Dialler(host, [date for date in self.dates[host.index] if date >= now])

    def worker(self, host: Host) -> Any:
        return None

    def train(self, inputs: Any) -> list[Any]:
        return []


def two(dates: Dates, *, seed: int = 1, **tree: Any) -> World:
    wan = {"preset": "wan", **tree.pop("network", {})}
    scenario = parse({"nodes": 2, "duration_s": 60.0, "start_s": 0.0, "network": wan, **tree}, "two.toml")
    return World(scenario, Seeds(seed), Parts(dates), check=False)


def kinds(host: Host, *wanted: type) -> list[type]:
    assert isinstance(host.core, Dialler)
    return [type(event) for event in host.core.log if type(event) in wanted]


def names(one: World) -> list[list[int]]:
    return [[link.name for link in host.links.values()] for host in one.hosts]


@pytest.mark.parametrize("apart_s", [0.0, 0.05, 0.1, 0.2, 0.4, 1.0])
def test_who_dial_each_other_get_one_connection_of_one_name(apart_s: float) -> None:
    for seed in range(60):
        for dates in (([1.0], [1.0 + apart_s]), ([1.0 + apart_s], [1.0])):
            one = two(dates, seed=seed)
            one.run(20.0)
            left, right = names(one)
            assert left == right
            assert len(left) == 1
            for host in one.hosts:
                assert kinds(host, PeerUp, PeerDown) == [PeerUp], "and were never told of another"


def test_every_dial_ends_in_a_connection_or_in_a_word() -> None:
    rng = random.Random(1)
    for seed in range(60):
        dates = tuple(sorted(rng.uniform(1.0, 20.0) for _ in range(rng.randrange(6))) for _ in range(2))
        one = two(dates, seed=seed, network={"loss": 0.3})  # type: ignore[arg-type]
        one.run(20.0 + 2 * DIAL_S + one.scenario.faults.silence_s)
        left, right = names(one)
        assert left == right, "the ends agree once nothing is on the way"
        for host, own in zip(one.hosts, dates, strict=True):
            assert host.dials == {}
            opened = sum(
                isinstance(event, PeerUp) and not event.inbound
                for event in host.core.log  # type: ignore[union-attr]
            )
            assert opened + len(kinds(host, DialFailed)) == len(own)


@pytest.mark.parametrize("silence_s", [0.3, 1.0, 10.0])
def test_whatever_is_dialled_killed_and_cut_both_ends_agree_in_the_end(silence_s: float) -> None:
    """With the smallest silence a third leg that was repeated is later than the word that all is over."""
    for seed in range(150):
        rng = random.Random(seed)
        dates = tuple(sorted(rng.uniform(1.0, 20.0) for _ in range(rng.randrange(6))) for _ in range(2))
        one = two(
            dates,  # type: ignore[arg-type]
            seed=seed,
            network={"loss": rng.choice([0.0, 0.1, 0.3]), "spike": rng.choice([0.0, 0.3])},
            faults={
                "silence_s": silence_s,
                "partitions": [{"share": 0.5, "start_s": 8.0, "end_s": 12.0}][: rng.randrange(2)],
            },
        )
        for _ in range(rng.randrange(4)):
            host, silent = rng.choice(one.hosts), rng.random() < 0.5
            one.run(one.now + rng.uniform(0.0, 6.0))
            one._stop(host, silent=silent)
            one.run(one.now + rng.uniform(0.0, 3.0))
            one.boot(host)
        one.run(40.0 + 2 * (DIAL_S + silence_s))
        left, right = names(one)
        assert left == right, f"seed {seed}"
        for host in one.hosts:
            told = kinds(host, PeerUp, PeerDown)
            assert told == [PeerUp, PeerDown] * (len(told) // 2) + [PeerUp] * len(host.links)
            assert host.dials == {}


def silently_killed(back_s: float, dial_s: float, *, dies: Callable[[World], Host]) -> tuple[World, Host]:
    """Two connected machines; one loses power at 10 s, is back after `back_s` and dials after `dial_s` more."""
    one = two(([1.0], [1.0]), faults={"silence_s": 50.0})
    one.run(10.0)
    host = dies(one)
    dates = one._parts.dates  # type: ignore[attr-defined]
    dates[host.index][:] = [10.0 + back_s + dial_s]
    one._stop(host, silent=True)
    one.run(10.0 + back_s)
    one.boot(host)
    return one, host


def smaller(one: World) -> Host:
    return min(one.hosts, key=lambda host: host.id)


def larger(one: World) -> Host:
    return max(one.hosts, key=lambda host: host.id)


def test_who_lost_power_is_let_in_again_when_the_old_connection_has_settled() -> None:
    one, host = silently_killed(1.0, SETTLED_S, dies=larger)
    one.run(10.0 + 1.0 + SETTLED_S + 1.0)
    left, right = names(one)
    assert left == right != []
    (other,) = (peer for peer in one.hosts if peer is not host)
    assert kinds(other, PeerUp, PeerDown) == [PeerUp, PeerDown, PeerUp]


def test_a_young_connection_may_be_one_that_both_dialled_and_is_kept_by_who_decides() -> None:
    one, host = silently_killed(1.0, 1.0, dies=larger)
    one.run(13.0)
    assert kinds(host, PeerUp, DialFailed) == [DialFailed]
    (other,) = (peer for peer in one.hosts if peer is not host)
    assert kinds(other, PeerUp, PeerDown) == [PeerUp]


def test_who_decides_is_let_in_again_at_once() -> None:
    one, host = silently_killed(1.0, 1.0, dies=smaller)
    one.run(13.0)
    assert kinds(host, PeerUp, DialFailed) == [PeerUp]
    left, right = names(one)
    assert left == right != []


@pytest.mark.parametrize("index", [0, 1])
def test_who_loses_power_while_the_third_leg_is_on_its_way_leaves_no_connection_behind(index: int) -> None:
    """The silence may be over before a leg that is late: it begins when the connection does."""
    one = two(
        ([1.0], []),
        network={"delay_s_mean": 2.0, "delay_s_min": 2.0, "jitter": "none"},
        faults={"silence_s": 0.5},
    )
    one.run(1.0)
    while not any(dial.rising for dial in one.hosts[0].dials.values()):
        one.run(one.now + 0.1)
    one._stop(one.hosts[index], silent=True)
    one.run(30.0)
    assert names(one) == [[], []]


def test_whoever_was_let_in_by_an_answer_that_was_lost_does_not_stand_in_the_way() -> None:
    """The one that decides gives its own dial up for theirs only where theirs may still come."""
    cut = {"share": 0.5, "start_s": 1.01, "end_s": 1.2}
    for seed in range(40):
        one = two(([], []), seed=seed, faults={"partitions": [cut]})
        decides = smaller(one)
        one._parts.dates[decides.index][:] = [1.2]  # type: ignore[attr-defined]
        one._parts.dates[1 - decides.index][:] = [1.0]  # type: ignore[attr-defined]
        one.run(4.0)
        left, right = names(one)
        assert left == right != []


def test_a_dial_of_an_earlier_life_opens_nothing() -> None:
    one = two(([1.0], []), network={"delay_s_mean": 0.5, "jitter": "none"})
    one.run(2.1)  # answered, and the third leg is on its way
    first, second = one.hosts
    assert [dial.rising for dial in first.dials.values()] == [True]
    one._stop(second)
    one.boot(second)
    one.run(10.0)
    assert names(one) == [[], []]
    assert kinds(second, PeerUp) == []
