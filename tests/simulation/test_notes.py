"""What a scenario asks for in vain is said, in one sentence each; what it does not ask for is not."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.experiments.results import appending, result
from simulation.experiments.sweep import jobs_of
from simulation.notes import SHARED_MAX, notes, shared_notes
from simulation.scenario import Scenario, describe, load, parse, shipped


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


# --- of the other commands ----------------------------------------------------------------------------


def test_of_many_scenarios_each_note_is_told_once_and_says_where_it_holds() -> None:
    shares = {
        f"faults.crash={share}": scenario(faults={"crash": share, "away_s_mean": 3.0}) for share in (0, 0.5)
    }
    assert shared_notes(shares) == [
        "faults.away_s_mean: without effect, because faults.churn and faults.crash are 0 "
        "(in 1 of 2 combinations, as faults.crash=0)"
    ]
    late = {f"nodes={count}": scenario(nodes=count, start_s=11.0) for count in (4, 5)}
    assert shared_notes(late) == notes(late["nodes=4"])
    many = {str(count): scenario(faults={"crash": count / 1000}) for count in range(1, SHARED_MAX + 11)}
    assert len(shared_notes(many)) == SHARED_MAX + 1
    assert shared_notes(many)[-1] == "and 10 more like these"


def test_a_sweep_says_the_notes_of_what_it_runs_once(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    vary, seeds = ("faults.crash=0,0.1", "start_s=1,50"), range(3)
    with appending(out) as file:  # all runs are there already, so that none is made
        for job in jobs_of("smoke-20", ("faults.churn=0",), vary, seeds):
            tree = describe(load(job.scenario, job.changes))
            file.append(result(tree, job.seed, job.command(), report={"consensus": 0.1}))
    varied = [argument for text in vary for argument in ("--vary", text)]
    arguments = ["sweep", "smoke-20", "--set", "faults.churn=0", *varied, "--seeds", "0:3", "--out", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert said == [
        "note: faults.away_s_mean, faults.start_s, faults.stop_s: without effect, because faults.churn and "
        "faults.crash are 0 (in 2 of 4 combinations, as faults.crash=0, start_s=1)",
        "note: start_s: the run ends at 30 s, so that nodes that start later, until 50 s, never do "
        "(in 2 of 4 combinations, as faults.crash=0, start_s=50)",
    ]
    assert "note" not in done.stdout
