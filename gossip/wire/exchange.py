"""Messages of the exchange of weights, and the headers in them that are signed."""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from gossip.net.lanes import Lane
from gossip.wire.canonical import (
    PAYLOAD_BYTES_MAX,
    U32,
    U63,
    Bytes8,
    Bytes32,
    Bytes64,
    Message,
    Text,
    Word,
    decode_struct,
    encode_struct,
)

HEADER_BYTES_MAX = 1024

Header: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=HEADER_BYTES_MAX)]
Payload: TypeAlias = Annotated[bytes, Meta(max_length=PAYLOAD_BYTES_MAX)]


class OfferMessage(Message, frozen=True, tag="offer"):
    """Leg 1 of an exchange."""

    header: Header  # OfferHeader
    payload: Payload  # Q(x_i - A)
    signature: Bytes64  # of the header, purpose OFFER

    @property
    def lane(self) -> Lane:
        return Lane.BULK if self.payload else Lane.CONTROL


class ReplyMessage(Message, frozen=True, tag="reply"):
    """Leg 2 of an exchange, or a refusal, which is signed too."""

    header: Header  # ReplyHeader
    payload: Payload
    signature: Bytes64  # of the header, purpose REPLY

    @property
    def lane(self) -> Lane:
        return Lane.BULK if self.payload else Lane.CONTROL


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
    verdict: Word  # change (payload c), state (payload: adopt this), adopted or taken (no payload), refused


MESSAGES = (OfferMessage, ReplyMessage)

_offer_decoder = msgspec.msgpack.Decoder(OfferHeader)
_reply_decoder = msgspec.msgpack.Decoder(ReplyHeader)


def encode_header(header: OfferHeader | ReplyHeader) -> bytes:
    data = encode_struct(header)
    assert len(data) <= HEADER_BYTES_MAX, f"header of {len(data)} bytes"
    return data


def decode_offer_header(data: bytes) -> OfferHeader:
    """Raises RemoteError as `decode_struct` does."""
    return decode_struct(data, _offer_decoder, bytes_max=HEADER_BYTES_MAX)


def decode_reply_header(data: bytes) -> ReplyHeader:
    """Raises RemoteError as `decode_struct` does."""
    return decode_struct(data, _reply_decoder, bytes_max=HEADER_BYTES_MAX)
