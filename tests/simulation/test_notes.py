"""What a scenario asks for in vain is said, in one sentence each; what it does not ask for is not."""

from typing import Any

import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.notes import notes
from simulation.scenario import Scenario, load, parse, shipped


def scenario(**tree: Any) -> Scenario:
    return parse({"nodes": 8, "duration_s": 10.0, **tree}, "x.toml")


@pytest.mark.parametrize("name", shipped())
def test_scenarios_that_ship_ask_for_nothing_in_vain(name: str) -> None:
    assert notes(load(name)) == []


@pytest.mark.parametrize(
    ("tree", "note"),
    [
        (
            {"start_s": 11.0},
            "start_s: the run ends at 10 s, so that nodes that start later, until 11 s, never do",
        ),
        (
            {"faults": {"partitions": [{"start_s": 10.0, "end_s": 20.0}]}},
            "faults.partitions[0].start_s: the run ends at 10 s, before a cut at 10 s",
        ),
        (
            {"faults": {"partitions": [{"start_s": 1.0, "end_s": 2.0, "share": 0.0}]}},
            "faults.partitions[0].share: 0 of 8 nodes is none of them, rounded: nobody is cut off",
        ),
        (
            {"faults": {"partitions": [{"start_s": 1.0, "end_s": 2.0, "share": 0.97}]}},
            "faults.partitions[0].share: 0.97 of 8 nodes is all of them, rounded: nobody is cut off",
        ),
        (
            {"churn": {"model": "sessions", "stop_s": 12.0}},
            "churn.stop_s: the run ends at 10 s, before 12 s",
        ),
        (
            {"stop": {"accuracy_mean": 0.5, "from_s": 12.0}},
            "stop.from_s: the run ends at 10 s, before anybody looks whether to stop (at 15 s)",
        ),
        (
            {"stop": {"accuracy_mean": 0.5, "every_s": 10.0}},
            "stop.every_s: the run ends at 10 s, before anybody looks whether to stop (at 10 s)",
        ),
        (
            {"adversaries": {"share": 0.06}},
            "adversaries.share: 0.06 of 8 nodes is none of them, rounded",
        ),
        (
            {"adversaries": {"share": 0.25, "kinds": ["junk", "flood", "junk", "forged"]}},
            "adversaries.kinds: each hostile node does one thing, and they are 2: nobody does forged",
        ),
        ({"faults": {"crash": 0.05}}, "faults.crash: 0.05 of 8 nodes is none of them, rounded"),
        ({"nat": {"symmetric": 0.05}}, "nat.symmetric: 0.05 of 8 nodes is none of them, rounded"),
        (
            {"churn": {"model": "diurnal", "share": 0.05}},
            "churn.share: 0.05 of 7 nodes is none of them, rounded",
        ),
        ({"churn": {"kills": 0.5}}, "churn.kills: without effect, because churn.model is none"),
        (
            {"churn": {"model": "sessions", "peak_s": 5.0, "amplitude": 0.5}},
            "churn.peak_s, churn.amplitude: without effect, because churn.model is sessions",
        ),
        (
            {"faults": {"away_s_mean": 2.0}},
            "faults.away_s_mean: without effect, because faults.churn and faults.crash are 0",
        ),
        (
            {"faults": {"silence_s": 2.0}},
            "faults.silence_s: without effect, because no machine goes and no cable is cut",
        ),
        (
            {"adversaries": {"kinds": ["junk"]}},
            "adversaries.kinds: without effect, because adversaries.share is 0",
        ),
        ({"stop": {"every_s": 1.0}}, "stop.every_s: without effect, because no rule to stop is given"),
        ({"compute": {"slowdown": 3.0}}, "compute.slowdown: without effect, because compute.stragglers is 0"),
        (
            {"nat": {"symmetric": 0.5, "mapping_s": 9.0}},
            "nat.mapping_s: without effect, because nat.full_cone and nat.restricted are 0",
        ),
        (
            {"network": {"spike_s_max": 1.0}},
            "network.spike_s_max: without effect, because network.spike is 0",
        ),
        (
            {"network": {"jitter": "none", "jitter_sigma": 1.0}},
            "network.jitter_sigma: without effect, because network.jitter is none",
        ),
    ],
)
def test_what_is_asked_in_vain_is_one_sentence(tree: dict[str, Any], note: str) -> None:
    assert notes(scenario(**tree)) == [note]


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"start_s": 10.0},
        {"faults": {"partitions": [{"start_s": 9.0, "end_s": 20.0}], "silence_s": 2.0}},
        {"churn": {"model": "sessions", "stop_s": 9.0, "kills": 0.5}},
        {"churn": {"model": "diurnal", "peak_s": 5.0}},
        {"stop": {"accuracy_mean": 0.5, "from_s": 4.5}},
        {"faults": {"crash": 0.07, "stop_s": 9.0}},
        {"adversaries": {"share": 0.25, "kinds": ["junk", "flood"], "every_s": 1.0}},
        {"nat": {"restricted": 0.5, "mapping_s": 9.0}},
        {"network": {"preset": "mobile", "spike_s_max": 1.0}},
    ],
)
def test_what_has_an_effect_is_not_noted(tree: dict[str, Any]) -> None:
    assert notes(scenario(**tree)) == []


def test_two_numbers_of_nodes_are_refused() -> None:
    done = CliRunner().invoke(main, ["run", "smoke-20", "--nodes", "5", "--set", "nodes = 7"])
    assert done.exit_code == 2
    assert done.stderr == "p2psim: --nodes: expected either it or --set nodes=, found both (--nodes 5)\n"


def test_a_run_says_its_notes_first_and_goes_on() -> None:
    arguments = ["run", "smoke-20", "--nodes", "4", "--set", "duration_s=2.0", "--set", "start_s=0.5"]
    arguments += ["--set", "faults.churn=0", "--set", "faults.crash=0", "--set", "faults.partitions=[]"]
    done = CliRunner().invoke(main, [*arguments, "--set", "task.args.model=logistic", "--json", "--no-curve"])
    assert done.exit_code == 0
    said = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert said == [
        "note: faults.away_s_mean, faults.start_s, faults.stop_s: without effect, because faults.churn and "
        "faults.crash are 0",
        "note: faults.silence_s: without effect, because no machine goes and no cable is cut",
    ]
    assert "note" not in done.stdout
