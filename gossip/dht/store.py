"""Where a node keeps records for others: bounded in every direction, whoever sends them, and however many."""

import bisect
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from gossip.dht.ids import Key, NodeId, distance
from gossip.dht.kinds import Opened, Record
from gossip.dht.records import Equivocation
from gossip.errors import Reason, RemoteError

# A mistake of the owner cannot use up the 63 bits at once.
SEQ_JUMP_MAX = 2**32
# Answers to GetRecords carry at most so many (wire.Records).
SAMPLE_MAX = 20
# Records kept for one owner: a node may hold 15 shards and more. One owner cannot fill the store (docs/security.md,
# T26).
PER_OWNER_MAX = 16
# Proofs of equivocation kept. 64 x 4 kB; more than 64 caught owners is an attack that needs no 65th proof.
PROOFS_MAX = 64
# Expired records are never returned, so they may be swept out late. A sweep of 4,096 takes about 1 ms.
SWEEP_INTERVAL_S = 10.0
# One part in so many of all records kept may be in places of one owner, which is where kinds belong that are not known
# here. They cost their senders nothing and do nothing for this node, so they get a room of their own: those that lead
# to holders of a model, three quarters, never make place for them. A guess.
OWNED_PART = 4


@dataclass(slots=True)
class _Kept:
    opened: Opened[Record]
    expires: float
    rank: bytes


class RecordStore:
    """Records kept for others, bounded in every direction. All in one store are of kinds whose places are shared, or
    none is: so owner and place tell a record, and nobody crowds others out of a place of theirs.

    - In all `records_max`: when full, the place furthest from our own id loses its oldest record (whoever
      looks for that place will ask nodes nearer to it), unless the newcomer's place is further still.
    - Per owner `per_owner_max`: more are refused.
    - Per place `per_place_max`: those with the smallest hash under our secret stay. However many arrive, and
      however often, what is kept is a uniform sample of the owners seen; and the twenty nodes around a
      place keep different samples. First come, first served would name the same few to everybody for ever.
    - Time: min(ttl_s, ttl_s_max) from the last arrival, by our clock.

    Args:
        own: Our id.
        records_max: Of all owners and places.
        per_place_max: Owners of one place.
        ttl_s_max: Seconds a record lives here at most without being sent again.
        secret: 16 bytes nobody else knows.
        per_owner_max: Places of one owner.
    """

    def __init__(
        self,
        own: NodeId,
        *,
        records_max: int,
        per_place_max: int,
        ttl_s_max: float,
        secret: bytes,
        per_owner_max: int = PER_OWNER_MAX,
    ) -> None:
        self._own = own
        self._records_max = records_max
        self._per_place_max = per_place_max
        self._per_owner_max = per_owner_max
        self._ttl_s_max = ttl_s_max
        self._secret = secret
        # Inner dicts in order of the last arrival: the first is the oldest.
        self._places: dict[Key, dict[NodeId, _Kept]] = {}
        self._by_distance: list[tuple[int, Key]] = []  # every place, nearest first
        # Of places, until they change: what is kept there as a list, and whose hash is the largest.
        self._lists: dict[Key, list[_Kept]] = {}
        self._last: dict[Key, NodeId] = {}
        self._per_owner: dict[NodeId, int] = {}
        self._count = 0
        self._earliest = inf  # no record expires before
        self._swept = -inf
        self._proofs: dict[NodeId, Equivocation] = {}

    def __len__(self) -> int:
        return self._count

    def bounds(self) -> tuple[int, int]:
        """How many there are, and how many there may be."""
        return self._count, self._records_max

    @property
    def proofs(self) -> list[Equivocation]:
        """At most one for each owner, in order of discovery."""
        return list(self._proofs.values())

    @property
    def next_expiry(self) -> float:
        """When `expire` has something to do; inf: nothing is kept. Late calls do no harm."""
        return max(self._earliest, self._swept + SWEEP_INTERVAL_S) if self._count else inf

    def put(self, opened: Opened[Record], now: float) -> None:
        """Keep a record, or keep it longer.

        Raises:
            RemoteError: it was not kept. REPLAYED: we have a later one. BAD_RECORD: its seq jumps too far.
                EQUIVOCATION: we have another one under the same seq; the proof is in `proofs`, and the higher
                of the two by `select` stands. RATE_LIMITED: a bound above; not a fault.
        """
        record, owner, place = opened.record, opened.node, opened.place
        kept = self._places.get(place, {}).get(owner)
        if kept is not None and kept.expires <= now:
            self._remove(place, owner)
            kept = None
        if kept is None:
            self._admit(opened, now)
            return
        old = kept.opened
        if record.seq - old.record.seq > SEQ_JUMP_MAX:
            raise RemoteError(Reason.BAD_RECORD, f"seq jumps from {old.record.seq} to {record.seq}")
        stands = opened.kind.select(old, opened)
        if opened.body != old.body:
            if record.seq == old.record.seq:
                if len(self._proofs) < PROOFS_MAX:
                    self._proofs.setdefault(owner, Equivocation(old.data, opened.data))
                kept.opened = stands
                raise RemoteError(Reason.EQUIVOCATION, f"two different records under seq {record.seq}")
            if stands is not opened:
                raise RemoteError(Reason.REPLAYED, f"seq {record.seq}, but {old.record.seq} is known")
        owners = self._places[place]
        del owners[owner]
        owners[owner] = kept
        kept.opened = stands
        kept.expires = self._expiry(record, now)

    def get(self, place: Key, now: float, *, limit: int, rng: random.Random) -> list[bytes]:
        """A uniformly random sample of the live records of `place`, at most `limit`, as received."""
        kept = self._lists.get(place)
        if kept is None:
            kept = list(self._places.get(place, {}).values())
            if kept:
                self._lists[place] = kept
        # Usually nothing here has expired yet, and only the sample is looked at.
        if self._earliest <= now:
            kept = [one for one in kept if one.expires > now]
        return [one.opened.data for one in rng.sample(kept, min(limit, len(kept)))]

    def expire(self, now: float) -> int:
        """Remove what has expired; returns how many. Cheap when called before `next_expiry`."""
        if now < self.next_expiry:
            return 0
        return self._sweep(now)

    def _sweep(self, now: float) -> int:
        dead = [(place, owner) for place, owner, kept in self._all() if kept.expires <= now]
        for place, owner in dead:
            self._remove(place, owner)
        self._earliest = min((kept.expires for _, _, kept in self._all()), default=inf)
        self._swept = now
        return len(dead)

    def _all(self) -> Iterator[tuple[Key, NodeId, _Kept]]:
        for place, owners in self._places.items():
            for owner, kept in owners.items():
                yield place, owner, kept

    def _admit(self, opened: Opened[Record], now: float) -> None:
        place, owner = opened.place, opened.node
        if self._per_owner.get(owner, 0) >= self._per_owner_max:
            raise RemoteError(
                Reason.RATE_LIMITED, f"{self._per_owner_max} records of one owner are kept here"
            )
        rank = hashlib.blake2b(owner, key=self._secret, digest_size=8).digest()
        owners = self._places.get(place, {})
        if len(owners) >= self._per_place_max:
            last = self._last.get(place) or max(owners, key=lambda other: owners[other].rank)
            self._last[place] = last
            if owners[last].expires > now and rank >= owners[last].rank:
                raise RemoteError(
                    Reason.RATE_LIMITED, f"{self._per_place_max} records of one place are kept here"
                )
            self._remove(place, last)
        if self._count >= self._records_max and self._earliest <= now:
            self._sweep(now)
        if self._count >= self._records_max:
            far, furthest = self._by_distance[-1] if self._by_distance else (-1, place)
            if distance(place, self._own) > far:
                raise RemoteError(Reason.RATE_LIMITED, "the store is full of records for nearer places")
            self._remove(furthest, next(iter(self._places[furthest])))
        if place not in self._places:
            self._places[place] = {}
            bisect.insort(self._by_distance, (distance(place, self._own), place))
        self._places[place][owner] = _Kept(opened, self._expiry(opened.record, now), rank)
        self._changed(place)
        self._per_owner[owner] = self._per_owner.get(owner, 0) + 1
        self._count += 1

    def _changed(self, place: Key) -> None:
        self._lists.pop(place, None)
        self._last.pop(place, None)

    def _expiry(self, record: Record, now: float) -> float:
        expires = now + min(record.ttl_s, self._ttl_s_max)
        self._earliest = min(self._earliest, expires)
        return expires

    def _remove(self, place: Key, owner: NodeId) -> None:
        owners = self._places[place]
        del owners[owner]
        self._changed(place)
        if not owners:
            del self._places[place]
            del self._by_distance[bisect.bisect_left(self._by_distance, (distance(place, self._own), place))]
        self._per_owner[owner] -= 1
        if not self._per_owner[owner]:
            del self._per_owner[owner]
        self._count -= 1
