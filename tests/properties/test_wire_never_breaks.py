"""Whatever the bytes: a message that encodes back to them, or RemoteError; UNSUPPORTED for unknown tags only."""

from collections.abc import Callable
from typing import TypeVar

import msgpack
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from crypto.identity import Identity
from crypto.signing import Purpose, network_id
from gossip import wire
from gossip.dht.kinds import KINDS
from gossip.dht.records import open_record, peek_record
from gossip.errors import Reason, RemoteError

Decoded = TypeVar("Decoded")
REFUSALS = {Reason.MALFORMED, Reason.OVERSIZED}

# Values that msgpack can say, canonical or not, of moderate size.
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
numbers = st.integers(0, 2**63 - 1)
b32 = st.binary(min_size=32, max_size=32)
records = st.lists(st.binary(min_size=1, max_size=wire.RECORD_BYTES_MAX), max_size=20)
names = st.text(min_size=1, max_size=10).filter(lambda name: len(name.encode()) < 32)


def ascending(values: st.SearchStrategy[object], most: int) -> st.SearchStrategy[dict[str, object]]:
    """Maps as a sender writes them: names in bytewise order."""
    maps = st.dictionaries(names, values, max_size=most)
    return maps.map(lambda found: dict(sorted(found.items(), key=lambda item: item[0].encode())))


sayable = st.recursive(
    st.integers(0, 2**64 - 1) | st.text(max_size=40) | st.binary(max_size=100),
    lambda inner: st.lists(inner, max_size=5) | ascending(inner, 5),
    max_leaves=10,
)
messages = st.one_of(
    st.builds(
        wire.Hello,
        agent=st.text(max_size=200),
        extra=ascending(st.binary(max_size=100), 16),
        protocols=ascending(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), 64),
        record=st.binary(min_size=1, max_size=wire.RECORD_BYTES_MAX),
    ),
    st.builds(wire.Unsupported, tag=st.text(max_size=32)),
    st.builds(
        wire.Holds,
        runs=st.lists(
            st.builds(wire.Share, run=b32, shards=st.lists(st.integers(0, 2**32 - 1), max_size=100)),
            max_size=16,
        ),
    ),
    st.builds(wire.GetManifest, n=numbers, run=b32),
    st.builds(wire.ManifestMessage, data=st.binary(max_size=2**14), n=numbers),
    st.builds(wire.Bye, reason=st.text(max_size=200)),
    st.builds(wire.Ping, n=numbers),
    st.builds(wire.FindNode, n=numbers, target=b32),
    st.builds(wire.Nodes, n=numbers, records=records),
    st.builds(wire.Records, n=numbers, nodes=records, records=records),
    st.builds(wire.Stored, n=numbers, reason=st.text(max_size=32)),
    st.builds(
        wire.OfferMessage,
        header=st.binary(min_size=1, max_size=1024),
        payload=st.binary(max_size=70_000) | st.integers(65_530, 65_545).map(bytes),
        signature=st.binary(min_size=64, max_size=64),
    ),
)


def speakable(value: object) -> bool:
    """The rules of docs/protocol.md once more, over the value instead of the bytes."""
    match value:
        case None | bool() | float():
            return False
        case int():
            return value >= 0
        case str():
            return len(value.encode()) <= 1024
        case list():
            return all(map(speakable, value))
        case dict():
            keys = [key.encode() for key in value]
            ascending = all(a < b for a, b in zip([b"", *keys], keys, strict=False))
            return ascending and all(len(key) < 32 for key in keys) and all(map(speakable, value.values()))
    return True


def outcome(decode: Callable[[bytes], Decoded], data: bytes) -> Decoded | Reason:
    try:
        return decode(data)
    except RemoteError as error:
        return error.reason


def accepted_as_it_is_or_refused(frame: bytes) -> None:
    found = outcome(wire.decode, frame)
    if found is Reason.UNSUPPORTED:
        assert wire.tag_in(frame) not in {wire.tag_of(message) for message in wire.MESSAGES}
    elif isinstance(found, Reason):
        assert found in REFUSALS
    else:
        assert wire.encode(found) == frame


@given(st.binary(max_size=300))
def test_arbitrary_bytes(frame: bytes) -> None:
    accepted_as_it_is_or_refused(frame)
    for decode in (wire.decode_offer_header, wire.decode_reply_header):
        found = outcome(decode, frame)
        assert found in REFUSALS or wire.encode_header(found) == frame


@given(messages)
def test_every_message_survives_the_wire(message: wire.AnyMessage) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(messages, st.data())
def test_damaged_messages(message: wire.AnyMessage, data: st.DataObject) -> None:
    """Replace, insert and delete a few bytes, most of them near the start, where the structure is."""
    frame = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, min(len(frame), 120)))
        removed = data.draw(st.integers(0, 3))
        frame[start : start + removed] = data.draw(st.binary(max_size=3))
    accepted_as_it_is_or_refused(bytes(frame))


@given(st.dictionaries(st.sampled_from(["_", "n", "reason", "target", "record", "x"]), anything))
def test_maps_that_are_nearly_messages(fields: dict[str, object]) -> None:
    accepted_as_it_is_or_refused(msgpack.packb(fields))


@given(anything)
def test_what_the_scan_passes_has_one_spelling(value: object) -> None:
    """Judged by the package msgpack, whose packer writes the shortest form and keeps the order of keys."""
    data = msgpack.packb(value)
    found = outcome(wire.scan, data)
    assert found is None if speakable(value) else found in REFUSALS


@given(st.binary(min_size=1, max_size=60))
def test_what_the_scan_passes_is_what_a_packer_writes(data: bytes) -> None:
    if outcome(wire.scan, data) is None:
        assert msgpack.packb(msgpack.unpackb(data)) == data
        assert msgspec.msgpack.encode(msgspec.msgpack.decode(data)) == data


@given(st.binary(max_size=400), st.sampled_from([b"", b"\x82\xa4body\xc4", b"\x82\xa4body\xc5\x01"]))
def test_arbitrary_records(data: bytes, head: bytes) -> None:
    for kind in KINDS.values():
        assert outcome(lambda record, kind=kind: peek_record(record, kind), head + data) is Reason.BAD_RECORD
    assert outcome(lambda record: open_record(record, NETWORK), head + data) is Reason.BAD_RECORD


ALICE = Identity.from_seed(b"\x01" * 32)
NETWORK = network_id("test")
bodies = st.fixed_dictionaries(
    {},
    optional={
        "_": st.sampled_from(["peer", "provider", "weather", ""]) | anything,
        "addresses": st.lists(st.sampled_from(["a:1", "b c", ""]), max_size=9) | anything,
        "key": st.just(ALICE.public_key) | b32 | anything,
        "place": b32 | anything,
        "run": b32 | anything,
        "salt": st.binary(max_size=70) | anything,
        "seq": numbers | anything,
        "ttl_s": st.integers(0, 2**32) | anything,
        "x": anything,
        "xx": anything,
    },
)


@given(bodies, st.sampled_from([Purpose.PEER_RECORD, Purpose.PROVIDER_RECORD, Purpose.RECORD]))
def test_arbitrary_signed_bodies(fields: dict[str, object], purpose: Purpose) -> None:
    """Signed, so that nothing but the body stands in the way."""
    body = msgpack.packb(dict(sorted(fields.items())))
    data = msgpack.packb({"body": body, "signature": ALICE.sign(purpose, NETWORK, body)})
    found = outcome(lambda record: open_record(record, NETWORK), data)
    if isinstance(found, Reason):
        assert found in {Reason.BAD_RECORD, Reason.BAD_SIGNATURE}
    else:
        assert speakable(dict(sorted(fields.items())))
        assert (found.body, found.data, found.kind.purpose) == (body, data, purpose)
        assert (found.kind.name, found.record.key) == (fields["_"], ALICE.public_key)
        assert (found.record.seq, found.record.ttl_s) == (fields["seq"], fields["ttl_s"])


@given(
    st.fixed_dictionaries(
        {
            "_": st.from_regex(r"w[ -~]{0,30}", fullmatch=True),
            "key": st.just(ALICE.public_key),
            "salt": st.binary(max_size=64),
            "seq": numbers,
            "ttl_s": st.integers(1, 2**31 - 1),
            "x": sayable,
        }
    )
)
def test_arbitrary_records_of_unknown_kinds_are_accepted(fields: dict[str, object]) -> None:
    body = msgpack.packb(dict(sorted(fields.items())))
    data = msgpack.packb({"body": body, "signature": ALICE.sign(Purpose.RECORD, NETWORK, body)})
    opened = open_record(data, NETWORK)
    assert (opened.kind.name, opened.record.salt, opened.data) == (fields["_"], fields["salt"], data)
