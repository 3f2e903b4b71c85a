"""Addresses through which a node enters the network, and when it tries each of them again.

An operator may name hundreds, most of them dead. So each address backs off by itself, a few are tried at a time, and
those that failed least come first, in random order: one living address among many dead ones is found soon, and a
thousand nodes with one list do not all ask its first line.
"""

import random
from collections.abc import Iterable
from math import inf

# Addresses tried at the same time. A guess: dead ones take a driver's whole dial timeout, and a driver has room for 64.
TRIED_MAX = 8
# Pause before an address is tried again, doubled up to the second figure. Guesses.
PAUSE_S = 1.0
PAUSE_S_MAX = 60.0
# Doublings counted: 2^6 s is above the limit.
TRIES_COUNTED = 7
# Addresses kept. An operator's list is far shorter.
ADDRESSES_MAX = 1024


class Entrances:
    """Args:
    rng: For order and jitter.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._named: dict[str, None] = {}
        self._tried: dict[str, tuple[int, float]] = {}  # address -> (tries in a row, not before)

    @property
    def named(self) -> list[str]:
        """What the operator named, oldest first."""
        return list(self._named)

    def add(self, addresses: Iterable[str]) -> None:
        """The operator names addresses; they are due at once."""
        for address in addresses:
            if len(self._named) < ADDRESSES_MAX:
                self._named[address] = None
        self.reset()

    def reset(self) -> None:
        """The node has entered: at the next time it is alone, all addresses are due again."""
        self._tried.clear()

    def take(self, now: float, remembered: Iterable[str] = ()) -> tuple[list[str], float]:
        """Return the addresses to dial now, at most TRIED_MAX, and when to ask again (inf: there are none).

        Args:
            now: Seconds.
            remembered: More addresses to try this time, of peers from before.
        """
        known = list(dict.fromkeys([*self._named, *remembered]))
        due = [address for address in known if self._tried.get(address, (0, 0.0))[1] <= now]
        self._rng.shuffle(due)
        due.sort(key=lambda address: self._tried.get(address, (0, 0.0))[0])
        taken, left = due[:TRIED_MAX], due[TRIED_MAX:]
        for address in taken:
            tries = min(self._tried.get(address, (0, 0.0))[0] + 1, TRIES_COUNTED)
            pause = min(PAUSE_S_MAX, PAUSE_S * 2.0 ** (tries - 1)) * self._rng.uniform(0.5, 1.5)
            self._tried[address] = (tries, now + pause)
        if left:
            return taken, now + PAUSE_S * self._rng.uniform(0.5, 1.5)
        return taken, min(
            (self._tried[address][1] for address in known if address in self._tried), default=inf
        )
