"""The wire codec: golden bytes, every cut, every flipped byte, bombs, and judges that we did not write."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgpack
import msgspec
import pytest

from gossip import wire
from gossip.errors import Reason, RemoteError
from gossip.wire import (
    Bye,
    FindNode,
    GetManifest,
    GetRecords,
    Hello,
    Holds,
    ManifestMessage,
    Nodes,
    OfferHeader,
    OfferMessage,
    Ping,
    Pong,
    PutRecord,
    Records,
    ReplyHeader,
    ReplyMessage,
    Share,
    Stored,
    Unsupported,
    UnsupportedError,
)

Decoded = TypeVar("Decoded")
GOLDEN = Path(__file__).parents[1] / "golden" / "wire"


def b32(n: int) -> bytes:
    return bytes([n]) * 32


OFFER_HEADER = OfferHeader(
    age=300,
    author=b32(1),
    clip=2**63 - 1,
    codec="int8",
    hash=hashlib.sha256(b"payload").digest(),
    nonce=bytes(8),
    reference=b32(2),
    run=b32(3),
    seq=70_000,
    shard=0,
    to=b32(4),
)
REPLY_HEADER = ReplyHeader(
    age=0,
    author=b32(4),
    codec="int4",
    detail="the shard is in another exchange — try later",
    hash=hashlib.sha256(b"").digest(),
    offer=b32(5),
    reason="busy",
    run=b32(3),
    seq=5_000_000_000,
    shard=2**32 - 1,
    to=b32(1),
    verdict="refused",
)
SAMPLES: dict[str, wire.AnyMessage] = {
    "hello": Hello("p2pnode/0.2.0", {"later": b"x"}, {"dht": [1], "exchange": [1, 2]}, b"\x81"),
    "bye": Bye("stopping"),
    "ping": Ping(127),
    "pong": Pong(128),
    "find_node": FindNode(256, b32(7)),
    "nodes": Nodes(65_536, [b"\x81", b"\x82" * 256]),
    "get_records": GetRecords(b32(8), 1),
    "records": Records(2, [b"\x81"], []),
    "put_record": PutRecord(3, b"\x81" * 40),
    "stored": Stored(4, "rate_limited"),
    "offer": OfferMessage(wire.encode_header(OFFER_HEADER), b"payload", bytes(range(64))),
    "unsupported": Unsupported("weather"),
    "holds": Holds([Share(b32(3), [0, 1, 200]), Share(b32(9), [])]),
    "get_manifest": GetManifest(5, b32(3)),
    "manifest": ManifestMessage(b"\x80", 5),
    "reply": ReplyMessage(wire.encode_header(REPLY_HEADER), b"", bytes(range(64))),
}
HEADERS: dict[str, OfferHeader | ReplyHeader] = {"offer_header": OFFER_HEADER, "reply_header": REPLY_HEADER}


def golden(name: str) -> bytes:
    """The bytes of an annotated file: hexadecimal, two spaces, what it is."""
    lines = (GOLDEN / f"{name}.txt").read_text().splitlines()
    return bytes.fromhex("".join(line.partition("  ")[0] for line in lines if not line.startswith("#")))


def decode_header(name: str, data: bytes) -> OfferHeader | ReplyHeader:
    return wire.decode_offer_header(data) if name == "offer_header" else wire.decode_reply_header(data)


def outcome(decode: Callable[[bytes], Decoded], data: bytes) -> Decoded | Reason:
    """What the decoder makes of the bytes, or why it refuses them."""
    try:
        return decode(data)
    except RemoteError as error:
        return error.reason


def refused(frame: bytes) -> Reason:
    with pytest.raises(RemoteError) as caught:
        wire.decode(frame)
    return caught.value.reason


# --- golden bytes ------------------------------------------------------------------------------------


def test_every_message_has_a_golden_sample() -> None:
    tags = {msgspec.inspect.type_info(kind).tag for kind in wire.MESSAGES}
    assert set(SAMPLES) == tags


@pytest.mark.parametrize("name", SAMPLES)
def test_messages_have_their_golden_bytes(name: str) -> None:
    assert wire.encode(SAMPLES[name]).hex(" ") == golden(name).hex(" ")
    assert wire.decode(golden(name)) == SAMPLES[name]


@pytest.mark.parametrize("name", HEADERS)
def test_headers_have_their_golden_bytes(name: str) -> None:
    assert wire.encode_header(HEADERS[name]).hex(" ") == golden(name).hex(" ")
    assert decode_header(name, golden(name)) == HEADERS[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_another_msgpack_reads_and_writes_the_same(name: str) -> None:
    """The package msgpack as a second judge: it reads what we wrote, and writes it back alike."""
    frame = wire.encode(SAMPLES[name])
    fields = msgpack.unpackb(frame, strict_map_key=True)
    assert fields == msgspec.to_builtins(SAMPLES[name], builtin_types=(bytes,))
    assert fields["_"] == name
    assert list(fields) == sorted(fields)
    assert msgpack.packb(fields) == frame


# --- cut, extended, damaged ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_every_prefix_of_a_message_is_refused(name: str) -> None:
    frame = wire.encode(SAMPLES[name])
    for length in range(len(frame)):
        assert refused(frame[:length]) is Reason.MALFORMED


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_after_a_message_are_refused(name: str) -> None:
    frame = wire.encode(SAMPLES[name])
    for tail in (b"\x00", b"\xc0", frame):
        assert refused(frame + tail) is Reason.MALFORMED


@pytest.mark.parametrize("name", SAMPLES)
def test_a_flipped_byte_is_refused_or_means_what_it_says(name: str) -> None:
    """Whatever passes encodes to the very bytes that came: there is one spelling of everything."""
    frame = wire.encode(SAMPLES[name])
    start = frame.index(name.encode())  # the tag comes first
    passed = 0
    for position in range(len(frame)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(frame)
            damaged[position] ^= flip
            found = outcome(wire.decode, bytes(damaged))
            if found is Reason.UNSUPPORTED:
                assert start - 1 <= position < start + len(name), "only another tag can be of a later version"
            elif isinstance(found, Reason):
                assert found in (Reason.MALFORMED, Reason.OVERSIZED)
            else:
                passed += 1
                assert wire.encode(found) == damaged
    assert passed < 4 * len(frame)


@pytest.mark.parametrize("name", HEADERS)
def test_headers_cut_extended_or_damaged_are_refused_or_canonical(name: str) -> None:
    data = wire.encode_header(HEADERS[name])
    variants = [data[:n] for n in range(len(data))] + [data + b"\x00"]
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            variants.append(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
    for variant in variants:
        found = outcome(lambda data: decode_header(name, data), variant)
        if isinstance(found, Reason):
            assert found is Reason.MALFORMED
        else:
            assert len(variant) == len(data)
            assert wire.encode_header(found) == variant


# --- other spellings of the same -------------------------------------------------------------------------


def ping(n: bytes, *, keys: bytes = b"\x82\xa1_\xa4ping\xa1n") -> bytes:
    return keys + n


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (ping(b"\xcc\x7f"), "127 in two bytes"),
        (ping(b"\xcd\x00\xff"), "255 in three bytes"),
        (ping(b"\xce\x00\x00\xff\xff"), "65535 in five bytes"),
        (ping(b"\xcf" + bytes(4) + b"\xff" * 4), "2**32 - 1 in nine bytes"),
        (ping(b"\xd3" + bytes(7) + b"\x01"), "signed form of 1"),
        (ping(b"\xff"), "-1"),
        (ping(b"\xcf" + b"\xff" * 8), "2**64 - 1, beyond our 63 bits"),
        (ping(b"\xca\x3f\x80\x00\x00"), "float 1.0"),
        (ping(b"\xc0"), "nil"),
        (ping(b"\xc3"), "true"),
        (ping(b"\xd4\x01\x00"), "extension"),
        (ping(b"\xa11"), "a string for a number"),
        (ping(b"\x01", keys=b"\x82\xa1n\x01\xa1_\xa4pingx"), "junk"),
        (b"\x82\xa1n\x01\xa1_\xa4ping", "keys in the wrong order"),
        (b"\x83\xa1_\xa4ping\xa1n\x01\xa1n\x01", "a key twice"),
        (b"\x83\xa1_\xa4ping\xa1n\x01\xa1x\x01", "a field too many"),
        (b"\x81\xa1_\xa4ping", "a field too few"),
        (b"\x82\xc4\x01_\xa4ping\xa1n\x01", "a byte string as key"),
        (b"\x82\x01\xa4ping\xa1n\x01", "a number as key"),
        (b"\x82\xd9\x01_\xa4ping\xa1n\x01", "a key with a long length"),
        (b"\xde\x00\x02\xa1_\xa4ping\xa1n\x01", "a map with a long length"),
        (b"\xdf\x00\x00\x00\x02\xa1_\xa4ping\xa1n\x01", "a map with a very long length"),
        (b"\x82\xa1_\xd9\x04ping\xa1n\x01", "a string with a long length"),
        (b"\x82\xa1_\xa3bye\xa6reason\xa2\xff\xfe", "not UTF-8"),
        (b"\x82\xa1_\xa3bye\xa6reason\xa3\xed\xa0\x80", "a lone surrogate"),
        (b"\x01", "not a map"),
        (b"", "nothing"),
    ],
)
def test_no_second_spelling_is_accepted(frame: bytes, why: str) -> None:
    assert refused(frame) is Reason.MALFORMED, why


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"\xa1n\x01",
        b"\xa1n\xcc\x01",  # a later version may say it differently
        b"\xa1n\xcb" + bytes(8),
        b"\xff",
        b"\xa1n" + b"\x91" * 10**6,
        b"\x81\xa1a" * 300_000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
@pytest.mark.parametrize("tag", ["weather", "pingx", "pin", "p", "p" * 31])
def test_a_tag_that_is_not_known_is_unsupported_and_nothing_behind_it_is_looked_at(
    tag: str, rest: bytes
) -> None:
    frame = b"\x82\xa1_" + bytes([0xA0 + len(tag)]) + tag.encode() + rest
    started = time.process_time()
    with pytest.raises(UnsupportedError, match=tag) as caught:
        wire.decode(frame)
    assert time.process_time() - started < 0.05
    assert caught.value.tag == tag
    assert caught.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\xa1n\x01\xa1_\xa7weather",
        b"\x82\xa1_\xd9\x07weather\xa1n\x01",
        b"\x82\xa1_\xa0\xa1n\x01",
        b"\x82\xa1_\xd9\x20" + b"w" * 32 + b"\xa1n\x01",
        b"\x82\xa1_\xa8w\xc3\xa4rmer\xa1n\x01",
        b"\x82\xa1_\xa7wea\x1bher\xa1n\x01",
        b"\x82\xa1_\x07\xa1n\x01",
        b"\x80",
        b"\x92\xa1_\xa7weather",
    ],
    ids=["not first", "long form", "empty", "long", "no ASCII", "control", "a number", "no tag", "an array"],
)
def test_what_does_not_begin_as_every_message_does_is_malformed_and_not_of_a_later_version(
    frame: bytes,
) -> None:
    assert refused(frame) is Reason.MALFORMED


def test_a_node_knows_the_messages_of_its_protocols_only() -> None:
    codec = wire.Codec([Ping, Bye])
    assert codec.decode(wire.encode(Ping(1))) == Ping(1)
    with pytest.raises(UnsupportedError, match="'pong'"):
        codec.decode(wire.encode(Pong(1)))


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\xa5extra\x82\xa1b\xc4\x00\xa1a\xc4\x00\xa9protocols\x80", "names of `extra` out of order"),
        (b"\xa5extra\x82\xa1a\xc4\x00\xa1a\xc4\x00\xa9protocols\x80", "a name twice"),
        (b"\xa5extra\x80\xa9protocols\x82\xa3run\x91\x01\xa3dht\x91\x01", "protocols out of order"),
        (b"\xa5extra\x80\xa9protocols\x81\xa3dht\x91\xcc\x01", "a version in two bytes"),
        (b"\xa5extra\x80\xa9protocols\x81\xa3dht\x90", "a protocol of no version"),
        (b"\xa5extra\x80\xa9protocols\x81\xa3dht\x99" + bytes(range(9)), "nine versions"),
        (b"\xa5extra\xde\x00\x01\xa1a\xc4\x00\xa9protocols\x80", "a map with a long length"),
    ],
)
def test_maps_in_a_hello_have_one_spelling_too(frame: bytes, why: str) -> None:
    head, tail = b"\x85\xa1_\xa5hello\xa5agent\xa1x", b"\xa6record\xc4\x01\x81"
    sound = b"\xa5extra\x81\xa1a\xc4\x00\xa9protocols\x81\xa3dht\x91\x01"
    assert wire.decode(head + sound + tail) == Hello("x", {"a": b""}, {"dht": [1]}, b"\x81")
    assert refused(head + frame + tail) is Reason.MALFORMED, why


def test_long_forms_of_byte_strings_are_refused() -> None:
    for head in (b"\xc5\x00\x01", b"\xc6\x00\x00\x00\x01"):
        assert refused(b"\x83\xa1_\xaaput_record\xa1n\x01\xa6record" + head + b"\x81") is Reason.MALFORMED


def test_a_header_in_another_spelling_is_refused() -> None:
    data = wire.encode_header(OFFER_HEADER)
    for old, new in (
        (b"\xa5shard\x00", b"\xa5shard\xcc\x00"),
        (b"\xa5codec\xa4int8", b"\xa5codec\xd9\x04int8"),
        (b"\xc4\x08", b"\xc5\x00\x08"),
    ):
        assert data.count(old) == 1
        with pytest.raises(RemoteError, match="canonical"):
            wire.decode_offer_header(data.replace(old, new))
    fields = msgpack.unpackb(data)
    swapped = msgpack.packb(dict(reversed(fields.items())))
    with pytest.raises(RemoteError, match="canonical"):
        wire.decode_offer_header(swapped)


def test_the_refusal_does_not_carry_the_peers_text() -> None:
    """A terminal that shows the sentence must not be moved by it."""
    frame = b"\x82\xa1_\xa8\x1b[2J\xe2\x80\xae!\xa1n\x01"
    with pytest.raises(RemoteError) as caught:
        wire.decode(frame)
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()


# --- limits ------------------------------------------------------------------------------------------------


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    assert refused(bytes(wire.FRAME_BYTES_MAX + 1)) is Reason.OVERSIZED


def test_the_largest_payload_passes_and_a_larger_one_does_not() -> None:
    header = wire.encode_header(OFFER_HEADER)
    largest = OfferMessage(header, bytes(wire.PAYLOAD_BYTES_MAX), bytes(64))
    assert wire.decode(wire.encode(largest)) == largest
    larger = OfferMessage(header, bytes(wire.PAYLOAD_BYTES_MAX + 1), bytes(64))
    assert refused(wire.encode(larger)) is Reason.OVERSIZED


def test_a_header_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(RemoteError) as caught:
        wire.decode_reply_header(bytes(wire.HEADER_BYTES_MAX + 1))
    assert caught.value.reason is Reason.OVERSIZED


map_of_256 = b"\xde\x01\x00" + b"".join(b"\xa2" + f"{n:02x}".encode() + b"\x01" for n in range(256))


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (b"\x91" * 10**6, Reason.OVERSIZED),
        (b"\x81\xa1a" * 300_000, Reason.OVERSIZED),
        (b"\x82\xa1x" + b"\x91" * 10**6, Reason.OVERSIZED),
        (b"\xdc\x04\x00" * 300_000, Reason.OVERSIZED),
        ((b"\xdc\x04\x00" + b"\x90" * 1024) * 1000, Reason.MALFORMED),
        (b"\x9f" + (b"\xdc\x04\x00" + b"\x90" * 1024) * 15, Reason.OVERSIZED),
        (b"\x99" + map_of_256 * 9, Reason.OVERSIZED),  # 2304 pairs are 4608 values
        (b"\xdd\xff\xff\xff\xff", Reason.OVERSIZED),
        (b"\xdf\xff\xff\xff\xff", Reason.OVERSIZED),
        (b"\xdc\xff\xff" + bytes(65_535), Reason.OVERSIZED),
        (b"\xde\x01\x01" + bytes(1000), Reason.OVERSIZED),
        (b"\xda\x04\x01" + b"a" * 1025, Reason.OVERSIZED),
        (b"\xc6\xff\xff\xff\xff", Reason.OVERSIZED),
        (b"\xdb\xff\xff\xff\xff", Reason.OVERSIZED),
    ],
)
def test_bombs_cost_nothing(bomb: bytes, reason: Reason) -> None:
    """One megabyte of nesting became 73 MB in a plain msgpack. Here the first excess ends it."""
    started = time.process_time()
    assert refused(bomb) is reason
    assert time.process_time() - started < 0.05


def test_the_scan_alone_refuses_keys_and_strings_that_are_not_utf8() -> None:
    for frame in (b"\x81\xa1\xff\x01", b"\xa1\xff", b"\xd9\x20" + b"\xff" * 32):
        with pytest.raises(RemoteError, match="UTF-8"):
            wire.scan(frame)


def test_depth_and_elements_up_to_the_limit_pass_the_scan() -> None:
    wire.scan(b"\x91" * (wire.DEPTH_MAX - 1) + b"\x90")
    four = b"\x94" + (b"\xdc\x03\xfe" + b"\x01" * 1022) * 4  # 1 + 4 + 4 * 1022 values
    wire.scan(four)
    assert wire.ELEMENTS_MAX - 3 == 1 + 4 + 4 * 1022
    with pytest.raises(RemoteError):
        wire.scan(b"\x91" * wire.DEPTH_MAX + b"\x90")


# --- published vectors ---------------------------------------------------------------------------------------


def test_scan_takes_exactly_the_shortest_form_of_each_allowed_value(shared: Path) -> None:
    """Of the 233 encodings of msgpack-test-suite: one per allowed value, and nothing else."""
    suite = json.loads((shared / "vectors/msgpack/msgpack-test-suite.json").read_text())
    accepted = total = 0
    for group in suite.values():
        for case in group:
            encodings = [bytes.fromhex(text.replace("-", "")) for text in case["msgpack"]]
            total += len(encodings)
            kind, value = next((k, v) for k, v in case.items() if k != "msgpack")
            # The suite lists numbers as floats and as signed integers, too; those are no forms of ours.
            ours = [e for e in encodings if not (0xCA <= e[0] <= 0xCB or 0xD0 <= e[0] <= 0xD3)]
            expected = min(ours, key=len) if allowed(kind, value) else None
            for encoding in encodings:
                try:
                    wire.scan(encoding)
                except RemoteError:
                    assert encoding != expected, (kind, value)
                else:
                    accepted += 1
                    assert encoding == expected, (kind, value)
    assert total == 233
    assert accepted >= 25


def allowed(kind: str, value: object) -> bool:
    match kind:
        case "binary" | "string":
            return True
        case "number" | "bignum":
            number = float(value) if isinstance(value, float) else int(str(value))
            return number == int(number) and number >= 0
        case "array" | "map":
            return contains_only_allowed(value)
    return False


def contains_only_allowed(value: object) -> bool:
    match value:
        case None | bool() | float():
            return False
        case int():
            return value >= 0
        case list():
            return all(map(contains_only_allowed, value))
        case dict():
            return "" not in value and all(map(contains_only_allowed, value.values()))
    return True


# --- for readers ----------------------------------------------------------------------------------------------


def test_fields_are_declared_in_canonical_order() -> None:
    """msgspec writes fields as they stand in the class; `_` sorts before every letter we use."""
    for kind in (*wire.MESSAGES, OfferHeader, ReplyHeader):
        names = [field.encode_name for field in msgspec.structs.fields(kind)]
        assert names == sorted(names)
        assert all(name > "_" for name in names)


# What stands inside messages, by protocol.
PARTS: dict[str, tuple[type[msgspec.Struct], ...]] = {"exchange": (OfferHeader, ReplyHeader), "run": (Share,)}


@pytest.mark.parametrize("protocol", wire.SCHEMAS)
def test_the_protocol_page_has_the_tables_of_the_code(root: Path, protocol: str) -> None:
    page = (root / "docs/protocol.md").read_text()
    begin, end = f"<!-- {protocol}:begin -->\n", f"<!-- {protocol}:end -->"
    assert page.count(begin) == page.count(end) == 1
    table = page.partition(begin)[2].partition(end)[0]
    expected = wire.struct_table((*wire.SCHEMAS[protocol].MESSAGES, *PARTS.get(protocol, ())))
    assert table.strip() == expected.strip(), f"put this between the markers:\n{expected}"


@pytest.mark.parametrize(
    "deep", [b"\x91" * 15000 + b"\x01", b"\x81\xa1a" * 5000 + b"\x01"], ids=["array", "map"]
)
@pytest.mark.parametrize(
    "tag", [b"\xa5hello", b"\xa5nodes", b"\xa7records", b"\xa5offer", b"\xa4ping", b"\xa5holds"]
)
def test_a_frame_nested_deep_behind_its_tag_is_malformed_or_oversized(tag: bytes, deep: bytes) -> None:
    start = b"\x82\xa1_"
    for frame in (
        start + deep,
        start + tag + deep,
        start + tag + b"\xa1n" + deep,
        start + tag + b"\xa1z" + deep,
        start + tag + b"\xa7records" + b"\x92\xc4\x01a" + deep,
        start + tag + b"\xa6shards" + deep,
        start + tag + b"\xa5extra" + deep,
        start + tag + b"\xa4runs" + deep,
        start + tag + b"\xa7payload" + deep,
    ):
        with pytest.raises(RemoteError) as caught:
            wire.decode(frame)
        assert caught.value.reason in (Reason.MALFORMED, Reason.OVERSIZED)
