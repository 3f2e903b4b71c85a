"""A task of one's own that measures no accuracy is told so, and judged by its loss."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from simulation.cli import main
from simulation.experiments.compare import compare, side
from simulation.experiments.curves import Curve
from simulation.experiments.drawings import drawings
from simulation.experiments.page import page
from simulation.experiments.results import Result as Line
from simulation.experiments.results import appending, read, result
from simulation.experiments.sweep import jobs_of
from simulation.experiments.sweep_command import table

ROOT = Path(__file__).resolve().parents[3]
LINE = """
import numpy as np

class Line:
    name, version = "line", "1"

    def __init__(self, part):
        x = np.random.default_rng(part).random((8, 1)).astype(np.float32)
        self.rows = {"x": x, "y": 3 * x + 1}

    def init(self, key):
        return {"w": np.zeros((1, 1), np.float32), "b": np.zeros((1, 1), np.float32)}

    def loss(self, params, batch, key):
        square = ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean()
        return square, {"mse": square}

    def batches(self, split, seed):
        yield self.rows
        while split == "train":
            yield self.rows

def make(part=0, parts=1, seed=0):
    return Line(part)
"""
SCENARIO = """
nodes = 4
duration_s = 6.0
start_s = 1.0
task.name = "line_of_a_test:make"
compute.lanes = 4
config.learning.round_interval_s = 0.5
"""
SAID = "p2psim: the task reports no metric called accuracy; accuracy is not measured"


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "line_of_a_test.py").write_text(LINE)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "line.toml"
    path.write_text(SCENARIO)
    return path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments])


def test_the_loss_is_told_in_its_place(scenario: Path, tmp_path: Path) -> None:
    done = invoke(str(scenario), "--json", "--out", str(tmp_path / "out.jsonl"))
    assert done.exit_code == 0, done.stderr
    assert SAID in done.stderr.splitlines()
    report = json.loads(done.stdout)
    assert report["accuracy"] == {"mean": None, "worst": None, "central": None}
    loss = report["loss"]
    assert 0 < loss["mean"] <= loss["worst"] < 3
    assert 0 < loss["central"] < 3
    last = report["curve"]["points"][-1]
    assert last["mean"] is None
    assert last["loss"] == pytest.approx(loss["mean"])
    assert last["loss_worst"] == pytest.approx(loss["worst"])
    assert report["curve"]["points"][4]["loss"] > last["loss"], "it learns"
    first = drawings(msgspec.convert(report["curve"], Curve), central=None)[0]
    assert first.name == "loss"
    assert f"the mean of 4 nodes is {loss['mean']:.4g}" in first.description
    text = page(result({"name": "line"}, 0, "p2psim run line.toml", report=report))
    assert f"<b>{loss['mean']:.4g}</b><span>test loss, mean</span>" in text


def test_people_read_the_loss_and_that_accuracy_is_not_measured(scenario: Path) -> None:
    lines = invoke(str(scenario), "--no-curve").stdout.splitlines()
    assert "accuracy            not measured" in lines
    assert next(line for line in lines if line.startswith("test loss")).startswith(
        "test loss           mean "
    )


@pytest.mark.parametrize("key", ["accuracy_mean", "accuracy_worst"])
def test_a_stop_rule_that_could_never_fire_is_refused(scenario: Path, key: str) -> None:
    done = invoke(str(scenario), "--set", f"stop.{key}=0.5")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"p2psim: stop.{key}: expected a task that reports a metric called accuracy, found line_of_a_test:make, "
        "which reports mse"
    )


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Processes for runs look for the task in the folder where they are started."""
    program = "from simulation.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
    )


REFUSED = (
    "p2psim: stop.accuracy_mean: expected a task that reports a metric called accuracy, found "
    "line_of_a_test:make, which reports mse"
)


def test_a_sweep_of_it_that_could_never_stop_ends_before_its_first_run(
    scenario: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["--seeds", "0:3", "--jobs", "2", "--out", str(out), "--vary", "start_s=1,2"]
    done = command(tmp_path, "sweep", str(scenario), *arguments, "--set", "stop.accuracy_mean=0.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [REFUSED]
    assert read(out) == []


def test_a_sweep_over_tasks_says_which_could_never_stop(scenario: Path, tmp_path: Path) -> None:
    task = LINE.replace('{"mse": square}', '{"accuracy" if self.scored else "mse": square}')
    task = task.replace("seed=0):", "seed=0, scored=True):").replace("Line(part)", "Line(part, scored)")
    task = task.replace("(self, part):", "(self, part, scored):\n        self.scored = scored")
    (tmp_path / "line_of_a_test.py").write_text(task)
    out = tmp_path / "out.jsonl"
    arguments = ["sweep", str(scenario), "--seeds", "0:1", "--jobs", "1", "--out", str(out)]
    arguments += ["--set", "stop.accuracy_mean=0.5", "--set", "duration_s=2"]
    both = command(tmp_path, *arguments, "--vary", "task.args.scored=true,false")
    assert both.returncode == 2
    why = "(stop.accuracy_mean=0.5, duration_s=2, task.args.scored=false)"
    assert both.stderr.splitlines()[-1] == f"{REFUSED} {why}"
    assert read(out) == []
    one = command(tmp_path, *arguments, "--vary", "task.args.scored=true")
    assert one.returncode == 0, one.stderr


def test_a_comparison_that_could_never_stop_ends_before_its_first_run(scenario: Path, tmp_path: Path) -> None:
    b = f"{scenario}?stop.accuracy_mean=0.5"
    done = command(tmp_path, "compare", str(scenario), b, "--seeds", "0:2", "--jobs", "1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [REFUSED]


def test_a_task_that_cannot_have_all_rows_is_told_before_the_run(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "parted_line_of_a_test.py").write_text(LINE.replace("make(part=0,", "make(part, *,"))
    done = invoke(str(scenario), "--no-curve", "--set", "task.name=parted_line_of_a_test:make")
    assert done.exit_code == 0
    said = [line for line in done.stderr.splitlines() if "all data in one place is not measured" in line]
    assert len(said) == 1
    assert "missing 1 required positional argument: 'part'" in said[0]
    assert "all data in one place not measured" in done.stdout


def test_a_loss_that_is_not_finite_is_not_lost_in_the_mean(scenario: Path, tmp_path: Path) -> None:
    # Another name, because Python remembers modules.
    (tmp_path / "steep_line_of_a_test.py").write_text(LINE.replace("return square,", "return square / 0,"))
    lines = invoke(str(scenario), "--no-curve", "--set", "task.name=steep_line_of_a_test:make").stdout
    assert "test loss           mean inf, worst inf" in lines


# --- tables of many runs ------------------------------------------------------------------------------


def line(seed: int, loss: float | None, *, accuracy: float | None = None, **scenario: object) -> Line:
    """One run; a loss of None is one that was not finite."""
    report = {
        "accuracy": {"mean": accuracy, "worst": accuracy, "central": None},
        "loss": {"mean": loss, "worst": None if loss is None else 2 * loss, "central": None},
        "consensus": 0.25,
    }
    return result({"name": "line", **scenario}, seed, "p2psim run line.toml", report=report)


def rows(results: list[Line]) -> list[list[str]]:
    """Cells of the table of a sweep over two sizes with two seeds."""
    jobs = jobs_of("smoke-20", (), ("nodes=4,5",), range(2))
    told = table(jobs, results, ["nodes"])
    return [re.split(r"  +", text.strip()) for text in told.splitlines()[:3]]


def test_a_sweep_shows_the_loss_where_no_run_has_an_accuracy() -> None:
    heads, four, five = rows([line(0, 0.5), line(1, 0.7), line(0, 0.125), line(1, None)])
    assert heads[:5] == ["nodes", "seeds", "test loss, mean", "test loss, worst", "consensus distance"]
    assert four[:4] == ["4", "2", "0.6 ± 1.271", "1.2 ± 2.541"]
    assert five[:4] == ["5", "2", "inf", "inf"], "what was not finite is not lost in the mean"


def test_a_sweep_shows_accuracies_alone_where_all_runs_have_them() -> None:
    heads, four, _ = rows([line(seed, 0.5, accuracy=0.9) for seed in (0, 1, 0, 1)])
    assert heads[2:5] == ["accuracy, mean", "accuracy, worst", "consensus distance"]
    assert four[2] == "90.00% ± 0.00%"


def test_a_sweep_over_tasks_with_and_without_accuracy_shows_both() -> None:
    heads, four, five = rows(
        [line(seed, 0.5, accuracy=0.9) for seed in (0, 1)] + [line(0, 0.25), line(1, 0.25)]
    )
    assert heads[2:6] == ["accuracy, mean", "accuracy, worst", "test loss, mean", "test loss, worst"]
    assert four[2:5] == ["90.00% ± 0.00%", "90.00% ± 0.00%", "0.5 ± 0"]
    assert five[2:5] == ["–", "–", "0.25 ± 0"]


def test_a_comparison_judges_by_the_loss_where_no_run_has_an_accuracy(tmp_path: Path) -> None:
    worse = side("a", [line(seed, 0.5 + 0.01 * seed) for seed in range(4)])
    better = side("b", [line(seed, 0.3 + 0.01 * seed, nodes=3) for seed in range(4)])
    found = {row.key: row for row in compare(worse, better)}
    assert list(found)[:3] == ["loss.mean", "loss.worst", "consensus"]
    mean = found["loss.mean"]
    assert mean.difference is not None
    assert mean.difference.mean == pytest.approx(-0.2)
    assert (mean.paired, mean.verdict) == (True, "B better")
    assert found["loss.worst"].verdict == "B better"

    diverged = side("c", [line(0, None), *worse.results[1:]])
    verdicts = [
        {row.key: row.verdict for row in compare(*pair)} for pair in ((diverged, better), (better, diverged))
    ]
    assert [one["loss.mean"] for one in verdicts] == ["A not finite", "B not finite"]

    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, one in zip(paths, (worse, better), strict=True):
        with appending(path) as file:
            for entry in one.results:
                file.append(entry)
    told = CliRunner().invoke(main, ["compare", *map(str, paths)]).stdout
    assert re.search(
        r"^test loss, mean +0.515 ± 0.02054 +0.315 ± 0.02054 +-0.2 ± \S+ +B better$", told, re.MULTILINE
    )
    assert "accurac" not in told
