"""What a hostile or broken peer sends changes nothing but a counter with its reason, and the peer learns why."""

import hashlib

import msgspec
import numpy as np
import pytest

from crypto.signing import Purpose, network_id
from gossip import wire
from gossip.events import Received
from gossip.learning.codec import encode, payload_bytes
from gossip.run.holding import Incoming
from gossip.wire import OfferHeader, OfferMessage, ReplyMessage

NETWORK = network_id("main")


@pytest.fixture
def pair(net, quiet):
    """An honest `victim`, connected to an `attacker` whose frames the test writes."""
    victim = net.add(config=quiet, weight=1.0)
    attacker = net.add(config=quiet, weight=2.0)
    net.run(2.0)
    return victim, attacker


def offer(attacker, victim, *, payload=None, sign_as=None, **changes):
    """A valid offer of the attacker, with `changes` made before it is signed."""
    if payload is None:
        payload = encode("int8", np.full(200, 2.0, np.float32))
    fields = {
        "age": 7,
        "author": attacker.identity.public_key,
        "clip": 2**63 - 1,
        "codec": "int8",
        "hash": hashlib.sha256(payload).digest(),
        "nonce": bytes(8),
        "reference": attacker.run.reference,
        "run": attacker.run.id,
        "seq": 10**6,
        "shard": 0,
        "to": victim.identity.public_key,
    }
    header = wire.encode_header(OfferHeader(**{**fields, **changes}))
    signature = (sign_as or attacker.identity).sign(Purpose.OFFER, NETWORK, header)
    return OfferMessage(header, payload, signature)


def deliver(net, attacker, victim, message):
    """Put the message (or raw frame) on the victim's desk; what it answers to the attacker."""
    frame = message if isinstance(message, bytes) else wire.encode(message)
    start = len(net.frames)
    net.post(0.0, victim.id, Received(attacker.id, frame))
    net.run(1.0)
    return [wire.decode(f) for s, t, f in net.frames[start:] if s is victim and t is attacker]


def assert_refused(net, pair, message, reason):
    victim, attacker = pair
    weights, store = victim.learner.weights().copy(), dict(victim.store)
    refused = victim.refused()
    answers = deliver(net, attacker, victim, message)
    np.testing.assert_array_equal(victim.learner.weights(), weights)
    marks = {key for key in victim.store if key.startswith("mark/")}
    assert marks == {key for key in store if key.startswith("mark/")} or reason in LEARNER_REASONS
    assert victim.refused() == {**refused, reason: refused.get(reason, 0) + 1}
    said = [wire.decode_reply_header(a.header) for a in answers if isinstance(a, ReplyMessage)]
    said = [(h.verdict, h.reason) for h in said]
    byes = [a.reason for a in answers if isinstance(a, wire.Bye)]
    assert said == [("refused", reason)] or any(reason in bye for bye in byes), (said, byes)


# These are seen only after decoding, when the offer counts as received.
LEARNER_REASONS = {"not_finite", "too_large_norm", "too_distant"}


def test_the_untouched_offer_is_accepted(net, pair):
    """The other tests would prove nothing if this one failed."""
    victim, attacker = pair
    answers = deliver(net, attacker, victim, offer(attacker, victim))
    answer = next(a for a in answers if isinstance(a, ReplyMessage))
    assert wire.decode_reply_header(answer.header).verdict == "change"
    assert victim.refused() == {}
    np.testing.assert_allclose(victim.learner.weights(), 1.5, rtol=0.01)


def test_forged_signature(net, pair):
    victim, attacker = pair
    message = offer(attacker, victim)
    forged = msgspec.structs.replace(message, signature=bytes(64))
    assert_refused(net, pair, forged, "bad_signature")


def test_signed_by_another_key_than_the_author(net, pair):
    victim, attacker = pair
    assert_refused(net, pair, offer(attacker, victim, sign_as=victim.identity), "bad_signature")


def test_author_is_not_who_sent_it(net, pair):
    victim, attacker = pair
    message = offer(attacker, victim, author=victim.identity.public_key, sign_as=victim.identity)
    assert_refused(net, pair, message, "misaddressed")


def test_addressed_to_somebody_else(net, pair):
    victim, attacker = pair
    assert_refused(net, pair, offer(attacker, victim, to=bytes(32)), "misaddressed")


def test_of_another_run(net, pair):
    victim, attacker = pair
    assert_refused(net, pair, offer(attacker, victim, run=bytes(32)), "other_run")


def test_replayed_after_the_cached_reply_is_gone(net, pair):
    victim, attacker = pair
    message = offer(attacker, victim)
    deliver(net, attacker, victim, message)
    victim.node.protocol("exchange").exchanges.replies.forget(hashlib.sha256(message.header).digest())
    assert_refused(net, pair, message, "replayed")


def test_repeated_while_the_reply_is_cached_gets_the_same_reply_and_moves_nothing(net, pair):
    victim, attacker = pair
    message = offer(attacker, victim)
    first = deliver(net, attacker, victim, message)
    weights = victim.learner.weights().copy()
    again = deliver(net, attacker, victim, message)
    assert [m for m in again if isinstance(m, ReplyMessage)] == [
        m for m in first if isinstance(m, ReplyMessage)
    ]
    np.testing.assert_array_equal(victim.learner.weights(), weights)


def test_equal_sequence_number_under_another_header(net, pair):
    victim, attacker = pair
    deliver(net, attacker, victim, offer(attacker, victim))
    assert_refused(net, pair, offer(attacker, victim, nonce=b"different"[:8]), "replayed")


def test_unknown_reference(net, pair):
    victim, attacker = pair
    assert_refused(net, pair, offer(attacker, victim, reference=bytes(32)), "unknown_reference")


def test_unknown_shard(net, pair):
    victim, attacker = pair
    assert_refused(net, pair, offer(attacker, victim, shard=1), "unknown_shard")


def test_unknown_codec(net, pair):
    victim, attacker = pair
    assert_refused(net, pair, offer(attacker, victim, codec="zip"), "unknown_codec")


@pytest.mark.parametrize("length", [0, payload_bytes("int8", 200) - 1, payload_bytes("int8", 200) + 1, 2**20])
def test_wrong_length(net, pair, length):
    victim, attacker = pair
    assert_refused(net, pair, offer(attacker, victim, payload=bytes(length)), "wrong_length")


def test_payload_swapped_after_signing(net, pair):
    victim, attacker = pair
    message = offer(attacker, victim)
    swapped = msgspec.structs.replace(message, payload=bytes(len(message.payload)))
    assert_refused(net, pair, swapped, "wrong_hash")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_payload_with_a_value_that_is_not_a_number(net, pair, value):
    victim, attacker = pair
    vector = np.zeros(200, np.float32)
    vector[123] = value
    message = offer(attacker, victim, codec="f32", payload=vector.astype("<f4").tobytes())
    assert_refused(net, pair, message, "not_finite")


def test_model_replacement_by_a_huge_norm(net, pair):
    victim, attacker = pair
    message = offer(attacker, victim, payload=encode("int8", np.full(200, 1e30, np.float32)))
    assert_refused(net, pair, message, "too_large_norm")


def test_every_cut_of_an_offer_frame(net, pair):
    victim, attacker = pair
    weights = victim.learner.weights().copy()
    frame = wire.encode(offer(attacker, victim))
    for length in range(0, len(frame), 7):
        with pytest.raises(Exception, match=r"malformed|oversized"):
            wire.decode(frame[:length])
    deliver(net, attacker, victim, frame[:-1])
    assert victim.refused() == {"malformed": 1}
    assert (victim.id, attacker.id) not in net.links
    np.testing.assert_array_equal(victim.learner.weights(), weights)


def test_oversized_frame_ends_the_connection(net, pair):
    assert_refused(net, pair, bytes(wire.FRAME_BYTES_MAX + 1), "oversized")


def test_flood_of_offers_is_answered_only_within_the_budget(net, pair):
    victim, attacker = pair
    for seq in range(300):
        message = offer(attacker, victim, seq=10**6 + seq, run=bytes(32))
        net.post(0.0, victim.id, Received(attacker.id, wire.encode(message)))
    net.run(0.5)
    refused = victim.refused()
    assert refused["other_run"] <= 200
    assert refused["rate_limited"] >= 100


def test_bad_signatures_end_the_connection_after_a_few(net, pair):
    victim, attacker = pair
    for seq in range(12):
        message = msgspec.structs.replace(offer(attacker, victim, seq=10**6 + seq), signature=bytes(64))
        net.post(0.0, victim.id, Received(attacker.id, wire.encode(message)))
    net.run(0.5)
    assert (victim.id, attacker.id) not in net.links


def test_reply_to_no_offer(net, pair):
    victim, attacker = pair
    weights = victim.learner.weights().copy()
    with net.turn(attacker) as out:
        attacker.node.protocol("exchange").exchanges._reply(
            victim.id,
            victim.identity.public_key,
            bytes(32),
            attacker.holding,
            shard=0,
            verdict="change",
            now=net.now,
            out=out,
        )
    net.run(1.0)
    assert victim.refused() == {"unexpected": 1}
    np.testing.assert_array_equal(victim.learner.weights(), weights)


def test_forged_reply_is_refused_and_the_true_one_still_counts(net, pair):
    victim, attacker = pair

    def forge_first(source, target, frame):
        message = wire.decode(frame)
        if source is attacker and isinstance(message, ReplyMessage):
            flipped = bytes([message.signature[0] ^ 1]) + message.signature[1:]
            return [wire.encode(msgspec.structs.replace(message, signature=flipped)), frame]
        return [frame]

    net.wire = forge_first
    net.exchange(victim, attacker)
    assert victim.refused() == {"bad_signature": 1}
    np.testing.assert_allclose(victim.learner.weights(), 1.5, rtol=0.01)


def test_change_larger_than_we_declared_is_refused(net, quiet, pair):
    """A responder that ignores our clip limit."""
    victim, attacker = pair
    for _ in range(6):  # a history, so that there is a limit
        net.exchange(victim, attacker)
    attacker.learner._x[:] = 50.0
    attacker.learner._shards[0] = attacker.learner._shards[0]._replace(usual=1e9)
    honest = attacker.learner.run

    def unclipped(job):
        return honest(msgspec.structs.replace(job, clip=1e9) if hasattr(job, "clip") else job)

    attacker.learner.run = unclipped
    weights = victim.learner.weights().copy()
    net.exchange(victim, attacker)
    assert victim.refused()["too_large_norm"] == 1
    np.testing.assert_array_equal(victim.learner.weights(), weights)


def test_busy_is_a_signed_answer_and_no_fault(net, pair):
    """More offers than a node works on at a time: here the jobs of eight others never end."""
    victim, attacker = pair
    victim.node.protocol("exchange").exchanges._incoming = {
        ticket: Incoming(victim.holding, 0, attacker.id, attacker.identity.public_key, b"", 1, "int8")
        for ticket in range(-8, 0)
    }
    assert_refused(net, pair, offer(attacker, victim), "busy")
    assert (victim.id, attacker.id) in net.links


def test_one_peer_moves_us_only_a_little_between_our_own_rounds(net, quiet, pair):
    victim, attacker = pair
    for _ in range(2):
        net.add(config=quiet, weight=1.0)
    net.run(3.0)
    victim.holding.new_round(alone=False)
    for seq in range(20):
        deliver(net, attacker, victim, offer(attacker, victim, seq=10**6 + seq))
    assert victim.refused()["busy"] == 18
    victim.holding.new_round(alone=False)
    deliver(net, attacker, victim, offer(attacker, victim, seq=10**7))
    assert victim.refused()["busy"] == 18
