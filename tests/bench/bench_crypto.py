"""What proof and secrecy cost: signatures, handshakes, the channel.

References: the bindings of PyNaCl without anything of ours around them, and the package `noiseprotocol` for the
handshake. Ours does more in a handshake: an Ed25519 proof in each direction, and its check.
"""

import os

from nacl import bindings
from noise.connection import Keypair, NoiseConnection

from crypto.channel import Message, SecureChannel
from crypto.identity import Identity, verify
from crypto.signing import Purpose, network_id
from gossip.net.lanes import CHANNEL_VERSION, PIECE_BYTES_MAX, Lane, Receiver, Sender
from tests.bench.figures import Figure, medians, times

NETWORK = network_id("bench")
# About the size of an OfferHeader.
BODY = b"h" * 300


def signatures(brief: bool) -> list[Figure]:
    identity = Identity.generate(os.urandom)
    public, secret = bindings.crypto_sign_seed_keypair(os.urandom(32))
    message = NETWORK + BODY
    signed = bindings.crypto_sign(message, secret)
    signature = identity.sign(Purpose.OFFER, NETWORK, BODY)
    count, repeats = (10, 1) if brief else (1000, 7)
    sign = medians(
        times(count, lambda: identity.sign(Purpose.OFFER, NETWORK, BODY)),
        times(count, lambda: bindings.crypto_sign(message, secret)),
        repeats=repeats,
    )
    check = medians(
        times(count, lambda: verify(identity.public_key, Purpose.OFFER, NETWORK, BODY, signature)),
        times(count, lambda: bindings.crypto_sign_open(signed, public)),
        repeats=repeats,
    )
    return [
        Figure(name=name, value=count / a, unit="1/s", reference=count / b, against="bare PyNaCl")
        for name, (a, b) in (("signatures made", sign), ("signatures checked", check))
    ]


def pair() -> tuple[SecureChannel, SecureChannel]:
    """Two ends of a channel, not yet connected."""
    first, second = (
        SecureChannel(
            identity=identity,
            network=NETWORK,
            version=CHANNEL_VERSION,
            initiator=identity is IDENTITIES[0],
            entropy=os.urandom,
        )
        for identity in IDENTITIES
    )
    return first, second


IDENTITIES = (Identity.generate(os.urandom), Identity.generate(os.urandom))


def connected() -> tuple[SecureChannel, SecureChannel]:
    first, second = pair()
    second.receive_data(first.data_to_send())
    first.receive_data(second.data_to_send())
    second.receive_data(first.data_to_send())
    return first, second


def theirs() -> NoiseConnection:
    """Both ends of the same handshake by the package noiseprotocol, with fresh static keys like ours."""
    ends = []
    for initiator in (True, False):
        end = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
        (end.set_as_initiator if initiator else end.set_as_responder)()
        end.set_keypair_from_private_bytes(Keypair.STATIC, os.urandom(32))
        end.start_handshake()
        ends.append(end)
    first, second = ends
    second.read_message(first.write_message())
    first.read_message(second.write_message())
    second.read_message(first.write_message())
    assert first.handshake_finished
    assert second.handshake_finished
    return first


def handshakes(brief: bool) -> list[Figure]:
    count, repeats = (2, 1) if brief else (100, 7)
    ours, reference = medians(times(count, connected), times(count, theirs), repeats=repeats)
    return [
        Figure(
            name="handshakes, both ends, identities proved",
            value=count / ours,
            unit="1/s",
            reference=count / reference,
            against="noiseprotocol, no identities",
        )
    ]


def channel(brief: bool) -> list[Figure]:
    """A frame of 4 MiB from the sender's bytes to the receiver's, in pieces; the reference encrypts and decrypts."""
    frame = os.urandom(2**22)
    first, second = connected()
    key, nonce = os.urandom(32), bytes(12)
    pieces = [frame[i : i + 65519] for i in range(0, len(frame), 65519)]

    sender, receiver = Sender(), Receiver()

    def through() -> None:
        sender.put(frame, Lane.BULK)
        while (piece := sender.next(PIECE_BYTES_MAX)) is not None:
            for message in second.receive_data(first.seal(piece.encode())):
                assert isinstance(message, Message)
                receiver.receive(message.data)

    def bare() -> None:
        for piece in pieces:
            sealed = bindings.crypto_aead_chacha20poly1305_ietf_encrypt(piece, None, nonce, key)
            bindings.crypto_aead_chacha20poly1305_ietf_decrypt(sealed, None, nonce, key)

    ours, reference = medians(through, bare, repeats=1 if brief else 11)
    size = len(frame) / 1e9
    return [
        Figure(
            name="channel, 4 MiB frame, sealed and opened",
            value=size / ours,
            unit="GB/s",
            reference=size / reference,
            against="ChaCha20-Poly1305 through PyNaCl",
        )
    ]


BENCHMARKS = (signatures, handshakes, channel)
