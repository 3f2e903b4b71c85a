"""How fast a connection is: from that, how large a piece may be, and whether what is under way still moves.

A rate is measured, never assumed. Nothing here waits or reads a clock: `now` and durations are arguments.
"""

from math import exp, inf

from gossip.net.lanes import PIECE_BYTES_MAX, PIECE_BYTES_MIN

# What is handed over at once takes about so long, because what is more urgent and comes just afterwards waits for it,
# and for half as much that the system took before. There and back, where both ways are full, that is a fifth of the one
# second that a ping may take; the rest is for a slow way, and for busy machines.
WRITE_S = 1 / 16
# Handed over at once before anything is known: as much as the first window of a TCP connection carries (RFC 6928), so
# that it says little, and half a second at 16 KiB/s.
WRITE_BYTES_START = 8 * 1024
# On a fast connection several messages are handed over at once: the other end decrypts the first while we encrypt the
# next, and 4 MiB take few turns of the event loop.
WRITE_BYTES_MAX = 4 * PIECE_BYTES_MAX
# Seconds of sending over which the rate is averaged; older ones are forgotten. Long enough that one busy moment of this
# machine does not cut pieces small, short enough to follow a telephone from one cell to the next. A guess.
AVERAGE_S = 1.0
# What people are shown follows what happens as slowly as this, or the figure would not stand still. A guess.
METER_S = 5.0
# What is under way is looked at so often. The longest silence of a link that still works: two retransmissions of a bad
# one, or a telephone that changes its cell.
WINDOW_S = 10.0


class Pace:
    """The rate of one direction of a connection, from how long the system took for what it was handed."""

    __slots__ = ("_bytes", "_seconds", "write_bytes")

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self.write_bytes = WRITE_BYTES_START  # how much to hand over at once

    @property
    def rate(self) -> float:
        """Bytes per second while something was sent; 0 before anything was, inf where it took no time."""
        if self._seconds > 0.0:
            return self._bytes / self._seconds
        return inf if self._bytes else 0.0

    @property
    def piece_bytes(self) -> int:
        """The largest piece."""
        return min(self.write_bytes, PIECE_BYTES_MAX)

    def took(self, size_bytes: int, seconds: float) -> None:
        """`size_bytes` were handed over, and there was room for more `seconds` later."""
        kept = AVERAGE_S / (AVERAGE_S + seconds)
        self._bytes = self._bytes * kept + size_bytes
        self._seconds = self._seconds * kept + seconds
        # At most doubled: buffers on the way take the first bytes in no time, whatever comes behind them.
        allowed = min(self.rate * WRITE_S, 2.0 * self.write_bytes, WRITE_BYTES_MAX)
        self.write_bytes = max(PIECE_BYTES_MIN, int(allowed))


class Meter:
    """Bytes per second of one direction since it was last idle: for people."""

    __slots__ = ("_at", "_began", "_moved")

    def __init__(self) -> None:
        self._moved = 0.0  # bytes, of which fewer and fewer count
        self._began = self._at = 0.0

    def begin(self, now: float) -> None:
        """Something moves from now on."""
        self._moved = 0.0
        self._began = self._at = now

    def moved(self, size_bytes: int, now: float) -> None:
        self._moved = self._moved * exp((self._at - now) / METER_S) + size_bytes
        self._at = now

    def rate(self, now: float) -> float:
        """The mean since the beginning, in which what is older counts less, by a factor of e every METER_S."""
        seconds = METER_S * (1.0 - exp((self._began - now) / METER_S))
        return self._moved * exp((self._at - now) / METER_S) / seconds if seconds > 0.0 else 0.0


class Watch:
    """Whether what is under way moves: so many bytes within every window, else it has stalled.

    Args:
        least: Bytes; at least one.
        window_s: The length of a window.
    """

    __slots__ = ("_least", "_moved", "_window_s", "deadline")

    def __init__(self, least: float, window_s: float = WINDOW_S) -> None:
        self._least = max(1.0, least)
        self._window_s = window_s
        self._moved = 0
        self.deadline = inf  # when to ask `stalled`; inf: nothing is under way

    def begin(self, now: float) -> None:
        """Something is under way from now on; nothing changes where something was."""
        if self.deadline == inf:
            self.deadline, self._moved = now + self._window_s, 0

    def moved(self, size_bytes: int) -> None:
        self._moved += size_bytes

    def end(self) -> None:
        """Nothing is under way any more."""
        self.deadline = inf

    def stalled(self, now: float) -> bool:
        """At the deadline: whether too little has moved. If not, the next window begins."""
        assert now >= self.deadline
        if self._moved < self._least:
            return True
        self.deadline, self._moved = now + self._window_s, 0
        return False
