"""The secure channel: what passes, and everything that must not."""

import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.channel import (
    HANDSHAKE_PAYLOAD_BYTES,
    MAGIC,
    ChannelEvent,
    Established,
    Message,
    SecureChannel,
    VersionError,
)
from crypto.errors import CryptoError
from crypto.identity import Identity
from crypto.noise import NONCE_MAX, PLAINTEXT_BYTES_MAX, XX, HandshakeState, KeyPair
from crypto.signing import Purpose, network_id

NETWORK = network_id("test")
ALICE = Identity.from_seed(bytes([1]) * 32)
BOB = Identity.from_seed(bytes([2]) * 32)
MALLORY = Identity.from_seed(bytes([3]) * 32)


def initiator(identity: Identity = ALICE, seed: int = 1, **changes: Any) -> SecureChannel:
    return channel(initiator=True, identity=identity, seed=seed, **changes)


def responder(identity: Identity = BOB, seed: int = 2, **changes: Any) -> SecureChannel:
    return channel(initiator=False, identity=identity, seed=seed, **changes)


def channel(*, initiator: bool, identity: Identity, seed: int, **changes: Any) -> SecureChannel:
    """One end with entropy from `seed`: the same seed and input give the same bytes."""
    arguments = {"network": NETWORK, "version": 1} | changes
    entropy = random.Random(seed).randbytes
    return SecureChannel(identity=identity, initiator=initiator, entropy=entropy, **arguments)


def pair(**changes: Any) -> tuple[SecureChannel, SecureChannel]:
    """Alice and Bob, established."""
    a, b = initiator(**changes), responder(**changes)
    assert pump(a, b) == ([Established(BOB.public_key)], [Established(ALICE.public_key)])
    return a, b


def say(end: SecureChannel, plaintext: bytes) -> None:
    """Seal a message and queue it behind what waits for the stream."""
    end._outgoing.append(end.seal(plaintext))


def pump(a: SecureChannel, b: SecureChannel) -> tuple[list[ChannelEvent], list[ChannelEvent]]:
    """Carry bytes to and fro until both are silent; what each end saw."""
    seen_a: list[ChannelEvent] = []
    seen_b: list[ChannelEvent] = []
    while True:
        to_b, to_a = a.data_to_send(), b.data_to_send()
        if not to_a and not to_b:
            return seen_a, seen_b
        seen_b += b.receive_data(to_b)
        seen_a += a.receive_data(to_a)


def handshake_bytes() -> tuple[bytes, bytes, bytes]:
    """The three messages that `initiator()` and `responder()` exchange."""
    a, b = initiator(), responder()
    first = a.data_to_send()
    b.receive_data(first)
    second = b.data_to_send()
    a.receive_data(second)
    return first, second, a.data_to_send()


# --- what passes ---------------------------------------------------------------------------------


def test_messages_pass_in_both_directions_and_in_order() -> None:
    """From the smallest to the largest, in one stream."""
    a, b = pair()
    sizes = [0, 1, 65_518, PLAINTEXT_BYTES_MAX, 5]
    frames = [random.Random(size).randbytes(size) for size in sizes]
    for frame in frames:
        say(a, frame)
        say(b, frame[::-1])
    seen_a, seen_b = pump(a, b)
    assert seen_b == [Message(frame) for frame in frames]
    assert seen_a == [Message(frame[::-1]) for frame in frames]


def test_the_initiator_may_send_with_its_last_handshake_message() -> None:
    a, b = initiator(), responder()
    b.receive_data(a.data_to_send())
    assert a.receive_data(b.data_to_send()) == [Established(BOB.public_key)]
    say(a, b"early")
    assert b.receive_data(a.data_to_send()) == [Established(ALICE.public_key), Message(b"early")]


def streams() -> tuple[bytes, bytes]:
    """All that flows to the responder, and to the initiator, with two frames each."""
    first, second, third = handshake_bytes()
    a, b = initiator(), responder()
    pump(a, b)
    for end in (a, b):
        say(end, b"frame")
        say(end, b"another")
    return first + third + a.data_to_send(), second + b.data_to_send()


def expected_events(peer: Identity) -> list[ChannelEvent]:
    return [Established(peer.public_key), Message(b"frame"), Message(b"another")]


@pytest.mark.parametrize("size", [1, 2, 3, 100, 10_000])
def test_the_stream_may_be_cut_anyhow(size: int) -> None:
    to_b, to_a = streams()
    for end, data, peer in ((responder(), to_b, ALICE), (initiator(), to_a, BOB)):
        events = [
            event
            for start in range(0, len(data), size)
            for event in end.receive_data(data[start : start + size])
        ]
        assert events == expected_events(peer)


def test_every_prefix_waits_for_the_rest() -> None:
    """No event before its last byte has come, no error, and the rest completes it."""
    to_b, to_a = streams()
    for make, data, peer in ((responder, to_b, ALICE), (initiator, to_a, BOB)):
        for length in range(len(data)):
            end = make()
            before = end.receive_data(data[:length])
            assert len(before) < 3
            assert before + end.receive_data(data[length:]) == expected_events(peer)


def test_rekeying_goes_unnoticed() -> None:
    """Keys change after every third message, each direction by itself."""
    a, b = pair(rekey_messages=3)
    keys = set()
    for number in range(40):
        say(a, bytes(number * 1000))
        if number % 4 == 0:
            say(b, b"answer")
        assert a._send is not None
        keys.add(a._send._key)
        seen_a, seen_b = pump(a, b)
        assert seen_b == [Message(bytes(number * 1000))]
        assert seen_a == ([Message(b"answer")] if number % 4 == 0 else [])
    assert len(keys) > 10


def test_rekeying_is_part_of_the_protocol() -> None:
    """An end that keeps its old key is not understood."""
    a, b = initiator(rekey_messages=3), responder(rekey_messages=4)
    pump(a, b)
    for _ in range(4):
        say(a, b"frame")
    with pytest.raises(CryptoError, match="not authentic"):
        pump(a, b)


def test_golden_handshake() -> None:
    """Changing any of these bytes is a protocol change. Ephemeral keys and what they encrypt come from the seeds."""
    first, second, third = handshake_bytes()
    ephemeral = KeyPair.from_private(random.Random(1).randbytes(64)[32:]).public
    assert first == (
        b"\x01\x20"  # 288 bytes follow
        + ephemeral
        + b"p2pnode\0"
        + b"\0\1"  # version
        + bytes(246)  # padding
    )
    assert second[:2] == b"\x01\x60"
    assert third[:2] == b"\x01\x40"
    assert (len(first), len(second), len(third)) == (290, 354, 322)


# --- what does not -------------------------------------------------------------------------------


def flips(data: bytes) -> list[bytes]:
    """`data` with the lowest, and with the highest bit of each byte flipped in turn."""
    return [
        data[:place] + bytes((data[place] ^ mask,)) + data[place + 1 :]
        for place in range(len(data))
        for mask in (0x01, 0x80)
    ]


def test_every_flipped_byte_of_message_1_is_refused() -> None:
    """At once, or, in the ephemeral key, by the initiator that gets the answer."""

    def deliver(altered: bytes) -> None:
        a, b = initiator(), responder()
        a.data_to_send()
        b.receive_data(altered)
        a.receive_data(b.data_to_send())

    first, _, _ = handshake_bytes()
    deliver(first)
    for altered in flips(first):
        with pytest.raises(CryptoError):
            deliver(altered)


def test_every_flipped_byte_of_message_2_is_refused() -> None:
    _, second, _ = handshake_bytes()
    for altered in flips(second):
        a = initiator()
        a.data_to_send()
        with pytest.raises(CryptoError):
            a.receive_data(altered)
        assert a.data_to_send() == b""


def test_every_flipped_byte_of_message_3_is_refused() -> None:
    first, _, third = handshake_bytes()
    for altered in flips(third):
        b = responder()
        b.receive_data(first)
        with pytest.raises(CryptoError):
            b.receive_data(altered)


def test_every_flipped_byte_of_a_message_is_refused() -> None:
    """A longer announced length waits for more; once it has come, it is refused as well."""
    first, _, third = handshake_bytes()
    a, b = initiator(), responder()
    pump(a, b)
    say(a, b"frame")
    for altered in flips(a.data_to_send()):
        b = responder()
        b.receive_data(first)
        assert b.receive_data(third) == [Established(ALICE.public_key)]
        with pytest.raises(CryptoError):
            b.receive_data(altered + bytes(70_000))


@pytest.mark.parametrize("changes", [{"network": network_id("Test")}, {"version": 2}])
def test_other_networks_and_versions_are_refused(changes: dict[str, Any]) -> None:
    for a, b in ((initiator(**changes), responder()), (initiator(), responder(**changes))):
        with pytest.raises(CryptoError, match=r"other network, other version|speaks protocol version"):
            pump(a, b)


def test_a_version_altered_on_the_way_is_refused() -> None:
    """The prologue decides: who makes the responder believe in another version convinces nobody."""
    a, b = initiator(version=2), responder(version=1)
    first = a.data_to_send()
    b.receive_data(first.replace(MAGIC + b"\0\2", MAGIC + b"\0\1"))
    with pytest.raises(CryptoError, match="message 2 failed"):
        a.receive_data(b.data_to_send())


@pytest.mark.parametrize(("theirs", "ours"), [(1, 2), (3, 2)])
def test_a_version_mismatch_is_named_at_both_ends(theirs: int, ours: int) -> None:
    a, b = initiator(version=theirs), responder(version=ours)
    with pytest.raises(VersionError, match=f"speaks protocol version {theirs}, we speak {ours}") as named:
        b.receive_data(a.data_to_send())
    assert named.value.theirs == theirs
    answer = b.data_to_send()
    assert answer == framed(ours.to_bytes(2, "big"))
    assert b.data_to_send() == b""
    with pytest.raises(VersionError, match=f"speaks protocol version {ours}, we speak {theirs}") as named:
        a.receive_data(answer)
    assert named.value.theirs == ours


def test_a_version_is_only_said_instead_of_the_first_answer() -> None:
    said = framed(b"\0\3")
    for end in (responder(), pair()[0], pair()[1]):
        with pytest.raises(CryptoError, match="the peer announces 2"):
            end.receive_data(said)
    a = initiator(version=3)
    a.data_to_send()
    with pytest.raises(CryptoError, match="says is its own"):
        a.receive_data(said)


def test_an_opening_with_something_in_its_padding_is_refused() -> None:
    """From an honest Noise end too: the padding is no place for private extensions."""
    for payload in (padded(MAGIC + b"\0\1\1"), padded(MAGIC + b"\0\1")[:-1] + b"\1"):
        b = responder()
        with pytest.raises(CryptoError, match="padding"):
            b.receive_data(framed(Rogue(initiator=True).noise.write_message(payload)))
        assert b.data_to_send() == b""


def test_a_recorded_handshake_is_refused_by_a_second_responder() -> None:
    first, _, third = handshake_bytes()
    for seed in (20, 21):
        b = responder(seed=seed)
        b.receive_data(first)
        with pytest.raises(CryptoError, match="message 3 failed"):
            b.receive_data(third)


def test_reflected_messages_are_refused() -> None:
    """An initiator that hears itself."""
    a = initiator()
    with pytest.raises(CryptoError):
        a.receive_data(a.data_to_send())


def test_transport_messages_cannot_be_replayed_reordered_or_reflected() -> None:
    def two_messages() -> tuple[SecureChannel, SecureChannel, bytes, bytes]:
        a, b = pair()
        say(a, b"one")
        one = a.data_to_send()
        say(a, b"two")
        return a, b, one, a.data_to_send()

    a, b, one, two = two_messages()
    with pytest.raises(CryptoError, match="not authentic"):
        b.receive_data(one + one)
    a, b, one, two = two_messages()
    with pytest.raises(CryptoError, match="not authentic"):
        b.receive_data(two + one)
    a, b, one, two = two_messages()
    with pytest.raises(CryptoError, match="not authentic"):
        a.receive_data(one)


def test_connecting_to_oneself_is_refused_by_both_ends() -> None:
    """The same key at both ends; and another key with our own static one."""
    with pytest.raises(CryptoError, match="our own key"):
        pump(initiator(ALICE), responder(ALICE))
    static = KeyPair.generate(random.Random(5).randbytes)
    with pytest.raises(CryptoError, match="our own key"):
        pump(initiator(ALICE, static=static), responder(BOB, static=static))

    rogue = Rogue(initiator=True)
    b = responder(ALICE)
    rogue.talk_to_responder(b)
    with pytest.raises(CryptoError, match="our own key"):
        rogue.finish(b, rogue.proof(ALICE, role=b"\0"))


def test_an_unexpected_peer_is_refused_before_it_learns_who_we_are() -> None:
    a, b = initiator(expected=MALLORY.public_key), responder()
    b.receive_data(a.data_to_send())
    with pytest.raises(CryptoError, match=f"expected was {MALLORY.public_key.hex()}"):
        a.receive_data(b.data_to_send())
    assert a.data_to_send() == b""
    a, b = initiator(expected=BOB.public_key), responder(expected=ALICE.public_key)
    assert pump(a, b) == ([Established(BOB.public_key)], [Established(ALICE.public_key)])


class Rogue:
    """A peer that follows Noise to the letter and puts whatever it likes into the payloads."""

    def __init__(self, *, initiator: bool, static: KeyPair | None = None) -> None:
        entropy = random.Random(99).randbytes
        self.static = static or KeyPair.generate(entropy)
        self.noise = HandshakeState(
            XX,
            initiator=initiator,
            prologue=MAGIC + b"\0\1" + NETWORK,
            entropy=entropy,
            static=self.static,
        )

    def talk_to_responder(self, b: SecureChannel) -> None:
        """Messages 1 and 2, as an honest initiator."""
        b.receive_data(framed(self.noise.write_message(padded(MAGIC + b"\0\1"))))
        self.noise.read_message(b.data_to_send()[2:])

    def talk_to_initiator(self, a: SecureChannel) -> None:
        """Message 1, as an honest responder."""
        self.noise.read_message(a.data_to_send()[2:])

    def finish(self, peer: SecureChannel, payload: bytes) -> list[ChannelEvent]:
        """Send the message with the proof, 2 or 3."""
        return peer.receive_data(framed(self.noise.write_message(payload)))

    def proof(
        self,
        claimed: Identity,
        *,
        role: bytes,
        signer: Identity | None = None,
        purpose: Purpose = Purpose.CHANNEL,
        network: bytes = NETWORK,
        static: bytes | None = None,
        transcript: bytes | None = None,
    ) -> bytes:
        body = (static or self.static.public) + (transcript or self.noise.handshake_hash) + role
        return padded(claimed.public_key + (signer or claimed).sign(purpose, network, body))


def padded(payload: bytes) -> bytes:
    return payload.ljust(HANDSHAKE_PAYLOAD_BYTES, b"\0")


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


BAD_PROOFS: dict[str, Callable[[Rogue, bytes], bytes]] = {
    "another's key": lambda r, role: r.proof(MALLORY, role=role, signer=Identity.from_seed(bytes(32))),
    "the other role": lambda r, role: r.proof(MALLORY, role=bytes((1 - role[0],))),
    "no role": lambda r, role: r.proof(MALLORY, role=b""),
    "another static key": lambda r, role: r.proof(MALLORY, role=role, static=bytes(32)),
    "another handshake": lambda r, role: r.proof(MALLORY, role=role, transcript=bytes(32)),
    "another purpose": lambda r, role: r.proof(MALLORY, role=role, purpose=Purpose.OFFER),
    "another network": lambda r, role: r.proof(MALLORY, role=role, network=network_id("other")),
    "no signature": lambda r, role: padded(MALLORY.public_key),
    "nothing": lambda r, role: padded(b""),
    "low-order key": lambda r, role: padded(b"\1" + bytes(31) + b"\1" + bytes(63)),
    "padding": lambda r, role: r.proof(MALLORY, role=role)[:-1] + b"\1",
}


@pytest.mark.parametrize("name", BAD_PROOFS)
def test_a_false_proof_of_identity_is_refused(name: str) -> None:
    """From a peer whose Noise handshake is flawless, in both roles."""
    rogue, b = Rogue(initiator=True), responder()
    rogue.talk_to_responder(b)
    with pytest.raises(CryptoError, match=r"proof"):
        rogue.finish(b, BAD_PROOFS[name](rogue, b"\0"))

    rogue, a = Rogue(initiator=False), initiator()
    rogue.talk_to_initiator(a)
    with pytest.raises(CryptoError, match=r"proof"):
        rogue.finish(a, BAD_PROOFS[name](rogue, b"\1"))
    assert a.data_to_send() == b""


def test_a_true_proof_by_the_same_peer_is_accepted() -> None:
    """Tests the test above."""
    rogue, b = Rogue(initiator=True), responder()
    rogue.talk_to_responder(b)
    assert rogue.finish(b, rogue.proof(MALLORY, role=b"\0")) == [Established(MALLORY.public_key)]
    rogue, a = Rogue(initiator=False), initiator()
    rogue.talk_to_initiator(a)
    assert rogue.finish(a, rogue.proof(MALLORY, role=b"\1")) == [Established(MALLORY.public_key)]


def test_a_proof_made_for_one_peer_is_worth_nothing_at_another() -> None:
    """Mallory, dialled by Alice, cannot pass Alice's proof on to Bob."""
    to_mallory = Rogue(initiator=False)
    a = initiator()
    to_mallory.talk_to_initiator(a)
    to_mallory.finish(a, to_mallory.proof(MALLORY, role=b"\1"))
    alices_proof = to_mallory.noise.read_message(a.data_to_send()[2:])
    assert alices_proof.startswith(ALICE.public_key)

    to_bob, b = Rogue(initiator=True), responder()
    to_bob.talk_to_responder(b)
    with pytest.raises(CryptoError, match="does not hold"):
        to_bob.finish(b, alices_proof)


def test_low_order_static_and_ephemeral_keys_are_refused() -> None:
    first, _, _ = handshake_bytes()
    for public in (bytes(32), b"\1" + bytes(31), b"\xed" + b"\xff" * 30 + b"\x7f"):
        with pytest.raises(CryptoError, match="low order"):
            responder().receive_data(first[:2] + public + first[34:])
        a = initiator()
        a.data_to_send()
        with pytest.raises(CryptoError, match="low order"):
            a.receive_data(framed(public + bytes(320)))
        honest = KeyPair.generate(random.Random(7).randbytes)
        rogue, b = Rogue(initiator=True, static=KeyPair(honest.private, public)), responder()
        rogue.talk_to_responder(b)
        with pytest.raises(CryptoError, match="low order"):
            rogue.finish(b, rogue.proof(MALLORY, role=b"\0"))


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(16))
def test_a_message_too_short_for_its_tag_is_refused_by_its_length(size: int) -> None:
    _, b = pair()
    with pytest.raises(CryptoError, match=f"at least 16 bytes, the peer announces {size}"):
        b.receive_data(size.to_bytes(2, "big"))


def test_a_length_alone_allocates_nothing() -> None:
    _, b = pair()
    tracemalloc.start()
    assert b.receive_data(b"\xff\xff") == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**14


def test_a_part_of_a_message_is_seen_to_be_one() -> None:
    a, b = pair()
    data = a.seal(b"whole")
    assert not b.partial
    b.receive_data(data[:-1])
    assert b.partial
    assert b.receive_data(data[-1:]) == [Message(b"whole")]
    assert not b.partial


def test_several_messages_are_sealed_as_one_after_the_other() -> None:
    a, b = pair()
    assert b.receive_data(a.seal(b"one", b"", b"two")) == [Message(b"one"), Message(b""), Message(b"two")]


def test_a_spent_counter_closes_the_channel() -> None:
    a, b = pair()
    assert a._send is not None
    assert b._receive is not None
    a._send.nonce = b._receive.nonce = NONCE_MAX - 1
    say(a, b"last")
    assert pump(a, b)[1] == [Message(b"last")]
    with pytest.raises(CryptoError, match="spent"):
        say(a, b"one too many")
    with pytest.raises(CryptoError, match="spent"):
        a.receive_data(b"")


def test_a_stranger_gets_back_little_more_than_it_sent() -> None:
    """No amplification: at most 1.5 times the bytes, and nothing for junk."""
    first, _, _ = handshake_bytes()
    b = responder()
    for place in range(len(first) - 1):
        b.receive_data(first[place : place + 1])
        assert b.data_to_send() == b""
    b.receive_data(first[-1:])
    assert len(b.data_to_send()) <= 1.5 * len(first)


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS 1.3 client hello
        b"SSH-2.0-OpenSSH_9.6\r\n",
        bytes(1000),
        b"\x01\x20" + bytes(288),
    ],
)
def test_other_protocols_on_our_port_are_refused_with_a_sentence(junk: bytes) -> None:
    for end in (responder(), initiator()):
        end.data_to_send()
        with pytest.raises(CryptoError, match=r"not a p2pnode|does not speak"):
            end.receive_data(junk)
        assert end.data_to_send() == b""


def test_a_dead_channel_stays_dead_and_keeps_its_reason() -> None:
    a, b = pair()
    say(b, b"queued")
    with pytest.raises(CryptoError, match="not authentic"):
        b.receive_data(b"\0\x14" + bytes(20))
    say(a, b"true frame")
    for call in (lambda: b.receive_data(a.data_to_send()), lambda: say(b, b"frame")):
        with pytest.raises(CryptoError, match="not authentic"):
            call()
    assert b.data_to_send() == b""
    b.close()


def test_a_closed_channel_forgets_and_refuses() -> None:
    a, b = pair()
    say(a, b"frame")
    a.close()
    a.close()
    assert a.data_to_send() == b""
    say(b, b"frame")
    for call in (lambda: a.receive_data(b.data_to_send()), lambda: say(a, b"frame")):
        with pytest.raises(CryptoError, match="closed"):
            call()


def test_our_own_mistakes_are_assertions() -> None:
    with pytest.raises(AssertionError, match="before the peer"):
        say(initiator(), b"frame")
    a, _ = pair()
    with pytest.raises(AssertionError):
        say(a, bytes(PLAINTEXT_BYTES_MAX + 1))
    with pytest.raises(AssertionError, match="32 bytes"):
        initiator(network=b"short")


# --- junk ----------------------------------------------------------------------------------------

# Plain noise never gets beyond the first length; these pieces do.
PIECES = st.lists(
    st.binary(max_size=400)
    | st.sampled_from(handshake_bytes())
    | st.binary(min_size=288, max_size=288).map(framed)
    | st.binary(min_size=32, max_size=32).map(lambda key: framed(key + padded(MAGIC + b"\0\1")))
    | st.binary(min_size=352, max_size=352).map(framed)
    | st.binary(max_size=100).map(framed),
    max_size=6,
)


@given(pieces=PIECES, as_initiator=st.booleans())
def test_junk_in_a_handshake_is_refused_with_our_exception_and_no_other(
    pieces: list[bytes], as_initiator: bool
) -> None:
    end = initiator() if as_initiator else responder()
    peer = (BOB if as_initiator else ALICE).public_key
    # The recorded messages are among the pieces, and lead to the true peer.
    assert set(feed(end, pieces)) <= {Established(peer)}


@given(pieces=PIECES)
def test_junk_after_the_handshake_yields_no_message(pieces: list[bytes]) -> None:
    _, b = pair()
    assert feed(b, pieces) == []


def feed(end: SecureChannel, pieces: list[bytes]) -> list[ChannelEvent]:
    """What `end` makes of `pieces` until it refuses one, if it does."""
    events: list[ChannelEvent] = []
    try:
        for piece in pieces:
            events += end.receive_data(piece)
    except VersionError:
        assert len(end.data_to_send()) in (0, 4)  # a responder's version
    except CryptoError:
        assert end.data_to_send() == b""
    return events


@settings(max_examples=50)
@given(
    frames=st.lists(st.binary(max_size=200) | st.integers(0, PLAINTEXT_BYTES_MAX).map(bytes), max_size=4),
    cut=st.integers(20, 70_000),
    rekey_messages=st.integers(1, 5),
)
def test_any_messages_in_any_cut_arrive_unchanged(frames: list[bytes], cut: int, rekey_messages: int) -> None:
    a, b = pair(rekey_messages=rekey_messages)
    for frame in frames:
        say(a, frame)
    data = a.data_to_send()
    events = [
        event for start in range(0, len(data), cut) for event in b.receive_data(data[start : start + cut])
    ]
    assert events == [Message(frame) for frame in frames]
