"""Whether one experiment is better than another, and how sure that is."""

import difflib
from collections.abc import Mapping, Sequence
from math import isinf
from pathlib import Path
from typing import Any

from msgspec import Struct

from simulation.experiments.figures import Better, Figure, figures_of
from simulation.experiments.intervals import Interval, difference, interval
from simulation.experiments.results import Result, flat, read
from simulation.experiments.sweep import Job
from simulation.experiments.values import agrees, keys_of, shown, under, value_of

# Names and remarks, not settings: two scenarios that differ in nothing else are the same.
REMARKS = ("name", "about")
# A name, too: its values stand beside it. But a short one, good to choose by where they differ.
PRESET = "network.preset"
# Keys and values that are told; after so many nobody reads on.
TOLD_MAX = 8


class CompareError(Exception):
    """The two sides cannot be compared; one sentence."""


class Selection(Struct, frozen=True):
    """What a person named: `FILE.jsonl?key=value&key=value`, or `SCENARIO?key=value&key=value`."""

    text: str
    source: str
    wanted: tuple[tuple[str, str], ...]

    @property
    def is_file(self) -> bool:
        return self.source.endswith(".jsonl")

    def jobs(self, seeds: range) -> list[Job]:
        """The runs to make where no file is named."""
        changes = tuple(f"{key}={value}" for key, value in self.wanted)
        return [Job(self.source, changes, seed, curve=False) for seed in seeds]


class Side(Struct, frozen=True):
    """One of two experiments: runs of one scenario that differ in their seeds."""

    text: str
    results: list[Result]  # at least two that did not fail

    @property
    def seeds(self) -> list[int]:
        return sorted(one.seed for one in self.results)

    @property
    def programs(self) -> list[str]:
        """Which made the runs; one, unless somebody edited it between two of them."""
        return list(dict.fromkeys(one.program or "unknown" for one in self.results))


class Row(Struct, frozen=True):
    """One figure of both sides."""

    key: str
    name: str
    a: Interval | None
    b: Interval | None
    difference: Interval | None  # b - a; None: not measured by two runs of each, or not finite
    paired: bool
    verdict: str


def selection(text: str) -> Selection:
    """Reads what a person named.

    Raises:
        CompareError: one sentence.
    """
    text = text.removesuffix("?")
    source, _, query = text.partition("?")
    wanted = []
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise CompareError(f"{text}: expected key=value after ?, found {part!r}")
        wanted.append((key, value))
    return Selection(text, source, tuple(wanted))


def from_file(chosen: Selection, seeds: range | None) -> Side:
    """The runs of a file that were chosen, as one side.

    Raises:
        ResultsError: the file cannot be used.
        CompareError: nothing, more than one combination, or fewer than two seeds were chosen.
    """
    return side(chosen.text, chosen_runs(chosen, seeds))


def chosen_runs(chosen: Selection, seeds: range | None, *, curves: bool = False) -> list[Result]:
    """The runs of a file with the values and the seeds that were named, with their curves where these are wanted.

    Raises:
        ResultsError: the file cannot be used.
        CompareError: there are none.
    """
    left = read(Path(chosen.source), curves=curves)
    for key, value in chosen.wanted:
        known = {name for one in left for name in keys_of(_settings(one))}
        if left and key not in known:
            raise CompareError(f"{chosen.source}: no run has the key {key}{_nearest(key, known)}")
        there = [under(_settings(one), key) for one in left]
        wanted = value_of(value)
        # Of a table what was named counts, unless one is that and nothing more.
        whole = isinstance(wanted, dict) and wanted in there
        same = [found == wanted if whole else agrees(found, wanted) for found in there]
        left = [one for one, is_it in zip(left, same, strict=True) if is_it]
        if not left:
            raise CompareError(f"{chosen.text}: no run has {key}={value}; there is {_list(there)}")
    if seeds is None:
        return left
    found = [one for one in left if one.seed in seeds]
    if left and not found:
        known_seeds = sorted({one.seed for one in left})
        raise CompareError(
            f"{chosen.text}: no run has a seed that is asked for; there is {_list(known_seeds)}"
        )
    return found


def side(text: str, results: Sequence[Result]) -> Side:
    """Checks that results are runs of one scenario, at least two of which did not fail.

    Raises:
        CompareError: they are not.
    """
    good = [one for one in results if not one.failed]
    differ = _differing([_settings(one) for one in good])
    if any(key != PRESET for key in differ):
        # One to choose by, which all of them have, if there is one.
        key, values = next(
            ((key, values) for key, values in differ.items() if None not in values),
            next(iter(differ.items())),
        )
        keys = ", ".join(list(differ)[:TOLD_MAX]) + (", ..." if len(differ) > TOLD_MAX else "")
        chosen = next(value for value in values if value is not None)
        raise CompareError(
            f"{text}: there are runs of several scenarios, which differ in {keys} ({key} is {_list(values)}); "
            f"choose one as in '{text}{'&' if '?' in text else '?'}{key}={shown(chosen)}'"
        )
    if len({one.seed for one in good}) < 2:
        failed = len(results) - len(good)
        if good:
            there = f"only seed {good[0].seed}{f', and {failed} that failed' if failed else ''}"
        else:
            there = f"no run that ended well, and {failed} that failed" if failed else "no run"
        raise CompareError(f"{text}: has {there}; an interval needs at least two seeds, better eight")
    return Side(text, good)


def compare(a: Side, b: Side) -> list[Row]:
    """All figures, with 95 % confidence intervals."""
    figures = figures_of([*a.results, *b.results])
    return [_row(figure, figure.of(a.results), figure.of(b.results)) for figure in figures]


def settings_that_differ(a: Side, b: Side) -> dict[str, list[Any]]:
    """Key -> the values of both sides; None where a side has no such key."""
    return _differing([_settings(one.results[0]) | {"program": ", ".join(one.programs)} for one in (a, b)])


def _row(figure: Figure, a: Mapping[int, float], b: Mapping[int, float]) -> Row:
    of_a, of_b = (interval(list(values.values())) if values else None for values in (a, b))
    if len(a) < 2 or len(b) < 2:
        return Row(figure.key, figure.name, of_a, of_b, None, False, "not measured")
    infinite = [name for name, one in (("A", of_a), ("B", of_b)) if one is not None and isinf(one.mean)]
    if infinite:
        verdict = f"{' and '.join(infinite)} not finite"
        return Row(figure.key, figure.name, of_a, of_b, None, False, verdict)
    found, paired = difference(a, b)
    return Row(figure.key, figure.name, of_a, of_b, found, paired, _verdict(figure, found))


def _verdict(figure: Figure, found: Interval) -> str:
    if found.low <= 0 <= found.high:
        return "no difference shown"
    b_is_better = (found.mean > 0) == (figure.better is Better.HIGHER)
    return "B better" if b_is_better else "A better"


def _settings(one: Result) -> dict[str, Any]:
    """What runs are told apart and chosen by."""
    return one.scenario | {"version": one.version}


def _differing(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> values in the order of their appearance, of all keys that are not the same everywhere."""
    leaves = [flat(tree) for tree in trees]
    found = {}
    for key in dict.fromkeys(name for one in leaves for name in one if name not in REMARKS):
        values = [one.get(key) for one in leaves]
        different = [value for index, value in enumerate(values) if value not in values[:index]]
        if len(different) > 1:
            found[key] = different
    return found


def _list(values: Sequence[Any]) -> str:
    different = [value for index, value in enumerate(values) if value not in values[:index]]
    more = ", ..." if len(different) > TOLD_MAX else ""
    return ", ".join(shown(value) for value in different[:TOLD_MAX]) + more


def _nearest(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
