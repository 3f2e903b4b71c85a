"""Hostile members of an ordinary run reach honest nodes, and no figure is about them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from math import isfinite
from typing import Any

import numpy as np
import pytest

from gossip.learning.learner import Learner
from simulation.adversaries import ACTS, MARKS_MAX, Adversaries, AdversarySettings
from simulation.checkers import ViolationError
from simulation.experiments.run import RealParts, run
from simulation.mistakes import ScenarioError
from simulation.scenario import Scenario, parse
from simulation.seeds import Seeds
from simulation.signatures import RealSignatures
from simulation.swarm.draw import HOSTILE_KINDS
from simulation.villain import Villain
from simulation.world import World

SMALL: dict[str, Any] = {
    "nodes": 18,
    "duration_s": 12.0,
    "start_s": 1.0,
    "task": {"args": {"model": "logistic"}},
    "network": {"preset": "lan"},
    "compute": {"lanes": 8},
    "config": {"learning": {"round_interval_s": 0.4}, "exchange": {"timeout_s": 2.0}},
}


def scenario(**tree: Any) -> Scenario:
    return parse({**SMALL, **tree}, "small.toml")


class Stage:
    """A world with adversaries, as `run` makes it."""

    def __init__(self, settings: Scenario, seed: int = 1) -> None:
        seeds = Seeds(seed)
        parts = RealParts(settings, seeds)
        self.hostile = Adversaries(settings.adversaries, settings.nodes, seeds, parts.run_info)
        self.world = World(
            settings, seeds, parts, replay="again", signatures=parts.signatures, adversaries=self.hostile
        )


@pytest.fixture
def stages() -> Iterator[list[Stage]]:
    made: list[Stage] = []
    yield made
    for stage in made:
        stage.world.close()


def adversaries(nodes: int, **settings: Any) -> dict[int, str]:
    return Adversaries(AdversarySettings(**settings), nodes, Seeds(1), None).acts  # type: ignore[arg-type]


def test_as_many_are_hostile_as_the_share_says_and_the_kinds_take_turns() -> None:
    acts = adversaries(100, share=0.3, kinds=["junk", "flood", "replayed"])
    assert len(acts) == 30
    assert 0 not in acts, "the others enter through it"
    assert sorted(acts.values()) == ["flood"] * 10 + ["junk"] * 10 + ["replayed"] * 10
    assert adversaries(100) == {}
    assert adversaries(100, share=0.3, kinds=["junk"]).keys() == acts.keys(), "who does not depend on what"


def test_every_act_is_one_that_the_swarm_knows() -> None:
    assert set(ACTS) <= set(HOSTILE_KINDS)


def test_a_run_in_which_everything_is_tried_holds_and_every_kind_reaches_somebody(
    stages: list[Stage],
) -> None:
    settings = scenario(nodes=30, adversaries={"share": 0.4, "kinds": list(ACTS), "every_s": 0.5})
    stage = Stage(settings)
    stages.append(stage)
    world = stage.world
    world.run(12.0)
    assert set(stage.hostile.counts) == set(ACTS)
    assert stage.hostile.counts.items() <= world.faults.items()
    assert world.checks > 1000
    honest = world.honest()
    assert len(honest) == 18
    assert all(host.index not in stage.hostile.acts for host in honest)
    for host in honest:
        assert isinstance(host.worker, Learner)
        assert np.isfinite(host.worker.weights()).all()
    villain = world.hosts[next(iter(stage.hostile.acts))]
    assert isinstance(villain.core, Villain)


def test_figures_are_about_honest_nodes_and_repeat() -> None:
    hostile = {"share": 0.25, "kinds": ["poison_nan", "poison_huge"]}
    one, again = (run(scenario(adversaries=hostile), 3, central=False) for _ in range(2))
    assert one.digest == again.digest
    assert (one.nodes, one.hostile) == (18, 4)  # half of them to even, as Python rounds
    assert one.accuracy == again.accuracy or not isfinite(one.accuracy.central)
    assert isfinite(one.consensus)
    assert one.accuracy.worst > 0.5
    assert one.faults["poison_nan"] > 0
    # The same network where nobody is hostile, seen by everybody.
    peaceful = run(scenario(), 3, central=False)
    assert peaceful.hostile == 0
    assert peaceful.digest != one.digest
    assert peaceful.node_updates > one.node_updates, "jobs of villains do not count"


def test_the_stop_rule_ends_a_run_at_one_of_its_dates() -> None:
    stop = {"accuracy_mean": 0.6, "every_s": 1.5, "sample": 6}
    one, again = (run(scenario(stop=stop), 3, central=False, every_s=every) for every in (5.0, 0.7))
    assert one.stopped
    assert not one.partial
    assert one.virtual_s < 12.0
    assert one.virtual_s % 1.5 == 0.0
    assert one.accuracy.mean > 0.5
    assert (one.virtual_s, one.digest) == (again.virtual_s, again.digest)
    never = run(scenario(stop={"accuracy_worst": 1.0}), 3, central=False)
    assert not never.stopped
    assert never.virtual_s == 12.0
    assert never.digest == run(scenario(), 3, central=False).digest, "looking changes nothing"


def test_marks_are_forgotten_in_time() -> None:
    one = Adversaries(AdversarySettings(share=0.5), 10, Seeds(1), None)  # type: ignore[arg-type]
    for number in range(MARKS_MAX + 10):
        one._mark(b"%d" % number, "junk")
    assert len(one._marks) == MARKS_MAX
    assert b"9" not in one._marks


def test_the_network_learns_together_with_four_tenths_behind_nats(stages: list[Stage]) -> None:
    stage = Stage(scenario(nat={"full_cone": 0.1, "restricted": 0.15, "symmetric": 0.15}, nodes=20))
    stages.append(stage)
    world = stage.world
    world.run(12.0)
    assert world.faults["nat"] > 20
    for host in world.honest():
        assert host.core.snapshot(12.0).learning.pool > 10, "everybody knows more than half of the others"  # type: ignore[union-attr]
        assert isinstance(host.worker, Learner)
        assert host.worker.steps > 20
    models = np.asarray([host.worker.weights() for host in world.honest()])  # type: ignore[union-attr]
    # Against models that all started at genesis and went different ways: one network, and not twenty.
    assert models.std(axis=0).mean() < np.abs(models.mean(axis=0)).mean() / 2


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"share": 0.2, "kinds": []}, ["adversaries.kinds", "at least one kind"]),
        ({"share": 0.95}, ["adversaries.share", "at least two honest"]),
        ({"share": 1.5}, ["adversaries.share", "between 0 and 1"]),
        ({"kinds": ["poison_flop"]}, ["adversaries.kinds[0]", "did you mean poison_flip?"]),
        ({"kinds": "junk"}, ["adversaries.kinds", "a list", "found text"]),
        ({"every_s": 0}, ["adversaries.every_s", "between 0.01 and"]),
    ],
)
def test_what_cannot_be_an_adversary_is_answered(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(adversaries=settings)
    for part in parts:
        assert part in str(caught.value)


def test_a_node_that_checks_no_signatures_is_caught(
    stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RealSignatures, "verify", lambda *arguments: None)
    stage = Stage(scenario(adversaries={"share": 0.4, "kinds": ["forged"], "every_s": 0.3}))
    stages.append(stage)
    with pytest.raises(ViolationError, match="no genuine frame"):
        stage.world.run(12.0)


EVERYTHING: dict[str, Any] = {
    **SMALL,
    "join": "random",
    "network": {"preset": "mobile", "duplication": 0.05, "reorder": 0.05},
    "geography": {"regions": [{"name": "here"}, {"name": "there", "longitude": 90.0}]},
    "nat": {"full_cone": 0.1, "restricted": 0.2, "symmetric": 0.2},
    "compute": {"lanes": 8, "stragglers": 0.2},
    "churn": {"model": "diurnal", "session_s_mean": 6.0, "absence_s_mean": 2.0, "day_s": 10.0, "kills": 0.5},
    "adversaries": {"share": 0.2, "kinds": ["poison_flip", "equivocation", "replayed"], "every_s": 0.5},
    "stop": {"consensus": 1e-6, "accuracy_worst": 0.5, "from_s": 2.0, "every_s": 1.0, "sample": 4},
}


def test_with_everything_at_once_the_digest_is_the_same_in_every_process() -> None:
    code = (
        "import sys, json; from simulation.experiments.run import run; from simulation.scenario import parse;"
        "found = run(parse(json.loads(sys.argv[1]), 'x.toml'), 5, central=False);"
        "print(found.digest, found.accuracy.mean, found.consensus, sorted(found.faults.items()))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code, json.dumps(EVERYTHING)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    for kind in ("nat", "churn", "crash", "poison_flip", "equivocation"):
        assert f"'{kind}'" in told[0]
