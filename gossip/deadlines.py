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
        self._when: dict[Hashable, tuple[float, int, Hashable]] = {}  # the entry that counts
        self._heap: list[tuple[float, int, Hashable]] = []
        # Breaks ties in the order of setting, so that equal dates fire in the same order in every process.
        self._sequence = 0
        # The earliest date, or inf. Drivers ask after every event, so it stands ready.
        self.next = inf

    def set(self, name: Hashable, when: float) -> None:
        if when == inf:
            self.clear(name)
            return
        self._sequence += 1
        entry = (when, self._sequence, name)
        moved = name in self._when
        self._when[name] = entry
        heapq.heappush(self._heap, entry)
        if when < self.next:
            self.next = when
        elif moved:
            self._surface()

    def clear(self, name: Hashable) -> None:
        entry = self._when.pop(name, None)
        if entry is not None and entry[0] == self.next:
            self._surface()

    def get(self, name: Hashable) -> float:
        """The date of `name`, or inf."""
        entry = self._when.get(name)
        return entry[0] if entry else inf

    def due(self, now: float) -> list[Hashable]:
        """Take out and return the names whose date is not after `now`, earliest first."""
        names = []
        while self.next <= now:
            name = heapq.heappop(self._heap)[2]
            del self._when[name]
            names.append(name)
            self._surface()
        return names

    @property
    def size(self) -> int:
        """Entries in the heap, with stale ones: what a flood of `set` could make large."""
        return len(self._heap)

    def __len__(self) -> int:
        return len(self._when)

    def _surface(self) -> None:
        """Throws away what lies above the earliest entry that counts."""
        heap, when = self._heap, self._when
        while heap:
            entry = heap[0]
            if when.get(entry[2]) is entry:
                self.next = entry[0]
                return
            heapq.heappop(heap)
        self.next = inf
