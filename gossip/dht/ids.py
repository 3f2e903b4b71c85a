"""Names and distances of the DHT: 256-bit ids under XOR (Maymounkov and Mazieres 2002, section 2)."""

import hashlib
from collections.abc import Iterable
from typing import NewType

from crypto.identity import PublicKey

NodeId = NewType("NodeId", bytes)  # 32 bytes: SHA-256 of an Ed25519 public key
Key = NewType("Key", bytes)  # 32 bytes: what records are stored under; shares its space with NodeId

ID_BITS = 256


def node_id(key: PublicKey) -> NodeId:
    """The DHT name of the owner of `key`. Hashing makes a chosen position in the id space cost work."""
    return NodeId(hashlib.sha256(key).digest())


def provider_key(run: bytes, shard: int) -> Key:
    """Where the providers of one shard of one run are found."""
    return Key(hashlib.sha256(b"p2pnode/providers/v1\0" + run + shard.to_bytes(4, "big")).digest())


def owned_key(owner: PublicKey, kind: str, salt: bytes) -> Key:
    """Where the one record of `owner` is found that has this kind and salt. Nobody else's can belong there.

    Args:
        kind: ASCII without a zero byte, so that no byte can move between it and `salt`.
        salt: Which one, where the owner has several of a kind.
    """
    named = owner + kind.encode("ascii") + b"\0" + salt
    return Key(hashlib.sha256(b"p2pnode/record-key/v1\0" + named).digest())


def distance(a: bytes, b: bytes) -> int:
    """XOR distance, in [0, 2**256)."""
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


def common_prefix_bits(a: bytes, b: bytes) -> int:
    """Number of leading bits that `a` and `b` share, in [0, 256]."""
    return ID_BITS - distance(a, b).bit_length()


def closest(ids: Iterable[NodeId], target: bytes, count: int) -> list[NodeId]:
    """The `count` ids nearest to `target`, nearest first."""
    return sorted(ids, key=lambda node: distance(node, target))[:count]
