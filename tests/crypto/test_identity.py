"""Signatures say one thing to one network, and key files either open or explain themselves."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.errors import CryptoError
from crypto.identity import (
    ARGON2_COST,
    ARGON2_MEMORY_BYTES_MAX,
    ARGON2_PASSES_MAX,
    Argon2Cost,
    Identity,
    PublicKey,
    Signature,
    read_key_header,
    verify,
)
from crypto.signing import Purpose, network_id, signed_bytes

NETWORK = network_id("test")
CHEAP = Argon2Cost(passes=1, memory_bytes=8192)


def identity(seed: int = 1) -> Identity:
    return Identity.generate(random.Random(seed).randbytes)


def sealed(password: str | None) -> bytes:
    return identity().seal(password, random.Random(2).randbytes, cost=CHEAP)


# --- signing -------------------------------------------------------------------------------------


def test_a_signature_is_accepted_for_what_was_signed() -> None:
    me = identity()
    signature = me.sign(Purpose.OFFER, NETWORK, b"body")
    verify(me.public_key, Purpose.OFFER, NETWORK, b"body", signature)
    assert signature == me.sign(Purpose.OFFER, NETWORK, b"body")


def test_a_signature_is_refused_for_anything_else() -> None:
    """Another key, purpose, network or body; a byte moved between fields; every flipped bit of the signature."""
    me, other = identity(), identity(3)
    good = me.sign(Purpose.OFFER, NETWORK, b"body")
    key = me.public_key
    wrong = [
        (other.public_key, Purpose.OFFER, NETWORK, b"body", good),
        (key, Purpose.OFFER, network_id("Test"), b"body", good),
        (key, Purpose.OFFER, NETWORK, b"bodY", good),
        (key, Purpose.OFFER, NETWORK, b"", good),
        (key, Purpose.OFFER, NETWORK[1:] + b"b", b"ody", good),
    ]
    wrong += [(key, purpose, NETWORK, b"body", good) for purpose in Purpose if purpose is not Purpose.OFFER]
    for bit in range(512):
        flipped = (int.from_bytes(good, "big") ^ 1 << bit).to_bytes(64, "big")
        wrong.append((key, Purpose.OFFER, NETWORK, b"body", Signature(flipped)))
    for arguments in wrong:
        with pytest.raises(CryptoError, match="not by this key"):
            verify(*arguments)


@pytest.mark.parametrize("size", [0, 1, 31, 33, 63, 65])
def test_wrong_lengths_never_reach_the_library(size: int) -> None:
    """libsodium gets bare pointers: a short key or signature would be read past its end."""
    me = identity()
    signature = me.sign(Purpose.OFFER, NETWORK, b"body")
    with pytest.raises(CryptoError, match=f"has {size}"):
        verify(PublicKey(bytes(size)), Purpose.OFFER, NETWORK, b"body", signature)
    with pytest.raises(CryptoError, match=f"has {size}"):
        verify(me.public_key, Purpose.OFFER, bytes(size), b"body", signature)
    with pytest.raises(CryptoError, match=f"has {size}"):
        verify(me.public_key, Purpose.OFFER, NETWORK, b"body", Signature(bytes(size)))
    with pytest.raises(CryptoError, match=f"has {size}"):
        Identity.from_seed(bytes(size))


def test_low_order_keys_sign_nothing() -> None:
    """A key of order 1, 2, 4 or 8 could make one signature valid for many messages."""
    for key in (bytes([1]) + bytes(31), bytes(32), b"\xec" + b"\xff" * 30 + b"\x7f"):
        for signature in (bytes(64), key + bytes(32)):
            with pytest.raises(CryptoError):
                verify(PublicKey(key), Purpose.OFFER, NETWORK, b"body", Signature(signature))


def test_no_purpose_begins_another() -> None:
    for purpose in Purpose:
        assert purpose.startswith(b"p2pnode/")
        assert purpose.index(b"\0") == len(purpose) - 1


def test_golden_signature() -> None:
    """What is signed is part of the protocol: changing it is a protocol change."""
    me = Identity.from_seed(bytes(range(32)))
    body = signed_bytes(Purpose.PEER_RECORD, network_id("p2pnode"), b"body")
    assert body == (
        b"p2pnode/peer-record/v1\0"
        + bytes.fromhex("0aa8e8f33b77c267e344487043d7fadb8565b9c2981601b3399b289f298cd883")
        + b"body"
    )
    assert me.public_key.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert me.sign(Purpose.PEER_RECORD, network_id("p2pnode"), b"body").hex() == (
        "5c45ce86772563fb38a38d82b44eb08c7a2e66b4afff307bfbeec688dd2a4ec1"
        "f368c50fce0ed4fb2e054041ce2ce327a3f0a38a341b85cc76d764ae32934009"
    )


def test_nothing_secret_is_shown() -> None:
    me = identity()
    seed = random.Random(1).randbytes(32)
    for text in (repr(me), str(me), f"{me}"):
        assert me.public_key.hex() in text
        assert seed.hex() not in text
        assert repr(seed) not in text


# --- key files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("password", [None, "correct horse", "pässwörd", "x" * 1000])
def test_a_key_file_gives_the_identity_back(password: str | None) -> None:
    again = Identity.unseal(sealed(password), password)
    assert again.public_key == identity().public_key
    assert again.sign(Purpose.OFFER, NETWORK, b"") == identity().sign(Purpose.OFFER, NETWORK, b"")


def test_the_public_key_is_readable_without_the_password() -> None:
    for password in (None, "secret"):
        header = read_key_header(sealed(password))
        assert header.public_key == identity().public_key
        assert header.encrypted == (password is not None)


def test_an_encrypted_key_file_does_not_contain_the_seed() -> None:
    seed = random.Random(1).randbytes(32)
    assert seed in sealed(None)
    assert seed not in sealed("secret")


def test_accents_of_another_keyboard_open_the_file() -> None:
    assert Identity.unseal(sealed("caf\u00e9"), "cafe\u0301").public_key == identity().public_key


def test_a_key_file_that_does_not_open_says_why() -> None:
    plain, encrypted = sealed(None), sealed("secret")
    for data, password, reason in [
        (encrypted, "Secret", "password does not open"),
        (encrypted, "", "password is empty"),
        (encrypted, None, "is encrypted; give its password"),
        (plain, "secret", "is not encrypted"),
        (b"", None, "not a p2pnode key file"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----", None, "not a p2pnode key file"),
        (plain[:12] + b"\2" + plain[13:], None, "version 2"),
        (plain[:13] + b"\7" + plain[14:], None, "kind 7"),
        (plain[:20], None, "cut off"),
        (plain[:-1], None, "bytes instead of"),
        (plain + b"\n", None, "bytes instead of"),
        (plain[:60] + b"\0" + plain[61:], None, "damaged"),
    ]:
        with pytest.raises(CryptoError, match=reason):
            Identity.unseal(data, password)


@pytest.mark.parametrize("password", [None, "secret"])
def test_every_cut_and_every_flipped_byte_of_a_key_file_is_noticed(password: str | None) -> None:
    data = sealed(password)
    for length in range(len(data)):
        with pytest.raises(CryptoError):
            Identity.unseal(data[:length], password)
    for place in range(len(data)):
        damaged = data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]
        with pytest.raises(CryptoError):
            Identity.unseal(damaged, password)


def repaired(data: bytes) -> bytes:
    """`data` with a true checksum: what a hostile author can write, as opposed to a failing disk."""
    return data[:-8] + hashlib.sha256(data[:-8]).digest()[:8]


@pytest.mark.parametrize(
    ("passes", "memory_bytes", "reason"),
    [
        (ARGON2_PASSES_MAX + 1, 8192, "passes"),
        (0, 8192, "passes"),
        (1, ARGON2_MEMORY_BYTES_MAX + 1, "bytes of memory"),
        (1, 100 * 2**30, "bytes of memory"),
        (1, 0, "bytes of memory"),
        (2**32 - 1, 2**64 - 1, "passes"),
    ],
)
def test_a_hostile_key_file_cannot_ask_for_a_fortune(passes: int, memory_bytes: int, reason: str) -> None:
    data = sealed("secret")
    price = passes.to_bytes(4, "big") + memory_bytes.to_bytes(8, "big")
    hostile = repaired(data[:46] + price + data[58:])
    with pytest.raises(CryptoError, match=reason):
        Identity.unseal(hostile, "secret")


def test_a_key_file_that_names_another_public_key_is_refused() -> None:
    for password in (None, "secret"):
        data = sealed(password)
        with pytest.raises(CryptoError, match="another public key"):
            Identity.unseal(repaired(data[:14] + identity(3).public_key + data[46:]), password)


def test_the_price_of_production_is_moderate() -> None:
    """libsodium's MODERATE; and the limits for reading leave room for a later, higher price."""
    assert (ARGON2_COST.passes, ARGON2_COST.memory_bytes) == (3, 256 * 2**20)
    assert ARGON2_COST.passes < ARGON2_PASSES_MAX
    assert ARGON2_COST.memory_bytes < ARGON2_MEMORY_BYTES_MAX


def test_golden_key_file() -> None:
    """Files of released versions must open for ever: changing these bytes needs a new version number."""
    me = Identity.from_seed(bytes(range(32)))
    public = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert me.seal(None, random.Random(0).randbytes).hex() == (
        "7032706e6f64652d6b657900"  # magic
        "01"  # version
        "00"  # plain
        + public
        + bytes(range(32)).hex()  # seed
        + "2bdd113b7a64810b"  # checksum
    )
    assert me.seal("password", lambda n: bytes(n), cost=CHEAP).hex() == (
        "7032706e6f64652d6b657900"  # magic
        "01"  # version
        "01"  # encrypted
        + public
        + "00000001"  # passes
        + "0000000000002000"  # bytes of memory
        + "00" * (16 + 24)  # salt, nonce
        + "c95d16c73a924ad5802d1c5dc7900ffc4250e121fbb8b88d"  # SecretBox
        + "349b5d3f25601b895f7dc6b41e2bfc2e907e73ba53228712"
        + "8e79ba8bd97dedab"  # checksum
    )


@given(st.binary(max_size=200) | st.binary(max_size=160).map(lambda tail: b"p2pnode-key\0\1\0" + tail))
def test_junk_is_refused_with_our_exception_and_no_other(data: bytes) -> None:
    with pytest.raises(CryptoError):
        Identity.unseal(data, None)
