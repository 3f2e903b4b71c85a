"""How sure a mean is, and whether two means differ: Student's t and nothing more clever.

A seed is one observation. Seeds are drawn alike for both sides, so runs with equal seeds are pairs (the same data, the
same machines, the same faults), and the interval is that of their differences; without pairs it is Welch's, which does
not assume that both sides scatter alike (B. L. Welch, Biometrika 34, 1947).
"""

from collections.abc import Mapping, Sequence
from math import inf, isfinite, nan, sqrt
from statistics import fmean, variance

from msgspec import Struct

CONFIDENCE = 0.95


class Interval(Struct, frozen=True):
    """`mean` lies within `half_width` of the truth, in 95 of 100 experiments like this one."""

    mean: float
    half_width: float  # nan: one observation says nothing about it
    count: int  # observations, or pairs of them

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent observations; at least one. An infinite one makes it infinite, and how sure it is unknown."""
    if len(values) < 2 or not all(isfinite(value) for value in values):
        return Interval(fmean(values), nan, len(values))
    return Interval(fmean(values), _t(len(values) - 1) * sqrt(variance(values) / len(values)), len(values))


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[Interval, bool]:
    """Interval of b - a, and whether it is one of pairs.

    Args:
        a: Seed -> observation; at least two of each.
        b: The same. With the same seeds: pairs. Otherwise: Welch.
    """
    assert len(a) > 1, "one seed gives no interval"
    assert len(b) > 1, "one seed gives no interval"
    if a.keys() == b.keys():
        return interval([b[seed] - a[seed] for seed in sorted(a)]), True
    first, second = list(a.values()), list(b.values())
    of_a, of_b = variance(first) / len(first), variance(second) / len(second)
    mean = fmean(second) - fmean(first)
    both = min(len(first), len(second))
    if of_a + of_b == 0:
        return Interval(mean, 0.0, both), False
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(first) - 1) + of_b**2 / (len(second) - 1))
    return Interval(mean, _t(freedom) * sqrt(of_a + of_b), both), False


def _t(freedom: float) -> float:
    """The quantile of Student's distribution that leaves (1 - CONFIDENCE) / 2 above it."""
    from scipy.stats import t

    found = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
    assert 0 < found < inf, "as many degrees of freedom as observations allow"
    return found
