"""The figures by which runs are compared: where they stand in a report, and which way is better."""

from collections.abc import Callable, Sequence
from enum import Enum
from math import isfinite

from msgspec import Struct

from simulation.experiments.intervals import Interval, interval
from simulation.experiments.results import Result, figure


class Better(Enum):
    """Which way a figure should go."""

    HIGHER = "higher"
    LOWER = "lower"


class Figure(Struct, frozen=True):
    """One figure of a report."""

    key: str  # dotted, in the report
    name: str  # for people
    better: Better
    show: Callable[[float], str]

    def of(self, results: Sequence[Result]) -> dict[int, float]:
        """Seed -> value, of those runs that have one."""
        found = {one.seed: figure(one.report, self.key) for one in results}
        return {seed: value for seed, value in found.items() if isfinite(value)}

    def interval(self, results: Sequence[Result]) -> Interval | None:
        """Mean over runs; None where no run has the figure."""
        values = list(self.of(results).values())
        return interval(values) if values else None

    def shown(self, found: Interval | None) -> str:
        """`mean ± half-width`, or what can be said."""
        if found is None:
            return "–"
        mean = self.show(found.mean)
        return f"{mean} ± {self.show(found.half_width)}" if isfinite(found.half_width) else mean


FIGURES = (
    Figure("accuracy.mean", "accuracy, mean", Better.HIGHER, lambda value: f"{100 * value:.2f}%"),
    Figure("accuracy.worst", "accuracy, worst", Better.HIGHER, lambda value: f"{100 * value:.2f}%"),
    Figure("consensus", "consensus distance", Better.LOWER, lambda value: f"{value:.4g}"),
    Figure("bytes_sent", "bytes sent (MB)", Better.LOWER, lambda value: f"{value / 1e6:.2f}"),
    Figure("node_updates", "node-updates", Better.HIGHER, lambda value: f"{value:.1f}"),
)
