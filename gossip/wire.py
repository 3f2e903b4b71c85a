"""The messages between peers, and the only door through which bytes become objects.

Every frame is one canonical msgpack map: string keys in bytewise order, the tag `_` first, shortest integers,
no floats, no extension types, no duplicate keys. Signed parts travel as byte strings inside a message, so that
what is verified is what was received, never a re-encoding.
"""

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

# One shard at float32 (2**20 values) and its header and signature, rounded up.
FRAME_BYTES_MAX = 2**22 + 2**16
PAYLOAD_BYTES_MAX = 2**22
# A signed record: BEP 44 allows 1,000 bytes, so do we.
RECORD_BYTES_MAX = 1000
HEADER_BYTES_MAX = 1024
PROTOCOL_VERSION = 1

U32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# msgspec bounds must fit int64; nobody needs the last bit.
U63: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Bytes8: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=8)]
Bytes32: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Bytes64: TypeAlias = Annotated[bytes, Meta(min_length=64, max_length=64)]
Record: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=RECORD_BYTES_MAX)]
Header: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=HEADER_BYTES_MAX)]
Payload: TypeAlias = Annotated[bytes, Meta(max_length=PAYLOAD_BYTES_MAX)]
Word: TypeAlias = Annotated[str, Meta(max_length=32)]  # a name of ours: codec, reason, verdict
Text: TypeAlias = Annotated[str, Meta(max_length=200)]  # for people; escaped before it is shown


class Message(Struct, frozen=True, tag_field="_", forbid_unknown_fields=True):
    """Base of all messages. Fields stand in bytewise order of their names: that is the canonical order."""


class Hello(Message, frozen=True, tag="hello"):
    """First message in both directions: who I am in the network and in the run."""

    agent: Text  # "p2pnode/0.1.0"
    record: Record  # own signed peer record
    run: Bytes32
    schema: Bytes32
    shards: Annotated[list[U32], Meta(max_length=1024)]  # held, ascending
    task: Text
    version: U32


class Bye(Message, frozen=True, tag="bye"):
    reason: Text


class Ping(Message, frozen=True, tag="ping"):
    n: U63


class Pong(Message, frozen=True, tag="pong"):
    n: U63


class FindNode(Message, frozen=True, tag="find_node"):
    n: U63  # request number, chosen by the asker, repeated in the answer
    target: Bytes32


class Nodes(Message, frozen=True, tag="nodes"):
    n: U63
    records: Annotated[list[Record], Meta(max_length=20)]  # signed peer records, nearest first


class GetRecords(Message, frozen=True, tag="get_records"):
    key: Bytes32
    n: U63


class Records(Message, frozen=True, tag="records"):
    """Answer to GetRecords: what is stored under the key, and whom to ask next."""

    n: U63
    nodes: Annotated[list[Record], Meta(max_length=20)]
    records: Annotated[list[Record], Meta(max_length=20)]


class PutRecord(Message, frozen=True, tag="put_record"):
    n: U63
    record: Record


class Stored(Message, frozen=True, tag="stored"):
    n: U63
    reason: Word  # empty: stored


class OfferMessage(Message, frozen=True, tag="offer"):
    """Leg 1 of an exchange."""

    header: Header  # OfferHeader
    payload: Payload  # Q(x_i - A)
    signature: Bytes64  # of the header, purpose OFFER


class ReplyMessage(Message, frozen=True, tag="reply"):
    """Leg 2 of an exchange, or a refusal, which is signed too."""

    header: Header  # ReplyHeader
    payload: Payload
    signature: Bytes64  # of the header, purpose REPLY


class OfferHeader(Struct, frozen=True, forbid_unknown_fields=True):
    age: U63  # local steps behind this shard; 0: a newcomer, who adopts
    author: Bytes32  # public key
    clip: U63  # largest |c| accepted back, in millionths, rounded up; 2**63 - 1: no limit
    codec: Word
    hash: Bytes32  # SHA-256 of the payload
    nonce: Bytes8
    reference: Bytes32  # hash of A
    run: Bytes32
    seq: U63
    shard: U32
    to: Bytes32  # public key of the addressee


class ReplyHeader(Struct, frozen=True, forbid_unknown_fields=True):
    age: U63
    author: Bytes32
    codec: Word
    detail: Text  # for people: why refused
    hash: Bytes32
    offer: Bytes32  # SHA-256 of the offer's header: binds the answer to the question
    reason: Word  # a Reason where the verdict is "refused", else empty
    run: Bytes32
    seq: U63
    shard: U32
    to: Bytes32
    verdict: Word  # change (payload c), state (payload: adopt this), adopted (no payload), refused


AnyMessage: TypeAlias = (
    Hello
    | Bye
    | Ping
    | Pong
    | FindNode
    | Nodes
    | GetRecords
    | Records
    | PutRecord
    | Stored
    | OfferMessage
    | ReplyMessage
)
