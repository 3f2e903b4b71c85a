"""A task of somebody's own that raises is answered in a sentence with its place; faults of ours stay what they are."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from simulation.cli import main

TASK = """
import os
import numpy as np
from p2pnode.tasks.digits import make as digits

def broken(where):
    return os.environ.get("BREAK") == where

class Own(Exception):
    def __init__(self, one, two):
        super().__init__("it broke\\nfor good")

class Whole:
    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)

    def init(self, key):
        if broken("init"):
            return {}["w"]
        return {"w": np.zeros(3, int)} if broken("floats") else self.task.init(key)

    def loss(self, params, batch, key):
        value, metrics = self.task.loss(params, batch, key)
        if broken("loss") and value > 1:
            value = value + 1
        return value if broken("pair") else (value, {} if broken("metric") else metrics)

    def batches(self, split, seed):
        for number, batch in enumerate(self.task.batches(split, seed)):
            if number > 5 and split == "train" and broken("batches"):
                raise Own(1, 2)
            if number > 5 and split == "train" and broken("end"):
                break
            yield batch

def make(part=0, parts=1, seed=0, model="logistic"):
    if broken("make"):
        raise Own(1, 2)
    return Whole(digits(part=part, parts=parts, seed=seed, model=model))
"""
SCENARIO = """
nodes = 4
duration_s = 6.0
start_s = 1.0
task.name = "whole_of_a_test:make"
compute.lanes = 4
config.learning.round_interval_s = 0.5
"""
CONTRACT = "task.name: whole_of_a_test:make breaks its contract, which `p2pnode check-task` tries alone: "


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "whole_of_a_test.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "whole_of_a_test", raising=False)  # that of the test before
    path = tmp_path / "whole.toml"
    path.write_text(SCENARIO)
    return path


def line_of(text: str) -> int:
    return 1 + next(number for number, line in enumerate(TASK.splitlines()) if text in line)


def run(scenario: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> Result:
    monkeypatch.setenv("BREAK", broken)
    return CliRunner().invoke(main, ["run", str(scenario), "--no-curve"])


@pytest.mark.parametrize(
    ("broken", "line", "what"),
    [
        ("init", 'return {}["w"]', "in init: KeyError: 'w'"),
        (
            "loss",
            'broken("loss")',
            "in loss: TracerBoolConversionError: Attempted boolean conversion of traced",
        ),
        ("batches", 'broken("batches")', "in batches: Own: it broke"),
    ],
)
def test_a_fault_of_a_task_is_a_sentence_with_its_place(
    scenario: Path, monkeypatch: pytest.MonkeyPatch, broken: str, line: str, what: str
) -> None:
    done = run(scenario, monkeypatch, broken)
    assert done.exit_code == 2, done.exception
    place = line_of(line) + (broken == "batches")  # it is raised in the next line
    assert done.stderr.splitlines()[-1].startswith(
        f"p2psim: task.name: whole_of_a_test.py, line {place}, {what}"
    )


def test_so_is_one_of_its_factory(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(scenario, monkeypatch, "make")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    place = line_of('broken("make")') + 1
    assert f": task.args: whole_of_a_test.py, line {place}, in make: Own: it broke\n" in done.stderr


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("floats", "LocalError: the task's parameters have no float leaf"),
        ("pair", "TypeError: iteration over a 0-d array"),
        ("end", 'LocalError: the task\'s batches("train", seed) ended'),
    ],
)
def test_what_a_task_gives_that_nobody_can_use_is_a_sentence(
    scenario: Path, monkeypatch: pytest.MonkeyPatch, broken: str, what: str
) -> None:
    done = run(scenario, monkeypatch, broken)
    assert done.exit_code == 2, done.exception
    assert done.stderr.splitlines()[-1].startswith(f"p2psim: {CONTRACT}{what}")


def test_a_fault_of_ours_is_not_blamed_on_the_task(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.experiments.run.store_of", None)
    done = run(scenario, monkeypatch, "")
    assert isinstance(done.exception, TypeError)


def test_a_fault_of_a_task_of_ours_is_ours(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario.write_text(SCENARIO.replace("whole_of_a_test:make", "digits"))
    monkeypatch.setattr("p2pnode.tasks.classifier._BATCHES_AHEAD", None)
    done = run(scenario, monkeypatch, "")
    assert isinstance(done.exception, TypeError)


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("init", f"task.name: whole_of_a_test.py, line {line_of('return {}')}, in init: KeyError: 'w'"),
        ("pair", f"{CONTRACT}IndexError: Too many indices"),
        ("metric", "expected a metric called accuracy of the task 'whole_of_a_test:make', found none"),
    ],
)
def test_the_fleet_says_so_too(
    scenario: Path, monkeypatch: pytest.MonkeyPatch, broken: str, what: str
) -> None:
    monkeypatch.setenv("BREAK", broken)
    arguments = ["fleet", "--nodes", "8", "--rounds", "1", "--task", "whole_of_a_test:make"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.exception
    assert done.stderr.splitlines()[-1].startswith(f"p2psim: {what}")
