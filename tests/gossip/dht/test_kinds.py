"""Kinds of records, among them those that this version does not know. All bytes are another program's."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import msgpack
import pytest
from msgspec import Meta, Struct

from crypto.identity import Identity
from crypto.signing import Purpose
from gossip.dht.ids import Key, owned_key, provider_key
from gossip.dht.kinds import KINDS, PROVIDER, Kind, Opened, kind_of, register
from gossip.dht.records import check_equivocation, open_record, peek_record
from gossip.dht.store import OWNED_PART, PER_OWNER_MAX
from gossip.errors import Reason, RemoteError
from gossip.events import Received
from gossip.wire import RECORD_BYTES_MAX, Bytes32
from gossip.wire.canonical import U63
from tests.support.by_hand import NETWORK, Stranger, message, packed, record

OWNERS = [Identity.from_seed(bytes([n]) * 32) for n in range(100, 140)]
ALICE, BOB = OWNERS[:2]


def weather(owner: Identity = ALICE, **fields: Any) -> bytes:
    """A record of a kind that nobody here knows, with all that a record has to say, and more."""
    said = {"_": "weather", "key": owner.public_key, "salt": b"Oslo", "seq": 1, "ttl_s": 3600}
    return record(owner, Purpose.RECORD, **{**said, "wind": [{"from": "NW", "m_s": 7}], **fields})


def place_of(owner: Identity = ALICE, kind: bytes = b"weather", salt: bytes = b"Oslo") -> bytes:
    named = owner.public_key + kind + b"\0" + salt
    return hashlib.sha256(b"p2pnode/record-key/v1\0" + named).digest()


def provider(owner: Identity, place: bytes, **fields: Any) -> bytes:
    said = {"_": "provider", "key": owner.public_key, "place": place, "ttl_s": 3600}
    said |= {"addresses": ["10.0.0.77:7400"], "seq": 1, **fields}
    return record(owner, Purpose.PROVIDER_RECORD, **said)


@pytest.fixture
def today(net: Any, quiet: Any) -> Any:
    return net.add(config=quiet)


def meet(net: Any, node: Any, number: int = 1, more: dict[str, Any] | None = None) -> Stranger:
    stranger = Stranger(
        node, protocols={"connection": [1], "dht": [1]}, extra={}, seed=bytes([200 + number]) * 32, more=more
    )
    stranger.number = 200 + number
    net.peers[stranger.id] = stranger
    net.connect(stranger, node)
    net.run(1.0)
    return stranger


def say(net: Any, stranger: Stranger, frame: bytes) -> dict[str, Any]:
    """What the node answers; empty: nothing."""
    before = len(stranger.heard)
    net.post(0.0, stranger.target.id, Received(stranger.id, frame))
    net.run(0.5)
    answers = [said for said in stranger.heard[before:] if said.get("n") == 7]
    return answers[0] if answers else {}


def put(net: Any, stranger: Stranger, data: bytes) -> str:
    reason: str = say(net, stranger, message("put_record", n=7, record=data))["reason"]
    return reason


def found(net: Any, stranger: Stranger, place: bytes) -> list[bytes]:
    answer: list[bytes] = say(net, stranger, message("get_records", key=place, n=7))["records"]
    return answer


def reason_of(data: bytes) -> Reason | None:
    try:
        open_record(data, NETWORK)
    except RemoteError as error:
        return error.reason
    return None


# --- a kind that is not known here ---------------------------------------------------------------------


def test_records_of_an_unknown_kind_go_from_node_to_node_as_they_are(
    net: Any, quiet: Any, today: Any
) -> None:
    """The owner puts it to a node, somebody takes it to another one, and a third finds it there."""
    other = net.add(config=quiet)
    owner, carrier, reader = meet(net, today, 1), meet(net, other, 2), meet(net, other, 3)
    data = weather(owner.identity)
    place = place_of(owner.identity)

    assert put(net, owner, data) == ""
    carrier.target = today
    net.connect(carrier, today)
    net.run(1.0)
    [taken] = found(net, carrier, place)
    carrier.target = other
    assert put(net, carrier, taken) == ""

    assert found(net, reader, place) == [data]
    assert today.refused() == other.refused() == {}


def test_the_place_is_the_receivers_to_compute(net: Any, today: Any) -> None:
    stranger = meet(net, today)
    chosen = b"\x01" * 32
    assert put(net, stranger, weather(place=chosen)) == ""

    assert found(net, stranger, chosen) == []
    for elsewhere in (place_of(BOB), place_of(kind=b"Weather"), place_of(salt=b"osl")):
        assert found(net, stranger, elsewhere) == []
    assert len(found(net, stranger, place_of())) == 1
    assert owned_key(ALICE.public_key, "weather", b"Oslo") == place_of()


def test_a_record_of_another_place_is_refused_where_the_place_is_known() -> None:
    for data, place in ((weather(), place_of()), (provider(ALICE, bytes(32)), bytes(32))):
        kind = kind_of(msgpack.unpackb(data)["body"])
        assert peek_record(data, kind, Key(place)).data == data
        with pytest.raises(RemoteError, match="another place") as caught:
            peek_record(data, kind, Key(place_of(BOB)))
        assert caught.value.reason is Reason.BAD_RECORD


def signed(body: bytes, purpose: Purpose = Purpose.RECORD) -> bytes:
    return packed(body=body, signature=ALICE.sign(purpose, NETWORK, body))


def body(**fields: Any) -> bytes:
    """With fields replaced, or left out where they are None."""
    said = {"_": "weather", "key": ALICE.public_key, "salt": b"", "seq": 1, "ttl_s": 1, **fields}
    return packed(**{name: value for name, value in said.items() if value is not None})


FALSE: dict[str, tuple[bytes, Reason]] = {
    "unsigned": (packed(body=body(), signature=bytes(64)), Reason.BAD_SIGNATURE),
    "of another owner": (signed(body(key=BOB.public_key)), Reason.BAD_SIGNATURE),
    "signed as another kind": (signed(body(), Purpose.PROVIDER_RECORD), Reason.BAD_SIGNATURE),
    "without a kind": (signed(body(_=None)), Reason.BAD_RECORD),
    "a kind without a name": (signed(body(_="")), Reason.BAD_RECORD),
    "a kind with a long name": (signed(body(_="w" * 32)), Reason.BAD_RECORD),
    "a kind that cannot be printed": (signed(body(_="w\n")), Reason.BAD_RECORD),
    "a kind that is not ASCII": (signed(body(_="wétter")), Reason.BAD_RECORD),
    "something before the kind": (signed(body(A=1)), Reason.BAD_RECORD),
    "without an owner": (signed(body(key=None)), Reason.BAD_RECORD),
    "a short owner": (signed(body(key=bytes(31))), Reason.BAD_RECORD),
    "without a salt": (signed(body(salt=None)), Reason.BAD_RECORD),
    "a long salt": (signed(body(salt=bytes(65))), Reason.BAD_RECORD),
    "without a number": (signed(body(seq=None)), Reason.BAD_RECORD),
    "a number as text": (signed(body(seq="1")), Reason.BAD_RECORD),
    "a number of 64 bits": (signed(body(seq=2**63)), Reason.BAD_RECORD),
    "without a life": (signed(body(ttl_s=0)), Reason.BAD_RECORD),
    "a float": (signed(body(wind=7.5)), Reason.BAD_RECORD),
    "nested deep": (signed(body(wind=[[[[[[[[[]]]]]]]]])), Reason.BAD_RECORD),
    "keys out of order": (signed(b"\x86" + body()[1:] + b"\xa1a\x01"), Reason.BAD_RECORD),
    "a key twice": (signed(b"\x86" + body()[1:] + body()[-7:]), Reason.BAD_RECORD),
    "a long integer": (signed(body()[:-1] + b"\xcc\x01"), Reason.BAD_RECORD),
    "cut": (signed(body()[:-1]), Reason.BAD_RECORD),
    "longer": (signed(body() + b"\x01"), Reason.BAD_RECORD),
    "an array": (signed(b"\x91\xa1_"), Reason.BAD_RECORD),
    "empty": (signed(b""), Reason.BAD_RECORD),
}


@pytest.mark.parametrize("name", FALSE)
def test_false_records_of_unknown_kinds_are_refused(name: str, net: Any, today: Any) -> None:
    data, reason = FALSE[name]
    assert put(net, meet(net, today), data) == reason
    assert today.node.bounds()["dht.owned records"][0] == 0


@pytest.mark.parametrize("kind", ["weather", "provider"])
def test_a_record_may_have_two_thousand_bytes(kind: str, net: Any, today: Any) -> None:
    stranger = meet(net, today)
    make = weather if kind == "weather" else lambda **fields: provider(ALICE, place_of(), **fields)
    room = RECORD_BYTES_MAX - len(make(x=bytes(256))) + 256
    full, beyond = make(x=bytes(room)), make(x=bytes(room + 1))
    assert (len(full), len(beyond)) == (2000, 2001)

    assert put(net, stranger, full) == ""
    assert found(net, stranger, place_of()) == [full]
    assert reason_of(beyond) is Reason.BAD_RECORD
    assert say(net, stranger, message("put_record", n=7, record=beyond)) == {}
    assert today.refused() == {"malformed": 1}


def test_the_latest_record_of_an_unknown_kind_stands(net: Any, today: Any) -> None:
    stranger = meet(net, today)
    old, new = weather(), weather(seq=2)
    assert [put(net, stranger, data) for data in (old, new, old, new)] == ["", "", "replayed", ""]
    assert found(net, stranger, place_of()) == [new]


@pytest.mark.parametrize("kind", ["weather", "provider"])
def test_records_that_differ_in_unknown_keys_only_convict_their_owner(
    kind: str, net: Any, today: Any
) -> None:
    stranger = meet(net, today)
    make = weather if kind == "weather" else lambda **fields: provider(ALICE, place_of(), **fields)
    assert [put(net, stranger, make(x=x)) for x in (1, 2)] == ["", "equivocation"]

    dht = today.node.protocol("dht")
    [proof] = (dht.owned if kind == "weather" else dht.records).proofs
    assert check_equivocation(proof, NETWORK) == ALICE.public_key


# --- bounds --------------------------------------------------------------------------------------------


def test_ten_thousand_unknown_kinds_stay_within_their_quarter(net: Any, today: Any) -> None:
    dht = today.node.protocol("dht")
    place = Key(bytes(32))
    dht._keep(provider(BOB, place), 0.0)
    reasons: dict[Reason, int] = {}
    for number in range(10_000):
        owner = Identity.from_seed(number.to_bytes(2, "big") * 16) if number % 4 == 0 else ALICE
        said = {"_": f"junk{number}", "key": owner.public_key, "salt": b"", "seq": 1, "ttl_s": 3600}
        try:
            dht._keep(record(owner, Purpose.RECORD, **said), 0.0)
        except RemoteError as error:
            reasons[error.reason] = reasons.get(error.reason, 0) + 1

    assert set(reasons) == {Reason.RATE_LIMITED}
    kept, most = dht.bounds()["owned records"]
    assert kept == most == dht._config.records_max // OWNED_PART
    assert sum(bound for _, bound in (dht.owned.bounds(), dht.records.bounds())) == dht._config.records_max
    of_alice = [
        number
        for number in range(10_000)
        if dht._kept(owned_key(ALICE.public_key, f"junk{number}", b""), 0.0)
    ]
    assert len(of_alice) <= PER_OWNER_MAX
    assert dht._kept(place, 0.0) == [provider(BOB, place)]


def test_a_small_store_has_no_room_for_unknown_kinds_and_survives_them(net: Any, quiet: Any) -> None:
    small = net.add(config=replace(quiet, dht=replace(quiet.dht, records_max=1)))
    stranger = meet(net, small)
    assert put(net, stranger, weather()) == "rate_limited"
    assert put(net, stranger, provider(ALICE, bytes(32))) == ""


def test_others_cannot_crowd_a_record_out_of_its_owners_place(net: Any, today: Any) -> None:
    """Providers name their place themselves, so this one as well."""
    stranger = meet(net, today)
    assert put(net, stranger, weather()) == ""
    crowd = [provider(owner, place_of()) for owner in OWNERS]
    assert {put(net, stranger, data) for data in crowd} == {""}

    for _ in range(5):
        answer = found(net, stranger, place_of())
        assert answer[0] == weather()
        assert len(set(answer)) == len(answer) == 20
        assert set(answer[1:]) < set(crowd)


def test_unknown_kinds_expire(net: Any, today: Any) -> None:
    dht = today.node.protocol("dht")
    dht._keep(weather(), 0.0)
    assert dht._kept(place_of(), 3599.0) == [weather()]
    assert dht._kept(place_of(), 3600.0) == []


# --- kinds that are known ------------------------------------------------------------------------------


class Weather(Struct, frozen=True, forbid_unknown_fields=True, tag_field="_", tag="weather"):
    key: Bytes32
    salt: bytes
    seq: U63
    ttl_s: U63
    wind: Annotated[int, Meta(ge=0, le=99)]


@pytest.fixture
def known() -> Iterator[Kind[Weather]]:
    """The calmest stands, whatever its number."""

    def calmest(a: Opened[Weather], b: Opened[Weather]) -> Opened[Weather]:
        return min(a, b, key=lambda opened: (opened.record.wind, opened.data))

    yield register(
        Kind(
            "weather",
            Weather,
            place=lambda said: owned_key(said.key, "weather", said.salt),
            select=calmest,
        )
    )
    del KINDS["weather"]


def test_a_kind_is_added_by_one_registration(known: Kind[Weather], net: Any, today: Any) -> None:
    said = {"_": "weather", "key": ALICE.public_key, "salt": b"Oslo", "ttl_s": 3600}

    def blows(seq: int, wind: Any, **more: Any) -> bytes:
        return record(ALICE, Purpose.RECORD, **said, seq=seq, wind=wind, **more)

    stranger = meet(net, today)
    calm = blows(2, 1, x="of a later version")
    assert [put(net, stranger, data) for data in (blows(1, 5), calm, blows(3, 9))] == ["", "", "replayed"]
    assert found(net, stranger, place_of()) == [calm]
    assert open_record(calm, NETWORK).record == Weather(ALICE.public_key, b"Oslo", 2, 3600, 1)
    assert put(net, stranger, blows(4, "a gale")) == "bad_record"


def test_two_kinds_of_one_name_are_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="provider"):
        register(PROVIDER)


def test_peer_records_are_not_kept_for_others(net: Any, today: Any) -> None:
    stranger = meet(net, today)
    assert put(net, stranger, stranger.peer_record()) == "bad_record"


@pytest.mark.parametrize(
    ("name", "value"),
    [("addresses", ["two words:1"]), ("addresses", ["h:1"] * 9), ("place", bytes(31)), ("seq", "1")],
)
def test_unknown_keys_do_not_loosen_those_that_are_known(name: str, value: object) -> None:
    fields = {"place": bytes(32), "zone": "eu", name: value}
    assert reason_of(provider(ALICE, **fields)) is Reason.BAD_RECORD


def test_a_later_version_may_say_more_of_itself_in_its_records(net: Any, quiet: Any, today: Any) -> None:
    """A node finds it by them at another node, and deals with it."""
    future = meet(net, today, more={"transports": ["tcp", "relay"], "zone": "eu"})
    future.protocols["exchange"] = [1]
    place = provider_key(today.run.id, 0)
    provided = provider(future.identity, place, zone="eu")
    assert put(net, future, provided) == ""
    assert found(net, meet(net, today, 2), place).count(provided) == 1
    named = say(net, meet(net, today, 3), message("find_node", n=7, target=future.id))["records"]
    assert future.peer_record() in named

    newcomer = net.add(config=quiet)
    net.run(30.0)

    assert (newcomer.id, future.id) in net.links
    contact = newcomer.pool.partner(0, random.Random(1))
    assert contact is not None
    assert future.id in newcomer.pool
    assert today.refused() == newcomer.refused() == {}
