"""One heap of dates for the whole node: sub-machines set them by name, the driver sees the earliest."""

import heapq
from collections.abc import Hashable
from math import inf


class Deadlines:
    """Named dates. Setting a name again moves it; a name fires once.

    Moving leaves a stale entry in the heap, skipped when it surfaces: cheaper than finding it. The heap is
    bounded by the number of `set` calls whose date has not passed yet.
    """

    def __init__(self) -> None:
        self._when: dict[Hashable, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        # Breaks ties in the order of setting, so that equal dates fire in the same order in every process.
        self._sequence = 0

    def set(self, name: Hashable, when: float) -> None:
        if when == inf:
            self.clear(name)
            return
        self._sequence += 1
        self._when[name] = (when, self._sequence)
        heapq.heappush(self._heap, (when, self._sequence, name))

    def clear(self, name: Hashable) -> None:
        self._when.pop(name, None)

    def get(self, name: Hashable) -> float:
        """The date of `name`, or inf."""
        entry = self._when.get(name)
        return entry[0] if entry else inf

    @property
    def next(self) -> float:
        """The earliest date, or inf."""
        heap, when = self._heap, self._when
        while heap:
            date, sequence, name = heap[0]
            if when.get(name) == (date, sequence):
                return date
            heapq.heappop(heap)
        return inf

    def due(self, now: float) -> list[Hashable]:
        """Take out and return the names whose date is not after `now`, earliest first."""
        names = []
        while self.next <= now:
            name = heapq.heappop(self._heap)[2]
            del self._when[name]
            names.append(name)
        return names

    def __len__(self) -> int:
        return len(self._when)
