"""`p2psim run --watch`: a world while it runs, one sign for each node.

What is shown is a pure function of what was seen and of the window's size; `Watching` gathers it a few times a second,
while the world is paused. Nodes are tested in turns, some at each look, so that a look takes milliseconds however many
there are. The pauses are not in the figures of the run, and change none of them.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Literal, TypeAlias

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from p2pnode.printable import printable
from p2pnode.tables import sparkline
from simulation.experiments.curves import Point, Recorder, Watched
from simulation.machines import Host
from simulation.scenario import Scenario

State: TypeAlias = Literal["down", "joining", "alone", "diverged", "leaving", "hostile", "learning"]

# Sign and colour of a node that learns nothing at the moment. The signs tell them apart without colours.
SIGNS: dict[str, tuple[str, str]] = {
    "down": ("·", "dim"),
    "joining": ("o", "yellow"),
    "alone": ("!", "bold red"),
    "diverged": ("?", "bold red"),
    "leaving": ("x", "yellow"),
    "hostile": ("H", "bold magenta"),
    "untested": ("+", "cyan"),
}
# A node that learns, by its accuracy: an eighth each, the fuller the better.
LEVELS = "▁▂▃▄▅▆▇█"
LEVEL_STYLES = ("red", "red", "red", "yellow", "yellow", "green", "green", "bold green")
# From what a node calls its state; what it calls otherwise is learning.
_STATES: dict[str, State] = {
    "starting": "joining",
    "joining": "joining",
    "isolated": "alone",
    "diverged": "diverged",
    "stopping": "leaving",
}
# Where several nodes share a sign, the first of these that one of them is in; then the least accurate.
_WORST_FIRST = ("alone", "diverged", "down", "leaving", "joining")
# Nodes that are tested at a look.
TESTED_AT_ONCE = 64
# Of this machine's time, the share that looking may take.
_SHARE = 0.2
# Lines of what happened last.
_LATEST = 6


class Sight(Struct, frozen=True):
    """What somebody who watches sees at one moment."""

    name: str
    seed: int
    now_s: float
    end_s: float
    wall_s: float  # since the first look, with all pauses
    watched_s: float  # virtual, since the first look
    states: Sequence[State]  # of every node, by index
    accuracy: dict[int, float]  # of those that were tested and are up
    points: Sequence[Point]
    exchanges: int
    node_updates: int
    events: int
    bytes_sent: int
    faults: dict[str, int]
    latest: Sequence[tuple[float, str]]  # date, what happened; the newest first


def screen(sight: Sight, columns: int, rows: int) -> RenderableType:
    """The whole screen, `rows` lines of at most `columns` characters."""
    above = [_time(sight, columns), *_figures(sight, columns), Text("")]
    below = [Text(""), _legend(sight), *_latest(sight)]
    room = max(rows - len(above) - len(below) - 1, 1)
    lines = [*above, *_nodes(sight, columns, room), *below]
    for line in lines:
        line.no_wrap = True
        line.truncate(columns, overflow="ellipsis")
    return Group(*lines[: max(rows - 1, 1)])


def _time(sight: Sight, columns: int) -> Text:
    share = min(sight.now_s / sight.end_s, 1.0)
    speed = sight.watched_s / sight.wall_s if sight.wall_s > 0 else 0.0
    name = printable(sight.name, 40)
    text = (
        f"{name}, seed {sight.seed}   {sight.now_s:.1f} of {sight.end_s:g} virtual s   "
        f"{sight.wall_s:.0f} s here: {speed:.1f} times real time   "
    )
    width = min(max(columns - len(text) - 7, 0), 30)
    done = round(share * width)
    return Text.assemble(
        (text, "bold"), ("━" * done, "green"), ("━" * (width - done), "dim"), f" {share:.0%}"
    )


def _figures(sight: Sight, columns: int) -> Iterator[Text]:
    found = sorted(sight.accuracy.values())
    last = sight.points[-1] if sight.points else None
    if found:
        cuts = [found[round(share * (len(found) - 1))] for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        names = ("worst", "25 %", "median", "75 %", "best")
        told = "  ".join(f"{name} {100 * cut:.1f} %" for name, cut in zip(names, cuts, strict=True))
        yield Text(f"accuracy    {told}   of {len(found)} nodes")
    elif last is not None and last.loss is not None:
        worst = f", worst {last.loss_worst:.4g}" if last.loss_worst is not None else ""
        yield Text(
            f"test loss   mean {last.loss:.4g}{worst}   of {last.measured} nodes; accuracy is not measured"
        )
    else:
        yield Text("accuracy    nobody was tested yet")
    means = [point.mean for point in sight.points if point.mean is not None]
    consensus = "not measured yet"
    if last is not None and last.consensus is not None:
        consensus = f"{last.consensus:.4g}"
        if last.predicted:
            consensus += f", predicted {last.predicted:.4g}, ratio {last.consensus / last.predicted:.2f}"
    yield Text(f"consensus   {consensus}   mean accuracy {sparkline(means, max(min(columns - 60, 40), 0))}")
    yield Text(
        f"so far      {sight.exchanges} exchanges, {sight.node_updates} training jobs, {sight.events} events, "
        f"{sight.bytes_sent / 1e6:.1f} MB"
    )
    yield Text(
        f"faults      {', '.join(f'{count} {kind}' for kind, count in sight.faults.items()) or 'none'}"
    )


def _nodes(sight: Sight, columns: int, room: int) -> list[Text]:
    """One sign for each node; where they do not fit, one for several, and that of the worst of them."""
    signs = [_kind(sight, index) for index in range(len(sight.states))]
    together = max(1, -(-len(signs) // (columns * room)))
    shown = [_worst(signs[start : start + together]) for start in range(0, len(signs), together)]
    lines = []
    for start in range(0, len(shown), columns):
        line = Text()
        for sign, style in shown[start : start + columns]:
            line.append(sign, style)
        lines.append(line)
    if together > 1:
        lines[-1].append(f"  each the worst of {together}")
    return lines[:room]


def _kind(sight: Sight, index: int) -> str | float:
    """What decides a node's sign: the name of a state, or an accuracy."""
    state = sight.states[index]
    return sight.accuracy.get(index, "untested") if state == "learning" else state


def _worst(kinds: Sequence[str | float]) -> tuple[str, str]:
    """Sign and colour for nodes that share a place."""
    for name in _WORST_FIRST:
        if name in kinds:
            return SIGNS[name]
    tested = [kind for kind in kinds if isinstance(kind, float)]
    if not tested:
        return SIGNS[str(kinds[0])]
    level = min(int(min(tested) * len(LEVELS)), len(LEVELS) - 1)
    return LEVELS[level], LEVEL_STYLES[level]


def _legend(sight: Sight) -> Text:
    counts = Counter(_kind(sight, index) for index in range(len(sight.states)) if not _tested(sight, index))
    line = Text()
    for name, (sign, style) in SIGNS.items():
        if counts[name] or name in ("down", "joining"):
            line.append(sign, style)
            line.append(f" {counts[name]} {name}   ")
    line.append(LEVELS[0], LEVEL_STYLES[0])
    line.append(" to ")
    line.append(LEVELS[-1], LEVEL_STYLES[-1])
    line.append(
        f" {len(sight.states) - sum(counts.values())} learning, by accuracy   Ctrl-C ends with a report"
    )
    return line


def _tested(sight: Sight, index: int) -> bool:
    return sight.states[index] == "learning" and index in sight.accuracy


def _latest(sight: Sight) -> list[Text]:
    lines = [Text(f"{date:9.1f} s  {what}") for date, what in sight.latest[:_LATEST]]
    return lines + [Text("")] * (_LATEST - len(lines))


# --- gathering ----------------------------------------------------------------------------------------


class Watching:
    """Looks at a world and draws it. Made by `watching`."""

    def __init__(self, scenario: Scenario, seed: int, console: Console, live: Live) -> None:
        self._scenario = scenario
        self._seed = seed
        self._console = console
        self._live = live
        self._accuracy: dict[int, float] = {}
        self._turn = 0
        self._began: tuple[float, float] | None = (
            None  # this machine's time and the world's at the first look
        )
        self._free_at = 0.0

    def look(self, world: Watched, recorder: Recorder) -> None:
        """Takes in what is to be seen, and draws it."""
        begun = perf_counter()
        if self._began is None:
            self._began = begun, world.now
        if begun < self._free_at:
            return
        honest = world.honest()
        there = {host.index for host in honest}
        self._accuracy = {index: value for index, value in self._accuracy.items() if index in there}
        turn = [honest[(self._turn + step) % len(honest)] for step in range(min(TESTED_AT_ONCE, len(honest)))]
        self._turn += len(turn)
        self._accuracy |= recorder.accuracy_of(world, turn)
        sight = self._sight(world, recorder, there)
        self._live.update(screen(sight, self._console.width, self._console.height), refresh=True)
        ended = perf_counter()
        self._free_at = ended + (ended - begun) * (1 / _SHARE - 1)

    def _sight(self, world: Watched, recorder: Recorder, honest: set[int]) -> Sight:
        assert self._began is not None, "a look has begun"
        states: list[State] = []
        for host, state in zip(world.hosts, world.ask(world.hosts, _state_of), strict=True):
            if state is None:
                states.append("down")
            elif host.index not in honest:
                states.append("hostile")
            else:
                states.append(_STATES.get(state, "learning"))
        return Sight(
            name=self._scenario.name,
            seed=self._seed,
            now_s=world.now,
            end_s=self._scenario.duration_s,
            wall_s=perf_counter() - self._began[0],
            watched_s=world.now - self._began[1],
            states=states,
            accuracy=self._accuracy,
            points=recorder.points,
            exchanges=world.exchanges,
            node_updates=world.node_updates,
            events=world.events,
            bytes_sent=world.bytes_sent,
            faults=world.faults,
            latest=_happened(self._scenario, recorder, world.now),
        )


def _happened(scenario: Scenario, recorder: Recorder, now: float) -> list[tuple[float, str]]:
    """Machines that went and came, and cuts of the network; the newest first."""
    found = [
        (date, f"node {node} is back" if kind == "up" else f"node {node}: {kind}")
        for date, kind, node in recorder.latest
    ]
    for cut in scenario.faults.partitions:
        found.append((cut.start_s, f"the network is cut: {cut.share:.0%} of the nodes alone"))
        found.append((cut.end_s, "the network is whole again"))
    return sorted((entry for entry in found if entry[0] <= now), reverse=True)


@contextmanager
def watching(scenario: Scenario, seed: int) -> Iterator[Watching | None]:
    """Takes the terminal's screen, and gives it back as it was; None where standard error is no terminal."""
    console = Console(file=sys.stderr)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    waiting = Text(f"{printable(scenario.name, 40)}, seed {seed}: compiling")
    with Live(waiting, console=console, screen=True, auto_refresh=False, transient=True) as live:
        yield Watching(scenario, seed, console, live)


def _state_of(host: Host) -> str | None:
    """What the program of a machine says of itself; None: none runs."""
    return None if host.core is None else getattr(host.core, "state", "")
