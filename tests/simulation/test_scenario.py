"""Scenarios are checked before anything starts, and a mistake is answered in one useful sentence."""

from pathlib import Path

import pytest

from simulation.faults import AWAY_S_MIN, Fault, plan
from simulation.scenario import ScenarioError, load, parse, shipped
from simulation.seeds import Seeds


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_is_valid_and_says_what_it_is_about(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    assert scenario.about.endswith(".")


def test_the_scenario_of_the_first_light_is_what_was_promised() -> None:
    scenario = load("digits-200")
    assert scenario.nodes == 200
    assert scenario.network.loss == 0.02
    assert scenario.network.delay_s_mean >= 0.05, "a wide-area network"
    assert scenario.faults.churn + scenario.faults.crash == pytest.approx(0.1)
    assert scenario.task.name == "digits"
    assert scenario.task.args["alpha"] == 0.5
    assert scenario.join == "first", "every node starts knowing one address"


def test_overrides_reach_every_depth_and_keep_the_rest() -> None:
    before = load("smoke-20")
    after = load(
        "smoke-20", ["nodes=5", "network.loss=0.25", "config.learning.local_steps=2", "task.args.alpha=9.5"]
    )
    assert (after.nodes, after.network.loss) == (5, 0.25)
    assert after.config.learning.local_steps == 2
    assert after.task.args["alpha"] == 9.5
    assert after.network.delay_s_mean == before.network.delay_s_mean
    assert after.config.exchange == before.config.exchange


def test_a_preset_is_the_base_of_the_network() -> None:
    lan = parse({"network": {"preset": "lan", "loss": 0.5}}, "x.toml").network
    assert lan.loss == 0.5
    assert 0 < lan.delay_s_mean < 0.01


def test_text_needs_no_quotes_on_the_command_line() -> None:
    assert load("smoke-20", ["join=random"]).join == "random"


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        ({"nodse": 5}, ["x.toml", "nodse", "did you mean nodes?"]),
        ({"network": {"los": 0.1}}, ["network.los", "did you mean loss?"]),
        ({"network": {"preset": "wam"}}, ["network.preset", "ideal, lan, wan", "'wam'", "did you mean wan?"]),
        (
            {"config": {"learning": {"local_step": 1}}},
            ["config.learning.local_step", "did you mean local_steps?"],
        ),
        ({"nodes": "many"}, ["x.toml: nodes: expected `int`, found `str`"]),
        ({"nodes": 1}, ["nodes", ">= 2"]),
        ({"network": {"loss": 1.5}}, ["network.loss", "<= 1"]),
        ({"network": 5}, ["network", "object", "int"]),
        (
            {"faults": {"churn": 0.1, "start_s": 30.0}, "duration_s": 30.0},
            ["faults.stop_s", "faults.start_s"],
        ),
        ({"network": {"delay_s_mean": 0.1, "delay_s_min": 0.2}}, ["network.delay_s_min", "0.1", "0.2"]),
        ({"faults": {"partitions": [{"start_s": 5.0, "end_s": 4.0}]}}, ["faults.partitions", "5.0", "4.0"]),
    ],
)
def test_a_mistake_is_answered_with_file_key_and_expectation(
    tree: dict[str, object], parts: list[str]
) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(tree, "x.toml")
    message = str(caught.value)
    assert "\n" not in message
    for part in ["x.toml", *parts]:
        assert part in message


def test_unknown_and_unreadable_scenarios_are_answered_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="did you mean digits-200"):
        load("digits-20")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("nodes = = 3")
    with pytest.raises(ScenarioError, match="is not TOML"):
        load(str(broken))
    with pytest.raises(ScenarioError, match="key=value"):
        load("smoke-20", ["nodes"])
    with pytest.raises(ScenarioError, match="is a value"):
        load("smoke-20", ["nodes.x=1"])


def test_a_file_of_ones_own_takes_its_name_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("nodes = 3\n")
    assert load(str(path)).name == "mine"


def test_the_plan_of_faults_holds_what_the_scenario_orders() -> None:
    scenario = parse(
        {
            "nodes": 100,
            "duration_s": 100.0,
            "faults": {
                "churn": 0.1,
                "crash": 0.05,
                "start_s": 10.0,
                "stop_s": 60.0,
                "partitions": [{"share": 0.3, "start_s": 20.0, "end_s": 30.0}],
            },
        },
        "x.toml",
    )
    faults = plan(scenario, Seeds(1).random("faults"))
    kinds = [absence.kind for absence in faults.absences]
    assert (kinds.count(Fault.CHURN), kinds.count(Fault.CRASH)) == (10, 5)
    assert len({absence.node for absence in faults.absences}) == 15
    for absence in faults.absences:
        assert absence.start_s >= 10.0
        assert absence.start_s + AWAY_S_MIN <= absence.end_s <= 60.0
    (cut,) = faults.partitions
    apart = sum(cut.cuts(node, "nobody", 25.0) for node in range(100))
    assert apart == 30
    again = plan(scenario, Seeds(1).random("faults"))
    assert again.absences == faults.absences
