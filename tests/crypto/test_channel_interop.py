"""The channel against a Noise implementation that is not ours: the package `noiseprotocol`, on another crypto library.

The peer below is the protocol of `crypto/channel.py` written a second time from its docstring.
"""

import hashlib
import random
from typing import Any

import pytest
from nacl.signing import SigningKey, VerifyKey

from crypto.channel import Established, Message, SecureChannel
from crypto.identity import Identity
from crypto.signing import network_id

noise = pytest.importorskip("noise.connection", reason="NOT CHECKED: the package noiseprotocol is missing")

NETWORK = hashlib.sha256(b"interop").digest()
ALICE = Identity.from_seed(bytes([1]) * 32)
PEER = SigningKey(bytes([9]) * 32)
REKEY_MESSAGES = 4


class ForeignPeer:
    """The other end: noiseprotocol for Noise, bare PyNaCl for the proof."""

    def __init__(self, *, initiator: bool) -> None:
        self.initiator = initiator
        self.connection: Any = noise.NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
        self.connection.set_prologue(b"p2pnode\0" + b"\0\1" + NETWORK)
        (self.connection.set_as_initiator if initiator else self.connection.set_as_responder)()
        self.connection.set_keypair_from_private_bytes(noise.Keypair.STATIC, bytes([5]) * 32)
        self.connection.start_handshake()
        self.sent = self.received = 0

    def transcript(self) -> bytes:
        symmetric = self.connection.noise_protocol.handshake_state.symmetric_state
        return bytes(symmetric.get_handshake_hash())

    def proof(self) -> bytes:
        static = self.connection.noise_protocol.handshake_state.s.public_bytes
        role = b"\0" if self.initiator else b"\1"
        signed = b"p2pnode/channel/v1\0" + NETWORK + static + self.transcript() + role
        return (bytes(PEER.verify_key) + PEER.sign(signed).signature).ljust(256, b"\0")

    def check_proof(self, message: bytes) -> bytes:
        """The peer's public key, verified."""
        transcript = self.transcript()
        state = self.connection.noise_protocol.handshake_state  # gone once the handshake is complete
        payload = bytes(self.connection.read_message(message))
        key, signature, padding = payload[:32], payload[32:96], payload[96:]
        assert padding == bytes(160)
        role = b"\1" if self.initiator else b"\0"
        signed = b"p2pnode/channel/v1\0" + NETWORK + state.rs.public_bytes + transcript + role
        VerifyKey(key).verify(signed, signature)
        return key

    def write(self, payload: bytes) -> bytes:
        return framed(bytes(self.connection.write_message(payload)))

    def send(self, plaintext: bytes) -> bytes:
        data = framed(self.connection.encrypt(plaintext))
        self.sent += 1
        if self.sent % REKEY_MESSAGES == 0:
            self.connection.rekey_outbound_cipher()
        return data

    def receive(self, data: bytes) -> bytes:
        plaintext = bytes(self.connection.decrypt(unframed(data)))
        self.received += 1
        if self.received % REKEY_MESSAGES == 0:
            self.connection.rekey_inbound_cipher()
        return plaintext


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def unframed(data: bytes) -> bytes:
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    return data[2:]


def ours(*, initiator: bool) -> SecureChannel:
    return SecureChannel(
        identity=ALICE,
        network=network_id("interop"),
        version=1,
        initiator=initiator,
        entropy=random.Random(1).randbytes,
        rekey_messages=REKEY_MESSAGES,
    )


def exchange(end: SecureChannel, peer: ForeignPeer) -> None:
    """Messages both ways, over two changes of keys."""
    for number in range(2 * REKEY_MESSAGES + 1):
        plaintext = bytes((number,)) * number * 1000
        assert peer.receive(end.seal(plaintext)) == plaintext
        assert end.receive_data(peer.send(plaintext + b"back")) == [Message(plaintext + b"back")]


def test_we_initiate_to_a_foreign_implementation() -> None:
    end, peer = ours(initiator=True), ForeignPeer(initiator=False)
    opening = bytes(peer.connection.read_message(unframed(end.data_to_send())))
    assert opening == (b"p2pnode\0" + b"\0\1").ljust(256, b"\0")
    assert end.receive_data(peer.write(peer.proof())) == [Established(bytes(PEER.verify_key))]
    assert peer.check_proof(unframed(end.data_to_send())) == ALICE.public_key
    exchange(end, peer)


def test_we_respond_to_a_foreign_implementation() -> None:
    end, peer = ours(initiator=False), ForeignPeer(initiator=True)
    assert end.receive_data(peer.write((b"p2pnode\0" + b"\0\1").ljust(256, b"\0"))) == []
    assert peer.check_proof(unframed(end.data_to_send())) == ALICE.public_key
    assert end.receive_data(peer.write(peer.proof())) == [Established(bytes(PEER.verify_key))]
    exchange(end, peer)
