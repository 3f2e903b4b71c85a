"""What the demo says about what came out; the demo itself runs in tests/live."""

import io
import json
import os
import signal
from typing import Any

import pytest
from rich.console import Console, RenderableType

from p2pnode import demo
from p2pnode.demo import ROUNDS, Result


def result(**more: Any) -> Result:
    plain: dict[str, Any] = {
        "central": 0.98,
        "alone": [0.6, 0.7],
        "swarm": [0.97, 0.961],
        "rows": [700, None],
        "rounds": [ROUNDS, ROUNDS],
        "exchanges": 1234,
        "refused": {"busy": 7},
    }
    return Result(**{**plain, **more})


def printed(renderable: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=100, _environ={}).print(renderable)
    return out.getvalue()


def test_a_swarm_within_two_points_is_good() -> None:
    assert demo.verdict(result()) == ""
    assert demo.verdict(result(swarm=[0.96, 0.99])) == ""  # exactly two points below, and one above


def test_every_node_that_is_too_far_is_named_with_the_reason() -> None:
    said = demo.verdict(result(swarm=[0.95, 0.9]))
    assert "reached: node 0 95.0 %, node 1 90.0 %" in said
    assert "at least 96.0 %" in said
    assert "averaged" in said
    late = demo.verdict(result(swarm=[0.97, 0.9], rounds=[ROUNDS, 12]))
    assert f"node 1 trained 12 of {ROUNDS} rounds" in late


def test_a_node_that_forgot_everything_is_not_hidden_by_a_nan() -> None:
    assert "node 0" in demo.verdict(result(swarm=[float("nan"), 0.97]))
    assert "node 1" in demo.verdict(result(swarm=[0.97, float("nan")]))


def test_the_object_for_programs_has_what_was_promised() -> None:
    summary = json.loads(json.dumps(result().summary()))
    assert summary == {
        "central": 0.98,
        "alone": [0.6, 0.7],
        "swarm": [0.97, 0.961],
        "exchanges": 1234,
        "refused": {"busy": 7},
    }


def test_the_table_shows_every_node_three_times() -> None:
    text = printed(demo.table(result()))
    for word in ("60.0 %", "97.0 %", "98.0 %", "96.1 %", "700"):
        assert word in text


@pytest.mark.parametrize(
    "status", [{}, {"state": "\x1b[2J", "id": "\x1b]0;x\x07", "round": None, "refused": {}}]
)
def test_progress_is_shown_for_whatever_is_known(status: dict[str, Any]) -> None:
    statuses = [status, {"round": 3, "peers": 4, "initiated": 9, "loss": 0.5, "refused": {"busy": 2}}]
    assert demo.progress_line("learning", statuses) == "learning: rounds – 3; peers – 4; exchanges 9"
    assert all(line.isprintable() for line in printed(demo.progress_view("learning", statuses)).splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_a_new_child_is_known(number: signal.Signals) -> None:
    """Otherwise Ctrl-C between a child's birth and our noting it leaves a process behind."""
    steps = []
    before = signal.getsignal(number)

    def born(interrupts: demo.Interrupts) -> None:
        with interrupts.held():
            os.kill(os.getpid(), number)
            steps.append("noted")

    with demo.Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            born(interrupts)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert steps == ["noted"]
    assert signal.getsignal(number) is before
