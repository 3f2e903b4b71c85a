"""Who a node is: an Ed25519 key, what it signs, and how it is kept in a file.

One implementation of verify for the whole network, libsodium's through PyNaCl: it refuses low-order and
non-canonical keys and points, and other libraries do not always agree with it on crafted signatures. With two
verifiers, one such signature would split the network.

Key file, version 1, big-endian. The public key is readable without the password, so that a node can say who
it is; it is only a claim until `Identity.unseal` has derived it again from the seed.

    magic "p2pnode-key\\0" (12) | version (1) | kind (1): 0 plain, 1 encrypted | public key (32)
    plain:      seed (32)
    encrypted:  Argon2id passes (4), bytes of memory (8) and salt (16) | nonce (24) | SecretBox of seed (48)
    first 8 bytes of the SHA-256 of all before: tells a damaged file from a wrong password
"""

import hashlib
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType, Protocol, Self, TypeAlias

from nacl import pwhash
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError as SodiumError
from nacl.secret import SecretBox

from crypto.errors import CryptoError
from crypto.signing import NETWORK_ID_BYTES, Purpose, signed_bytes

PublicKey = NewType("PublicKey", bytes)  # 32 bytes
Signature = NewType("Signature", bytes)  # 64 bytes; never an identifier or a dict key (malleable)

# entropy(n) -> n unpredictable bytes. os.urandom in the daemon, a seeded stream in the simulator.
Entropy: TypeAlias = Callable[[int], bytes]

# verify(key, purpose, network, body, signature) returns, or raises CryptoError: the function below. Only the simulator
# gives a node another one.
Verify: TypeAlias = Callable[[PublicKey, Purpose, bytes, bytes, Signature], None]

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2Cost:
    """What one guess at a password costs. passes >= 1; memory_bytes >= 8192."""

    passes: int
    memory_bytes: int


# libsodium's MODERATE: 3 passes over 256 MiB, by its documentation 0.7 s at 2.8 GHz. Daemons start rarely.
ARGON2_COST = Argon2Cost(
    passes=pwhash.argon2id.OPSLIMIT_MODERATE, memory_bytes=pwhash.argon2id.MEMLIMIT_MODERATE
)
# A file may not ask for more than this before it has proved anything: the memory of libsodium's SENSITIVE
# (1 GiB) and four times its passes.
ARGON2_PASSES_MAX = 4 * pwhash.argon2id.OPSLIMIT_SENSITIVE
ARGON2_MEMORY_BYTES_MAX = pwhash.argon2id.MEMLIMIT_SENSITIVE


class Signer(Protocol):
    """Who signs: all that the core of a node needs of an identity. `Identity` is the one that there is in a daemon."""

    @property
    def public_key(self) -> PublicKey: ...

    def sign(self, purpose: Purpose, network: bytes, body: bytes) -> Signature: ...


class Identity:
    """An Ed25519 key pair. Immutable; shows its secret to nobody but `seal`."""

    __slots__ = ("_secret", "public_key")

    public_key: PublicKey
    _secret: bytes  # libsodium's 64-byte form, seed and public key, so that signing derives nothing

    def __init__(self, seed: bytes) -> None:
        """See `from_seed`."""
        if len(seed) != SEED_BYTES:
            raise CryptoError(f"An Ed25519 seed has {SEED_BYTES} bytes, this one has {len(seed)}.")
        public, self._secret = crypto_sign_seed_keypair(seed)
        self.public_key = PublicKey(public)

    @classmethod
    def generate(cls, entropy: Entropy) -> Self:
        """A new identity from 32 bytes of `entropy`."""
        return cls(entropy(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The identity of a 32-byte seed; the same seed gives the same identity.

        Raises:
            CryptoError: another length.
        """
        return cls(seed)

    def sign(self, purpose: Purpose, network: bytes, body: bytes) -> Signature:
        """Sign `body` for one purpose in one network.

        Args:
            purpose: What the signature may be used as.
            network: 32 bytes, from `signing.network_id`.
            body: The bytes that travel; the receiver verifies what it received, never a re-encoding.

        Deterministic: the same arguments give the same signature. Source: RFC 8032.
        """
        return Signature(crypto_sign(signed_bytes(purpose, network, body), self._secret)[:SIGNATURE_BYTES])

    def seal(self, password: str | None, entropy: Entropy, *, cost: Argon2Cost = ARGON2_COST) -> bytes:
        """The content of a key file: plain without a password, else encrypted under it.

        Args:
            password: Not empty. Normalised (NFC), so that another keyboard's accents open the file too.
            entropy: Salt and nonce are taken from it.
            cost: Of deriving a key from the password. Cheaper only in tests.

        Raises:
            CryptoError: an empty password, or too little memory for Argon2id.
        """
        seed = self._secret[:SEED_BYTES]
        if password is None:
            return _with_checksum(_HEADER.pack(_MAGIC, _VERSION, _PLAIN, self.public_key) + seed)
        salt, nonce = entropy(pwhash.argon2id.SALTBYTES), entropy(SecretBox.NONCE_SIZE)
        sealed = SecretBox(_password_key(password, cost, salt)).encrypt(seed, nonce).ciphertext
        header = _HEADER.pack(_MAGIC, _VERSION, _ENCRYPTED, self.public_key)
        return _with_checksum(header + _ENVELOPE.pack(cost.passes, cost.memory_bytes, salt, nonce, sealed))

    @classmethod
    def unseal(cls, data: bytes, password: str | None) -> Self:
        """The identity in a key file.

        Raises:
            CryptoError: with a sentence for the operator: not a key file, damaged, of a later version, or a
                wrong, missing or needless password, or a price of opening beyond our limits.
        """
        header = read_key_header(data)
        body = data[_HEADER.size : -_CHECKSUM_BYTES]
        if not header.encrypted:
            if password is not None:
                raise CryptoError("This key file is not encrypted, but a password was given; give none.")
            identity = cls(body)
        else:
            if password is None:
                raise CryptoError("This key file is encrypted; give its password.")
            passes, memory_bytes, salt, nonce, sealed = _ENVELOPE.unpack(body)
            key = _password_key(password, Argon2Cost(passes=passes, memory_bytes=memory_bytes), salt)
            try:
                identity = cls(SecretBox(key).decrypt(sealed, nonce))
            except SodiumError:
                raise CryptoError("The password does not open this key file.") from None
        if identity.public_key != header.public_key:
            raise CryptoError(
                "This key file names another public key than the one its seed gives; restore a backup."
            )
        return identity

    def __repr__(self) -> str:
        return f"Identity({self.public_key.hex()})"


def verify(key: PublicKey, purpose: Purpose, network: bytes, body: bytes, signature: Signature) -> None:
    """Return if `signature` was made by `key` over exactly this purpose, network and body.

    Raises:
        CryptoError: it was not, or key or signature have a wrong length. The verdict is libsodium's (strict:
            canonical, no low-order keys or points).
    """
    if len(network) != NETWORK_ID_BYTES:
        raise CryptoError(f"A network id has {NETWORK_ID_BYTES} bytes, this one has {len(network)}.")
    verify_message(key, signed_bytes(purpose, network, body), signature)


def verify_message(key: bytes, message: bytes, signature: bytes) -> None:
    """Plain Ed25519, without purpose or network. For `verify` and for published vectors only."""
    # The binding hands bare pointers to C: a short key would be read past its end.
    if len(key) != PUBLIC_KEY_BYTES:
        raise CryptoError(f"An Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this one has {len(key)}.")
    if len(signature) != SIGNATURE_BYTES:
        raise CryptoError(f"An Ed25519 signature has {SIGNATURE_BYTES} bytes, this one has {len(signature)}.")
    try:
        crypto_sign_open(signature + message, key)
    except SodiumError:
        raise CryptoError("The signature is not by this key for this purpose, network and body.") from None


# --- key files -----------------------------------------------------------------------------------


_MAGIC = b"p2pnode-key\0"
_VERSION = 1
_PLAIN, _ENCRYPTED = 0, 1
_CHECKSUM_BYTES = 8
_HEADER = struct.Struct(">12sBB32s")
_ENVELOPE = struct.Struct(">IQ16s24s48s")
_SIZES = {
    _PLAIN: _HEADER.size + SEED_BYTES + _CHECKSUM_BYTES,
    _ENCRYPTED: _HEADER.size + _ENVELOPE.size + _CHECKSUM_BYTES,
}


@dataclass(frozen=True, slots=True)
class KeyHeader:
    """What a key file says without its password."""

    public_key: PublicKey  # a claim; `Identity.unseal` checks it
    encrypted: bool


def read_key_header(data: bytes) -> KeyHeader:
    """Read the open part of a key file, and check that the whole is undamaged.

    Raises:
        CryptoError: with a sentence for the operator.
    """
    if not data.startswith(_MAGIC):
        raise CryptoError('This is not a p2pnode key file: it does not begin with "p2pnode-key".')
    if len(data) < _HEADER.size:
        raise CryptoError(f"This key file is cut off after {len(data)} bytes; restore a backup.")
    _, version, kind, public = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise CryptoError(
            f"This key file has version {version}, this program reads version {_VERSION}; upgrade it."
        )
    if kind not in _SIZES:
        raise CryptoError(
            f"This key file is of kind {kind}, expected 0 (plain) or 1 (encrypted); restore a backup."
        )
    if len(data) != _SIZES[kind]:
        raise CryptoError(f"This key file has {len(data)} bytes instead of {_SIZES[kind]}; restore a backup.")
    if data != _with_checksum(data[:-_CHECKSUM_BYTES]):
        raise CryptoError("This key file is damaged: its checksum does not match; restore a backup.")
    return KeyHeader(PublicKey(public), kind == _ENCRYPTED)


def _with_checksum(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]


def _password_key(password: str, cost: Argon2Cost, salt: bytes) -> bytes:
    """Argon2id (RFC 9106) from password to SecretBox key, within our limits."""
    if not password:
        raise CryptoError("The password is empty; give one, or store the key without a password.")
    if not pwhash.argon2id.OPSLIMIT_MIN <= cost.passes <= ARGON2_PASSES_MAX:
        raise CryptoError(
            f"The key file asks for {cost.passes} Argon2id passes; allowed are 1 to {ARGON2_PASSES_MAX}."
        )
    if not pwhash.argon2id.MEMLIMIT_MIN <= cost.memory_bytes <= ARGON2_MEMORY_BYTES_MAX:
        raise CryptoError(
            f"The key file asks for {cost.memory_bytes} bytes of memory for Argon2id; allowed are "
            f"{pwhash.argon2id.MEMLIMIT_MIN} to {ARGON2_MEMORY_BYTES_MAX}."
        )
    try:
        return pwhash.argon2id.kdf(
            SecretBox.KEY_SIZE,
            unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass"),
            salt,
            opslimit=cost.passes,
            memlimit=cost.memory_bytes,
        )
    except SodiumError as error:
        raise CryptoError(
            f"Argon2id failed, probably for lack of {cost.memory_bytes} bytes of memory."
        ) from error
