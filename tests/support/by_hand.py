"""A peer that is another program's: everything that it says is written by hand, with the package msgpack.

It sits on the wire of tests/gossip/conftest.py like any node. What it speaks is a map of protocols to versions.
"""

import hashlib
from collections import Counter
from math import inf
from typing import Any

import msgpack
import numpy as np

from crypto.identity import Identity
from crypto.signing import Purpose, network_id
from gossip.events import Effect, Event, PeerUp, Received, Send

NETWORK = network_id("main")


def packed(**fields: Any) -> bytes:
    """A canonical map: keys in bytewise order."""
    return msgpack.packb(dict(sorted(fields.items())))


def message(name: str, /, **fields: Any) -> bytes:
    return packed(_=name, **fields)


def record(owner: Identity, purpose: Purpose, /, **fields: Any) -> bytes:
    """A signed record."""
    body = packed(**fields)
    return packed(body=body, signature=owner.sign(purpose, NETWORK, body))


class Stranger:
    """A peer that another program runs. It is its own node: events in, `Send` out, no deadlines.

    Args:
        target: The node of ours that it deals with.
        more: Further keys of its peer record.
    """

    deadline = inf

    def __init__(
        self,
        target: Any,
        *,
        protocols: dict[str, list[int]],
        extra: dict[str, bytes],
        seed: bytes = b"\x77" * 32,
        more: dict[str, Any] | None = None,
    ) -> None:
        self.identity = Identity.from_seed(seed)
        self.id = hashlib.sha256(self.identity.public_key).digest()
        self.address = "10.0.0.77:7400"
        self.told = True
        self.node = self
        self.number = 77
        self.news: list[Any] = []
        self.target = target
        self.weights = np.ones(200, np.float32)
        self.protocols = protocols
        self.extra = extra
        self.more = more or {}
        self.heard: list[dict[str, Any]] = []
        self._seq = 0
        self._offered: dict[bytes, None] = {}  # hashes of our headers

    def tags(self) -> Counter[str]:
        return Counter(said["_"] for said in self.heard)

    def unsupported(self) -> list[str]:
        return [said["tag"] for said in self.heard if said["_"] == "unsupported"]

    # --- what it says --------------------------------------------------------------------------------

    def hello(self) -> bytes:
        spoken = dict(sorted(self.protocols.items()))
        return message(
            "hello", agent="other/9.0", extra=self.extra, protocols=spoken, record=self.peer_record()
        )

    def peer_record(self) -> bytes:
        return record(
            self.identity,
            Purpose.PEER_RECORD,
            _="peer",
            addresses=[self.address],
            key=self.identity.public_key,
            run=bytes(32),
            seq=1,
            ttl_s=3600,
            **self.more,
        )

    def offer(self) -> bytes:
        self._seq += 1
        payload = self.weights.astype("<f4").tobytes()
        header = packed(
            age=50,
            author=self.identity.public_key,
            clip=2**63 - 1,
            codec="f32",
            hash=hashlib.sha256(payload).digest(),
            nonce=bytes(8),
            reference=self.target.run.reference,
            run=self.target.run.id,
            seq=self._seq,
            shard=0,
            to=self.target.identity.public_key,
        )
        self._offered[hashlib.sha256(header).digest()] = None
        signature = self.identity.sign(Purpose.OFFER, NETWORK, header)
        return message("offer", header=header, payload=payload, signature=signature)

    def _reply(self, offer: dict[str, Any]) -> bytes:
        """Move by half of the difference, and say so."""
        change = np.frombuffer(offer["payload"], "<f4") - self.weights
        self.weights = self.weights + change / 2
        self._seq += 1
        payload = change.astype("<f4").tobytes()
        header = packed(
            age=50,
            author=self.identity.public_key,
            codec="f32",
            detail="",
            hash=hashlib.sha256(payload).digest(),
            offer=hashlib.sha256(offer["header"]).digest(),
            reason="",
            run=self.target.run.id,
            seq=self._seq,
            shard=0,
            to=self.target.identity.public_key,
            verdict="change",
        )
        signature = self.identity.sign(Purpose.REPLY, NETWORK, header)
        return message("reply", header=header, payload=payload, signature=signature)

    # --- what it hears -------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case PeerUp(peer):
                said = [self.hello()]
                if "run" in self.protocols:
                    said.append(message("holds", runs=[[self.target.run.id, [0]]]))
                return [Send(peer, frame) for frame in said]
            case Received(peer, frame):
                heard = msgpack.unpackb(frame)
                self.heard.append(heard)
                answer = self._answer(heard)
                return [Send(peer, answer)] if answer else []
        return []

    def _answer(self, heard: dict[str, Any]) -> bytes:
        match heard["_"]:
            case "offer":
                return self._reply(heard)
            case "reply":
                header = msgpack.unpackb(heard["header"])
                if header["verdict"] == "change" and header["offer"] in self._offered:
                    self.weights = self.weights - np.frombuffer(heard["payload"], "<f4") / 2
            case "ping":
                return message("pong", n=heard["n"])
            case "find_node":
                return message("nodes", n=heard["n"], records=[])
            case "get_records":
                return message("records", n=heard["n"], nodes=[], records=[])
            case "put_record":
                return message("stored", n=heard["n"], reason="")
            case "get_manifest":
                return message("manifest", data=b"", n=heard["n"])
        return b""
