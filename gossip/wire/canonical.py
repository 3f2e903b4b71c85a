"""The canonical encoding of messages, and the only door through which bytes become objects.

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

Which messages there are is not known here: each protocol has a schema file beside this one, and a node's `Codec` is
made of the messages of its protocols. A tag that no protocol of the node knows is no fault of the peer, which may be of
a later version: `UnsupportedError`, before anything behind the tag is looked at.
"""

import functools
import operator
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from gossip.errors import Reason, RemoteError
from gossip.net.lanes import BULK_BYTES_MAX, Lane

FRAME_BYTES_MAX = BULK_BYTES_MAX
PAYLOAD_BYTES_MAX = 2**22
# A signed record. BEP 44 allows 1,000 bytes, for which eight addresses of full length are too many; twice that leaves
# room for kinds to come (a certificate with its chain, a checkpoint with its hashes).
RECORD_BYTES_MAX = 2000

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
Word: TypeAlias = Annotated[str, Meta(max_length=32)]  # a name of ours: codec, reason, verdict
Text: TypeAlias = Annotated[str, Meta(max_length=200)]  # for people; escaped before it is shown


class Message(Struct, frozen=True, tag_field="_", forbid_unknown_fields=True):
    """Base of all messages. Fields stand in bytewise order of their names: that is the canonical order."""

    @property
    def lane(self) -> Lane:
        """How it travels: all that is small by `control`; the class of a message with a payload says otherwise."""
        return Lane.CONTROL


class UnsupportedError(RemoteError):
    """A frame of a protocol, or a version of it, that this node does not speak. No fault: a later version may.

    Args:
        tag: Printable ASCII, at most 31 characters.
    """

    def __init__(self, tag: str) -> None:
        super().__init__(Reason.UNSUPPORTED, f"the message {tag!r} is of no protocol that both speak")
        self.tag = tag

    def __reduce__(self) -> tuple[type["UnsupportedError"], tuple[str]]:  # type: ignore[override]
        return UnsupportedError, (self.tag,)


# --- bytes to objects, and back ------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
S = TypeVar("S", bound=Struct)


def encode(message: Message) -> bytes:
    """One frame. The caller keeps the fields within their limits: msgspec checks those on the way in only."""
    frame = _encoder.encode(message)
    assert len(frame) <= FRAME_BYTES_MAX, f"{type(message).__name__} of {len(frame)} bytes"
    return frame


class Codec:
    """Decodes the frames of a set of messages.

    Args:
        messages: All that may come, each with a tag of its own.
    """

    def __init__(self, messages: Iterable[type[Message]]) -> None:
        self.messages = tuple(messages)
        self.tags = {tag_of(message): message for message in self.messages}
        assert len(self.tags) == len(self.messages), "two messages have one tag"
        union = functools.reduce(operator.or_, self.messages)
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(union)
        # The order of a map's keys is not seen by encoding it again.
        self._with_maps = frozenset(message for message in self.messages if _has_map(message))

    def decode(self, frame: bytes) -> Message:
        """The message in `frame`; then `encode(message) == frame`.

        Raises:
            UnsupportedError: the frame names a message that is not among ours.
            RemoteError: OVERSIZED or MALFORMED. Nothing else, whatever the bytes.
        """
        if len(frame) > FRAME_BYTES_MAX:
            raise RemoteError(
                Reason.OVERSIZED, f"a frame of {len(frame)} bytes; at most {FRAME_BYTES_MAX} are allowed"
            )
        if len(frame) <= SMALL_FRAME_BYTES and frame.startswith(TAG_FIRST, 1):
            # With the tag first msgspec knows what to expect of every value, and skips none: no recursion.
            try:
                message = self._decoder.decode(frame)
                if type(message) not in self._with_maps and _encoder.encode(message) == frame:
                    return message
            except (msgspec.MsgspecError, UnicodeDecodeError):
                pass  # the scan knows better what is wrong, and where
        tag = tag_in(frame)
        if tag and tag not in self.tags:
            raise UnsupportedError(tag)
        scan(frame)
        try:
            return self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _not_schema("a message", error) from None


def tag_of(message: type[Message]) -> str:
    """The name by which a message goes on the wire."""
    return str(message.__struct_config__.tag)


def tag_in(frame: bytes) -> str:
    """The tag of a frame, without decoding anything else; empty where it does not begin as every message does."""
    start = {0xDE: 3, 0xDF: 5}.get(frame[0], 1) if frame else 0
    if not frame or not (0x81 <= frame[0] <= 0x8F or start > 1) or not frame.startswith(TAG_FIRST, start):
        return ""
    place = start + len(TAG_FIRST)
    length = frame[place] - 0xA0 if len(frame) > place else 0
    tag = frame[place + 1 : place + 1 + length]
    if not 0 < length < 32 or len(tag) < length or not tag.isascii():
        return ""
    text = tag.decode()
    return text if text.isprintable() else ""


def _has_map(message: type[Message]) -> bool:
    info = msgspec.inspect.type_info(message)
    assert isinstance(info, msgspec.inspect.StructType)
    return any(isinstance(field.type, msgspec.inspect.DictType) for field in info.fields)


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
    if isinstance(kind, msgspec.inspect.DictType):
        return f"map of at most {kind.max_length}: {_type_words(kind.key_type)}, to {_type_words(kind.value_type)}"
    if isinstance(kind, msgspec.inspect.StructType):
        return kind.cls.__name__
    assert isinstance(kind, msgspec.inspect.ListType | msgspec.inspect.VarTupleType), kind
    return f"array of at most {kind.max_length:,}: {_type_words(kind.item_type)}"
