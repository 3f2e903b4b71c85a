"""The parts of the Noise machine that vectors do not reach: limits, failures, rekeying, hostile keys."""

import json
import random
from pathlib import Path

import pytest

from crypto.errors import CryptoError
from crypto.noise import NONCE_MAX, XX, CipherState, HandshakeState, KeyPair, Pattern, dh

X25519_VECTORS = Path(__file__).parents[2] / ".." / "shared" / "vectors" / "wycheproof" / "x25519_test.json"

# The classic low-order points (RFC 7748 section 7), for where the vectors are absent: 0, 1, two of order 8, p - 1,
# p and p + 1.
LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
]


def low_order_keys() -> list[bytes]:
    if not X25519_VECTORS.exists():
        return LOW_ORDER
    cases = json.loads(X25519_VECTORS.read_text())["testGroups"][0]["tests"]
    keys = [bytes.fromhex(case["public"]) for case in cases if "ZeroSharedSecret" in case["flags"]]
    assert len(keys) == 31
    return LOW_ORDER + keys


def handshake(
    *, initiator: bool, seed: int, pattern: Pattern = XX, static: KeyPair | None = None
) -> HandshakeState:
    entropy = random.Random(seed).randbytes
    static = static or KeyPair.generate(entropy)
    return HandshakeState(pattern, initiator=initiator, prologue=b"prologue", entropy=entropy, static=static)


def test_both_ends_learn_the_same_keys() -> None:
    a, b = handshake(initiator=True, seed=1), handshake(initiator=False, seed=2)
    assert b.read_message(a.write_message(b"one")) == b"one"
    assert a.read_message(b.write_message(b"two")) == b"two"
    assert b.read_message(a.write_message(b"three")) == b"three"
    (a_sends, a_receives), (b_sends, b_receives) = a.split(), b.split()
    assert a.handshake_hash == b.handshake_hash
    assert b_receives.decrypt(a_sends.encrypt(b"ping")) == b"ping"
    assert a_receives.decrypt(b_sends.encrypt(b"pong")) == b"pong"


@pytest.mark.parametrize("public", low_order_keys(), ids=bytes.hex)
def test_low_order_keys_are_refused_inside_a_handshake(public: bytes) -> None:
    """As the initiator's ephemeral, the responder's ephemeral and the initiator's static key."""
    b = handshake(initiator=False, seed=2)
    b.read_message(public + b"payload")
    with pytest.raises(CryptoError, match="low order"):
        b.write_message(b"")

    a = handshake(initiator=True, seed=1)
    a.write_message(b"")
    with pytest.raises(CryptoError, match="low order"):
        a.read_message(public + bytes(64))

    honest = KeyPair.generate(random.Random(3).randbytes)
    a = handshake(initiator=True, seed=1, static=KeyPair(honest.private, public))
    b = handshake(initiator=False, seed=2)
    b.read_message(a.write_message(b""))
    a.read_message(b.write_message(b""))
    with pytest.raises(CryptoError, match="low order"):
        b.read_message(a.write_message(b""))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_length_never_reach_the_library(size: int) -> None:
    """libsodium gets bare pointers: a short key would be read past its end."""
    good, bad = b"\x09" + bytes(31), bytes(size)
    for call in (lambda: dh(good, bad), lambda: dh(bad, good), lambda: KeyPair.from_private(bad)):
        with pytest.raises(CryptoError, match=f"{size}"):
            call()


@pytest.mark.parametrize("size", range(16))
def test_a_ciphertext_shorter_than_its_tag_is_our_exception(size: int) -> None:
    """PyNaCl raises a plain ValueError there, which would take a whole nursery down."""
    with pytest.raises(CryptoError, match=f"has {size}"):
        CipherState(bytes(32)).decrypt(bytes(size))


def test_every_cut_of_a_handshake_message_is_refused() -> None:
    a, b = handshake(initiator=True, seed=1), handshake(initiator=False, seed=2)
    first = a.write_message(b"")
    b.read_message(first)
    second = b.write_message(b"payload")
    for length in range(32):
        with pytest.raises(CryptoError):
            handshake(initiator=False, seed=2).read_message(first[:length])
    for length in range(len(second)):
        a = handshake(initiator=True, seed=1)
        a.write_message(b"")
        with pytest.raises(CryptoError):
            a.read_message(second[:length])


def test_a_failed_handshake_stays_failed() -> None:
    """Its hash and keys are half mixed; the true message must not revive it."""
    a, b = handshake(initiator=True, seed=1), handshake(initiator=False, seed=2)
    b.read_message(a.write_message(b""))
    message = b.write_message(b"")
    with pytest.raises(CryptoError, match="not authentic"):
        a.read_message(message[:-1] + bytes((message[-1] ^ 1,)))
    with pytest.raises(CryptoError, match="failed before"):
        a.read_message(message)


def test_messages_have_a_largest_size() -> None:
    a = handshake(initiator=True, seed=1)
    assert len(a.write_message(bytes(65_535 - 32))) == 65_535
    with pytest.raises(CryptoError, match="65535"):
        handshake(initiator=True, seed=1).write_message(bytes(65_536 - 32))
    with pytest.raises(CryptoError, match="65535"):
        handshake(initiator=False, seed=2).read_message(bytes(65_536))


def test_the_last_counter_is_never_used() -> None:
    sender, receiver = CipherState(bytes(32)), CipherState(bytes(32))
    sender.nonce = receiver.nonce = NONCE_MAX - 1
    assert receiver.decrypt(sender.encrypt(b"last")) == b"last"
    with pytest.raises(CryptoError, match="spent"):
        sender.encrypt(b"one too many")
    with pytest.raises(CryptoError, match="spent"):
        receiver.decrypt(bytes(16))


def test_rekeying_changes_the_key_and_keeps_the_counter() -> None:
    sender, receiver = CipherState(bytes(32)), CipherState(bytes(32))
    assert receiver.decrypt(sender.encrypt(b"before")) == b"before"
    sender.rekey()
    with pytest.raises(CryptoError, match="not authentic"):
        receiver.decrypt(sender.encrypt(b"after"))
    receiver.rekey()
    assert sender.nonce == receiver.nonce == 2
    assert receiver.decrypt(sender.encrypt(b"both")) == b"both"


def test_private_keys_are_not_shown() -> None:
    pair = KeyPair.generate(random.Random(1).randbytes)
    assert repr(pair.public) in repr(pair)
    assert repr(pair.private) not in repr(pair)
