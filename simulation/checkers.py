"""Watches a world from outside: the bytes that nodes send, and the news they tell.

A checker shares no code with what it checks beyond the shape of messages on the wire, and trusts no counter
of a node. What must always hold is a `ViolationError` at the moment it does not; what is a measure (consensus
distance, drift of the sum) is a function here and a figure in the report.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from math import sqrt

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from crypto.errors import CryptoError
from crypto.identity import PublicKey, Signature
from crypto.signing import Purpose
from gossip.dht.ids import NodeId
from gossip.events import Exchanged

# How a frame that carries a signed part of an exchange begins: a map of four, the tag first (gossip/wire.py).
OFFER_START = b"\x84\xa1_\xa5offer"
REPLY_START = b"\x84\xa1_\xa5reply"
START_BYTES = len(OFFER_START)


class ViolationError(AssertionError):
    """Something that must never happen happened. The message ends with the command that replays it."""


class _Signed(Struct):
    """What we need of an OfferMessage or ReplyMessage; other fields are skipped."""

    header: bytes
    signature: bytes


class _OfferFields(Struct):
    age: int
    author: bytes
    run: bytes
    seq: int
    to: bytes


class _ReplyFields(Struct):
    author: bytes
    offer: bytes
    run: bytes
    seq: int
    to: bytes
    verdict: str


_signed = msgspec.msgpack.Decoder(_Signed)
_offer = msgspec.msgpack.Decoder(_OfferFields)
_reply = msgspec.msgpack.Decoder(_ReplyFields)


def _readable(frame: bytes) -> bool:
    """Whether what begins like a part of an exchange is one; junk of a villain may not be."""
    start = frame[:START_BYTES]
    if start not in (OFFER_START, REPLY_START):
        return True
    try:
        header = _signed.decode(frame).header
        (_offer if start == OFFER_START else _reply).decode(header)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


class ExchangeChecker:
    """Each applied half of an exchange is matched with one genuine frame that arrived, and with only one.

    Holds:
    - no key signs two different headers under one sequence number, also across crashes;
    - what a responder applies is a genuine offer to it, of its run, not applied before;
    - what an initiator applies is a genuine reply to an offer of its own, not applied before.

    Args:
        run: The run id that all nodes of the world are in.
        replay: The command that repeats this run; ends the message of a violation.
    """

    def __init__(self, run: bytes, replay: str) -> None:
        self.checks = 0
        # Their owners may sign what they like, so that each of their frames is judged by its signature alone.
        self.hostile: dict[PublicKey, None] = {}
        self.verify: Callable[[PublicKey, Purpose, bytes, Signature], None] | None = None
        self._by_villains: dict[bytes, None] = {}  # signatures of theirs that are good
        self._run = run
        self._replay = replay
        self._signatures: dict[
            bytes, dict[int, bytes]
        ] = {}  # author -> seq -> signature of what was really sent
        self._asked: dict[bytes, bytes] = {}  # SHA-256 of an offer's header -> author; until applied
        self._applied: dict[bytes, None] = {}  # SHA-256 of headers of offers that a responder applied
        # (target, source, side) -> hashes of offers' headers that arrived, or were answered, and may be
        # applied
        self._pending: dict[tuple[NodeId, NodeId, str], list[bytes]] = {}

    def sent(self, key: PublicKey, frame: bytes, now: float) -> None:
        """The owner of `key` put `frame` on the network."""
        start = frame[:START_BYTES]
        if key in self.hostile and not _readable(frame):
            return
        if start == OFFER_START:
            signed = _signed.decode(frame)
            fields: _OfferFields | _ReplyFields = _offer.decode(signed.header)
            if fields.author == key:
                self._asked[sha256(signed.header).digest()] = key
        elif start == REPLY_START:
            signed = _signed.decode(frame)
            fields = _reply.decode(signed.header)
        else:
            return
        if fields.author != key:
            return  # a forgery by the sender: not genuine, so nobody may apply it
        self.checks += 1
        if key in self.hostile:
            self._judge(key, Purpose.OFFER if start == OFFER_START else Purpose.REPLY, signed)
            return
        numbers = self._signatures.setdefault(fields.author, {})
        # Ed25519 is deterministic: another signature is another header, the same one is a repeated frame.
        if numbers.setdefault(fields.seq, signed.signature) != signed.signature:
            self._fail(now, f"key {key.hex()[:8]} signed two headers with sequence number {fields.seq}")

    def heard(self, key: PublicKey, frame: bytes) -> None:
        """As `sent`, in another process than the one whose checker judges what the owner of `key` sends."""
        start = frame[:START_BYTES]
        if start not in (OFFER_START, REPLY_START):
            return
        signed = _signed.decode(frame)
        decode = _offer.decode if start == OFFER_START else _reply.decode
        fields: _OfferFields | _ReplyFields = decode(signed.header)
        if fields.author == key:
            self._signatures.setdefault(key, {}).setdefault(fields.seq, signed.signature)

    def delivered(
        self, *, source: NodeId, source_key: PublicKey, target: NodeId, target_key: PublicKey, frame: bytes
    ) -> None:
        """`frame` reached `target` over its connection with `source`."""
        start = frame[:START_BYTES]
        if source_key in self.hostile and not _readable(frame):
            return
        if start == OFFER_START:
            signed = _signed.decode(frame)
            offer = _offer.decode(signed.header)
            if offer.age == 0 or not self._genuine(offer, signed, source_key, target_key):
                return  # a newcomer's offer is a question: nothing of it is applied
            digest = sha256(signed.header).digest()
            if digest in self._applied:
                return
            side = "offer"
        elif start == REPLY_START:
            signed = _signed.decode(frame)
            reply = _reply.decode(signed.header)
            if not self._genuine(reply, signed, source_key, target_key):
                return
            digest = reply.offer
            if self._asked.get(digest) != target_key:
                return
            side = reply.verdict
        else:
            return
        self._pending.setdefault((target, source, side), []).append(digest)

    def told(self, node: NodeId, news: Exchanged, now: float) -> None:
        """`node` said that it applied an exchange."""
        self.checks += 1
        if news.role == "donor":  # its weights do not change
            return
        sides = {
            "responder": ("offer",),
            "rescuer": ("offer",),  # it does not move, but its answer moves the other, once
            "initiator": ("change", "taken"),
            "adopter": ("state", "offer"),
        }
        for side in sides[news.role]:
            digests = self._pending.get((node, news.peer, side))
            if not digests:
                continue
            digest = digests.pop()
            if side == "offer":
                self._applied[digest] = None
            else:
                self._asked.pop(digest, None)
            return
        self._fail(
            now,
            f"node {node.hex()[:8]} applied an exchange with {news.peer.hex()[:8]} as {news.role}, "
            "but no genuine frame for it had arrived, or it was applied before",
        )

    def settle(self) -> None:
        """The last delivered frame has had all its consequences: it may not have any later."""
        self._pending.clear()

    def _genuine(
        self, fields: _OfferFields | _ReplyFields, signed: _Signed, source: PublicKey, target: PublicKey
    ) -> bool:
        """Whether the owner of `source` really sent this, for `target`, in this run."""
        return (
            fields.author == source
            and fields.to == target
            and fields.run == self._run
            and (
                self._signatures.get(source, {}).get(fields.seq) == signed.signature
                or signed.signature in self._by_villains
            )
        )

    def _judge(self, key: PublicKey, purpose: Purpose, signed: _Signed) -> None:
        """Remembers what a villain really signed, twice under one number or not: that may be applied."""
        assert self.verify is not None, "a world with villains says who checks signatures"
        with suppress(CryptoError):
            self.verify(key, purpose, signed.header, Signature(signed.signature))
            self._by_villains[signed.signature] = None

    def _fail(self, now: float, what: str) -> None:
        raise ViolationError(f"at {now:.6f} s: {what}; replay with: {self._replay}")


def consensus_distance(models: Sequence[NDArray[np.float32]]) -> float:
    """Ξ = sqrt(Σ|x_i − mean|² / n), 0 for perfect agreement.

    Args:
        models: One vector per node, all of one length.
    """
    rows = np.asarray(models, dtype=np.float64)  # (nodes, values)
    centred = rows - rows.mean(axis=0)
    return sqrt(float(np.einsum("ij,ij->", centred, centred)) / len(rows))


def sum_drift(before: NDArray[np.float64], models: Sequence[NDArray[np.float32]]) -> float:
    """How far the mean of all models has moved, relative to Ξ now plus the norm of the mean.

    Without training an exchange leaves the sum as it was up to rounding; only a lost reply moves it (half an
    exchange).

    Args:
        before: The sum of all models, earlier.
        models: One vector per node, now.
    """
    rows = np.asarray(models, dtype=np.float64)
    mean = rows.mean(axis=0)
    scale = consensus_distance(models) + float(np.linalg.norm(mean))
    return float(np.linalg.norm(mean - before / len(rows))) / max(scale, np.finfo(np.float64).tiny)
