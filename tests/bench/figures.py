"""What a benchmark returns, and how it measures.

A figure without a reference says something about the machine only. So every figure stands beside one: measured in
the same run, in turns with ours, wherever the reference can be installed; else recorded on another machine, and
then its name says so.

Each benchmark takes `brief`: the same steps on a small case, once, to see that it can be run; its figures say nothing.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]
Benchmark = Callable[[bool], "list[Figure]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    name: str
    value: float
    unit: str  # units that end in /s: more is better; all others: less is
    reference: float
    against: str  # what the reference is
    recorded: bool = False  # the reference was measured elsewhere, at another time

    @property
    def ratio(self) -> float:
        """value / reference."""
        return self.value / self.reference

    @property
    def better(self) -> bool:
        return self.ratio >= 1 if self.unit.endswith("/s") else self.ratio <= 1

    def entry(self) -> dict[str, object]:
        """The line of build/bench.json."""
        mark = " [recorded reference]" if self.recorded else ""
        return {
            "name": f"{self.name}, against {self.against}{mark}",
            "value": round(self.value, 6),
            "unit": self.unit,
            "reference": round(self.reference, 6),
            "ratio": round(self.ratio, 4),
        }


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(ours: Work, reference: Work, *, repeats: int = 7) -> tuple[float, float]:
    """Median seconds of both, measured in turns, so that a slow moment of the machine hits both; after one try."""
    ours(), reference()
    pairs = [(seconds(ours), seconds(reference)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def times(count: int, work: Work) -> Work:
    """`work` so often that one measurement is long against the clock's resolution."""

    def repeated() -> None:
        for _ in range(count):
            work()

    return repeated
