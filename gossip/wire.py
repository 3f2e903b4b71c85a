"""The messages between peers, and the only door through which bytes become objects.

Every frame is one canonical msgpack map: string keys in bytewise order (so the tag `_` comes first), shortest
integers and lengths, no duplicate keys; of msgpack's types only map, array, str, bin and unsigned integer.
Signed parts travel as byte strings inside a message, so that what is verified is what was received, never a
re-encoding.

A frame passes three checks, cheapest first: its size; `scan`, which walks the raw bytes without recursion and
without building anything; and msgspec against the schema. The scan is not a courtesy: msgspec alone accepts
duplicate keys and long integers, and a frame whose tag is not first takes it into recursion
(docs/security.md, T32). What passes is what `encode` would have produced, byte for byte. For a small frame that
begins as ours do, it is cheaper to ask just that: it is decoded and encoded again, and only scanned, for what is
wrong, if something is.
"""

from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from gossip.errors import Reason, RemoteError

# One shard at float32 (2**20 values) and its header and signature, rounded up.
FRAME_BYTES_MAX = 2**22 + 2**16
PAYLOAD_BYTES_MAX = 2**22
# A signed record: BEP 44 allows 1,000 bytes, so do we.
RECORD_BYTES_MAX = 1000
HEADER_BYTES_MAX = 1024
PROTOCOL_VERSION = 1

# Limits of the scan, far above what our messages need (docs/security.md, T32). Byte strings carry whole payloads.
DEPTH_MAX = 8  # containers inside one another; our deepest message has 2
ELEMENTS_MAX = 4096  # values in one frame; a map of n pairs counts 2 n
MAP_PAIRS_MAX = 256
ARRAY_MAX = 1024
STR_BYTES_MAX = 1024
# Up to here encoding a frame again costs less than scanning it, whatever is in it.
SMALL_FRAME_BYTES = 2**14
# After the head of the map: the key of the tag, one character long.
TAG_FIRST = b"\xa1_"

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

# --- bytes to objects, and back ----------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
_message_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_offer_decoder = msgspec.msgpack.Decoder(OfferHeader)
_reply_decoder = msgspec.msgpack.Decoder(ReplyHeader)
S = TypeVar("S", bound=Struct)


def encode(message: AnyMessage) -> bytes:
    """One frame. The caller keeps the fields within their limits: msgspec checks those on the way in only."""
    frame = _encoder.encode(message)
    assert len(frame) <= FRAME_BYTES_MAX, f"{type(message).__name__} of {len(frame)} bytes"
    return frame


def decode(frame: bytes) -> AnyMessage:
    """The message in `frame`; then `encode(message) == frame`.

    Raises:
        RemoteError: OVERSIZED or MALFORMED. Nothing else, whatever the bytes.
    """
    if len(frame) > FRAME_BYTES_MAX:
        raise RemoteError(
            Reason.OVERSIZED, f"a frame of {len(frame)} bytes; at most {FRAME_BYTES_MAX} are allowed"
        )
    if len(frame) <= SMALL_FRAME_BYTES and frame.startswith(TAG_FIRST, 1):
        # With the tag first msgspec knows what to expect of every value, and skips none: no recursion.
        try:
            message = _message_decoder.decode(frame)
            if _encoder.encode(message) == frame:
                return message
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass  # the scan knows better what is wrong, and where
    scan(frame)
    try:
        return _message_decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _not_schema("a message", error) from None


def encode_struct(value: Struct) -> bytes:
    """The canonical bytes of a signed part: a header, a record."""
    return _encoder.encode(value)


def decode_struct(data: bytes, decoder: "msgspec.msgpack.Decoder[S]", *, bytes_max: int) -> S:
    """A signed part of at most `bytes_max` (about 1 KiB) bytes; then `encode_struct(value) == data`.

    Instead of the scan, the value is encoded again and compared: several times faster than a scan in Python,
    and as strict. Safe only for what is small and has no tagged union, so that msgspec never skips a value.

    Raises:
        RemoteError: OVERSIZED or MALFORMED.
    """
    if len(data) > bytes_max:
        raise RemoteError(
            Reason.OVERSIZED, f"a signed part of {len(data)} bytes; at most {bytes_max} are allowed"
        )
    try:
        value = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _not_schema("a signed part", error) from None
    if _encoder.encode(value) != data:
        raise RemoteError(
            Reason.MALFORMED, "a signed part that is not canonical: keys out of order or not shortest"
        )
    return value


def encode_header(header: OfferHeader | ReplyHeader) -> bytes:
    data = _encoder.encode(header)
    assert len(data) <= HEADER_BYTES_MAX, f"header of {len(data)} bytes"
    return data


def decode_offer_header(data: bytes) -> OfferHeader:
    """Raises RemoteError as `decode_struct` does."""
    return decode_struct(data, _offer_decoder, bytes_max=HEADER_BYTES_MAX)


def decode_reply_header(data: bytes) -> ReplyHeader:
    """Raises RemoteError as `decode_struct` does."""
    return decode_struct(data, _reply_decoder, bytes_max=HEADER_BYTES_MAX)


def _not_schema(what: str, error: Exception) -> RemoteError:
    # msgspec quotes unknown keys and tags, which are the peer's text.
    return RemoteError(Reason.MALFORMED, f"not {what}: {ascii(str(error)[:120])[1:-1]}")


# --- the scan ----------------------------------------------------------------------------------------


def scan(frame: bytes) -> None:
    """Prove that `frame` is exactly one value in canonical form and within every limit.

    Canonical: only maps, arrays, strings, byte strings and unsigned integers, each in its shortest form; map
    keys are strings of 1 to 31 bytes, strictly ascending bytewise. No message uses nil, booleans, negative
    numbers, floats or extension types, so they are refused: what cannot be said need not be defended.
    Byte strings are skipped, not read, so the time does not depend on the payload. Never recurses.

    Raises:
        RemoteError: OVERSIZED for a limit, MALFORMED for everything else.
    """
    position = 0  # of the next value; past the end of a cut frame, where reading raises IndexError
    left = 1  # values (in a map: pairs) still to come in the innermost container
    last: bytes | None = None  # the key before, where the innermost container is a map
    outer: list[tuple[int, bytes | None]] = []  # (left, last) of the containers around it
    elements = 1
    try:
        while True:
            if not left:
                if outer:
                    left, last = outer.pop()
                    continue
                break
            left -= 1
            if last is not None:
                length = frame[position] - 0xA0
                if not 0 <= length < 32:
                    raise _malformed(position, "a map key is a string of at most 31 bytes")
                start = position + 1
                position = start + length
                key = frame[start:position]
                if key <= last:
                    raise _malformed(start, "map keys must ascend, each once")
                if not key.isascii():
                    _check_utf8(key, start)
                last = key
            tag = frame[position]
            if tag == 0xC4:  # bin 8
                position += 2 + frame[position + 1]
            elif tag < 0x80:  # the integer itself
                position += 1
            elif 0xA0 <= tag < 0xC0:  # short string
                start = position + 1
                position = start + tag - 0xA0
                text = frame[start:position]
                if not text.isascii():
                    _check_utf8(text, start)
            elif 0x80 <= tag < 0xA0 or 0xDC <= tag < 0xE0:  # containers
                position, count, is_map = _container_head(frame, position)
                elements += 2 * count if is_map else count
                if elements > ELEMENTS_MAX:
                    raise RemoteError(Reason.OVERSIZED, f"more than {ELEMENTS_MAX} values in one frame")
                outer.append((left, last))
                if len(outer) > DEPTH_MAX:
                    raise RemoteError(Reason.OVERSIZED, f"containers nested more than {DEPTH_MAX} deep")
                left = count
                last = b"" if is_map else None
            else:
                position = _after_long(frame, position)
    except IndexError:
        raise _malformed(len(frame), "the frame ends within a value") from None
    if position != len(frame):
        raise _malformed(position, "the frame ends within a value, or goes on after it")


def _container_head(frame: bytes, start: int) -> tuple[int, int, bool]:
    """(position of the first element, elements or pairs, whether a map) of the container at `start`."""
    tag = frame[start]
    if tag < 0xA0:  # 0x80..0x8F map, 0x90..0x9F array
        return start + 1, tag & 0x0F, tag < 0x90
    is_map = tag >= 0xDE
    width = 4 if tag & 1 else 2
    count = _number(frame, start + 1, width)
    if count < (16 if width == 2 else 2**16):
        raise _malformed(start, f"a length of {count} has a shorter form")
    if count > (MAP_PAIRS_MAX if is_map else ARRAY_MAX):
        raise RemoteError(Reason.OVERSIZED, f"a {'map' if is_map else 'array'} of {count} elements")
    return start + 1 + width, count, is_map


# First byte: (bytes of the number after it, least number that needs so many).
_INTEGERS = {0xCC: (1, 2**7), 0xCD: (2, 2**8), 0xCE: (4, 2**16), 0xCF: (8, 2**32)}
_STRINGS = {0xD9: (1, 2**5), 0xDA: (2, 2**8), 0xDB: (4, 2**16)}
_BYTES = {0xC5: (2, 2**8), 0xC6: (4, 2**16)}


def _after_long(frame: bytes, start: int) -> int:
    """Where the value at `start` ends: an integer, string or byte string with a number after its first byte.

    Only bin 8 is not handled here: it is always shortest, so the scan itself passes over it.
    """
    tag = frame[start]
    form = _INTEGERS.get(tag) or _BYTES.get(tag) or _STRINGS.get(tag)
    if form is None:
        raise _malformed(
            start, f"first byte {tag:#04x}: nil, boolean, float, negative and extension have no place here"
        )
    width, least = form
    number = _number(frame, start + 1, width)
    if number < least:
        raise _malformed(start, f"an integer or length of {number} has a shorter form")
    if tag in _INTEGERS:
        return start + 1 + width
    end = start + 1 + width + number
    if tag in _BYTES:
        if number > PAYLOAD_BYTES_MAX:
            raise RemoteError(
                Reason.OVERSIZED, f"a byte string of {number} bytes; at most {PAYLOAD_BYTES_MAX} are allowed"
            )
        return end
    if number > STR_BYTES_MAX:
        raise RemoteError(
            Reason.OVERSIZED, f"a string of {number} bytes; at most {STR_BYTES_MAX} are allowed"
        )
    _check_utf8(frame[start + 1 + width : end], start)
    return end


def _number(frame: bytes, start: int, width: int) -> int:
    if start + width > len(frame):
        raise _malformed(len(frame), "the frame ends within a number")
    return int.from_bytes(frame[start : start + width], "big")


def _check_utf8(text: bytes, start: int) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        raise _malformed(start, "a string that is not UTF-8") from None


def _malformed(position: int, expected: str) -> RemoteError:
    return RemoteError(Reason.MALFORMED, f"byte {position}: {expected}")


# --- for docs/protocol.md ------------------------------------------------------------------------------


def message_table() -> str:
    """Every message and header, field by field, in Markdown; docs/protocol.md contains exactly this."""
    messages: tuple[type[Struct], ...] = get_args(AnyMessage)
    return struct_table((*messages, OfferHeader, ReplyHeader))


def struct_table(structs: Iterable[type[Struct]]) -> str:
    lines = ["| message | field | type |", "|---|---|---|"]
    for struct in structs:
        info = msgspec.inspect.type_info(struct)
        assert isinstance(info, msgspec.inspect.StructType)
        name = struct.__name__ if info.tag is None else f"`{info.tag}`"
        for field in info.fields:
            lines.append(f"| {name} | `{field.encode_name}` | {_type_words(field.type)} |")
            name = ""
    return "\n".join(lines) + "\n"


def _type_words(kind: Any) -> str:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _type_words(kind.type)
    if isinstance(kind, msgspec.inspect.IntType):
        assert kind.le is not None
        return f"integer below 2^{(kind.le + 1).bit_length() - 1}"
    if isinstance(kind, msgspec.inspect.StrType):
        return f"string of at most {kind.max_length} characters"
    if isinstance(kind, msgspec.inspect.BytesType):
        if kind.min_length == kind.max_length:
            return f"{kind.max_length:,} bytes"
        return f"{kind.min_length or 0} to {kind.max_length:,} bytes"
    assert isinstance(kind, msgspec.inspect.ListType | msgspec.inspect.VarTupleType), kind
    return f"array of at most {kind.max_length:,}: {_type_words(kind.item_type)}"
