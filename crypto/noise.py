"""The Noise protocol framework as a machine without I/O: messages in, messages out.

Source: T. Perrin, "The Noise Protocol Framework", revision 34; names follow its section 5. The pattern is
data, so that published vectors of every pattern exercise the very code that runs the one pattern we use. Key
agreement is always X25519, the cipher always ChaCha20-Poly1305. The hash is an argument for the sake of the
vectors too; the channel uses SHA-256.

Departures: no fallback patterns (we have one suite and nothing to fall back to), and errors are final: a
handshake that has raised stays unusable.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError as SodiumError

from crypto.errors import CryptoError
from crypto.identity import Entropy

KEY_BYTES = 32  # X25519 keys, cipher keys and pre-shared keys alike
TAG_BYTES = 16
MESSAGE_BYTES_MAX = 65_535  # section 3: any Noise message
PLAINTEXT_BYTES_MAX = MESSAGE_BYTES_MAX - TAG_BYTES  # of a transport message
NONCE_MAX = 2**64 - 1  # section 5.1: reserved for rekey; a cipher that has reached it is spent

Token: TypeAlias = Literal["e", "s", "ee", "es", "se", "ss", "psk"]
HashName: TypeAlias = Literal["SHA256", "SHA512", "BLAKE2s", "BLAKE2b"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Who sends which keys when (section 7).

    In the two-letter tokens the first letter is the initiator's key, the second the responder's.
    """

    name: str  # as in the protocol name, modifiers included: "XX", "IKpsk2"
    messages: tuple[tuple[Token, ...], ...]  # alternating, the initiator's first
    initiator_known: tuple[Token, ...] = ()  # pre-messages: what the other side knew before
    responder_known: tuple[Token, ...] = ()


# Both prove who they are, neither has to know the other before; each learns the other's identity encrypted.
XX = Pattern("XX", (("e",), ("e", "ee", "s", "es"), ("s", "se")))


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair, 32 bytes each."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def from_private(cls, private: bytes) -> Self:
        """The pair of a private key. Any 32 bytes are one: X25519 clamps.

        Raises:
            CryptoError: another length.
        """
        if len(private) != KEY_BYTES:
            raise CryptoError(f"An X25519 key has {KEY_BYTES} bytes, this one has {len(private)}.")
        return cls(private, crypto_scalarmult_base(private))

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        return cls.from_private(entropy(KEY_BYTES))


def dh(private: bytes, public: bytes) -> bytes:
    """The X25519 shared secret, 32 bytes (RFC 7748).

    Raises:
        CryptoError: `public` has another length, or low order: the secret would be zero whatever our key.
    """
    # The binding hands bare pointers to C: a short key would be read past its end.
    if len(private) != KEY_BYTES or len(public) != KEY_BYTES:
        raise CryptoError(f"X25519 keys have {KEY_BYTES} bytes, these have {len(private)} and {len(public)}.")
    try:
        return crypto_scalarmult(private, public)
    except SodiumError:
        raise CryptoError("The X25519 public key has low order; no honest peer has such a key.") from None


def hkdf(hash_name: HashName, *, salt: bytes, secret: bytes, info: bytes, size: int) -> bytes:
    """HKDF (RFC 5869): `size` bytes out of `secret`. Noise's own HKDF is this one with empty `info`.

    Raises:
        CryptoError: more bytes than the RFC allows, 255 digests.
    """
    digest = hash_name.lower()
    key = hmac.digest(salt, secret, digest)
    if not 0 <= size <= 255 * len(key):
        raise CryptoError(f"HKDF yields at most {255 * len(key)} bytes, asked for {size}.")
    output = block = b""
    counter = 1
    while len(output) < size:
        block = hmac.digest(key, block + info + bytes((counter,)), digest)
        output += block
        counter += 1
    return output[:size]


def aead_seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439): ciphertext and tag. `key` has 32 bytes, `nonce` 12."""
    return crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, associated, nonce, key)


def aead_open(key: bytes, nonce: bytes, ciphertext: bytes, associated: bytes) -> bytes:
    """The plaintext that `aead_seal` was given.

    Raises:
        CryptoError: not authentic, shorter than a tag, or a key or nonce of another length.
    """
    # Shorter than the tag, PyNaCl raises a plain ValueError (negative array length).
    if len(ciphertext) < TAG_BYTES:
        raise CryptoError(f"A ciphertext has at least {TAG_BYTES} bytes, this one has {len(ciphertext)}.")
    try:
        return crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, associated, nonce, key)
    except SodiumError:
        raise CryptoError("The ciphertext is not authentic.") from None


# Section 12.3: four zero bytes and the counter, little-endian.
_NONCE = struct.Struct("<4xQ")


class CipherState:
    """A key and its counter: one direction of a transport, or the handshake's encryption (section 5.1)."""

    __slots__ = ("_key", "nonce")

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._key = key
        self.nonce = 0  # of the next message

    def encrypt(self, plaintext: bytes, associated: bytes = b"") -> bytes:
        """Ciphertext and tag, 16 bytes longer than `plaintext`.

        Raises:
            CryptoError: the counter is spent.
        """
        return aead_seal(self._key, self._take_nonce(), plaintext, associated)

    def decrypt(self, ciphertext: bytes, associated: bytes = b"") -> bytes:
        """The plaintext of the peer's next message.

        Raises:
            CryptoError: too short, not authentic, out of order, or the counter is spent. The counter has
                moved all the same: no second try.
        """
        return aead_open(self._key, self._take_nonce(), ciphertext, associated)

    def rekey(self) -> None:
        """Replace the key by a one-way function of itself (section 4.2); the counter goes on."""
        sealed = aead_seal(self._key, _NONCE.pack(NONCE_MAX), bytes(KEY_BYTES), b"")
        self._key = sealed[:KEY_BYTES]

    def _take_nonce(self) -> bytes:
        if self.nonce >= NONCE_MAX:
            raise CryptoError("The message counter of this key is spent; open a new connection.")
        nonce = _NONCE.pack(self.nonce)
        self.nonce += 1
        return nonce


class SymmetricState:
    """The chaining key and the running hash of everything said so far (section 5.2)."""

    __slots__ = ("_chaining_key", "_cipher", "_hash_name", "handshake_hash")

    def __init__(self, protocol_name: bytes, hash_name: HashName) -> None:
        self._hash_name: HashName = hash_name
        digest = hashlib.new(hash_name.lower())
        if len(protocol_name) <= digest.digest_size:
            self.handshake_hash = protocol_name.ljust(digest.digest_size, b"\0")
        else:
            digest.update(protocol_name)
            self.handshake_hash = digest.digest()
        self._chaining_key = self.handshake_hash
        self._cipher: CipherState | None = None

    @property
    def encrypts(self) -> bool:
        return self._cipher is not None

    def mix_hash(self, data: bytes) -> None:
        self.handshake_hash = hashlib.new(self._hash_name.lower(), self.handshake_hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining_key, key = self._derive(secret, 2)
        self._cipher = CipherState(key[:KEY_BYTES])

    def mix_key_and_hash(self, secret: bytes) -> None:
        self._chaining_key, mixed, key = self._derive(secret, 3)
        self.mix_hash(mixed)
        self._cipher = CipherState(key[:KEY_BYTES])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self._cipher.encrypt(plaintext, self.handshake_hash) if self._cipher else plaintext
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = self._cipher.decrypt(ciphertext, self.handshake_hash) if self._cipher else ciphertext
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """The ciphers of the initiator's and of the responder's transport messages."""
        first, second = self._derive(b"", 2)
        return CipherState(first[:KEY_BYTES]), CipherState(second[:KEY_BYTES])

    def _derive(self, secret: bytes, count: int) -> list[bytes]:
        size = len(self._chaining_key)
        output = hkdf(self._hash_name, salt=self._chaining_key, secret=secret, info=b"", size=count * size)
        return [output[start : start + size] for start in range(0, count * size, size)]


class HandshakeState:
    """One side of one handshake (section 5.3).

    Call `write_message` when it is our turn and `read_message` when it is the peer's, until `finished`; then
    `split` once. `handshake_hash` covers the prologue and all messages so far, on both sides alike.

    Args:
        pattern: The messages to exchange.
        initiator: Whether we speak first.
        prologue: What both sides must agree on beforehand; of any length, never sent.
        entropy: Source of our ephemeral key.
        static: Our static key pair, where the pattern needs one.
        remote_static: The peer's static public key, where the pattern says we know it.
        psks: 32 bytes for each `psk` token, in order.
        hash_name: SHA256 but for test vectors.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        initiator: bool,
        prologue: bytes,
        entropy: Entropy,
        static: KeyPair | None = None,
        remote_static: bytes | None = None,
        psks: Sequence[bytes] = (),
        hash_name: HashName = "SHA256",
    ) -> None:
        self.remote_static = remote_static  # once the peer has sent it, or known before
        self._pattern = pattern
        self._initiator = initiator
        self._entropy = entropy
        self._static = static
        self._ephemeral: KeyPair | None = None
        self._remote_ephemeral: bytes | None = None
        self._psks = list(psks)
        self._mixes_ephemerals = any("psk" in tokens for tokens in pattern.messages)  # section 9.2
        self._done = 0  # messages written or read
        self._broken = False
        assert all(len(psk) == KEY_BYTES for psk in psks)

        protocol_name = f"Noise_{pattern.name}_25519_ChaChaPoly_{hash_name}"
        self._symmetric = SymmetricState(protocol_name.encode("ascii"), hash_name)
        self._symmetric.mix_hash(prologue)
        for side, known in ((True, pattern.initiator_known), (False, pattern.responder_known)):
            for token in known:
                assert token == "s", "pre-messages with ephemeral keys exist only in fallback patterns"
                public = static.public if side == initiator and static else remote_static
                assert public is not None, f"pattern {pattern.name} needs a static key that was not given"
                self._symmetric.mix_hash(public)

    @property
    def finished(self) -> bool:
        return self._done == len(self._pattern.messages)

    @property
    def handshake_hash(self) -> bytes:
        return self._symmetric.handshake_hash

    def write_message(self, payload: bytes) -> bytes:
        """Our next message. The payload is encrypted from the first key agreement on, plain before.

        Raises:
            CryptoError: the peer's key has low order, the message would be too long, or an earlier failure.
        """
        tokens = self._next_tokens(ours=True)
        message = b""
        for token in tokens:
            if token == "e":
                self._ephemeral = KeyPair.generate(self._entropy)
                message += self._ephemeral.public
                self._mix_ephemeral(self._ephemeral.public)
            elif token == "s":
                assert self._static is not None, f"pattern {self._pattern.name} needs a static key"
                message += self._symmetric.encrypt_and_hash(self._static.public)
            else:
                self._mix_secret(token)
        message += self._symmetric.encrypt_and_hash(payload)
        if len(message) > MESSAGE_BYTES_MAX:
            raise CryptoError(
                f"A Noise message has at most {MESSAGE_BYTES_MAX} bytes, this one {len(message)}."
            )
        self._message_done()
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next message.

        Raises:
            CryptoError: too short, too long, not authentic, a low-order key, or an earlier failure.
        """
        tokens = self._next_tokens(ours=False)
        if len(message) > MESSAGE_BYTES_MAX:
            raise CryptoError(
                f"A Noise message has at most {MESSAGE_BYTES_MAX} bytes, this one {len(message)}."
            )
        offset = 0
        for token in tokens:
            if token in ("e", "s"):
                size = KEY_BYTES + (TAG_BYTES if token == "s" and self._symmetric.encrypts else 0)
                part = message[offset : offset + size]
                offset += size
                if len(part) < size:
                    raise CryptoError(f"The handshake message ends inside a key, after {len(message)} bytes.")
                if token == "e":
                    self._remote_ephemeral = part
                    self._mix_ephemeral(part)
                else:
                    self.remote_static = self._symmetric.decrypt_and_hash(part)
            else:
                self._mix_secret(token)
        payload = self._symmetric.decrypt_and_hash(message[offset:])
        self._message_done()
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """The ciphers for what we send and for what we receive. Call once, when `finished`."""
        assert self.finished, "the handshake is not complete"
        initiators, responders = self._symmetric.split()
        return (initiators, responders) if self._initiator else (responders, initiators)

    def _next_tokens(self, *, ours: bool) -> tuple[Token, ...]:
        if self._broken:
            raise CryptoError("This handshake has failed before; start another.")
        assert not self.finished, "the handshake has no further messages"
        assert ours == (self._initiator == (self._done % 2 == 0)), "it is the other side's turn"
        self._broken = True  # until the message is complete: whatever raises in between is final
        return self._pattern.messages[self._done]

    def _message_done(self) -> None:
        self._done += 1
        self._broken = False

    def _mix_ephemeral(self, public: bytes) -> None:
        self._symmetric.mix_hash(public)
        if self._mixes_ephemerals:
            self._symmetric.mix_key(public)

    def _mix_secret(self, token: Token) -> None:
        if token == "psk":
            self._symmetric.mix_key_and_hash(self._psks.pop(0))
            return
        ours, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        pair = self._ephemeral if ours == "e" else self._static
        public = self._remote_ephemeral if theirs == "e" else self.remote_static
        assert pair is not None, f"pattern {self._pattern.name} needs a static key"
        assert public is not None, f"pattern {self._pattern.name} needs the peer's static key"
        self._symmetric.mix_key(dh(pair.private, public))
