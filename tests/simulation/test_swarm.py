"""The swarm: seeds repeat, every fault strikes somewhere, planted faults are seen, and a failing seed shrinks."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from gossip import exchange
from gossip.learning import pair
from simulation.checkers import ViolationError
from simulation.cli import main
from simulation.draw import HOSTILE_KINDS, KINDS, draw
from simulation.shrink import smallest
from simulation.swarm import SwarmSettings, run_seed

# Small ones: a run of them takes a few seconds, and all kinds of faults strike in it.
SEEDS = "0:50"
NODES_MAX = 6


def swarm_in_a_process(seeds: str, hash_seed: str) -> subprocess.Popen[str]:
    words = ["swarm", "--seeds", seeds, "--nodes-max", str(NODES_MAX), "--json"]
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
    answers = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], answers[0][1][-2000:]
    return [json.loads(out) for out, _ in answers]


def test_fifty_seeds_repeat_in_another_process(totals: Any) -> None:
    first, second = totals
    assert len(first["digests"]) == 50
    assert len(set(first["digests"].values())) == 50
    assert first["digests"] == second["digests"]


def test_every_kind_of_fault_struck(totals: Any) -> None:
    assert totals[0]["unseen"] == []
    assert set(KINDS) <= set(totals[0]["faults"])
    assert len(KINDS) >= 20


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


# --- planted faults: each is found within a few seeds -------------------------------------------------


def found(planted: str, seeds: range = range(40)) -> str:
    """The message of the first seed that fails."""
    for seed in seeds:
        try:
            run_seed(SwarmSettings(seed=seed, nodes_max=NODES_MAX))
        except ViolationError as error:
            return str(error)
    raise AssertionError(f"nobody saw: {planted}")


def test_skipped_signature_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "verify", lambda *args: None)
    message = found("a signature that nobody checks")
    assert "no genuine frame brought" in message
    assert re.search(r"replay with: p2psim swarm --seeds \d+:\d+ --nodes-max 6$", message)


def test_same_sign_on_both_sides_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "away", pair.towards)
    assert "do not cancel" in found("+c on both sides")


def test_sequence_number_that_is_not_persisted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossip import memory

    monkeypatch.setattr(memory, "ceiling", lambda store: 1)
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


def test_every_villain_is_a_node_of_its_own() -> None:
    options = next(o for o in map(draw, range(100)) if len(o.villains) >= 3)
    assert options.scenario.nodes == options.nodes + len(options.villains)
    assert set(options.villains) <= set(HOSTILE_KINDS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_seeds_of_all_sizes_hold() -> None:
    reports = [run_seed(SwarmSettings(seed=seed)) for seed in range(1000, 1200)]
    assert sum(report.node_hours for report in reports) > 100
