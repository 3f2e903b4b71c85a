"""Sequence numbers that are never signed twice, also not after a crash or a power cut.

Numbers are reserved in blocks: the ceiling is made durable before the first number below it is used, and a
restart goes on from the ceiling. One fsync per block instead of one per signature; gaps are harmless because
receivers ask only that numbers rise.
"""

from gossip import memory
from gossip.events import Effect, Persist

# One fsync (about 8 ms) per so many signatures. A restart skips at most so many of 2**63 numbers.
BLOCK = 1024


class Sequence:
    """Args:
    ceiling: The durable ceiling, 0 for a new identity.
    """

    def __init__(self, ceiling: int) -> None:
        self._next = max(ceiling, 1)
        self._ceiling = ceiling

    def take(self, out: list[Effect]) -> int:
        """The next number; orders the ceiling to be raised first where needed.

        The order in `out` matters: Persist stands before whatever carries the number.
        """
        if self._next >= self._ceiling:
            self._ceiling = self._next + BLOCK
            out.append(Persist((memory.ceiling_entry(self._ceiling),), power=True))
        number = self._next
        self._next += 1
        return number
