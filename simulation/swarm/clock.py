"""A node's own clock: it runs at another rate than the world's, and may jump ahead as after a suspended laptop.

Monotonic, as the daemon's: it never goes back. A node is given its own `now`, and its deadlines are translated back.
"""

from math import inf, nextafter

from gossip.events import Effect, Event
from simulation.machines import Core


class Clock:
    """local = offset + rate * world."""

    __slots__ = ("offset", "rate")

    def __init__(self, rate: float = 1.0, offset: float = 0.0) -> None:
        self.rate = rate
        self.offset = offset

    def local(self, now: float) -> float:
        return self.offset + self.rate * now

    def world(self, local: float) -> float:
        """The first date of the world at which this clock shows at least `local`."""
        if local == inf:
            return inf
        date = (local - self.offset) / self.rate
        while self.local(date) < local:  # rounding must not wake a node a hair too early, again and again
            date = nextafter(date, inf)
        return date

    def jump(self, seconds: float) -> None:
        """Forward only."""
        assert seconds >= 0, "a monotonic clock does not go back"
        self.offset += seconds


class Clocked:
    """A core that lives by its own clock."""

    __slots__ = ("clock", "core")

    def __init__(self, core: Core, clock: Clock) -> None:
        self.core = core
        self.clock = clock

    @property
    def deadline(self) -> float:
        return self.clock.world(self.core.deadline)

    def handle(self, event: Event, now: float) -> list[Effect]:
        return self.core.handle(event, self.clock.local(now))
