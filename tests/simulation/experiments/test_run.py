"""Real nodes in the world: what was promised of whole runs, at the smallest sizes that show it."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from gossip import wire
from gossip.events import Event, Exchanged, Send
from gossip.learning.learner import Learner
from gossip.node import Node
from gossip.persisted import AGES_KEY
from simulation.checkers import ViolationError, consensus_distance, sum_drift
from simulation.experiments.run import RealParts, run
from simulation.machines import Host
from simulation.network import LinkModel
from simulation.scenario import Scenario, parse
from simulation.seeds import Seeds
from simulation.world import World

SMALL: dict[str, Any] = {
    "nodes": 8,
    "duration_s": 14.0,
    "start_s": 1.0,
    "task": {"name": "digits", "args": {"model": "logistic", "alpha": 1.0}},
    "network": {"preset": "wan", "loss": 0.02, "duplication": 0.05, "reorder": 0.05, "spike": 0.02},
    "compute": {"lanes": 4},
    "faults": {
        "churn": 0.15,
        "crash": 0.25,
        "away_s_mean": 1.0,
        "start_s": 5.0,
        "stop_s": 10.0,
        "silence_s": 1.0,
        "partitions": [{"share": 0.5, "start_s": 6.0, "end_s": 7.0}],
    },
    "config": {"learning": {"round_interval_s": 0.4, "save_interval_s": 2.0}},
}


def scenario(**tree: Any) -> Scenario:
    return parse({**SMALL, **tree}, "small.toml")


@pytest.fixture(scope="module")
def report() -> Any:
    return run(scenario(), 7)


def test_a_run_tells_what_happened(report: Any) -> None:
    assert report.nodes == 8
    assert report.virtual_s == 14.0
    assert report.node_updates > 8 * 10
    assert report.exchanges > 8 * 5
    assert report.bytes_sent > report.messages > report.exchanges
    assert 0 < report.accuracy.worst <= report.accuracy.mean <= 1
    assert 0.5 < report.accuracy.central <= 1
    assert report.consensus > 0
    assert report.settled.virtual_s == 7.0
    assert 0 < report.settled.node_updates < report.node_updates


def test_every_kind_of_fault_struck_and_was_counted(report: Any) -> None:
    assert set(report.faults) == {
        "loss",
        "delay",
        "duplication",
        "reorder",
        "churn",
        "crash",
        "partition",
    }
    assert report.faults["churn"] == 1
    assert report.faults["crash"] == 2
    assert all(count > 0 for count in report.faults.values())


def digest_in_a_process(seed: int, hash_seed: str) -> str:
    code = (
        "import sys, json; from simulation.experiments.run import run; from simulation.scenario import parse;"
        f"print(run(parse(json.loads(sys.argv[1]), 'small.toml'), {seed}, central=False).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(SMALL)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_digest_is_the_same_in_every_process_and_another_for_another_seed(report: Any) -> None:
    assert digest_in_a_process(7, "1") == report.digest
    assert digest_in_a_process(7, "2") == report.digest
    assert run(scenario(), 8, central=False).digest != report.digest


# --- mixing, with training switched off (docs/learning.md) --------------------------


class Memoryless(random.Random):
    """Makes the pauses between rounds exponential: then whoever begins next is uniformly random, as in the formulas.

    With regular rounds every node begins once a round, and mixing is a fifth faster (the sequential schedule of
    Jelasity, Montresor and Babaoglu 2005, instead of the random one).
    """

    def uniform(self, a: float, b: float) -> float:
        return self.expovariate(1.0) if (a, b) == (0.9, 1.1) else super().uniform(a, b)


class FrozenParts(RealParts):
    """Nodes that have a model already, each another one, and never train."""

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Node:
        node = super().core(host, seeds=seeds, now=now)
        node.context.rng = Memoryless(seeds.integer("rounds", host.index))
        return node

    def worker(self, host: Host) -> Learner:
        learner = super().worker(host)
        if host.saved is None:
            rng = np.random.default_rng(host.index)
            learner._x += rng.standard_normal(learner.weights().size).astype(np.float32)
            host.saved = learner.dump()
            host.disk[AGES_KEY] = msgspec.msgpack.encode([1] * len(self.run_info.shard_sizes))
        return learner


class Frozen:
    """A world without training, and what its nodes applied since `begin`."""

    def __init__(self, *, nodes: int, seed: int = 1, interval_s: float = 1.0) -> None:
        settings = scenario(
            nodes=nodes,
            network={"preset": "lan"},
            faults={},
            config={
                "exchange": {"codec": "f32", "timeout_s": 3.0},
                "dht": {"request_timeout_s": 0.5},
                "membership": {"walk_interval_s": 32.0},
                "learning": {"local_steps": 0, "round_interval_s": interval_s, "save_interval_s": 1e9},
            },
        )
        seeds = Seeds(seed)
        self.nodes = nodes
        self.world = World(settings, seeds, FrozenParts(settings, seeds))
        self.whole = 0
        self.responded = 0
        self.pairs: dict[tuple[int, int], int] = {}
        told = self.world._hear
        index = {host.id: host.index for host in self.world.hosts}

        def hear(host: Host, news: Any) -> None:
            if type(news) is Exchanged:
                self.responded += news.role == "responder"
                if news.role == "initiator":
                    self.whole += 1
                    pair = (host.index, index[news.peer])
                    self.pairs[pair] = self.pairs.get(pair, 0) + 1
            told(host, news)

        self.world._hear = hear  # type: ignore[method-assign]

    def models(self) -> list[Any]:
        return [host.worker.weights() for host in self.world.hosts]  # type: ignore[union-attr]

    def lose(self, loss: float) -> None:
        """From now on each frame is lost with this probability."""
        settings = msgspec.structs.replace(self.world.network.settings, loss=loss)
        self.world.network = LinkModel(settings, random.Random(1))

    def settle(self, until: float) -> None:
        """Lets everybody find everybody; the formulas hold for any models that are left then."""
        self.world.run(until)
        for host in self.world.hosts:
            assert host.core.snapshot(until).learning.pool == self.nodes - 1  # type: ignore[union-attr]
        self.whole = self.responded = 0
        self.pairs.clear()


@pytest.fixture
def frozen() -> Iterator[list[World]]:
    worlds: list[World] = []
    yield worlds
    for world in worlds:
        world.close()


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_the_distance_falls_by_the_factor_of_the_theory(frozen: list[World], loss: float) -> None:
    """E V'/V = 1 - 1/(n-1) for a whole exchange, 1 - (n+1)/(2n(n-1)) for the half that a lost reply leaves."""
    logs, expected, whole, half = 0.0, 0.0, 0, 0
    for seed in range(1, 6):
        # Rounds far apart: the formulas are for exchanges that do not overlap, and an offer repeated after a loss tells
        # of a model that is old by then.
        one = Frozen(nodes=24, seed=seed, interval_s=10.0)
        frozen.append(one.world)
        one.settle(30.0)
        one.lose(loss)
        before = consensus_distance(one.models())
        one.world.run(110.0)
        halves = one.responded - one.whole
        n = one.nodes
        logs += 2 * math.log(consensus_distance(one.models()) / before)
        expected += one.whole * math.log(1 - 1 / (n - 1)) + halves * math.log(1 - (n + 1) / (2 * n * (n - 1)))
        whole, half = whole + one.whole, half + halves
    assert whole > 5 * 24 * 5
    # 0.25 where nobody repeats; one repetition, answered from memory, leaves about half of that.
    assert half / whole < 0.16
    assert (half > 0) is (loss > 0)
    assert logs == pytest.approx(expected, rel=0.1)


def test_the_sum_is_conserved_while_no_reply_is_lost(frozen: list[World]) -> None:
    one = Frozen(nodes=12)
    frozen.append(one.world)
    one.world.run(3.0)
    before = np.sum(np.asarray(one.models(), dtype=np.float64), axis=0)
    one.world.run(23.0)
    assert one.whole > 12 * 10
    assert sum_drift(before, one.models()) < 1e-5


def test_partners_are_drawn_uniformly(frozen: list[World]) -> None:
    """Pearson's chi-square over all pairs: n (n - 2) degrees of freedom, normal for so many."""
    one = Frozen(nodes=16)
    frozen.append(one.world)
    one.settle(20.0)
    one.world.run(220.0)
    n, chi = one.nodes, 0.0
    for initiator in range(n):
        counts = [one.pairs.get((initiator, peer), 0) for peer in range(n) if peer != initiator]
        fair = sum(counts) / (n - 1)
        assert fair > 8
        chi += sum((count - fair) ** 2 / fair for count in counts)
    freedom = n * (n - 2)
    assert abs(chi - freedom) / math.sqrt(2 * freedom) < 3.5


# --- planted bugs -----------------------------------------------------------------------------------


def test_a_disk_that_goes_back_is_caught_as_numbers_signed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not an empty one: a node with a model and no numbers skips those it may have used.
    first = (1).to_bytes(8, "big")
    monkeypatch.setattr(World, "_persist", lambda self, host, order: host.disk.update(sequence=first))
    with pytest.raises(
        ViolationError, match=r"two headers with sequence number .* replay with: p2psim run x"
    ):
        run(scenario(), 7, replay="p2psim run x", central=False)


def test_a_node_that_forgets_what_it_answered_is_caught_as_applying_twice() -> None:
    class Forgetful(dict[bytes, Any]):
        def __setitem__(self, key: bytes, value: Any) -> None:
            pass

    class ForgetfulParts(RealParts):
        def core(self, host: Host, *, seeds: Seeds, now: float) -> Any:
            node = super().core(host, seeds=seeds, now=now)
            node.protocol("exchange").exchanges.replies._replies = Forgetful()
            node.protocol("exchange").exchanges._marks = Forgetful()
            return node

    settings = scenario(network={"preset": "wan", "duplication": 0.5}, faults={})
    seeds = Seeds(1)
    world = World(settings, seeds, ForgetfulParts(settings, seeds))
    try:
        with pytest.raises(ViolationError, match="applied before"):
            world.run(14.0)
    finally:
        world.close()


def test_junk_and_replays_on_a_connection_change_nothing_but_counters() -> None:
    settings = scenario(faults={}, network={"preset": "lan"})
    seeds = Seeds(3)
    offers: list[tuple[Host, Host, bytes]] = []
    world = World(settings, seeds, RealParts(settings, seeds))
    send = world._send

    def listen(host: Host, order: Send) -> Event | None:
        if order.frame[3:9] == b"\xa5offer" and order.peer in host.links:
            offers.append((host, host.links[order.peer].peer, order.frame))
        return send(host, order)

    world._send = listen  # type: ignore[method-assign]
    try:
        world.run(6.0)
        before = dict(world.refused)
        source, target, frame = next(offer for offer in reversed(offers) if offer[1].id in offer[0].links)
        offer = wire.decode(frame)
        assert isinstance(offer, wire.OfferMessage)
        header = wire.decode_offer_header(offer.header)
        other_nonce = wire.encode_header(msgspec.structs.replace(header, nonce=bytes(8)))
        stranger = next(host for host in world.hosts if host is not source and target.id in host.links)
        world.inject(source, target, frame)  # answered from memory
        world.inject(source, target, wire.encode(msgspec.structs.replace(offer, header=other_nonce)))
        world.inject(stranger, target, frame)
        world.run(6.5)
        world.inject(source, target, b"GET / HTTP/1.1\r\n\r\n")  # ends the connection
        world.run(7.0)
        for reason in ("bad_signature", "misaddressed", "malformed"):
            assert world.refused.get(reason, 0) == before.get(reason, 0) + 1, (world.refused, before)
        assert len(world.up()) == 8
    finally:
        world.close()
