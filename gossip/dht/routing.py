"""Whom we know: the routing table of Kademlia, as a data structure that does no I/O.

Follows Maymounkov and Mazieres 2002, sections 2.2 to 2.4. Buckets are indexed by the number of leading bits
shared with our own id, so there are no ranges to get wrong. Departures:

- A full bucket keeps its live old members. `offer` *returns* the member to probe and remembers the newcomer;
  the caller probes when it likes and says `alive` or `failed`. So the table cannot be flooded away: only
  silence makes room.
- One silence is not a death, and where nobody waits for the place, a member stays for a while: a node whose
  own network was down for a minute must not find its table empty.
- At most two members of one subnet in a bucket and ten in the table (/24 for IPv4, /48 for IPv6), so that a
  rented subnet cannot own the table (docs/security.md, T22, T23). Private addresses and names are not limited: swarms
  in one room or one process have only those.
"""

import ipaddress
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import TypeAlias

from msgspec import Struct

from crypto.identity import PublicKey
from gossip.dht.ids import ID_BITS, NodeId

# Kademlia's k.
BUCKET_SIZE = 20
# Newcomers remembered while their bucket is full: half a bucket. A guess.
REPLACEMENTS_MAX = 10
# As geth limits its table: two and ten nodes of one /24.
SUBNET_PER_BUCKET_MAX = 2
SUBNET_PER_TABLE_MAX = 10
# A member that gave a sign of life so recently is not probed: a stream of newcomers costs one probe per
# bucket and minute. Wild guess.
PROBE_AFTER_S = 60.0
# Failures in a row that make room for a waiting newcomer: one may be a lost frame.
FAILURES_MAX = 2
# Without a newcomer, a failing member stays so long after its last sign of life: it may be restarting.
FORGET_AFTER_S = 900.0
# Answers kept until the table changes. A few places, and a lookup or two of others.
NEAREST_MAX = 16

Subnet: TypeAlias = tuple[int, int]  # (IP version, leading bits as a number)


class Contact(Struct, frozen=True):
    """A node and how to reach it.

    Args:
        node: SHA-256 of `key`.
        key: Its Ed25519 public key.
        addresses: host:port, the best first.
        record: Its signed peer record as received, to be passed on; empty while we have none.
    """

    node: NodeId
    key: PublicKey
    addresses: tuple[str, ...]
    record: bytes


@dataclass(frozen=True, slots=True)
class BucketStats:
    """One bucket, for display."""

    prefix_bits: int  # leading bits that its members share with us
    contacts: int
    live: int  # of them: answered once, and did not fail since
    replacements: int  # waiting for a place


@dataclass(slots=True)
class _Entry:
    contact: Contact
    subnets: tuple[Subnet, ...]
    seen: float = -inf  # last sign of life; -inf: only heard of
    probed: float = -inf  # when `offer` last asked for a probe
    failures: int = 0  # in a row
    live: bool = False  # answered once, and did not fail since


class _Bucket:
    """Entries by id as a number, least recently seen first."""

    __slots__ = ("entries", "looked", "replacements")

    def __init__(self) -> None:
        self.entries: dict[int, _Entry] = {}
        self.replacements: dict[int, _Entry] = {}
        self.looked = -inf  # when a lookup last went into this part of the id space


class RoutingTable:
    """At most `k` contacts for each number of leading bits shared with `own`.

    The caller offers only contacts that have proved their key, by the channel or by a verified record. Being
    offered is no sign of life; `alive` is.

    Args:
        own: Our id; never in the table.
        k: Contacts in one bucket.
        refresh_interval_s: A bucket that no lookup went into for so long is due.
        subnet_limits: Whether to apply the diversity limits.
    """

    def __init__(
        self,
        own: NodeId,
        *,
        k: int = BUCKET_SIZE,
        refresh_interval_s: float = 600.0,
        subnet_limits: bool = True,
    ) -> None:
        self._own = int.from_bytes(own, "big")
        self._k = k
        self._refresh_interval_s = refresh_interval_s
        self._subnet_limits = subnet_limits
        self._buckets: list[_Bucket] = []  # by number of shared bits; grown to the deepest in use
        self._subnets: dict[Subnet, int] = {}  # members (not replacements) in each
        self._count = 0
        # Answers of `closest` since the table last changed: many ask for the nodes around one place.
        self._nearest: dict[tuple[bytes, int, bool], list[Contact]] = {}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, node: NodeId) -> bool:
        return self.get(node) is not None

    def get(self, node: NodeId) -> Contact | None:
        """The member with this id; None for a replacement or a stranger."""
        number = int.from_bytes(node, "big")
        bucket = self._bucket(number)
        entry = bucket.entries.get(number) if bucket else None
        return entry.contact if entry else None

    def contacts(self) -> list[Contact]:
        """All members, bucket by bucket, least recently seen first."""
        return [entry.contact for bucket in self._buckets for entry in bucket.entries.values()]

    def stats(self) -> list[BucketStats]:
        """Every bucket up to the deepest in use."""
        return [
            BucketStats(
                prefix_bits=index,
                contacts=len(bucket.entries),
                live=sum(entry.live for entry in bucket.entries.values()),
                replacements=len(bucket.replacements),
            )
            for index, bucket in enumerate(self._buckets)
        ]

    def offer(self, contact: Contact, now: float) -> Contact | None:
        """Take in a contact, or what is new about one.

        Returns:
            A member to probe, because the bucket is full and this member has been silent longest; report the
            outcome by `alive` or `failed`. None: nothing to do.
        """
        number = int.from_bytes(contact.node, "big")
        if number == self._own:
            return None
        bucket = self._grown_bucket(number)
        entry = bucket.entries.get(number)
        if entry is not None:
            self._update(bucket, number, entry, contact)
            return None
        fresh = _Entry(contact, self._limited_subnets(contact))
        if not self._admits(bucket, fresh):
            return None
        if len(bucket.entries) < self._k:
            bucket.replacements.pop(number, None)
            self._insert(bucket, number, fresh)
            return None
        waiting = bucket.replacements.pop(number, fresh)
        waiting.contact, waiting.subnets = _newer(waiting.contact, contact), fresh.subnets
        bucket.replacements[number] = waiting
        if len(bucket.replacements) > REPLACEMENTS_MAX:
            del bucket.replacements[next(iter(bucket.replacements))]
        oldest = next(iter(bucket.entries.values()))
        silent_since = oldest.probed if oldest.failures else max(oldest.seen, oldest.probed)
        # A failing one may be asked again soon, but not before the last probe can have ended.
        if now - silent_since < (PROBE_AFTER_S / 10 if oldest.failures else PROBE_AFTER_S):
            return None
        oldest.probed = now
        return oldest.contact

    def alive(self, node: NodeId, now: float) -> None:
        """It proved to be there: it answered, or an authenticated connection is open. Strangers are
        ignored."""
        number = int.from_bytes(node, "big")
        bucket = self._bucket(number)
        if bucket is None:
            return
        for entries in (bucket.entries, bucket.replacements):
            entry = entries.pop(number, None)
            if entry is not None:
                if not entry.live:
                    self._nearest.clear()
                entry.seen, entry.failures, entry.live = now, 0, True
                entries[number] = entry

    def failed(self, node: NodeId, now: float) -> None:
        """It did not answer, or could not be reached. Makes room for a replacement; see the constants."""
        number = int.from_bytes(node, "big")
        bucket = self._bucket(number)
        if bucket is None:
            return
        bucket.replacements.pop(number, None)
        entry = bucket.entries.get(number)
        if entry is None:
            return
        entry.failures += 1
        entry.live = False
        self._nearest.clear()
        if entry.failures < FAILURES_MAX:
            return
        if bucket.replacements or now - entry.seen >= FORGET_AFTER_S:
            self._remove(bucket, number)
            self._promote(bucket)

    def remove(self, node: NodeId) -> None:
        """Forget it at once: it misbehaved, or belongs elsewhere."""
        number = int.from_bytes(node, "big")
        bucket = self._bucket(number)
        if bucket is None:
            return
        bucket.replacements.pop(number, None)
        if number in bucket.entries:
            self._remove(bucket, number)
            self._promote(bucket)

    def closest(self, target: bytes, count: int, *, live: bool = False) -> list[Contact]:
        """The `count` members nearest to `target`, nearest first. Exact.

        Args:
            target: 32 bytes.
            count: At most.
            live: Only those that have answered and not failed since: what may be recommended to others.
        """
        asked = (target, count, live)
        known = self._nearest.get(asked)
        if known is not None:
            return known.copy()
        number = int.from_bytes(target, "big")
        found: list[Contact] = []
        for group in self._groups(number):
            near = {
                number ^ other: entry.contact
                for bucket in group
                for other, entry in bucket.entries.items()
                if not live or entry.live
            }
            found.extend(near[distance] for distance in sorted(near))
            if len(found) >= count:
                break
        if len(self._nearest) >= NEAREST_MAX:
            self._nearest.clear()
        self._nearest[asked] = found[:count]
        return found[:count]

    def looked(self, target: bytes, now: float) -> None:
        """A lookup for `target` begins: its bucket needs no refresh for a while."""
        bucket = self._bucket(int.from_bytes(target, "big"))
        if bucket is not None:
            bucket.looked = now

    @property
    def next_refresh(self) -> float:
        """When `refresh_targets` has something; inf: the table is empty, there is nobody to ask."""
        if not self._count:
            return inf
        return min(bucket.looked for bucket in self._buckets) + self._refresh_interval_s

    def refresh_targets(self, now: float, rng: random.Random) -> list[NodeId]:
        """A random id in each bucket that is due, which counts as looked into from now on.

        Buckets beyond the deepest in use are left out: a lookup of our own id covers them all.
        """
        if not self._count:
            return []
        targets = []
        for index, bucket in enumerate(self._buckets):
            if now - bucket.looked >= self._refresh_interval_s:
                bucket.looked = now
                below = ID_BITS - 1 - index  # bits after the first that differs
                number = self._own ^ (1 << below) ^ rng.getrandbits(below) if below else self._own ^ 1
                targets.append(NodeId(number.to_bytes(ID_BITS // 8, "big")))
        return targets

    def _shared_bits(self, number: int) -> int:
        return ID_BITS - (number ^ self._own).bit_length()

    def _bucket(self, number: int) -> _Bucket | None:
        shared = self._shared_bits(number)
        return self._buckets[shared] if shared < len(self._buckets) else None

    def _grown_bucket(self, number: int) -> _Bucket:
        shared = self._shared_bits(number)
        while len(self._buckets) <= shared:
            self._buckets.append(_Bucket())
        return self._buckets[shared]

    def _groups(self, target: int) -> Iterator[list[_Bucket]]:
        """The buckets in groups, every member of a group nearer to `target` than all of the groups after it.

        Say `target` shares s bits with us and then differs. Bucket s differs from us there too: it shares
        more than s bits with the target. All deeper buckets share exactly s, whichever they are: one group.
        Bucket s - 1 shares exactly s - 1, and so on down.
        """
        shared = self._shared_bits(target)
        if shared < len(self._buckets):
            yield [self._buckets[shared]]
            yield self._buckets[shared + 1 :]
        for index in range(min(shared, len(self._buckets)) - 1, -1, -1):
            yield [self._buckets[index]]

    def _update(self, bucket: _Bucket, number: int, entry: _Entry, contact: Contact) -> None:
        if contact == entry.contact:
            return
        contact = _newer(entry.contact, contact)
        self._nearest.clear()
        subnets = self._limited_subnets(contact)
        if subnets == entry.subnets:
            entry.contact = contact
            return
        position = list(bucket.entries)  # its place in the order of silence stays
        self._remove(bucket, number)
        entry.contact, entry.subnets = contact, subnets
        if not self._admits(bucket, entry):
            self._promote(bucket)
            return
        self._insert(bucket, number, entry)
        bucket.entries = {other: bucket.entries[other] for other in position}

    def _insert(self, bucket: _Bucket, number: int, entry: _Entry) -> None:
        bucket.entries[number] = entry
        self._nearest.clear()
        self._count += 1
        for subnet in entry.subnets:
            self._subnets[subnet] = self._subnets.get(subnet, 0) + 1

    def _remove(self, bucket: _Bucket, number: int) -> None:
        entry = bucket.entries.pop(number)
        self._nearest.clear()
        self._count -= 1
        for subnet in entry.subnets:
            self._subnets[subnet] -= 1
            if not self._subnets[subnet]:
                del self._subnets[subnet]

    def _promote(self, bucket: _Bucket) -> None:
        """Give the free place to the replacement seen last, or else heard of last."""
        for number in sorted(bucket.replacements, key=lambda other: bucket.replacements[other].seen)[::-1]:
            entry = bucket.replacements[number]
            if self._admits(bucket, entry):
                del bucket.replacements[number]
                self._insert(bucket, number, entry)
                return

    def _limited_subnets(self, contact: Contact) -> tuple[Subnet, ...]:
        if not self._subnet_limits:
            return ()
        found = {subnet: None for address in contact.addresses if (subnet := subnet_of(address)) is not None}
        return tuple(found)

    def _admits(self, bucket: _Bucket, entry: _Entry) -> bool:
        """Whether the diversity limits leave a place for `entry`, which is not in the table."""
        for subnet in entry.subnets:
            if self._subnets.get(subnet, 0) >= SUBNET_PER_TABLE_MAX:
                return False
            if sum(subnet in other.subnets for other in bucket.entries.values()) >= SUBNET_PER_BUCKET_MAX:
                return False
        return True


def _newer(old: Contact, new: Contact) -> Contact:
    """`new`, but a contact that comes without its record does not take the known one away."""
    return new if new.record or not old.record else old


# Pure, and the same addresses come again and again; parsing one takes microseconds.
@lru_cache(maxsize=4096)
def subnet_of(address: str) -> Subnet | None:
    """The /24 (IPv4) or /48 (IPv6) of host:port, or None where no limit applies: a name, or not a public
    address."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global:
        return None
    return (4, int(ip) >> 8) if ip.version == 4 else (6, int(ip) >> 80)
