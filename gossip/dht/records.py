"""Signed records: where a node is reached, and which nodes hold a shard.

The rules are those of BEP 44 (mutable items) in our encoding: at most 1,000 bytes, signed by the owner, a
sequence number that must rise, expiry by the receiver's own clock. Departures: a record names its owner and
place itself, so it can be passed on by anyone; two different records under one sequence number are kept as
a proof against the owner; a jump of the sequence number beyond 2**32 is refused, so that one mistake cannot
burn a key.

A record is two layers, so that what is verified is what was received: `{body, signature}` outside, and inside
`body` the fields. The first bytes of the body tell the kind, and each kind is signed for its own purpose.

What no rule without clocks can give: after a record has expired here, an older one of the same owner would be
taken again. The owner's next publication ends that, and a stale address costs a dial and nothing else.
"""

import bisect
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from crypto.errors import CryptoError
from crypto.identity import PublicKey, Signature, Signer, Verify, verify
from crypto.signing import Purpose
from gossip.addresses import is_loopback
from gossip.dht.ids import Key, NodeId, distance, node_id
from gossip.dht.routing import Contact
from gossip.errors import LocalError, Reason, RemoteError
from gossip.wire.canonical import RECORD_BYTES_MAX, U63, Bytes32, Bytes64, decode_struct, encode_struct

# Addresses of one node: some interfaces in two families, a name. Eight of full length would not fit.
ADDRESSES_MAX = 8
# A DNS name may have 253 characters; 128 with the port is what people use.
ADDRESS_CHARACTERS_MAX = 128
# A mistake of the owner cannot use up the 63 bits at once.
SEQ_JUMP_MAX = 2**32
# The outer map takes 85 bytes with the signature: what is left of 1,000 is the body.
BODY_BYTES_MAX = RECORD_BYTES_MAX - 85
# Answers to GetRecords carry at most so many (wire.Records).
SAMPLE_MAX = 20
# Records kept for one owner: a peer record and a provider record for each of 15 shards. One owner cannot fill the
# store (docs/security.md, T26).
PER_OWNER_MAX = 16
# Records remembered by their bytes, as what they parse to: the same few hundred come back in every answer. Shared by
# all nodes of a process, of which a simulator has thousands. At most 1 kB each.
PARSED_MAX = 16384
# Verdicts on signatures that one node remembers.
VERIFIED_MAX = 4096
# Proofs of equivocation kept. 64 x 2 kB; more than 64 caught owners is an attack that needs no 65th proof.
PROOFS_MAX = 64
# Expired records are never returned, so they may be swept out late. A sweep of 4,096 takes about 1 ms.
SWEEP_INTERVAL_S = 10.0

# Visible ASCII: no address can move a terminal's cursor or break a log line.
Address: TypeAlias = Annotated[str, Meta(pattern=r"^[!-~]+\Z", max_length=ADDRESS_CHARACTERS_MAX)]
Addresses: TypeAlias = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]
TtlSeconds: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class PeerRecord(Struct, frozen=True, forbid_unknown_fields=True, tag_field="_", tag="peer"):
    """How a node is reached. Its place in the DHT is `node_id(key)`."""

    addresses: Addresses  # host:port, the best first; none: cannot be dialled
    key: Bytes32  # the owner's public key
    run: Bytes32  # what it trains; zeros: nothing
    seq: U63
    ttl_s: TtlSeconds


class ProviderRecord(Struct, frozen=True, forbid_unknown_fields=True, tag_field="_", tag="provider"):
    """That a node holds what `place` names: one shard of one run (`ids.provider_key`)."""

    addresses: Addresses
    key: Bytes32
    place: Bytes32
    seq: U63
    ttl_s: TtlSeconds


class SignedRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What travels."""

    body: Annotated[bytes, Meta(max_length=BODY_BYTES_MAX)]
    signature: Bytes64


R = TypeVar("R", bound=PeerRecord | ProviderRecord)


class Peeked(Struct, Generic[R], frozen=True):
    """A well-formed record whose signature nobody has checked: every field may be a lie.

    Good for two decisions only: whether to verify it, and whom to dial (the channel then proves the key).
    Never store it, never pass it on, never let it replace anything.
    """

    record: R
    data: bytes
    node: NodeId  # of the owner that the record names


class Opened(Struct, Generic[R], frozen=True):
    """A record that its owner signed for this network. Made by `open_record` only."""

    record: R
    data: bytes  # as received: what is passed on
    node: NodeId  # of the owner


def sign_record(identity: Signer, network: bytes, record: PeerRecord | ProviderRecord) -> bytes:
    """The record as it travels.

    Args:
        identity: The owner.
        network: 32 bytes, from `signing.network_id`.
        record: Its `key` is the identity's.

    Raises:
        LocalError: longer than 1,000 bytes, or not a valid record: too many or too long addresses.
    """
    assert record.key == identity.public_key, "a record is signed by the owner that it names"
    body = encode_struct(record)
    signature = identity.sign(_purpose(type(record)), network, body)
    data = encode_struct(SignedRecord(body=body, signature=signature))
    try:
        peek_record(data, type(record))
    except RemoteError as error:
        raise LocalError(f"Our own record is not valid: {error.detail}") from error
    return data


def peek_record(data: bytes, kind: type[R]) -> Peeked[R]:
    """Read a record without checking its signature; see `Peeked` for what that is good for.

    Raises:
        RemoteError: BAD_RECORD: not a record of this kind, or not in canonical form.
    """
    return _parse(data, kind)[0]


def open_record(data: bytes, network: bytes, kind: type[R], *, verify: Verify = verify) -> Opened[R]:
    """Read a record and check its signature.

    Args:
        data: The record as received.
        network: 32 bytes, from `signing.network_id`.
        kind: PeerRecord or ProviderRecord: which one is expected here.
        verify: Checks the signature.

    Raises:
        RemoteError: BAD_RECORD: not a record of this kind, or not in canonical form. BAD_SIGNATURE: not signed
            by the owner that it names, for this kind and network.
    """
    peeked, signed = _parse(data, kind)
    try:
        verify(
            PublicKey(peeked.record.key), _purpose(kind), network, signed.body, Signature(signed.signature)
        )
    except CryptoError as error:
        raise RemoteError(Reason.BAD_SIGNATURE, f"a record: {error}") from None
    return Opened(peeked.record, data, peeked.node)


def select(a: Opened[R], b: Opened[R]) -> Opened[R]:
    """The one of two records of one owner and place that stands: the higher (seq, bytes).

    A total order, so that the same set of records gives the same winner in any order of arrival.
    """
    return max(a, b, key=lambda opened: (opened.record.seq, opened.data))


_signed_decoder = msgspec.msgpack.Decoder(SignedRecord)
# kind: (first bytes of the body, decoder of the body). Canonical form puts the tag first; asking for exactly
# that spares msgspec the search for it, which may recurse.
_KINDS: dict[type[Struct], tuple[bytes, msgspec.msgpack.Decoder[Any]]] = {
    PeerRecord: (b"\x86\xa1_\xa4peer", msgspec.msgpack.Decoder(PeerRecord)),
    ProviderRecord: (b"\x86\xa1_\xa8provider", msgspec.msgpack.Decoder(ProviderRecord)),
}


def _parse(data: bytes, kind: type[R]) -> tuple[Peeked[R], SignedRecord]:
    head, decoder = _KINDS[kind]
    try:
        signed = decode_struct(data, _signed_decoder, bytes_max=RECORD_BYTES_MAX)
        if not signed.body.startswith(head):
            raise RemoteError(Reason.BAD_RECORD, f"not a record of the kind expected, {kind.__name__}")
        record: R = decode_struct(signed.body, decoder, bytes_max=BODY_BYTES_MAX)
    except RemoteError as error:
        raise RemoteError(Reason.BAD_RECORD, error.detail) from None
    return Peeked(record, data, node_id(PublicKey(record.key))), signed


class RecordVerifier:
    """Whether records are signed by their owners; each is checked once."""

    def __init__(self, network: bytes, verify: Verify) -> None:
        self._network = network
        self._verify = verify
        self._verdicts: dict[bytes, bool] = {}

    def verified(self, contact: Contact) -> bool:
        record = contact.record
        known = self._verdicts.get(record)
        if known is not None:
            return known
        valid = False
        for kind in (PeerRecord, ProviderRecord):
            try:
                open_record(record, self._network, kind, verify=self._verify)
            except RemoteError:  # of the other kind, or false: then the other kind refuses it too
                continue
            valid = True
            break
        self._verdicts[record] = valid
        if len(self._verdicts) > VERIFIED_MAX:
            del self._verdicts[next(iter(self._verdicts))]
        return valid


# By what the record was named as, too: whoever names a peer record as a provider's must not hide it from us.
@lru_cache(maxsize=PARSED_MAX)
def contact_of(record: bytes, place: Key | None) -> Contact | None:
    """The contact that a peer record tells of, or a provider record of `place`, not verified; None where it is no such
    record. Somebody's true record of another place would bring us a node that does not hold our shard.
    """
    try:
        peeked: Peeked[PeerRecord] | Peeked[ProviderRecord]
        peeked = peek_record(record, PeerRecord) if place is None else peek_record(record, ProviderRecord)
    except RemoteError:
        return None
    if isinstance(peeked.record, ProviderRecord) and peeked.record.place != place:
        return None
    return Contact(peeked.node, PublicKey(peeked.record.key), tuple(peeked.record.addresses), record)


@lru_cache(maxsize=PARSED_MAX)
def contact_elsewhere(record: bytes, place: Key | None) -> Contact | None:
    """`contact_of` a record that came from another machine: its loopback addresses are not ours to dial. They would be
    our own ports, or those of whatever else runs here."""
    contact = contact_of(record, place)
    if contact is None or not any(map(is_loopback, contact.addresses)):
        return contact
    addresses = tuple(address for address in contact.addresses if not is_loopback(address))
    return Contact(contact.node, contact.key, addresses, contact.record)


@lru_cache(maxsize=PARSED_MAX)
def stays_here(record: bytes, place: Key | None) -> bool:
    """Whether a record (as of `contact_of`) has only loopback addresses: of no use to another machine, and none of its
    business."""
    contact = contact_of(record, place)
    return contact is not None and bool(contact.addresses) and all(map(is_loopback, contact.addresses))


def _purpose(kind: type[Struct]) -> Purpose:
    return Purpose.PEER_RECORD if kind is PeerRecord else Purpose.PROVIDER_RECORD


@dataclass(frozen=True, slots=True)
class Equivocation:
    """A proof that anybody can check: two different records of one owner, place and sequence number."""

    first: bytes
    second: bytes


def check_equivocation(proof: Equivocation, network: bytes, kind: type[R]) -> PublicKey:
    """Whom the proof convicts.

    Raises:
        RemoteError: BAD_RECORD or BAD_SIGNATURE: it proves nothing.
    """
    a = open_record(proof.first, network, kind).record
    b = open_record(proof.second, network, kind).record
    if a == b or (a.key, a.seq, _place(a)) != (b.key, b.seq, _place(b)):
        raise RemoteError(Reason.BAD_RECORD, "not two records under one owner, place and sequence number")
    return PublicKey(a.key)


def _place(record: PeerRecord | ProviderRecord) -> bytes:
    return record.place if isinstance(record, ProviderRecord) else record.key


@dataclass(slots=True)
class _Kept:
    opened: Opened[ProviderRecord]
    expires: float
    rank: bytes


class RecordStore:
    """Provider records kept for others, bounded in every direction.

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
        per_place_max: Providers of one place.
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

    @property
    def proofs(self) -> list[Equivocation]:
        """At most one for each owner, in order of discovery."""
        return list(self._proofs.values())

    @property
    def next_expiry(self) -> float:
        """When `expire` has something to do; inf: nothing is kept. Late calls do no harm."""
        return max(self._earliest, self._swept + SWEEP_INTERVAL_S) if self._count else inf

    def put(self, opened: Opened[ProviderRecord], now: float) -> None:
        """Keep a record, or keep it longer.

        Raises:
            RemoteError: it was not kept. REPLAYED: we have a later one. BAD_RECORD: its seq jumps too far.
                EQUIVOCATION: we have another one under the same seq; the proof is in `proofs`, and the higher
                of the two by `select` stands. RATE_LIMITED: a bound above; not a fault.
        """
        record, owner = opened.record, opened.node
        place = Key(record.place)
        kept = self._places.get(place, {}).get(owner)
        if kept is not None and kept.expires <= now:
            self._remove(place, owner)
            kept = None
        if kept is None:
            self._admit(place, owner, opened, now)
            return
        old = kept.opened
        if record.seq < old.record.seq:
            raise RemoteError(Reason.REPLAYED, f"seq {record.seq}, but {old.record.seq} is known")
        if record.seq - old.record.seq > SEQ_JUMP_MAX:
            raise RemoteError(Reason.BAD_RECORD, f"seq jumps from {old.record.seq} to {record.seq}")
        if record.seq == old.record.seq and record != old.record:
            if len(self._proofs) < PROOFS_MAX:
                self._proofs.setdefault(owner, Equivocation(old.data, opened.data))
            kept.opened = select(old, opened)
            raise RemoteError(Reason.EQUIVOCATION, f"two different records under seq {record.seq}")
        owners = self._places[place]
        del owners[owner]
        owners[owner] = kept
        kept.opened = select(old, opened)
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

    def _admit(self, place: Key, owner: NodeId, opened: Opened[ProviderRecord], now: float) -> None:
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
                    Reason.RATE_LIMITED, f"{self._per_place_max} providers of one place are kept"
                )
            self._remove(place, last)
        if self._count >= self._records_max and self._earliest <= now:
            self._sweep(now)
        if self._count >= self._records_max:
            far, furthest = self._by_distance[-1]
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

    def _expiry(self, record: ProviderRecord, now: float) -> float:
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
