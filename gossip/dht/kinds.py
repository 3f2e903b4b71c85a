"""Kinds of records: what a body says, where it belongs, and which of two stands.

A body is a canonical map that begins with `_`, the name of its kind. Of a kind that is registered here a node reads the
keys that it knows, and those keep their types and limits; other keys are left as they are, since a later version may
have them. Of any other kind it reads what every record has to say to be kept (`OwnedRecord`), and nothing else. Without
that no kind could ever be added: those who know it would first have to be everywhere.

So a later kind keeps to the rule of the owned ones: signed as `Purpose.RECORD`, and placed by its owner's key, its own
name and a salt (`ids.owned_key`). Peers and providers are older, and have purposes and places of their own. The idea of
registered validators is that of hivemind and libp2p (`validate`, `select`).
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Generic, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from crypto.identity import PublicKey
from crypto.signing import Purpose
from gossip.dht.ids import Key, NodeId, node_id, owned_key
from gossip.errors import Reason, RemoteError
from gossip.wire.canonical import RECORD_BYTES_MAX, U63, Bytes32, decode_struct, scan, tag_in

# Addresses of one node: some interfaces in two families, a name.
ADDRESSES_MAX = 8
# A DNS name may have 253 characters; 128 with the port is what people use. Eight of full length fit into a record.
ADDRESS_CHARACTERS_MAX = 128
# The outer map takes 85 bytes with the signature: what is left is the body.
BODY_BYTES_MAX = RECORD_BYTES_MAX - 85
# As in BEP 44: room for a hash or two, or a name.
SALT_BYTES_MAX = 64

# Visible ASCII: no address can move a terminal's cursor or break a log line.
Address: TypeAlias = Annotated[str, Meta(pattern=r"^[!-~]+\Z", max_length=ADDRESS_CHARACTERS_MAX)]
Addresses: TypeAlias = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]
TtlSeconds: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Record(Protocol):
    """What the record of any kind says."""

    @property
    def key(self) -> bytes: ...

    @property
    def seq(self) -> int: ...

    @property
    def ttl_s(self) -> int: ...


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


class OwnedRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What a record of a kind that is not known here must say. Its place is `ids.owned_key`."""

    key: Bytes32
    salt: Annotated[bytes, Meta(max_length=SALT_BYTES_MAX)]
    seq: U63
    ttl_s: TtlSeconds


R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)


class Opened(Struct, Generic[R_co], frozen=True):
    """A record that its owner signed for this network. Made by `records.open_record` only."""

    kind: "Kind[R_co]"
    record: R_co
    node: NodeId  # of the owner
    place: Key  # where it belongs
    body: bytes  # what was signed
    data: bytes  # as received: what is passed on


def latest(a: Opened[R], b: Opened[R]) -> Opened[R]:
    """The one of two records of one owner and place that stands: the higher (seq, bytes).

    A total order, so that the same set of records gives the same winner in any order of arrival.
    """
    return max(a, b, key=lambda opened: (opened.record.seq, opened.data))


class Kind(Generic[R]):
    """One kind of records.

    Args:
        name: `_` of its bodies: 1 to 31 characters of printable ASCII.
        schema: A struct of the keys that are known, in bytewise order; it allows no others.
        place: Where a record belongs, by what it says itself.
        purpose: What its owners sign it as.
        select: Which of two records of one owner and place stands: a total order.
        shared: Many owners may have one place; else it is the owner's alone (`ids.owned_key`).
        kept: Nodes keep such records for others. Those of peers are in routing tables instead.
    """

    def __init__(
        self,
        name: str,
        schema: type[R],
        *,
        place: Callable[[R], Key],
        purpose: Purpose = Purpose.RECORD,
        select: Callable[[Opened[R], Opened[R]], Opened[R]] = latest,
        shared: bool = False,
        kept: bool = True,
    ) -> None:
        self.name = name
        self.place = place
        self.purpose = purpose
        self.select = select
        self.shared = shared
        self.kept = kept
        self._decoder, self._keys = _reader(schema)

    def validate(self, body: bytes, place: Key | None = None) -> R:
        """What a body of this kind says. Keys that are not known are passed over.

        Args:
            body: Bytes that nobody has looked at.
            place: Where it was found; None: wherever it belongs.

        Raises:
            RemoteError: BAD_RECORD: not of this kind, not canonical, beyond a limit, or of another place.
        """
        if tag_in(body) != self.name:
            raise RemoteError(Reason.BAD_RECORD, f"not a record of the kind expected, {self.name!r}")
        try:
            record = self._read(body)
        except RemoteError as error:
            raise RemoteError(Reason.BAD_RECORD, error.detail) from None
        if place is not None and self.place(record) != place:
            raise RemoteError(Reason.BAD_RECORD, f"a record of the kind {self.name!r}, but of another place")
        return record

    def _read(self, body: bytes) -> R:
        record: R
        if "_" in self._keys:
            # Most bodies have the keys that we know and no others. The tag is first, so msgspec skips no value, which
            # may recurse.
            try:
                record = decode_struct(body, self._decoder, bytes_max=BODY_BYTES_MAX)
            except RemoteError:
                pass  # more keys, or a fault: the scan tells
            else:
                return record
        scan(body)
        known = {key: value for key, value in _pairs.decode(body).items() if key in self._keys}
        record = decode_struct(_encoder.encode(known), self._decoder, bytes_max=BODY_BYTES_MAX)
        return record


_encoder = msgspec.msgpack.Encoder()
# For what the scan has passed only: it bounds the depth to which values are skipped.
_pairs = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


@functools.cache
def _reader(schema: type[Any]) -> tuple[msgspec.msgpack.Decoder[Any], frozenset[str]]:
    """A decoder of `schema`, and the keys that it takes."""
    config = schema.__struct_config__
    tag = () if config.tag is None else (config.tag_field,)
    return msgspec.msgpack.Decoder(schema), frozenset((*tag, *schema.__struct_encode_fields__))


# --- the registry --------------------------------------------------------------------------------------

KINDS: dict[str, Kind[Any]] = {}


def register(kind: Kind[R]) -> Kind[R]:
    """Have this program know a kind. Nodes that do not know it keep its records all the same if it has the default
    purpose, and the place and the fields of `owned`."""
    assert kind.name not in KINDS, f"two kinds of records are called {kind.name}"
    KINDS[kind.name] = kind
    return kind


def owned(name: str) -> Kind[OwnedRecord]:
    """A kind that is not known here: whose its records are, and nothing of what they say."""
    return Kind(
        name,
        OwnedRecord,
        place=lambda record: owned_key(PublicKey(record.key), name, record.salt),
    )


def kind_of(body: bytes) -> Kind[Any]:
    """The kind that a body names.

    Raises:
        RemoteError: BAD_RECORD: it does not begin with the name of a kind.
    """
    name = tag_in(body)
    if not name:
        raise RemoteError(Reason.BAD_RECORD, "the body of a record begins with its kind")
    return KINDS.get(name) or owned(name)


PEER = register(
    Kind(
        "peer",
        PeerRecord,
        place=lambda record: Key(node_id(PublicKey(record.key))),
        purpose=Purpose.PEER_RECORD,
        kept=False,
    )
)
PROVIDER = register(
    Kind(
        "provider",
        ProviderRecord,
        place=lambda record: Key(record.place),
        purpose=Purpose.PROVIDER_RECORD,
        shared=True,
    )
)
