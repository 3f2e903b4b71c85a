"""Whose signatures a simulated network has: real ones, checked in another process, or modelled ones.

Checking Ed25519 is the largest single piece of work in a world of small models, and nothing else can be moved off its
one thread. So a signature that an identity of this world made is believed at once and checked later, by a second
process and in batches, each once: the answer is known beforehand unless the library is broken, and then the run ends
with an error. Whatever was not signed here, word for word, is checked on the spot. What nodes do is the same to the
last bit as with `crypto.identity.verify` itself.

Modelled signatures are a keyed hash under a key that only the world holds: a forgery still fails, and nobody can
compute one, but they cost nothing like Ed25519 and prove nothing outside of the world. Nothing in the daemon's packages
can import them (tests/test_layers.py).
"""

import hashlib
import os
import subprocess
import sys
from typing import Protocol

import msgspec

from crypto.errors import CryptoError
from crypto.identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    Entropy,
    Identity,
    PublicKey,
    Signature,
    Signer,
    verify,
    verify_message,
)
from crypto.signing import Purpose, signed_bytes
from gossip.errors import LocalError
from p2pnode.import_path import python_path

# Signatures in one message to the other process: some 25 ms of its work. Runs that make fewer need no other process.
BATCH = 512
# Room for two batches on the way to the other process, so that nobody waits for it in between.
PIPE_BYTES = 2**20
# Signatures of this world that are remembered: those of the records of thousands of nodes, and of all exchanges under
# way. One that was forgotten is checked on the spot, once more. Some 40 MB.
REMEMBERED_MAX = 65536

# What nobody but its addressee checks, and seldom twice: forgotten after the first time.
_ONCE = (Purpose.OFFER, Purpose.REPLY)

# (public key, signature, message)
Signed = tuple[bytes, bytes, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(list[Signed])
_LENGTH_BYTES = 4
_GOOD, _BAD = b"\x01", b"\x00"


class Signatures(Protocol):
    """Where the keys of a world's nodes come from, and who checks what they sign."""

    def identity(self, entropy: Entropy) -> Signer:
        """A new key from 32 bytes of `entropy`."""
        ...

    def verify(
        self, key: PublicKey, purpose: Purpose, network: bytes, body: bytes, signature: Signature
    ) -> None:
        """As `crypto.identity.verify`."""
        ...

    def settle(self) -> None:
        """Returns when everything signed so far was checked.

        Raises:
            LocalError: a signature made here is none.
        """
        ...

    def close(self) -> None:
        """Ends what was begun; `settle` first, where its answer matters."""
        ...


def signatures_of(kind: str, entropy: Entropy, *, helped: bool = True) -> Signatures:
    """The signatures that a scenario asks for: `real` or `modelled`.

    Args:
        helped: Whether a second process checks real ones.
    """
    return ModelledSignatures(entropy(32)) if kind == "modelled" else RealSignatures(helped=helped)


# --- real ----------------------------------------------------------------------------------------


class RealSignatures:
    """Ed25519; what was signed here is checked in batches by a second process.

    Args:
        helped: Whether there is such a process. Where the processors have enough to do without it, everything is
            checked on the spot, once.
    """

    def __init__(self, *, helped: bool = True) -> None:
        self._helped = helped
        # Signed here, and so good: signature -> (key, signed bytes). The oldest are forgotten first.
        self._made: dict[bytes, tuple[bytes, bytes]] = {}
        self._waiting: list[Signed] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._sent = 0  # batches without an answer

    def identity(self, entropy: Entropy) -> Signer:
        return _Recorded(Identity.generate(entropy), self)

    def verify(
        self, key: PublicKey, purpose: Purpose, network: bytes, body: bytes, signature: Signature
    ) -> None:
        message = purpose + network + body
        if self._made.get(signature) == (key, message):
            if purpose in _ONCE:
                del self._made[signature]
            return
        verify(key, purpose, network, body, signature)
        if purpose not in _ONCE:
            self._remember(key, signature, message)

    def signed(self, key: bytes, signature: bytes, message: bytes) -> None:
        """An identity of ours has signed `message`."""
        if not self._helped:
            return
        self._remember(key, signature, message)
        self._waiting.append((key, signature, message))
        if len(self._waiting) == BATCH:
            self._hand_over()

    def settle(self) -> None:
        # What is left over is less than it costs to begin a process.
        waiting, self._waiting = self._waiting, []
        if not _all_good(waiting):
            raise _broken()
        if self._process is not None:
            assert self._process.stdout is not None
            answers = self._process.stdout.read(self._sent)
            if answers != _GOOD * self._sent:
                raise _broken()
            self._sent = 0

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _remember(self, key: bytes, signature: bytes, message: bytes) -> None:
        self._made[signature] = (key, message)
        if len(self._made) > REMEMBERED_MAX:
            del self._made[next(iter(self._made))]

    def _hand_over(self) -> None:
        batch = _encode(self._waiting)
        self._waiting.clear()
        if self._process is None:
            self._process = subprocess.Popen(
                # From where we are, and not from the folder in which somebody typed (`p2pnode.import_path`).
                [sys.executable, "-P", "-m", "simulation.signatures"],
                env={**os.environ, "PYTHONPATH": python_path()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=PIPE_BYTES,
                # A terminal sends Ctrl-C to a whole group, and a partial report still needs the answers.
                process_group=0,
            )
        assert self._process.stdin is not None
        try:
            # Waits where the other process is so far behind that the pipe is full.
            self._process.stdin.write(len(batch).to_bytes(_LENGTH_BYTES, "big") + batch)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise _broken() from error
        self._sent += 1


class _Recorded:
    """An identity whose signatures are made known to `RealSignatures`."""

    __slots__ = ("_identity", "_signatures", "public_key")

    def __init__(self, identity: Identity, signatures: RealSignatures) -> None:
        self._identity = identity
        self._signatures = signatures
        self.public_key = identity.public_key

    def sign(self, purpose: Purpose, network: bytes, body: bytes) -> Signature:
        signature = self._identity.sign(purpose, network, body)
        self._signatures.signed(self.public_key, signature, signed_bytes(purpose, network, body))
        return signature


def _broken() -> LocalError:
    return LocalError(
        "a signature made in this world does not verify, or the process that checks them has ended"
    )


def _all_good(batch: list[Signed]) -> bool:
    try:
        for key, signature, message in batch:
            verify_message(key, message, signature)
    except CryptoError:
        return False
    return True


def check_batches() -> None:
    """What the other process does: answers each batch with one byte, until its input ends."""
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := given.read(_LENGTH_BYTES):
        batch = given.read(int.from_bytes(head, "big"))
        answers.write(_GOOD if _all_good(_decoder.decode(batch)) else _BAD)
        answers.flush()


# --- modelled ------------------------------------------------------------------------------------


class ModelledSignatures:
    """BLAKE2b of signer, purpose, network and body, under a key of the world: 64 bytes, as Ed25519's.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=SIGNATURE_BYTES)

    def identity(self, entropy: Entropy) -> Signer:
        return _Modelled(PublicKey(entropy(PUBLIC_KEY_BYTES)), self)

    def sign(self, key: bytes, purpose: Purpose, network: bytes, body: bytes) -> Signature:
        """What the owner of `key` would sign."""
        state = self._keyed.copy()
        state.update(key + signed_bytes(purpose, network, body))
        return Signature(state.digest())

    def verify(
        self, key: PublicKey, purpose: Purpose, network: bytes, body: bytes, signature: Signature
    ) -> None:
        if self.sign(key, purpose, network, body) != signature:
            raise CryptoError("The signature is not by this key for this purpose, network and body.")

    def settle(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing was begun."""


class _Modelled:
    """A public key that is no point of any curve, and signs by the world's key."""

    __slots__ = ("_signatures", "public_key")

    def __init__(self, public_key: PublicKey, signatures: ModelledSignatures) -> None:
        self.public_key = public_key
        self._signatures = signatures

    def sign(self, purpose: Purpose, network: bytes, body: bytes) -> Signature:
        return self._signatures.sign(self.public_key, purpose, network, body)


if __name__ == "__main__":
    check_batches()
