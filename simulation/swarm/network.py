"""Faults of links that a whole swarm needs beyond those of one frame: one-way links, clogs, silence, corruption.

Corruption does not reach a node: the channel's authentication fails, and the connection ends. So a corrupted frame is
lost and its connection is broken, as in the daemon.
"""

import random
from collections.abc import Callable, Iterable

from msgspec import Struct

from gossip.net.lanes import Lane
from simulation.network import Endpoint, LinkModel, LinkSettings, Partition

_NEVER = (0.0, "")


class OneWay(Struct, frozen=True):
    """What `senders` send to others is lost, from `start_s` until before `end_s`; the way back is open."""

    senders: tuple[int, ...]
    start_s: float
    end_s: float

    def cuts(self, source: Endpoint, target: Endpoint, now: float) -> bool:
        return self.start_s <= now < self.end_s and source in self.senders and target not in self.senders


class Clog(Struct, frozen=True):
    """Frames from and to `node` hang until `end_s`."""

    node: int
    start_s: float
    end_s: float


class SwarmLinks(LinkModel):
    """Args:
    corruption: Probability that a frame does not authenticate.
    corrupted: Told (source, target) when that happens.
    """

    def __init__(
        self,
        settings: LinkSettings,
        rng: random.Random,
        *,
        partitions: Iterable[Partition] = (),
        one_way: Iterable[OneWay] = (),
        clogs: Iterable[Clog] = (),
        corruption: float = 0.0,
        corrupted: Callable[[int, int], None] = lambda source, target: None,
    ) -> None:
        super().__init__(settings, rng, partitions)
        self._one_way = list(one_way)
        self._clogs = list(clogs)
        self._corruption = corruption
        self._corrupted = corrupted
        # node -> nothing from or to it before this date, and the kind of fault
        self._muted: dict[Endpoint, tuple[float, str]] = {}

    def mute(self, node: int, until: float, kind: str) -> None:
        """Nothing passes from or to `node` before `until`, and nobody is told: a middlebox forgot its connections."""
        self._muted[node] = (until, kind)

    def cut(self, source: Endpoint, target: Endpoint, now: float) -> bool:
        return super().cut(source, target, now) or self._blocked(source, target, now) != ""

    def fates(
        self, source: Endpoint, target: Endpoint, size_bytes: int, now: float, *, lane: Lane | None = None
    ) -> list[float]:
        blocked = self._blocked(source, target, now)
        if blocked:
            self._count(blocked)
            return []
        if self._corruption and self._sender_of(source).random() < self._corruption:
            assert isinstance(source, int)
            assert isinstance(target, int)
            self._count("corruption")
            self._corrupted(source, target)
            return []
        delays = super().fates(source, target, size_bytes, now, lane=lane)
        return [self._clogged(source, target, delay, now) for delay in delays]

    def reliable(self, source: Endpoint, target: Endpoint, now: float) -> float | None:
        blocked = self._blocked(source, target, now)
        if blocked:
            self._count(blocked)
            return None
        delay = super().reliable(source, target, now)
        return None if delay is None else self._clogged(source, target, delay, now)

    def _blocked(self, source: Endpoint, target: Endpoint, now: float) -> str:
        """The kind of fault that stands in the way now; empty: none."""
        if self._muted:
            for end in (source, target):
                until, kind = self._muted.get(end, _NEVER)
                if until > now:
                    return kind
        if self._one_way and any(cut.cuts(source, target, now) for cut in self._one_way):
            return "one_way"
        return ""

    def _clogged(self, source: Endpoint, target: Endpoint, delay: float, now: float) -> float:
        for clog in self._clogs:
            if clog.start_s <= now < clog.end_s and clog.node in (source, target):
                self._count("clog")
                sender = self._sender_of(source)
                delay = self._in_order(
                    sender, target, max(delay, clog.end_s - now + self._delay(sender)), now
                )
        return delay
