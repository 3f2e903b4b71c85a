"""Comparisons: intervals against the library's own tests, verdicts, and refusals in one sentence."""

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.experiments.compare import CompareError, compare, from_file, selection, side
from simulation.experiments.intervals import difference, interval
from simulation.experiments.results import Result, ResultsError, appending, result
from simulation.experiments.sources import program
from simulation.experiments.values import agrees, shown, value_of


def one(seed: int, mean: float, **scenario: Any) -> Result:
    report = {"accuracy": {"mean": mean, "worst": mean - 0.1}, "consensus": 0.3, "bytes_sent": 1000 + seed}
    tree = {"name": "x", "network": {"loss": 0.0}, **scenario}
    return result(tree, seed, f"p2psim run x --seed {seed}", report=report)


def saved(path: Path, results: list[Result]) -> Path:
    with appending(path) as file:
        for entry in results:
            file.append(entry)
    return path


# --- intervals ----------------------------------------------------------------------------------------


def test_intervals_are_those_of_student_and_welch() -> None:
    from scipy import stats

    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 7).tolist(), rng.normal(0.5, 3, 7).tolist()
    alone = stats.ttest_1samp(a, 0.0).confidence_interval(0.95)
    found = interval(a)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))

    pairs = stats.ttest_rel(b, a).confidence_interval(0.95)
    paired, is_paired = difference(dict(enumerate(a)), dict(enumerate(b)))
    assert is_paired
    assert (paired.low, paired.high) == pytest.approx((pairs.low, pairs.high))

    welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    free, is_paired = difference(dict(enumerate(a)), dict(enumerate(b, start=3)))
    assert not is_paired
    assert (free.low, free.high) == pytest.approx((welch.low, welch.high))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = sum(
        found.low <= 1.0 <= found.high
        for found in (interval(rng.normal(1.0, 2.0, 5).tolist()) for _ in range(2000))
    )
    assert 0.93 < held / 2000 < 0.97


def test_one_observation_says_nothing_about_its_spread() -> None:
    assert interval([0.3]).mean == 0.3
    assert math.isnan(interval([0.3]).half_width)
    same, _ = difference({1: 0.5, 2: 0.5}, {3: 0.75, 4: 0.75})
    assert (same.mean, same.half_width) == (0.25, 0.0)


# --- verdicts -----------------------------------------------------------------------------------------


def test_verdicts_say_who_is_better_in_the_figure_s_own_direction() -> None:
    a = side("a", [one(seed, 0.90 + 0.001 * seed) for seed in range(5)])
    b = side("b", [one(seed, 0.95 + 0.001 * seed, nodes=3) for seed in range(5)])
    verdicts = {row.key: row.verdict for row in compare(a, b)}
    assert verdicts["accuracy.mean"] == "B better"
    assert verdicts["consensus"] == "no difference shown"
    assert verdicts["node_updates"] == "not measured"
    assert {row.key: row.verdict for row in compare(b, a)}["accuracy.mean"] == "A better"
    cheaper = side("c", [msgspec_replace(entry, bytes_sent=10 + entry.seed) for entry in a.results])
    assert {row.key: row.verdict for row in compare(a, cheaper)}["bytes_sent"] == "B better"
    closer = side("d", [msgspec_replace(entry, consensus=0.1 + 0.001 * entry.seed) for entry in a.results])
    assert {row.key: row.verdict for row in compare(a, closer)}["consensus"] == "B better"


def msgspec_replace(entry: Result, **report: Any) -> Result:
    return result(entry.scenario, entry.seed, entry.command, report={**entry.report, **report})


def test_pairs_show_what_the_spread_of_seeds_hides() -> None:
    """Seeds differ by far more than the two sides do; only with equal seeds does it show."""
    noise = np.random.default_rng(3).normal(0, 0.1, 8).tolist()
    a = side("a", [one(seed, 0.5 + noise[seed]) for seed in range(8)])
    b = side("b", [one(seed, 0.51 + noise[seed] + 0.0005 * (seed % 2), nodes=3) for seed in range(8)])
    apart = side("b", [one(seed + 100, 0.51 + noise[seed], nodes=3) for seed in range(8)])
    paired, free = compare(a, b)[0], compare(a, apart)[0]
    assert (paired.paired, paired.verdict) == (True, "B better")
    assert (free.paired, free.verdict) == (False, "no difference shown")


# --- what is compared ---------------------------------------------------------------------------------


def test_runs_are_chosen_by_key_and_value(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "r.jsonl",
        [
            one(seed, 0.5, network={"loss": loss}, codec=codec)
            for seed in range(3)
            for loss in (0.0, 0.1)
            for codec in ("int8", "f32")
        ],
    )
    chosen = from_file(selection(f"{path}?network.loss=0&codec=f32"), None)
    assert chosen.seeds == [0, 1, 2]
    assert all(entry.scenario["codec"] == "f32" for entry in chosen.results)
    assert from_file(selection(f"{path}?network.loss=0.1&codec=f32"), range(1, 9)).seeds == [1, 2]
    with pytest.raises(CompareError, match="no run has a seed that is asked for; there is 0, 1, 2"):
        from_file(selection(f"{path}?network.loss=0&codec=f32"), range(9, 10))
    for text, why in [
        (f"{path}", "differ in network.loss, codec .*choose one as in '.*r.jsonl.network.loss=0.0'"),
        (f"{path}?codec=f32", "choose one as in '.*codec=f32&network.loss=0.0'"),
        (f"{path}?", "choose one as in '.*r.jsonl.network.loss=0.0'"),
        (f"{path}?codec=f16", "no run has codec=f16; there is int8, f32"),
        (f"{path}?network.los=0", "did you mean network.loss"),
        (f"{path}?network.loss", "expected key=value"),
    ]:
        with pytest.raises(CompareError, match=why) as caught:
            from_file(selection(text), None)
        assert "\n" not in str(caught.value)
    with pytest.raises(ResultsError, match="cannot be read"):
        from_file(selection("nowhere.jsonl"), None)


def test_runs_are_chosen_by_the_preset_by_tables_and_by_the_version(tmp_path: Path) -> None:
    links = [{"preset": "lan", "loss": 0.0}, {"preset": "mobile", "loss": 0.1}]
    arguments = [{}, {"alpha": 0.1}, {"alpha": 0.1, "model": "mlp"}]
    cuts: list[Any] = [[], [{"share": 0.5, "start_s": 1.0, "end_s": 2.0}]]
    path = saved(
        tmp_path / "r.jsonl",
        [
            one(seed, 0.5, network=link, task={"args": given}, faults={"partitions": cut})
            for seed in range(2)
            for link in links
            for given in arguments
            for cut in cuts
        ],
    )
    everything = [
        ("network.preset=lan&task.args={alpha=0.1}&faults.partitions=[]", links[0], arguments[1], cuts[0]),
        ('network={preset="mobile"}&task.args={}&faults.partitions=[]', links[1], arguments[0], cuts[0]),
        (
            'network.preset="lan"&task.args={model="mlp"}&faults.partitions=[]',
            links[0],
            arguments[2],
            cuts[0],
        ),
        (
            f"version={one(0, 0.5).version}&network.loss=0&task.args={{}}&faults.partitions=[{{start_s=1,end_s=2}}]",
            *(links[0], arguments[0], cuts[1]),
        ),
    ]
    for query, link, given, cut in everything:
        found = from_file(selection(f"{path}?{query}"), None).results[0].scenario
        assert (found["network"], found["task"]["args"], found["faults"]["partitions"]) == (link, given, cut)
    with pytest.raises(CompareError, match=r"r.jsonl.network.preset=lan' *$") as caught:
        from_file(selection(str(path)), None)
    assert "differ in network.preset, network.loss, task.args, " in str(caught.value)
    with pytest.raises(
        CompareError, match=re.escape("has task.args={alpha=1}; there is {}, {alpha = 0.1}, {alpha = 0.1, ")
    ):
        from_file(selection(f"{path}?task.args={{alpha=1}}"), None)
    with pytest.raises(
        CompareError, match=re.escape("there is [], [{share = 0.5, start_s = 1.0, end_s = 2.0}]")
    ):
        from_file(selection(f"{path}?faults.partitions=[{{share=1}}]"), None)


def test_lines_without_the_name_of_the_preset_are_the_same_setting() -> None:
    old = [one(seed, 0.5, network={"loss": 0.1}) for seed in (1, 2)]
    new = [one(seed, 0.5, network={"preset": "lan", "loss": 0.1}) for seed in (3, 4)]
    assert side("a", [*old, *new]).seeds == [1, 2, 3, 4]
    assert [entry.key for entry in old] == [
        one(s, 0, network={"preset": "wan", "loss": 0.1}).key for s in (1, 2)
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "true"),
        (0.1, "0.1"),
        ("int8", "int8"),
        ("true", '"true"'),
        ("inf", '"inf"'),
        ("two words", '"two words"'),
        ("a:b", "a:b"),
        ("./x.csv", '"./x.csv"'),
        ("", '""'),
        ([], "[]"),
        ([{"share": 0.5, "a b": ["x", False]}], '[{share = 0.5, "a b" = ["x", false]}]'),
    ],
)
def test_values_are_shown_so_that_they_can_be_pasted_back(value: Any, text: str) -> None:
    assert shown(value) == text
    if value is not None:
        assert value_of(text) == value
        assert agrees(value, value_of(text))


def test_of_a_table_what_was_named_counts_and_a_truth_value_is_no_number() -> None:
    assert agrees({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"c": 2}]})
    assert not agrees({"a": 1}, {})
    assert not agrees({"a": 1}, {"a": 1, "b": 2})
    assert not agrees([1, 2], [1])
    assert not agrees(True, 1)
    assert not agrees(None, {"a": 1})
    assert value_of("1\nb = 2") == "1\nb = 2"


def test_sides_made_by_several_programs_say_so(tmp_path: Path) -> None:
    old = [msgspec.structs.replace(one(seed, 0.5), program="0123456789abcdef") for seed in (0, 1)]
    new = [one(seed, 0.5) for seed in (2, 3)]
    mixed, plain = saved(tmp_path / "m.jsonl", [*old, *new]), saved(tmp_path / "n.jsonl", new)
    told = CliRunner().invoke(main, ["compare", str(mixed), str(plain)])
    assert told.exit_code == 0
    assert told.stderr.startswith(f"p2psim: {mixed}: its runs were made by 2 programs; the same sweep again")
    assert f"   program: 0123456789abcdef, {program()} | {program()}\n" in told.stdout
    same = CliRunner().invoke(main, ["compare", str(plain), str(plain)])
    assert same.stderr == ""
    assert "no setting differs" in same.stdout


def test_one_seed_is_refused_and_failed_runs_do_not_count() -> None:
    broken = result({"name": "x", "network": {"loss": 0.0}}, 2, "c", failed="it broke")
    with pytest.raises(CompareError, match="only seed 1, and 1 that failed; an interval needs at least two"):
        side("a", [one(1, 0.5), broken])
    with pytest.raises(CompareError, match="a: has no run; an interval needs"):
        side("a", [])
    with pytest.raises(
        CompareError, match="a: has no run that ended well, and 1 that failed; an interval needs"
    ):
        side("a", [broken])
    assert side("a", [one(1, 0.5), one(3, 0.5), broken]).seeds == [1, 3]


def test_settings_that_differ_are_told_as_toml(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.jsonl", [one(seed, 0.9, codec="int8", cuts=[{"share": 0.5}]) for seed in (0, 1)])
    b = saved(tmp_path / "b.jsonl", [one(seed, 0.9, codec="a b", about="x") for seed in (0, 1)])
    told = CliRunner().invoke(main, ["compare", str(a), str(b)]).stdout
    assert '   codec: int8 | "a b"\n' in told
    assert "   cuts: [{share = 0.5}] | -\n" in told


def test_the_command_tells_people_and_programs(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.jsonl", [one(seed, 0.90 + 0.001 * seed) for seed in range(4)])
    b = saved(tmp_path / "b.jsonl", [one(seed, 0.95, network={"loss": 0.1}) for seed in range(4)])
    two = saved(tmp_path / "2.jsonl", [one(seed, 0.5, nodes=nodes) for seed in (0, 1) for nodes in (2, 3)])
    told = CliRunner().invoke(main, ["compare", str(a), str(b)])
    assert told.exit_code == 0
    assert "network.loss: 0.0 | 0.1" in told.stdout
    assert "B better" in told.stdout
    assert "in pairs of equal seeds" in told.stdout
    found = json.loads(CliRunner().invoke(main, ["compare", str(a), str(b), "--json"]).stdout)
    assert found["differ"] == {"network.loss": [0.0, 0.1]}
    assert found["figures"][0]["verdict"] == "B better"
    assert found["figures"][0]["difference"]["mean"] == pytest.approx(0.0485)
    for arguments, part in [
        ([str(a), str(b), "--seeds", "0:1"], "only seed 0"),
        ([str(a), "smoke-20"], "with --seeds A:B"),
        (["smoke-20", str(a), "--seeds", "0:1"], "one seed gives no interval"),
        (["smoke-2", str(a), "--seeds", "0:2"], "did you mean smoke-20"),
        ([str(a), str(tmp_path / "c.jsonl")], "cannot be read"),
        # No run of side A is made, which would be told.
        (["smoke-20", str(tmp_path / "c.jsonl"), "--seeds", "0:2"], "cannot be read"),
        (["smoke-20", str(two), "--seeds", "0:2"], "runs of several scenarios"),
        (["smoke-20", "smoke-20?network.los=1", "--seeds", "0:2"], "did you mean loss"),
    ]:
        refused = CliRunner().invoke(main, ["compare", *arguments])
        assert refused.exit_code == 2, arguments
        assert part in refused.stderr.splitlines()[-1]
        assert len(refused.stderr.splitlines()) == 1
