"""What is going to happen in a world, in the order in which it does, and what leaves for other processes.

Ties of dates are broken by who caused what, and by his own count: an order that every part of a divided world knows
without asking the others (`simulation.windows`).
"""

from collections.abc import Callable, Iterable
from heapq import heappush
from math import inf
from typing import Any, TypeAlias

from simulation.machines import Host

# Kinds of heap entries. Those that travel: from whom, on which connection, and
FRAME = 0  # ... the frame
KNOCK = 1  # ... whom the dialler wants, its life
ANSWER = 2  # ... the lives of who answers and of who dialled, and why not; the word, where who answers is the decider
OPENED = 3  # ... the life that answered: the third leg of the handshake, and the word, where the dialler is the decider
CLOSED = 4  # ... why
PROGRESS = 11  # ... nothing: something large is on its way
# Those of one machine:
WAKE = 5  # life
TRAINED = 6  # life, ticket, training job
JOB = 7  # life, ticket, job
CALL = 8  # what to do
RISEN = 9  # life, connection, to whom: the same moment as OPENED at the other end
GIVE_UP = 10  # life, connection
LEFT = 12  # life, connection (its end) and the piece of it that has left its uplink; or nothing

Deferred: TypeAlias = Callable[[], None]
# (date, index of the machine that caused it, how many it had caused, kind, whom it concerns, ...)
Entry: TypeAlias = tuple[float, int, int, int, Host, Any, Any, Any]
# (date, causing machine, count, kind, index of the machine it concerns, name of the connection, content)
Letter: TypeAlias = tuple[float, int, int, int, int, int, Any]


class Agenda:
    """A heap of entries."""

    __slots__ = ("heap", "letters")

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        self.letters: list[Letter] = []  # to machines that live elsewhere

    @property
    def next(self) -> float:
        """The date of what happens next; inf: nothing does."""
        return self.heap[0][0] if self.heap else inf

    def push(
        self, date: float, kind: int, host: Host, first: Any, second: Any = None, third: Any = None
    ) -> None:
        """Something happens at a machine that lives here, by its own doing."""
        host.pushed += 1
        heappush(self.heap, (date, host.index, host.pushed, kind, host, first, second, third))

    def call(self, date: float, host: Host, what: Deferred) -> None:
        """As `push`, for what is too rare to be a kind of its own."""
        if date < inf:
            self.push(date, CALL, host, what)

    def travel(self, date: float, kind: int, source: Host, target: Host, name: int, content: Any) -> None:
        """Something arrives at `target`, which `source` has sent over the connection `name`."""
        source.pushed += 1
        if target.here:
            heappush(self.heap, (date, source.index, source.pushed, kind, target, source, name, content))
        else:
            self.letters.append((date, source.index, source.pushed, kind, target.index, name, content))

    def arrive(self, letters: Iterable[Letter], hosts: list[Host]) -> None:
        """What machines that live elsewhere have sent to some that live here."""
        heap = self.heap
        for date, cause, count, kind, target, name, content in letters:
            heappush(heap, (date, cause, count, kind, hosts[target], hosts[cause], name, content))
