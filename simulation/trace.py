"""Measured links: delay and loss over time, from a CSV file that anybody can write with ping and a script.

    time_s,delay_s,loss
    0,0.031,0
    10,0.054,0.01
    20,0.450,0.2

A line holds from its date until the next one's; after the last line, which holds as long as the one before, the trace
begins again. Two more columns, `from` and `to`, make it a trace for each pair of regions (names of [geography]).
"""

import csv
from bisect import bisect_right

from msgspec import Struct

from simulation.mistakes import ScenarioError
from simulation.network import SECONDS_MAX

# A day of one-second steps between ten regions is 8.6 million lines; that is a job for a smaller file.
FILE_BYTES_MAX = 2**26

# An hour: the messages of a lost connection wait for seconds, and the slowest link that anybody measured for minutes
# (a spacecraft's). More is milliseconds taken for seconds.
DELAY_S_MAX = 3600.0
# What a column takes, and how that is said.
_LIMITS = {
    "time_s": (SECONDS_MAX, f"between 0 and {SECONDS_MAX:.0f} (seconds)"),
    "delay_s": (DELAY_S_MAX, f"between 0 and {DELAY_S_MAX:.0f} (seconds)"),
    "loss": (1.0, "between 0 and 1"),
}

Pair = tuple[str, str]


class Steps(Struct, frozen=True):
    """One link over time."""

    starts: list[float]  # seconds, from 0, rising
    delays: list[float]  # seconds, one way
    losses: list[float]  # probability

    @property
    def period_s(self) -> float:
        """After so long it begins again; 0: it never changes."""
        return self.starts[-1] + (self.starts[-1] - self.starts[-2]) if len(self.starts) > 1 else 0.0

    def at(self, date: float) -> tuple[float, float]:
        """Delay and loss at a date."""
        index = bisect_right(self.starts, date % self.period_s) - 1 if len(self.starts) > 1 else 0
        return self.delays[index], self.losses[index]


def read_trace(path: str) -> dict[Pair, Steps]:
    """Reads a trace: pair of regions -> steps; the pair of two empty names is every link.

    Raises:
        ScenarioError: one sentence that names file and line.
    """
    found: dict[Pair, Steps] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if len(file.read(FILE_BYTES_MAX + 1)) > FILE_BYTES_MAX:
                raise ScenarioError(f"{path}: expected a trace of at most {FILE_BYTES_MAX} bytes, found more")
            file.seek(0)
            lines = csv.DictReader(file)
            names = [name.strip() for name in lines.fieldnames or []]
            lines.fieldnames = names
            columns = ["time_s", "delay_s", "loss"]
            if sorted(names) not in (sorted(columns), sorted([*columns, "from", "to"])):
                want = "time_s,delay_s,loss, with or without from,to"
                raise ScenarioError(f"{path}: expected a first line {want}, found {','.join(names)[:60]!r}")
            for line in lines:
                _add(found, line, f"{path}: line {lines.line_num}")
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"{path}: expected a CSV file in UTF-8: {error}") from error
    if not found:
        raise ScenarioError(f"{path}: expected at least one line below the first, found none")
    return found


def _add(found: dict[Pair, Steps], line: dict[str, str], where: str) -> None:
    if None in line or None in line.values():
        raise ScenarioError(f"{where}: expected as many cells as the first line has")
    pair = (line.get("from", "").strip(), line.get("to", "").strip())
    numbers = {}
    for name, (largest, limits) in _LIMITS.items():
        try:
            numbers[name] = float(line[name])
        except ValueError:
            numbers[name] = -1.0
        if not 0 <= numbers[name] <= largest:  # nor NaN
            raise ScenarioError(f"{where}: {name}: expected a number {limits}, found {line[name][:60]!r}")
    steps = found.setdefault(pair, Steps([], [], []))
    date = numbers["time_s"]
    if date <= steps.starts[-1] if steps.starts else date != 0:
        want = f"more than {steps.starts[-1]:g}" if steps.starts else "0 in the first line"
        raise ScenarioError(f"{where}: time_s: expected {want}, found {date:g}")
    steps.starts.append(date)
    steps.delays.append(numbers["delay_s"])
    steps.losses.append(numbers["loss"])
