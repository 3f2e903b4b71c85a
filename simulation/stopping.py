"""When a run has seen enough: a rule that is looked at every so often, and is part of the run.

The dates at which it is looked at are virtual and the nodes are drawn from the seed, so that the same seed stops at the
same moment. Looking changes nothing in the world.
"""

import random
from collections.abc import Callable, Sequence
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

    def next(self, now: float) -> float:
        """The date after `now` at which to look."""
        every = self._settings.every_s
        # A multiple, so that the dates do not depend on who else pauses the run.
        return (now // every + 1) * every

    def holds(self, subjects: Sequence[Subject], now: float) -> bool:
        """Whether everything that is asked holds for a sample of those that are up."""
        settings = self._settings
        sample = list(subjects)
        if len(sample) > settings.sample:
            sample = [
                subjects[index] for index in sorted(self._rng.sample(range(len(subjects)), settings.sample))
            ]
        if now < settings.from_s or len(sample) < 2:
            return False
        if settings.consensus and self._consensus(sample) > settings.consensus:
            return False
        if settings.accuracy_mean or settings.accuracy_worst:
            found = self._accuracies(sample)
            # None, of a task that measures no accuracy, never stop a run.
            return (
                bool(found)
                and fmean(found) >= settings.accuracy_mean
                and min(found) >= settings.accuracy_worst
            )
        return True
