"""The secure channel: bytes of a stream in, authenticated messages out, and the other way round. No I/O.

`Noise_XX_25519_ChaChaPoly_SHA256` over any reliable byte stream, and inside the handshake an Ed25519
identity proof in each direction. There is no other suite and nothing is negotiated: magic, version and
network are in the prologue, so two ends that disagree on any of them part at the first encrypted message.

On the stream, every Noise message stands behind its length (2 bytes, big-endian). Handshake messages have
fixed lengths:

    1  ->  e               288 bytes   payload in clear: magic, version, zeros
    2  <-  e, ee, s, es    352 bytes   payload: the responder's proof
    3  ->  s, se           320 bytes   payload: the initiator's proof

All payloads are padded with zeros to 256 bytes; that of message 1 too, so that a stranger gets back little
more than it sent (354 bytes for 290). The version in message 1 only lets the responder name it in its
error; what counts is the prologue. A responder of another version answers with its own, as a message of two
bytes, so that the initiator can name it too. Nobody is bound by that answer, which anybody could have sent.

A *proof* is public key (32) and signature (64), purpose CHANNEL, of

    own X25519 static key (32) | handshake hash (32) | role (1: 0 initiator, 1 responder)

The handshake hash is the one after the *previous* message: the last that both ends hold before the message
that carries the proof. So the responder signs over the prologue and the initiator's fresh key (a proof
cannot be replayed), and the initiator over all of message 2, hence over the responder's identity (a proof
made for B is worth nothing at C). The keys sent together with a proof are bound by naming the static one in
it, and by the encryption of the payload under both.

After the handshake either end sends Noise messages at any time; what they mean is the caller's business
(`gossip.net.lanes`). Each direction replaces its key after every 2**20 messages (Noise REKEY). There is no
rekeying by time: both ends would need a common clock or one more message, and 2**20 messages are at most
64 GiB, far below what ChaCha20-Poly1305 allows.
"""

from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from crypto.errors import CryptoError
from crypto.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Entropy, Identity, PublicKey, Signature, verify
from crypto.noise import (
    KEY_BYTES,
    MESSAGE_BYTES_MAX,
    PLAINTEXT_BYTES_MAX,
    TAG_BYTES,
    XX,
    CipherState,
    HandshakeState,
    KeyPair,
)
from crypto.signing import NETWORK_ID_BYTES, Purpose

MAGIC = b"p2pnode\0"
# Twice the 96 bytes of a proof and to spare: room for later versions, at no cost that anyone will notice.
HANDSHAKE_PAYLOAD_BYTES = 256
HANDSHAKE_MESSAGE_BYTES = (
    KEY_BYTES + HANDSHAKE_PAYLOAD_BYTES,
    2 * KEY_BYTES + TAG_BYTES + HANDSHAKE_PAYLOAD_BYTES + TAG_BYTES,
    KEY_BYTES + TAG_BYTES + HANDSHAKE_PAYLOAD_BYTES + TAG_BYTES,
)
# Cautious: WireGuard allows 2**60 messages, TLS 1.3 sets no limit for this cipher (RFC 8446, section 5.5).
REKEY_MESSAGES = 2**20

_LENGTH_BYTES = 2  # before every Noise message
_VERSION_BYTES = 2


@dataclass(frozen=True, slots=True)
class Established:
    """The peer has proved to own `key`. Comes once, before any frame."""

    key: PublicKey


@dataclass(frozen=True, slots=True)
class Message:
    """What the peer gave to `seal`."""

    data: bytes


ChannelEvent: TypeAlias = Established | Message


class VersionError(CryptoError):
    """The peer says that it speaks another version."""

    def __init__(self, theirs: int, ours: int) -> None:
        super().__init__(f"The peer speaks protocol version {theirs}, we speak {ours}.")
        self.theirs = theirs


class SecureChannel:
    """One end of one connection.

    Feed what the stream brings to `receive_data`; put what `data_to_send` returns on the stream at the
    beginning (the initiator speaks first) and after each `receive_data`, and put there, in order, what `seal`
    returns. Any CryptoError is final: the channel is dead, has forgotten its keys, and raises the same sentence
    from then on; close the connection (but a dead channel may still have a last word in `data_to_send`).

    Holds at most one partial Noise message of what came in.

    Args:
        identity: Ours; proved to the peer.
        network: 32 bytes, from `signing.network_id`.
        version: Of the protocol spoken inside; both ends must give the same.
        initiator: Whether we opened the connection.
        entropy: For the ephemeral key, and for the static key if none is given.
        static: X25519 key pair, one for all connections of a process, never stored. None: a fresh one.
        expected: The only key the peer may prove, if we know whom we dial. Checked by the initiator before it
            tells who it is.
        rekey_messages: For tests; both ends must give the same.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        network: bytes,
        version: int,
        initiator: bool,
        entropy: Entropy,
        static: KeyPair | None = None,
        expected: PublicKey | None = None,
        rekey_messages: int = REKEY_MESSAGES,
    ) -> None:
        assert len(network) == NETWORK_ID_BYTES, f"a network id has 32 bytes, this one {len(network)}"
        assert rekey_messages > 0
        self._identity = identity
        self._network = network
        self._version = version.to_bytes(_VERSION_BYTES, "big")
        self._initiator = initiator
        self._static = static or KeyPair.generate(entropy)
        self._expected = expected
        self._rekey_messages = rekey_messages
        self._handshake = HandshakeState(
            XX,
            initiator=initiator,
            prologue=MAGIC + self._version + network,
            entropy=entropy,
            static=self._static,
        )
        self._messages = 0  # handshake messages written or read
        self._send: CipherState | None = None  # set when the handshake is complete, with _receive
        self._receive: CipherState | None = None
        self._incoming = bytearray()  # at most one incomplete Noise message between calls
        self._outgoing: list[bytes] = []
        self._dead = ""  # why
        if initiator:
            self._write_handshake(_padded(MAGIC + self._version))

    def receive_data(self, data: bytes) -> list[ChannelEvent]:
        """What the next bytes of the stream amount to, whichever way the stream has cut them.

        Raises:
            CryptoError: with a sentence for the log. Messages that came before the bad bytes in the same call
                are lost with the channel.
        """
        self._check_alive()
        self._incoming += data
        events: list[ChannelEvent] = []
        offset = 0
        try:
            # One deletion at the end, not one for each message, keeps large inputs linear.
            with memoryview(self._incoming) as view:
                while True:
                    start = offset + _LENGTH_BYTES
                    if start > len(view):
                        break
                    size = int.from_bytes(view[offset:start], "big")
                    self._check_size(size)
                    if start + size > len(view):
                        break
                    offset = start + size
                    self._read(bytes(view[start:offset]), events)
        except CryptoError as error:
            # The responder's version, for the sentence at the other end; an initiator has nothing left to say.
            told = isinstance(error, VersionError) and not self._initiator
            last_word = self._outgoing if told else []
            self._forget(str(error))
            self._outgoing = last_word
            raise
        del self._incoming[:offset]
        return events

    def data_to_send(self) -> bytes:
        """Everything queued for the stream, once; empty if there is nothing."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def seal(self, *plaintexts: bytes) -> bytes:
        """Encrypt messages, to be put on the stream before the next ones are sealed: the peer counts.

        Only after `Established`; each at most PLAINTEXT_BYTES_MAX bytes.

        Raises:
            CryptoError: the channel is closed or dead, or its counter is spent.
        """
        self._check_alive()
        assert self._send is not None, "nothing may be sent before the peer has proved who it is"
        sealed: list[bytes] = []
        try:
            for plaintext in plaintexts:
                assert len(plaintext) <= PLAINTEXT_BYTES_MAX
                message = self._send.encrypt(plaintext)
                self._count(self._send)
                sealed += (len(message).to_bytes(_LENGTH_BYTES, "big"), message)
        except CryptoError as error:
            self._die(str(error))
        return b"".join(sealed)

    @property
    def partial(self) -> bool:
        """Whether a part of a message has arrived, whose rest has not."""
        return bool(self._incoming)

    def close(self) -> None:
        """Forget the keys and whatever is queued. Tells the peer nothing: close the stream for that."""
        if not self._dead:
            self._forget("The channel is closed.")

    # --- handshake -------------------------------------------------------------------------------

    def _write_handshake(self, payload: bytes) -> None:
        message = self._handshake.write_message(payload)
        assert len(message) == HANDSHAKE_MESSAGE_BYTES[self._messages]
        self._queue(message)
        self._messages += 1

    def _read_handshake(self, message: bytes, events: list[ChannelEvent]) -> None:
        transcript = self._handshake.handshake_hash  # what a proof in this message was signed over
        try:
            payload = self._handshake.read_message(message)
        except CryptoError as error:
            raise CryptoError(
                f"Handshake message {self._messages + 1} failed: other network, other version, or altered on "
                f"the way ({error})"
            ) from None
        self._messages += 1
        if self._messages == 1:
            self._check_opening(payload)
            self._write_handshake(self._proof())
            return
        key = self._check_proof(payload, transcript)
        if self._initiator:
            self._write_handshake(self._proof())
        self._send, self._receive = self._handshake.split()
        events.append(Established(key))

    def _check_opening(self, payload: bytes) -> None:
        """Only for the sake of the sentence: a liar here fails at the next message by the prologue."""
        if not payload.startswith(MAGIC):
            raise CryptoError("The peer does not speak this protocol: no p2pnode opening.")
        version = payload[len(MAGIC) : len(MAGIC) + 2]
        if version != self._version:
            self._queue(self._version)
            raise self._other_version(version)
        if payload != _padded(MAGIC + version):
            raise CryptoError("The padding of the peer's opening is not zero.")

    def _other_version(self, version: bytes) -> VersionError:
        return VersionError(int.from_bytes(version, "big"), int.from_bytes(self._version, "big"))

    def _proof(self) -> bytes:
        body = _proof_body(self._static.public, self._handshake.handshake_hash, initiator=self._initiator)
        return _padded(self._identity.public_key + self._identity.sign(Purpose.CHANNEL, self._network, body))

    def _check_proof(self, payload: bytes, transcript: bytes) -> PublicKey:
        key = PublicKey(payload[:PUBLIC_KEY_BYTES])
        signature = Signature(payload[PUBLIC_KEY_BYTES : PUBLIC_KEY_BYTES + SIGNATURE_BYTES])
        if payload != _padded(key + signature):
            raise CryptoError("The padding of the peer's identity proof is not zero.")
        static = self._handshake.remote_static
        assert static is not None
        if key == self._identity.public_key or static == self._static.public:
            raise CryptoError(
                "The peer has our own key: we are connected to ourselves, or the key was copied."
            )
        if self._expected is not None and key != self._expected:
            raise CryptoError(f"The peer is {key.hex()}, expected was {self._expected.hex()}.")
        try:
            verify(
                key,
                Purpose.CHANNEL,
                self._network,
                _proof_body(static, transcript, initiator=not self._initiator),
                signature,
            )
        except CryptoError:
            raise CryptoError(f"The peer's proof to be {key.hex()} does not hold.") from None
        return key

    # --- transport -------------------------------------------------------------------------------

    def _check_size(self, size: int) -> None:
        """Refuse a length before waiting for its bytes: junk on the port ends here, after two bytes."""
        if self._receive is None:
            expected = HANDSHAKE_MESSAGE_BYTES[self._messages]
            if size != expected and not (self._awaits_answer and size == _VERSION_BYTES):
                raise CryptoError(
                    f"Handshake message {self._messages + 1} has {expected} bytes, the peer announces "
                    f"{size}: not a p2pnode, or of another version."
                )
        elif size < TAG_BYTES:
            raise CryptoError(f"A message has at least {TAG_BYTES} bytes, the peer announces {size}.")

    @property
    def _awaits_answer(self) -> bool:
        return self._initiator and self._messages == 1

    def _read(self, message: bytes, events: list[ChannelEvent]) -> None:
        if self._receive is None:
            if len(message) == _VERSION_BYTES:
                if message == self._version:
                    raise CryptoError("The peer refuses us for our version, which it says is its own.")
                raise self._other_version(message)
            self._read_handshake(message, events)
            return
        plaintext = self._receive.decrypt(message)
        self._count(self._receive)
        events.append(Message(plaintext))

    def _count(self, cipher: CipherState) -> None:
        if cipher.nonce % self._rekey_messages == 0:
            cipher.rekey()

    def _queue(self, message: bytes) -> None:
        assert len(message) <= MESSAGE_BYTES_MAX
        self._outgoing += (len(message).to_bytes(_LENGTH_BYTES, "big"), message)

    # --- the end ---------------------------------------------------------------------------------

    def _check_alive(self) -> None:
        if self._dead:
            raise CryptoError(self._dead)

    def _die(self, reason: str) -> NoReturn:
        self._forget(reason)
        raise CryptoError(reason) from None

    def _forget(self, reason: str) -> None:
        self._dead = reason
        self._send = self._receive = None
        del self._handshake, self._static
        self._incoming = bytearray()
        self._outgoing = []


def _padded(payload: bytes) -> bytes:
    return payload.ljust(HANDSHAKE_PAYLOAD_BYTES, b"\0")


def _proof_body(static: bytes, transcript: bytes, *, initiator: bool) -> bytes:
    return static + transcript + (b"\0" if initiator else b"\1")
