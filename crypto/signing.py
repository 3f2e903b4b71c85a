"""What exactly is signed: a purpose, a network, a body.

One key signs offers, replies, records and channel proofs. Without a prefix, a signature made for one of them
could be presented as another, or carried from a test network into a real one. libp2p's signed envelopes
separate domains the same way (libp2p specs, RFC 0002).
"""

import hashlib
from enum import Enum

NETWORK_ID_BYTES = 32


class Purpose(bytes, Enum):
    """The first bytes of everything signed. A member *is* its prefix.

    No prefix begins another: each ends in the only zero byte it has. Changing one is a protocol change.
    """

    OFFER = b"p2pnode/offer/v1\0"  # the header of an OfferMessage
    REPLY = b"p2pnode/reply/v1\0"  # the header of a ReplyMessage
    PEER_RECORD = b"p2pnode/peer-record/v1\0"  # where a node is reached
    PROVIDER_RECORD = b"p2pnode/provider-record/v1\0"  # which shards a node holds
    RECORD = b"p2pnode/record/v1\0"  # a record of any other kind, which its body names
    CHANNEL = b"p2pnode/channel/v1\0"  # this key owns this end of this Noise handshake


def network_id(name: str) -> bytes:
    """The 32 bytes that name a network in signatures and handshakes: SHA-256 of its name in UTF-8."""
    return hashlib.sha256(name.encode()).digest()


def signed_bytes(purpose: Purpose, network: bytes, body: bytes) -> bytes:
    """What the signature covers. `network` has 32 bytes, so that no byte can move between it and `body`."""
    assert len(network) == NETWORK_ID_BYTES, f"a network id has 32 bytes, this one {len(network)}"
    return purpose + network + body
