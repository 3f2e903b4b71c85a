"""Signed records: what a node says about itself, to be passed on by others.

The rules are those of BEP 44 (mutable items) in our encoding: signed by the owner, a sequence number that must rise,
expiry by the receiver's own clock. Departures: at most 2,000 bytes instead of 1,000; a record names its owner and
kind itself, from which the receiver computes its place, so it can be passed on by anyone; two different records under
one sequence number are kept as a proof against the owner; a jump of the sequence number beyond 2**32 is refused, so
that one mistake cannot burn a key.

A record is two layers, so that what is verified is what was received: `{body, signature}` outside, and inside
`body` the fields. What kinds of bodies there are stands in `kinds.py`.

What no rule without clocks can give: after a record has expired here, an older one of the same owner would be
taken again. The owner's next publication ends that, and a stale address costs a dial and nothing else.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Generic

import msgspec
from msgspec import Meta, Struct

from crypto.errors import CryptoError
from crypto.identity import PublicKey, Signature, Signer, Verify, verify
from gossip.addresses import is_loopback
from gossip.dht.ids import Key, NodeId, node_id
from gossip.dht.kinds import (
    BODY_BYTES_MAX,
    KINDS,
    PEER,
    PROVIDER,
    Kind,
    Opened,
    PeerRecord,
    ProviderRecord,
    R,
    R_co,
    Record,
    kind_of,
)
from gossip.dht.routing import Contact
from gossip.errors import LocalError, Reason, RemoteError
from gossip.wire.canonical import RECORD_BYTES_MAX, Bytes64, decode_struct, encode_struct

# Records remembered by their bytes, as what they parse to: the same few hundred come back in every answer. Shared by
# all nodes of a process, of which a simulator has thousands. At most 2 kB each.
PARSED_MAX = 16384
# Verdicts on signatures that one node remembers.
VERIFIED_MAX = 4096


class SignedRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What travels."""

    body: Annotated[bytes, Meta(max_length=BODY_BYTES_MAX)]
    signature: Bytes64


class Peeked(Struct, Generic[R_co], frozen=True):
    """A well-formed record whose signature nobody has checked: every field may be a lie.

    Good for two decisions only: whether to verify it, and whom to dial (the channel then proves the key).
    Never store it, never pass it on, never let it replace anything.
    """

    record: R_co
    data: bytes
    node: NodeId  # of the owner that the record names


def sign_record(identity: Signer, network: bytes, record: Record) -> bytes:
    """The record as it travels.

    Args:
        identity: The owner.
        network: 32 bytes, from `signing.network_id`.
        record: Of a kind that is registered. Its `key` is the identity's.

    Raises:
        LocalError: not a valid record: too many or too long addresses.
    """
    assert record.key == identity.public_key, "a record is signed by the owner that it names"
    assert isinstance(record, Struct)
    kind = KINDS[str(record.__struct_config__.tag)]
    body = encode_struct(record)
    data = encode_struct(SignedRecord(body=body, signature=identity.sign(kind.purpose, network, body)))
    try:
        peek_record(data, kind)
    except RemoteError as error:
        raise LocalError(f"Our own record is not valid: {error.detail}") from error
    return data


def peek_record(data: bytes, kind: Kind[R], place: Key | None = None) -> Peeked[R]:
    """Read a record without checking its signature; see `Peeked` for what that is good for.

    Args:
        data: The record as received.
        kind: Which one is expected here.
        place: Where it was found; None: wherever it belongs.

    Raises:
        RemoteError: BAD_RECORD: not a record of this kind and place, or not in canonical form.
    """
    record = kind.validate(_envelope(data).body, place)
    return Peeked(record, data, node_id(PublicKey(record.key)))


def open_record(data: bytes, network: bytes, *, verify: Verify = verify) -> Opened[Any]:
    """Read a record of any kind, known or not, and check its signature.

    Args:
        data: The record as received.
        network: 32 bytes, from `signing.network_id`.
        verify: Checks the signature.

    Raises:
        RemoteError: BAD_RECORD: not a record, or not in canonical form. BAD_SIGNATURE: not signed by the owner
            that it names, for this kind and network.
    """
    signed = _envelope(data)
    kind = kind_of(signed.body)
    record = kind.validate(signed.body)
    key = PublicKey(record.key)
    try:
        verify(key, kind.purpose, network, signed.body, Signature(signed.signature))
    except CryptoError as error:
        raise RemoteError(Reason.BAD_SIGNATURE, f"a record: {error}") from None
    return Opened(kind, record, node_id(key), kind.place(record), signed.body, data)


_signed_decoder = msgspec.msgpack.Decoder(SignedRecord)


def _envelope(data: bytes) -> SignedRecord:
    try:
        return decode_struct(data, _signed_decoder, bytes_max=RECORD_BYTES_MAX)
    except RemoteError as error:
        raise RemoteError(Reason.BAD_RECORD, error.detail) from None


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
        try:
            open_record(record, self._network, verify=self._verify)
        except RemoteError:
            valid = False
        else:
            valid = True
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
        peeked = peek_record(record, PEER) if place is None else peek_record(record, PROVIDER, place)
    except RemoteError:
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


@dataclass(frozen=True, slots=True)
class Equivocation:
    """A proof that anybody can check: two different records of one owner, place and sequence number."""

    first: bytes
    second: bytes


def check_equivocation(proof: Equivocation, network: bytes) -> PublicKey:
    """Whom the proof convicts.

    Raises:
        RemoteError: BAD_RECORD or BAD_SIGNATURE: it proves nothing.
    """
    a, b = open_record(proof.first, network), open_record(proof.second, network)
    same = (a.kind.name, a.node, a.place, a.record.seq) == (b.kind.name, b.node, b.place, b.record.seq)
    if a.body == b.body or not same:
        raise RemoteError(Reason.BAD_RECORD, "not two records under one owner, place and sequence number")
    return PublicKey(a.record.key)
