"""What somebody who watches a run sees: pure functions of what was seen and of the window."""

import io
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from simulation.cli import main
from simulation.experiments.curves import Point
from simulation.experiments.watching import LEVELS, SIGNS, Sight, screen

POINT = Point(
    at_s=5.0,
    up=4,
    measured=4,
    mean=0.5,
    quartiles=(0.4, 0.5, 0.6),
    worst=0.3,
    consensus=0.4,
    predicted=0.2,
    events=10,
    exchanges=5,
    node_updates=6,
    messages=20,
    bytes_sent=1000,
    faults={},
)
SIGHT = Sight(
    name="small",
    seed=7,
    now_s=5.0,
    end_s=20.0,
    wall_s=2.0,
    watched_s=5.0,
    states=["learning", "down", "joining", "alone", "leaving", "hostile", "learning", "learning", "diverged"],
    accuracy={0: 0.99, 6: 0.05},
    points=[POINT],
    exchanges=5,
    node_updates=6,
    events=10,
    bytes_sent=2_000_000,
    faults={"loss": 3},
    latest=[(4.5, "node 1: crash"), (3.0, "node 2 is back")],
)


def drawn(sight: Sight, columns: int = 110, rows: int = 30, *, color: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        width=columns,
        height=rows,
        force_terminal=color,
        color_system="truecolor" if color else None,
        legacy_windows=False,
    )
    console.print(screen(sight, columns, rows))
    return out.getvalue()


def sight(**changes: Any) -> Sight:
    return msgspec.structs.replace(SIGHT, **changes)


def test_every_state_has_a_sign_of_its_own() -> None:
    lines = drawn(SIGHT).splitlines()
    assert "█·o!xH▁+?" in lines
    assert len({sign for sign, _ in SIGNS.values()} | set(LEVELS)) == len(SIGNS) + len(LEVELS)


def test_the_figures_are_there() -> None:
    text = drawn(SIGHT, 130)
    for part in (
        "small, seed 7",
        "5.0 of 20 virtual s",
        "2.5 times real time",
        "25%",
        "worst 5.0 %",
        "best 99.0 %",
        "of 2 nodes",
        "0.4, predicted 0.2, ratio 2.00",
        "5 exchanges, 6 training jobs, 10 events, 2.0 MB",
        "3 loss",
        "4.5 s  node 1: crash",
        "1 hostile",
        "2 learning",
    ):
        assert part in text, part


def test_good_and_bad_differ_by_colour_as_well() -> None:
    text = drawn(SIGHT, color=True)
    assert "\x1b[1;32m█" in text
    assert "\x1b[31m▁" in text


@pytest.mark.parametrize(("columns", "rows"), [(110, 30), (40, 12), (20, 5), (1, 1)])
@pytest.mark.parametrize("nodes", [2, 200, 65_536])
def test_it_fits_the_window(columns: int, rows: int, nodes: int) -> None:
    large = sight(states=["learning"] * nodes, accuracy=dict.fromkeys(range(nodes), 0.5))
    lines = drawn(large, columns, rows).splitlines()
    assert len(lines) <= rows
    assert all(len(line) <= columns for line in lines)


def test_nodes_that_share_a_sign_show_the_worst_of_them() -> None:
    nodes = 4000
    states: list[Any] = ["learning"] * nodes
    states[3999] = "down"
    text = drawn(sight(states=states, accuracy={**dict.fromkeys(range(nodes), 0.99), 0: 0.3}), 100, 30)
    assert "each the worst of 3" in text
    signs = [line for line in text.splitlines() if line.startswith(("▃█", "████"))]
    assert signs[0][:3] == "▃██"
    assert "█·" in text


def test_names_from_files_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in drawn(sight(name="\x1b[2Jx"))


def test_nothing_measured_yet_is_said_so() -> None:
    text = drawn(sight(points=[], accuracy={}, latest=[], faults={}, wall_s=0.0, now_s=0.0))
    assert "nobody was tested yet" in text
    assert "not measured yet" in text


def test_a_task_without_accuracy_shows_its_loss() -> None:
    point = msgspec.structs.replace(POINT, mean=None, quartiles=None, worst=None, loss=1.25, loss_worst=1.5)
    assert "test loss   mean 1.25, worst 1.5   of 4 nodes" in drawn(sight(points=[point], accuracy={}))


def test_without_a_terminal_there_is_plain_progress() -> None:
    arguments = ["run", "smoke-20", "--nodes", "4", "--set", "duration_s=3", "--set", "faults={}", "--watch"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert "1.0 s of 3 s" in result.stderr
    assert "\x1b" not in result.output
    without = CliRunner().invoke(main, [*arguments, "--no-curve"])
    assert without.exit_code == 2
    assert "--no-curve" in without.stderr
