"""Machines that come and go all the time: memoryless sessions, days and nights, or what a trace says.

Drawn before the run, from a generator of its own. What strikes once belongs to `simulation.faults`.
"""

import csv
import random
from collections.abc import Callable
from math import cos, inf, isfinite, pi
from typing import Annotated, Literal

from msgspec import Meta, Struct

from simulation.mistakes import ScenarioError
from simulation.network import SECONDS_MAX, Probability, Seconds

# Nobody restarts a program faster, nor stops it sooner.
SPAN_S_MIN = 0.5
# A year of a million sessions is 40 MB; more is a job for a smaller file.
FILE_BYTES_MAX = 2**26


class ChurnSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How nodes come and go. Node 0, whose address the others know, stays, unless a trace speaks of it."""

    model: Literal["none", "sessions", "diurnal", "trace"] = "none"
    # Share of the nodes that come and go; the others stay.
    share: Probability = 1.0
    # A node stays so long, and is away so long: exponential. In balance from the start: who is away then starts later.
    session_s_mean: Annotated[float, Meta(ge=1, le=SECONDS_MAX)] = 3600.0
    absence_s_mean: Annotated[float, Meta(ge=1, le=SECONDS_MAX)] = 1800.0
    # Share of the departures that are kills instead of clean stops.
    kills: Probability = 0.0
    # From here on everybody is back and stays; 0: never.
    stop_s: Seconds = 0.0
    # With `diurnal`: length of a day; the moment of it (in seconds, at longitude 0) when most are there; how much more
    # likely a return is then, and a departure half a day later: 0 not at all, 1 twice as likely as on average.
    day_s: Annotated[float, Meta(ge=10, le=SECONDS_MAX)] = 86400.0
    peak_s: Seconds = 43200.0
    amplitude: Probability = 0.8
    # With `trace`: a CSV with the header node,up_s,down_s.
    file: str = ""


class Span(Struct, frozen=True):
    """Node `node` is away from `start_s` until `end_s` (inf: for good)."""

    node: int
    start_s: float
    end_s: float
    killed: bool


class Attendance(Struct, frozen=True):
    """Who is there when."""

    spans: tuple[Span, ...]
    starts: dict[int, float]  # of those that are not there at the beginning; inf: never


def attendance(
    settings: ChurnSettings,
    nodes: int,
    *,
    begin_s: float,
    end_s: float,
    rng: random.Random,
    longitude: Callable[[int], float],
) -> Attendance:
    """Draws, or reads, who is there when.

    Args:
        begin_s: Nodes have started by then; the first may go.
        end_s: Of the run.
        longitude: Of a node, in degrees.

    Raises:
        ScenarioError: a trace that cannot be used.
    """
    if settings.model == "none":
        return Attendance((), {})
    if settings.model == "trace":
        return _traced(settings, nodes, rng)
    spans: list[Span] = []
    starts: dict[int, float] = {}
    stop = settings.stop_s or inf
    coming = sorted(rng.sample(range(1, nodes), round(settings.share * (nodes - 1))))
    for node in coming:
        dates = _Dates(settings, longitude(node), rng)
        date = begin_s
        there, away = dates.rates(date)
        if rng.random() >= there / (there + away):
            date = max(dates.until_return(date), date + SPAN_S_MIN)
            starts[node] = min(date, stop)
        while True:
            start = max(dates.until_departure(date), date + SPAN_S_MIN)
            if start >= min(stop, end_s):
                break
            date = max(dates.until_return(start), start + SPAN_S_MIN)
            spans.append(Span(node, start, min(date, stop), rng.random() < settings.kills))
            if date >= min(stop, end_s):
                break
    return Attendance(tuple(spans), starts)


class _Dates:
    """Departures and returns of one node, as events of rates that follow the day (thinning: Lewis and Shedler 1979)."""

    def __init__(self, settings: ChurnSettings, longitude: float, rng: random.Random) -> None:
        self._rng = rng
        self._amplitude = settings.amplitude if settings.model == "diurnal" else 0.0
        self._day_s = settings.day_s
        # The sun is in the east first.
        self._peak_s = settings.peak_s - longitude / 360.0 * settings.day_s
        self._leaving = 1.0 / settings.session_s_mean
        self._returning = 1.0 / settings.absence_s_mean

    def rates(self, date: float) -> tuple[float, float]:
        """(of returning, of leaving) at a date, per second."""
        swing = self._swing(date)
        return self._returning * (1 + swing), self._leaving * (1 - swing)

    def until_departure(self, date: float) -> float:
        return self._next(date, self._leaving, -1.0)

    def until_return(self, date: float) -> float:
        return self._next(date, self._returning, 1.0)

    def _swing(self, date: float) -> float:
        return self._amplitude * cos(2 * pi * (date - self._peak_s) / self._day_s) if self._amplitude else 0.0

    def _next(self, date: float, rate: float, sign: float) -> float:
        most = 1 + self._amplitude
        while True:
            date += self._rng.expovariate(rate * most)
            if self._rng.random() * most < 1 + sign * self._swing(date):
                return date


def _traced(settings: ChurnSettings, nodes: int, rng: random.Random) -> Attendance:
    sessions = read_sessions(settings.file, nodes)
    spans: list[Span] = []
    starts: dict[int, float] = {}
    for node in sorted(sessions):
        dates = sessions[node]
        if dates[0][0] > 0:
            starts[node] = dates[0][0]
        for index, (_, down) in enumerate(dates):
            back = dates[index + 1][0] if index + 1 < len(dates) else inf
            if down < inf:
                spans.append(Span(node, down, back, rng.random() < settings.kills))
    return Attendance(tuple(spans), starts)


def read_sessions(path: str, nodes: int) -> dict[int, list[tuple[float, float]]]:
    """Reads a trace of sessions: node -> [(up, down)], rising. Nodes that it does not name are always there.

    A CSV with the header `node,up_s,down_s`; an empty `down_s` means until the end.

    Raises:
        ScenarioError: one sentence that names file and line.
    """
    sessions: dict[int, list[tuple[float, float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if len(file.read(FILE_BYTES_MAX + 1)) > FILE_BYTES_MAX:
                raise ScenarioError(f"{path}: expected a trace of at most {FILE_BYTES_MAX} bytes, found more")
            file.seek(0)
            lines = csv.reader(file)
            if [cell.strip() for cell in next(lines, [])] != ["node", "up_s", "down_s"]:
                raise ScenarioError(f"{path}: expected node,up_s,down_s in the first line")
            for line in lines:
                if line:
                    node, up, down = _session(line, nodes, f"{path}: line {lines.line_num}")
                    before = sessions.setdefault(node, [])
                    if before and before[-1][1] == inf:
                        raise ScenarioError(
                            f"{path}: line {lines.line_num}: up_s: expected no further session of node {node}, whose "
                            f"last one has an empty down_s and goes on to the end, found {up:g}"
                        )
                    if before and up < before[-1][1] + 2 * SPAN_S_MIN:
                        raise ScenarioError(
                            f"{path}: line {lines.line_num}: up_s: expected at least a second after node {node} went "
                            f"({before[-1][1]:g}), found {up:g}"
                        )
                    before.append((up, down))
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"{path}: expected a CSV file in UTF-8: {error}") from error
    return sessions


def _session(line: list[str], nodes: int, where: str) -> tuple[int, float, float]:
    cells = [cell.strip() for cell in line]
    if len(cells) != 3:
        raise ScenarioError(f"{where}: expected three cells, found {len(cells)}")
    if not (cells[0].isascii() and cells[0].isdigit() and len(cells[0]) < 10 and int(cells[0]) < nodes):
        raise ScenarioError(f"{where}: node: expected a node from 0 to {nodes - 1}, found {cells[0][:60]!r}")
    dates = []
    for name, cell in (("up_s", cells[1]), ("down_s", cells[2])):
        try:
            date = inf if name == "down_s" and not cell else float(cell)
        except ValueError:
            date = -1.0
        if not date >= 0 or (cell and not isfinite(date)):
            raise ScenarioError(f"{where}: {name}: expected a number at least 0, found {cell[:60]!r}")
        dates.append(date)
    if dates[1] < dates[0] + SPAN_S_MIN:
        raise ScenarioError(
            f"{where}: down_s: expected at least {SPAN_S_MIN} s after up_s ({dates[0]:g}), found {dates[1]:g}"
        )
    return int(cells[0]), dates[0], dates[1]
