"""Scenarios are checked before anything starts, and a mistake is answered in one useful sentence."""

import copy
import math
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulation.faults import AWAY_S_MIN, Fault, plan
from simulation.scenario import FILE_BYTES_MAX, ScenarioError, load, parse, shipped
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
        ({"learning": {"local_steps": 2}}, ["x.toml: learning: ", "did you mean config.learning?"]),
        ({"loss": 0.1}, ["x.toml: loss: ", "did you mean network.loss?"]),
        ({"config": {"codec": "f32"}}, ["config.codec: ", "did you mean config.exchange.codec?"]),
        ({"network": {"preset": "wam"}}, ["network.preset", "ideal, lan, wan", "'wam'", "did you mean wan?"]),
        (
            {"config": {"learning": {"local_step": 1}}},
            ["config.learning.local_step", "did you mean local_steps?"],
        ),
        ({"nodes": "many"}, ["nodes: expected a whole number between 2 and 65536, found text ('many')"]),
        ({"nodes": 1}, ["nodes", "between 2 and", "(1)"]),
        ({"nodes": True}, ["nodes", "found a truth value"]),
        ({"nodes": 10**999}, ["nodes", "of 3319 bits"]),
        ({"network": {"loss": 1.5}}, ["network.loss", "between 0 and 1", "(1.5)"]),
        (
            {"network": {"loss": math.nan}},
            ["network.loss", "expected a finite number between 0 and 1", "(nan)"],
        ),
        ({"duration_s": math.inf}, ["duration_s", "a finite number above 0", "(inf)"]),
        ({"duration_s": 10**400}, ["duration_s", "a number above 0", "bits"]),
        ({"network": 5}, ["network: expected a section", "a whole number (5)"]),
        ({"join": "frist"}, ["join: expected one of first, random", "did you mean first?"]),
        ({"task": {"args": {"alpha": math.nan}}}, ["task.args.alpha: expected a finite number"]),
        ({"task": {"args": {"seed": 2**70}}}, ["task.args.seed", "64 bits"]),
        ({"faults": {"partitions": [3]}}, ["faults.partitions[0]: expected a table"]),
        ({"faults": {"partitions": [{"start_s": 1}]}}, ["faults.partitions[0].end_s", "no default"]),
        ({"faults": {"partitions": [{"start": 1}]}}, ["faults.partitions[0].start", "did you mean start_s?"]),
        ({"faults": {"churn": 0.7, "crash": 0.7}}, ["faults.crash", "at most 1 - faults.churn (0.3)"]),
        ({"config": {"exchange": {"codec": "int3"}}}, ["config.exchange.codec", "f32, int8, int4", "int8?"]),
        ({"config": {"exchange": {"norm_factor": math.nan}}}, ["config.exchange.norm_factor", "between 1"]),
        ({"config": {"learning": {"local_steps": -1}}}, ["config.learning.local_steps", "between 0", "(-1)"]),
        ({"config": {"learning": {"readout_decay": 2}}}, ["config.learning.readout_decay", "0 and 1", "(2)"]),
        ({"config": {"learning": {"genesis_seed": 2**32}}}, ["config.learning.genesis_seed", "4294967295"]),
        ({"config": {"dht": {"k": 0}}}, ["config.dht.k", "between 1 and 64", "(0)"]),
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
    with pytest.raises(ScenarioError, match="expected a TOML file"):
        load(str(broken))
    broken.write_text("nodes = 3\nduration_s = 4.0", encoding="utf-8-sig")
    assert load(str(broken)).nodes == 3
    broken.write_bytes(b"# \xff\n")
    with pytest.raises(ScenarioError, match="UTF-8, found a byte at position 2"):
        load(str(broken))
    broken.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ScenarioError, match="at most 1048576 bytes"):
        load(str(broken))
    with pytest.raises(ScenarioError, match="key=value"):
        load("smoke-20", ["nodes"])
    with pytest.raises(ScenarioError, match="is a value"):
        load("smoke-20", ["nodes.x=1"])
    with pytest.raises(ScenarioError, match=r"network\.trace: a\\x1bb: cannot be read"):
        parse({"network": {"trace": "a\x1bb"}}, "x.toml")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("task.name=digitz", ["task.name: expected one of digits, table", "did you mean digits?"]),
        ("task.name=no_such_module:make", ["task.name: ", "cannot be imported"]),
        ("task.name=json:make", ["task.name: ", "has no factory 'make'"]),
        ("task.name=a/b.py:make", ["task.name: ", "is no module name"]),
        ("task.name=base64:b64encode", ["task.name: ", "takes part, parts and seed"]),
        ("task.args.rows_file=none.csv", ["task.args: none.csv: cannot be read: No such file or directory"]),
        ("task.name=table", ["task.args.path: expected a value, found none"]),
        ("task.args.alpah=1", ["task.args.alpah: expected one of part", "did you mean alpha?"]),
        ("task.args.alpha=x", ["task.args.alpha: expected a number, found text ('x')"]),
        ("task.args.alpha=-1", ["task.args: expected alpha between 0.001 and 1e6, got -1"]),
        ("task.args.model=logistc", ["expected model to be mlp or logistic", "did you mean logistic?"]),
        ("task.args.partition=dirichle", ["expected a partition of kind iid, ", "did you mean dirichlet?"]),
        ("alpha=0.3", ["alpha: expected one of name, ", "did you mean task.args.alpha?"]),
        ("task.alpha=0.3", ["task.alpha: expected one of name, args; did you mean task.args.alpha?"]),
        ("beta=0.3", ["beta: expected one of name, "]),
        ("task.args.batch=100000", ["batch to be at most 1437, there are 1437 training rows; got 100000"]),
        ("task.args.part=3", ["task.args.part: expected nothing, because each node is given its own part"]),
        ("task.args.parts=0", ["task.args: expected part to be from 0 to parts - 1"]),
        ("nodes=2\nduration_s=4", ["nodes: expected a whole number", "found text"]),
        (".=3", ["expected one of name"]),
    ],
)
def test_a_task_that_cannot_be_had_is_answered_before_anything_runs(override: str, parts: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        load("smoke-20", ["task.args={}", override])
    assert "\n" not in str(caught.value)
    for part in ["smoke-20.toml", *parts]:
        assert part in str(caught.value)


# --- every way to spoil a scenario --------------------------------------------------------------------

VALID: dict[str, Any] = {
    **msgspec.to_builtins(load("smoke-20")),
    "about": "Everything that can be said.",
}


def leaves(tree: dict[str, Any], path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys, sections as well, but for the free arguments of the task."""
    found = []
    for key, value in tree.items():
        if path != ("task", "args"):
            found.append((*path, key))
        if isinstance(value, dict):
            found += leaves(value, (*path, key))
    return found


def spoilt(path: tuple[Any, ...], *, key: str | None = None, value: Any = None) -> dict[str, Any]:
    """The valid scenario with one value replaced, or one key."""
    tree = copy.deepcopy(VALID)
    branch = tree
    for name in path[:-1]:
        branch = branch[name]
    if key is None:
        branch[path[-1]] = value
    else:
        branch[key] = branch.pop(path[-1])
    return tree


def answered(tree: dict[str, Any]) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse(tree, "x.toml")
    message = str(caught.value)
    assert message.startswith("x.toml: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message


def test_the_scenario_that_is_spoilt_below_is_valid() -> None:
    assert len(leaves(VALID)) > 50
    parse(copy.deepcopy(VALID), "x.toml")


class Alien:
    """Of no type that TOML knows."""


@given(
    path=st.sampled_from(leaves(VALID)),
    value=st.sampled_from([Alien(), math.nan, b"x", 10**5000, -(10**400), [[]], [{}], {"a": {"b": 1}}, None]),
)
def test_a_value_of_the_wrong_type_is_answered_in_one_sentence_with_its_key(
    path: tuple[Any, ...], value: Any
) -> None:
    assume(path != ("task", "args") or not isinstance(value, dict))
    assert ".".join(path) in answered(spoilt(path, value=value))


@given(
    path=st.sampled_from([path for path in leaves(VALID) if path not in ((), ("task", "args"))]),
    at=st.integers(0, 30),
    letter=st.sampled_from("qz_Ä\n\x1b'`"),
)
def test_a_misspelt_key_is_answered_with_the_nearest(path: tuple[Any, ...], at: int, letter: str) -> None:
    name = path[-1]
    at = min(at, len(name))
    message = answered(spoilt(path, key=name[:at] + letter + name[at:]))
    if len(name) > 3:
        assert f"did you mean {name}?" in message or f"did you mean {name[:3]}" in message


@given(data=st.data(), path=st.sampled_from(leaves(VALID)))
def test_a_number_out_of_range_is_answered_and_one_within_is_taken(
    data: st.DataObject, path: tuple[Any, ...]
) -> None:
    """Whatever a number is, it is taken or answered; never anything else."""
    value = data.draw(st.integers() | st.floats() | st.text(max_size=5) | st.booleans())
    tree = spoilt(path, value=value)
    scenario = None
    with suppress(ScenarioError):
        scenario = parse(tree, "x.toml")
    if scenario is None:
        answered(tree)
    else:
        assert all(math.isfinite(number) for number in numbers(msgspec.to_builtins(scenario), ""))


SHIPPED = [(resources.files("simulation") / "scenarios" / f"{name}.toml").read_bytes() for name in shipped()]
PIECES = [
    b"9",
    b"-",
    b"e308",
    b"nan",
    b"[",
    b"{",
    b"=",
    b'"',
    b".",
    b"_",
    b"\n",
    b"\xff",
    b"\\u0000",
    b"1979-05-27",
]


@given(
    text=st.sampled_from(SHIPPED),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from([b"", *PIECES])), max_size=4
    ),
)
def test_a_file_with_any_bytes_changed_is_a_scenario_or_a_sentence(
    text: bytes, edits: list[tuple[float, int, bytes]]
) -> None:
    for place, cut, piece in edits:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        path.write_bytes(text)
        said = ""
        try:
            load(str(path))
        except ScenarioError as error:
            said = str(error)
        assert said == "" or (said.startswith(f"{path}: ") and said.isprintable())


def numbers(tree: Any, where: str) -> Iterator[float]:
    """All numbers but those of the nodes' settings, where infinity says never."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key != "config":
                yield from numbers(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from numbers(value, where)
    elif isinstance(tree, int | float):
        yield tree


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
