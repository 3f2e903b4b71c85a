"""When a run has seen enough: a rule that is looked at every so often, and is part of the run.

The dates at which it is looked at are virtual and the nodes are drawn from the seed, so that the same seed stops at the
same moment. Looking changes nothing in the world.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Annotated, Generic, TypeVar

from msgspec import Meta, Struct

from simulation.network import SECONDS_MAX, Probability, Seconds

Subject = TypeVar("Subject")


class StopSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ends a run before `duration_s`, once everything that is asked here holds. 0: not asked."""

    # Mean, and worst, accuracy of the sample: at least.
    accuracy_mean: Probability = 0.0
    accuracy_worst: Probability = 0.0
    # Consensus distance of the sample: at most.
    consensus: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    # Not before this date.
    from_s: Seconds = 0.0
    # Looked at so often.
    every_s: Annotated[float, Meta(ge=0.1, le=SECONDS_MAX)] = 5.0
    # So many honest nodes that are up, drawn anew each time.
    sample: Annotated[int, Meta(ge=2, le=65536)] = 32

    @property
    def asked(self) -> bool:
        return bool(self.accuracy_mean or self.accuracy_worst or self.consensus)


class StopRule(Generic[Subject]):
    """Looks at a sample of subjects.

    Args:
        settings: What must hold.
        rng: Draws the samples.
        accuracies: Of some subjects, each in [0, 1].
        consensus: Their consensus distance.

    Attributes:
        found: What the last look saw, for people: all that was asked, or the first thing that did not hold.
    """

    def __init__(
        self,
        settings: StopSettings,
        rng: random.Random,
        *,
        accuracies: Callable[[Sequence[Subject]], Sequence[float]],
        consensus: Callable[[Sequence[Subject]], float],
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._accuracies = accuracies
        self._consensus = consensus
        self.found = "nobody has looked yet"

    def next(self, now: float) -> float:
        """The date after `now` at which to look."""
        every = self._settings.every_s
        # A multiple, so that the dates do not depend on who else pauses the run. Of most numbers, a multiple divided by
        # the number is rounded, down as well.
        count = int(now / every)
        while count * every <= now:
            count += 1
        return count * every

    def holds(self, subjects: Sequence[Subject], now: float) -> bool:
        """Whether everything that is asked holds for a sample of those that are up."""
        settings = self._settings
        sample = list(subjects)
        if len(sample) > settings.sample:
            sample = [
                subjects[index] for index in sorted(self._rng.sample(range(len(subjects)), settings.sample))
            ]
        if now < settings.from_s:
            return False
        if len(sample) < 2:
            self.found = "fewer than two honest nodes were up"
            return False
        met = []
        for holds, sentence in self._judged(sample):
            if not holds:
                self.found = sentence
                return False
            met.append(sentence)
        self.found = ", ".join(met)
        return True

    def _judged(self, sample: Sequence[Subject]) -> Iterator[tuple[bool, str]]:
        """Whether each thing that is asked holds, and that as a sentence; nothing is measured before it is wanted."""
        settings = self._settings
        if settings.consensus:
            distance = self._consensus(sample)
            holds = distance <= settings.consensus
            shown = f"consensus {distance:.4g}"
            yield (
                holds,
                f"{shown} is at most {settings.consensus:g}"
                if holds
                else f"{shown} > {settings.consensus:g}",
            )
        if not (settings.accuracy_mean or settings.accuracy_worst):
            return
        found = self._accuracies(sample)
        if not found:
            yield False, "no accuracy could be measured"
            return
        for name, value, least in (
            ("mean", fmean(found), settings.accuracy_mean),
            ("worst", min(found), settings.accuracy_worst),
        ):
            if least:
                holds = value >= least
                how = "has reached" if holds else "<"
                yield holds, f"accuracy {name} {100 * value:.4g} % {how} {100 * least:g} %"
