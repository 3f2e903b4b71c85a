"""The figures by which runs are compared: where they stand in a report, and which way is better.

Accuracies where the task measures them, the loss where it does not.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from math import inf, isfinite, isnan

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
    read: Callable[[Result, str], float] = lambda one, key: figure(one.report, key)  # nan: not measured

    def of(self, results: Sequence[Result]) -> dict[int, float]:
        """Seed -> value, of those runs that have one."""
        found = {one.seed: self.read(one, self.key) for one in results}
        return {seed: value for seed, value in found.items() if not isnan(value)}

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


def _loss(one: Result, key: str) -> float:
    """Infinite where it was not finite, so that a mean of runs does not lose those that went worst.

    A line has null for that, and where nobody was measured; there was nobody to agree then, either.
    """
    value = figure(one.report, key)
    there = "loss" in one.report and isfinite(figure(one.report, "consensus"))
    return inf if isnan(value) and there else value


ACCURACIES = (
    Figure("accuracy.mean", "accuracy, mean", Better.HIGHER, lambda value: f"{100 * value:.2f}%"),
    Figure("accuracy.worst", "accuracy, worst", Better.HIGHER, lambda value: f"{100 * value:.2f}%"),
)
LOSSES = (
    Figure("loss.mean", "test loss, mean", Better.LOWER, lambda value: f"{value:.4g}", _loss),
    Figure("loss.worst", "test loss, worst", Better.LOWER, lambda value: f"{value:.4g}", _loss),
)
OTHERS = (
    Figure("consensus", "consensus distance", Better.LOWER, lambda value: f"{value:.4g}"),
    Figure("bytes_sent", "bytes sent (MB)", Better.LOWER, lambda value: f"{value / 1e6:.2f}"),
    Figure("node_updates", "node-updates", Better.HIGHER, lambda value: f"{value:.1f}"),
)
FIGURES = (*ACCURACIES, *LOSSES, *OTHERS)


def figures_of(results: Sequence[Result]) -> tuple[Figure, ...]:
    """Those by which some runs are compared: accuracies, and the loss if one of the runs has nothing but that."""
    good = [one for one in results if not one.failed]
    accurate = [any(figure.of([one]) for figure in ACCURACIES) for one in good]
    by_loss = any(LOSSES[0].of([one]) for one, has in zip(good, accurate, strict=True) if not has)
    return (
        *(ACCURACIES if any(accurate) or not by_loss else ()),
        *(LOSSES if by_loss else ()),
        *OTHERS,
    )
