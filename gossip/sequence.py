"""Sequence numbers that are never signed twice, also not after a crash or a power cut.

Numbers are reserved in blocks: the ceiling is made durable before the first number below it is used, and a
restart goes on from the ceiling. One fsync per block instead of one per signature; gaps are harmless because
receivers ask only that numbers rise.
"""

from gossip import persisted
from gossip.outbox import Outbox

# One fsync (about 8 ms) per so many signatures. A restart skips at most so many of 2**63 numbers.
BLOCK = 1024
# Left out when a peer has seen a number of ours that we do not remember: months of exchanges at one a second, and far
# below the 2**32 by which a record's number may jump.
SKIP = 2**24


class Sequence:
    """Args:
    ceiling: The durable ceiling, 0 for a new identity.
    used: There is a model from an earlier life. Without a ceiling, its numbers were lost: they are skipped.
    """

    def __init__(self, ceiling: int, *, used: bool = False) -> None:
        if used and ceiling == 0:
            ceiling = SKIP
        self._next = max(ceiling, 1)
        self._ceiling = ceiling

    def take(self, out: Outbox) -> int:
        """The next number; orders the ceiling to be raised first where needed.

        The order in `out` matters: that stands before whatever carries the number.
        """
        if self._next >= self._ceiling:
            self._ceiling = self._next + BLOCK
            out.persist([persisted.ceiling_entry(self._ceiling)], fsync=True)
        number = self._next
        self._next += 1
        return number

    def skip(self, out: Outbox) -> None:
        """Leave out so many numbers that even a disk restored from an old copy cannot have used what comes next."""
        self._next += SKIP
        self._ceiling = self._next
        self.take(out)
