"""The swarm: seeds repeat, every fault strikes somewhere, planted faults are seen, and a failing seed shrinks."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from gossip import persisted
from gossip.config import DhtConfig, MembershipConfig
from gossip.dht import routing
from gossip.dht.ids import node_id
from gossip.events import Job, JobResult, Rescued
from gossip.learning.learner import Learner
from gossip.learning.strategies import shard_pair
from gossip.run import exchange
from simulation.checkers import ViolationError
from simulation.cli import main
from simulation.seeds import Seeds
from simulation.swarm.draw import HOSTILE_KINDS, KINDS, draw
from simulation.swarm.run import SwarmSettings, run_seed
from simulation.swarm.shrink import smallest
from simulation.swarm.sybil import identity_near
from simulation.swarm.synthetic import SyntheticParts
from simulation.swarm.world import SwarmWorld

# Machines that are busy with other things, too.
pytestmark = pytest.mark.timeout(1200)

# Small ones: a run of them takes half a minute of a processor, and all kinds of faults strike in it.
SEEDS = "0:50"
NODES_MAX = 6


# At the pace of a daemon's own settings; together with the above, more than a thousand hours of nodes.
SEEDS_OF_HOURS = "50:69"


def swarm_in_a_process(seeds: str, hash_seed: str, *more: str) -> subprocess.Popen[str]:
    words = ["swarm", "--seeds", seeds, "--nodes-max", str(NODES_MAX), "--json", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "simulation", *words],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def totals() -> Any:
    """Fifty seeds, in two processes at once with different hash seeds: (first, second)."""
    runs = [swarm_in_a_process(SEEDS, hash_seed) for hash_seed in ("1", "2")]
    try:
        answers = [run.communicate() for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], answers[0][1][-2000:]
    return [json.loads(out) for out, _ in answers]


def test_fifty_seeds_repeat_in_another_process(totals: Any) -> None:
    first, second = totals
    assert len(first["digests"]) == 50
    assert len(set(first["digests"].values())) == 50
    assert first["digests"] == second["digests"]


def test_every_kind_of_fault_struck(totals: Any) -> None:
    assert totals[0]["unseen"] == [], "these kinds struck nobody"
    assert set(KINDS) <= set(totals[0]["faults"])
    assert len(KINDS) >= 20


def test_a_thousand_hours_of_nodes(totals: Any) -> None:
    """Most of them at the pace of real daemons, and said so. Crowds of villains are in the seeds above: they cost as
    much as honest nodes, and their hours do not count."""
    words = ["--pace", "hours", "--jobs", "2", "--without", "sybil", "--without", "eclipse"]
    run = swarm_in_a_process(SEEDS_OF_HOURS, "3", *words)
    try:
        out, err = run.communicate()
    finally:
        run.kill()
    assert run.returncode == 0, err[-2000:]
    more = json.loads(out)
    assert list(more["node_hours_by_pace"]) == ["hours"]
    assert set(totals[0]["node_hours_by_pace"]) == {"hours", "seconds"}
    assert sum(totals[0]["node_hours_by_pace"].values()) == pytest.approx(totals[0]["node_hours"])
    assert totals[0]["node_hours"] + more["node_hours"] >= 1000


def test_what_villains_sent_was_refused_for_what_it_is(totals: Any) -> None:
    assert {
        "bad_signature",
        "equivocation",
        "malformed",
        "misaddressed",
        "not_finite",
        "other_run",
        "oversized",
        "rate_limited",
        "replayed",
    } <= set(totals[0]["refused"])


def test_a_seed_decides_and_kinds_are_switched_off_one_by_one() -> None:
    seed = next(seed for seed in range(100) if len(draw(seed).kinds) > 5)
    whole = draw(seed)
    assert whole == draw(seed)
    less = draw(seed, without=[whole.kinds[0]])
    assert less.kinds == whole.kinds[1:]
    assert less.nodes == whole.nodes
    assert less.scenario.config == whole.scenario.config
    assert draw(seed, nodes=4).nodes == 4
    assert all(3 <= draw(seed, nodes_max=7).nodes <= 7 for seed in range(50))
    assert draw(seed, shorten=0.5).safety_s == whole.safety_s / 2


def test_who_trained_alone_and_is_refused_by_all_is_drawn_in() -> None:
    report = run_seed(SwarmSettings(seed=864, nodes_max=NODES_MAX))
    assert report.refused["too_distant"] > 0
    assert report.rescued_halves > 0


# --- planted faults: each is found within a few seeds -------------------------------------------------


def found(planted: str, seeds: range = range(40)) -> str:
    """The message of the first seed that fails."""
    for seed in seeds:
        try:
            run_seed(SwarmSettings(seed=seed, nodes_max=NODES_MAX))
        except ViolationError as error:
            return str(error)
    raise AssertionError(f"nobody saw: {planted}")


def test_who_moves_although_it_does_not_follow_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Learner.run

    def followed(self: Learner, job: Job) -> JobResult:
        result = run(self, job)
        if isinstance(result, Rescued):
            self._x += 0.01
        return result

    monkeypatch.setattr(Learner, "run", followed)
    assert "refused to follow for the distance, and moved" in found("half a rescue", range(864, 865))


def test_skipped_signature_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.Exchanges, "_check_signature", lambda *args: None)
    message = found("a signature that nobody checks")
    assert "no genuine frame brought" in message
    assert re.search(r"replay with: p2psim swarm --seeds \d+:\d+ --nodes-max 6$", message)


def test_same_sign_on_both_sides_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_pair, "finish", shard_pair.respond)
    assert "do not cancel" in found("+c on both sides")


def test_sequence_number_that_is_not_persisted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(persisted, "ceiling", lambda store: 1)
    assert "signed two things with sequence number" in found("numbers that begin anew")


def test_a_failing_seed_shrinks_to_what_matters() -> None:
    """Fails where there are at least 4 nodes and a partition: nothing else is left."""
    runs: list[SwarmSettings] = []

    def fails(settings: SwarmSettings) -> str:
        runs.append(settings)
        options = settings.options()
        return "it broke" if options.nodes >= 4 and "partition" in options.kinds else ""

    seed = next(s for s in range(200) if draw(s).nodes > 8 and {"partition", "churn"} <= set(draw(s).kinds))
    least = smallest(SwarmSettings(seed=seed), fails, runs=200)
    assert least is not None
    assert least.settings.options().nodes == 4
    assert least.settings.options().kinds == ("partition",)
    assert least.settings.shorten < 0.2
    assert least.why == "it broke"
    assert len(runs) < 60
    assert smallest(SwarmSettings(seed=seed), lambda settings: "", runs=9) is None


def test_the_command_repeats_exactly_this_run() -> None:
    settings = SwarmSettings(seed=7, nodes_max=9, nodes=5, without=("loss", "churn"), shorten=0.5)
    assert settings.command() == (
        "p2psim swarm --seeds 7:8 --nodes-max 9 --nodes 5 --shorten 0.5 --without loss --without churn"
    )
    result = CliRunner().invoke(main, ["swarm", "--seeds", "nothing"])
    assert result.exit_code == 2
    assert "expected two numbers" in result.output


def test_pace_of_hours_has_a_daemons_own_settings() -> None:
    options = draw(3, pace="hours")
    assert options.scenario.config.dht == DhtConfig()
    assert options.scenario.config.membership == MembershipConfig()
    # Records expire and are published again, and who is away is away for longer than that.
    assert options.safety_s > 1.4 * options.scenario.config.dht.record_ttl_s_max
    assert options.kinds == draw(3, pace="seconds").kinds
    assert {draw(seed).pace for seed in range(40)} == {"hours", "seconds"}


def test_sybils_sit_where_they_want_to_and_own_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    target = bytes(range(32))
    for number in range(4):
        identity = identity_near(target, Seeds(number).entropy("sybil"))
        assert node_id(identity.public_key)[0] == target[0]
    seed = next(s for s in range(200) if "sybil" in draw(s).kinds and draw(s, nodes_max=6).pace == "seconds")
    report = run_seed(SwarmSettings(seed=seed, nodes_max=NODES_MAX))
    assert report.faults["sybil"] > 0
    monkeypatch.setattr(routing, "SUBNET_PER_BUCKET_MAX", 99)
    with pytest.raises(ViolationError, match=r"a bucket's part of 45\.9\.8\.0/24 has \d entries"):
        run_seed(SwarmSettings(seed=seed, nodes_max=NODES_MAX))


def test_whoever_is_eclipsed_goes_on_knowing_somebody_honest() -> None:
    """They answer all questions of the victim, which must not forget whom it knew; a victim that does is seen."""
    seeds = [s for s in range(200) if "eclipse" in draw(s, nodes_max=NODES_MAX).kinds][:3]
    for seed in seeds:
        assert run_seed(SwarmSettings(seed=seed, nodes_max=NODES_MAX, pace="seconds")).faults["eclipse"] > 0

    seeds_of = Seeds(seeds[0])
    options = draw(seeds[0], nodes_max=NODES_MAX, pace="seconds")
    world = SwarmWorld(options, seeds_of, SyntheticParts(options, seeds_of), replay="none")
    try:
        world.run(options.safety_s / 2)
        world.inspect()
        victim = world._bands["eclipse"].victim
        assert victim is not None
        node = world.node(victim)
        for other in world.honest_hosts:
            node.protocol("exchange")._forget(other.id)
            node.protocol("dht").table.remove(other.id)
        node.protocol("bootstrap")._remembered.clear()
        with pytest.raises(ViolationError, match="it knows nobody but those who surround it"):
            world.inspect()
    finally:
        world.close()


def test_every_villain_is_a_node_of_its_own() -> None:
    options = next(o for o in map(draw, range(100)) if len(o.villains) >= 3)
    assert options.scenario.nodes == options.nodes + len(options.villains)
    assert set(options.villains) <= set(HOSTILE_KINDS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_seeds_of_all_sizes_hold() -> None:
    reports = [run_seed(SwarmSettings(seed=seed)) for seed in range(1000, 1200)]
    assert sum(report.node_hours for report in reports) > 100


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_seeds_repeat_in_another_process() -> None:
    """Two processes with different hash seeds, at the same time."""
    runs = [swarm_in_a_process("0:1000", hash_seed) for hash_seed in ("11", "22")]
    try:
        first, second = (json.loads(run.communicate()[0]) for run in runs)
    finally:
        for run in runs:
            run.kill()
    assert first["failed"] == second["failed"] == []
    assert len(set(first["digests"].values())) == 1000
    assert first["digests"] == second["digests"]
