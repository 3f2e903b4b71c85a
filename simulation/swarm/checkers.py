"""The checker of the swarm: what no honest node may ever do, seen from the wire, the weights and the disk.

Stricter than `simulation.checkers.ExchangeChecker`, because here some nodes lie: a frame counts as genuine if its
author really sent it and its signature holds, by a verification of our own (PyNaCl, the signed bytes composed here).
The weights are watched, too: a change of them needs a genuine frame whose payload it came from.

Holds for honest nodes:
- no key signs two different things under one sequence number, over offers, replies and records;
- weights change only by a genuine offer or reply: signed by its author for this node, in this run, its payload whole;
- nothing is applied twice, and what is applied of one author rises in number (until power loss takes the mark away);
- both halves of an exchange are equal and opposite, so that the sum is kept but for halves whose reply was lost;
- of a rescue there is one half, the initiator's, and it is as long as the responder said;
- no reply moves a node further than the limit it declared; weights stay finite;
- no honest node is accused: banned, convicted, or refused for what only a liar or a bug does.
"""

import hashlib
from collections.abc import Mapping
from typing import NoReturn

import msgspec
import numpy as np
from msgspec import Struct
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from crypto.identity import PublicKey
from gossip.dht.ids import NodeId
from gossip.errors import Reason
from gossip.events import Adopt, Exchanged, Finish, Job, JobRefused, JobResult, Refused, Rescued, Respond
from gossip.learning.codec import FloatArray
from simulation.checkers import ViolationError
from simulation.machines import Host

# Refusals that accuse: an honest node never gives cause. Left out are those that happen between honest nodes: late
# copies, restarts, rates, distances between models.
ACCUSING = frozenset(
    {
        Reason.MALFORMED,
        Reason.OVERSIZED,
        Reason.BAD_SIGNATURE,
        Reason.MISADDRESSED,
        Reason.UNKNOWN_SHARD,
        Reason.UNKNOWN_REFERENCE,
        Reason.UNKNOWN_CODEC,
        Reason.WRONG_LENGTH,
        Reason.WRONG_HASH,
        Reason.NOT_FINITE,
        Reason.BAD_RECORD,
        Reason.EQUIVOCATION,
    }
)
# Offers of others that a node works on at the same time (8), and its own exchanges, one for each shard (3 at most in
# the swarm). What is refused has been ordered, too, so that the sum is never exceeded.
ORDERS_MAX = 11
_CLIP_UNIT = 1e-6
_CLIP_NONE = 2**63 - 1
# Rounding of float32 additions, relative to the largest weight on either side; and of the limit, as the gate has it.
_ROUNDING = 1e-6
_CLIP_SLACK = 2e-3


class _Exchange(Struct):
    header: bytes
    payload: bytes
    signature: bytes


class _Fields(Struct):
    """Of an offer's or a reply's header; what the other kind has is empty."""

    author: bytes
    hash: bytes
    run: bytes
    seq: int
    to: bytes
    age: int = 0
    clip: int = _CLIP_NONE
    offer: bytes = b""
    verdict: str = ""


class _Put(Struct):
    n: int
    record: bytes


class _Stored(Struct):
    n: int
    reason: str


class _Hello(Struct):
    record: bytes


class _Record(Struct):
    body: bytes
    signature: bytes


class _Body(Struct):
    key: bytes
    seq: int
    place: bytes = b""


class _Candidate(Struct):
    """A genuine frame that arrived and may be applied."""

    source: NodeId
    author: bytes
    seq: int
    digest: bytes  # of the offer's header
    payload: bytes  # its hash
    side: str  # offer, change or state
    clip: int = _CLIP_NONE  # what the receiver declared, for a reply


class _Half(Struct):
    change: FloatArray
    scale: float


_exchange = msgspec.msgpack.Decoder(_Exchange)
_fields = msgspec.msgpack.Decoder(_Fields)
_put = msgspec.msgpack.Decoder(_Put)
_stored = msgspec.msgpack.Decoder(_Stored)
_hello = msgspec.msgpack.Decoder(_Hello)
_record = msgspec.msgpack.Decoder(_Record)
_body = msgspec.msgpack.Decoder(_Body)


class SwarmChecker:
    """Args:
    run: Id of the run that all honest nodes are in.
    network: 32 bytes.
    honest: Public keys; more are added when a node gets a new key.
    replay: The command that repeats this run.
    """

    def __init__(self, *, run: bytes, network: bytes, honest: dict[bytes, None], replay: str) -> None:
        self.checks = 0
        self.lost_halves = 0  # offers applied by the responder alone: a reply was lost, or the initiator died
        self.rescued_halves = 0  # changes applied by the initiator alone: it was too far away to be followed
        self.whole = 0
        self.acknowledged: dict[tuple[bytes, bytes], None] = {}  # (owner's key, place) of kept records
        self._run = run
        self._network = network
        self._honest = honest
        self._ids: dict[NodeId, bytes] = {NodeId(hashlib.sha256(key).digest()): key for key in honest}
        self._replay = replay
        self._signed: dict[bytes, dict[int, bytes]] = {}  # honest author -> seq -> signature
        self._sent: dict[bytes, bool] = {}  # signature of an offer or reply -> whether it holds
        self._asked: dict[bytes, tuple[bytes, bytes, int]] = {}  # digest -> author, addressee, clip
        self._candidates: dict[bytes, list[_Candidate]] = {}  # by the receiver's key
        self._orders: dict[bytes, list[tuple[Job, _Candidate]]] = {}  # under way, by the node's key
        self._highest: dict[tuple[bytes, bytes], int] = {}  # (receiver, author) -> seq applied
        self._applied: dict[tuple[bytes, bytes, str], None] = {}  # (receiver, digest, side)
        self._halves: dict[bytes, _Half] = {}  # digest -> what the honest responder applied
        self._rescues: dict[
            bytes, float
        ] = {}  # digest -> norm of what an honest responder answered and did not apply
        self._puts: dict[tuple[bytes, bytes, int], bytes] = {}  # (asker, asked, n) -> record
        self._records: dict[bytes, None] = {}  # own records of honest nodes that were seen before

    def trust(self, key: PublicKey) -> None:
        """This honest node has this key from now on."""
        self._honest[key] = None
        self._ids[NodeId(hashlib.sha256(key).digest())] = key

    # --- what World tells -----------------------------------------------------------------------------

    def sent(self, key: PublicKey, frame: bytes, now: float) -> None:
        """The owner of `key` put `frame` on the network."""
        tag = _tag(frame)
        if key not in self._honest:
            return
        if tag in (b"offer", b"reply"):
            message = _exchange.decode(frame)
            header = _fields.decode(message.header)
            self._once(key, header.seq, message.signature, now)
            self._sent[message.signature] = True
            if tag == b"offer":
                digest = hashlib.sha256(message.header).digest()
                self._asked.setdefault(digest, (header.author, header.to, header.clip))
        elif tag == b"hello":
            self._own_record(key, _hello.decode(frame).record, now)
        elif tag == b"put_record":
            self._own_record(key, _put.decode(frame).record, now)

    def delivered(
        self, *, source: NodeId, source_key: PublicKey, target: NodeId, target_key: PublicKey, frame: bytes
    ) -> None:
        """`frame` reached `target` over its connection with `source`."""
        if target_key not in self._honest:
            return
        tag = _tag(frame)
        if tag in (b"offer", b"reply"):
            candidate = self._candidate(tag, source, source_key, target_key, frame)
            if candidate is not None:
                self._candidates.setdefault(target_key, []).append(candidate)
        elif source_key not in self._honest:
            return
        elif tag == b"put_record":
            put = _put.decode(frame)
            self._puts[source_key, target_key, put.n] = put.record
        elif tag == b"stored":
            stored = _stored.decode(frame)
            record = self._puts.pop((target_key, source_key, stored.n), None)
            if record is not None and not stored.reason:
                body = _body.decode(_record.decode(record).body)
                self.acknowledged[body.key, body.place] = None

    def told(self, node: NodeId, news: Exchanged, now: float) -> None:
        """An honest node's news; its weights are watched, so that news prove nothing."""
        self.checks += 1

    def settle(self) -> None:
        """The last delivered frame has ordered what it orders."""
        self._candidates.clear()

    # --- what the node orders, and what its learner does --------------------------------------------

    def ordered(self, host: Host, job: Job) -> None:
        """An honest node orders a job. One that changes weights rests on the frame that has just arrived."""
        if isinstance(job, Respond | Finish | Adopt):
            sides = {Respond: ("offer",), Finish: ("change",), Adopt: ("state", "offer")}[type(job)]
            candidate = self._take(host, sides, hashlib.sha256(job.payload).digest())
            orders = self._orders.setdefault(host.key, [])
            orders.append((job, candidate))
            if len(orders) > ORDERS_MAX:
                self._fail(host, f"it works on {len(orders)} exchanges, expected at most {ORDERS_MAX}")

    def worked(self, host: Host, job: Job, result: JobResult, change: FloatArray, scale: float) -> None:
        """A job of an honest node ended, and `change` is what it did to the weights."""
        if not isinstance(job, Respond | Finish | Adopt):
            if change.any():
                self._fail(host, f"{type(job).__name__} changed the weights")
            return
        self.checks += 1
        orders = self._orders.get(host.key, [])
        position = next((at for at, (order, _) in enumerate(orders) if order is job), None)
        if position is None:
            self._fail(host, f"it did a {type(job).__name__} that nobody ordered")
        candidate = orders.pop(position)[1]
        if isinstance(result, JobRefused):
            if change.any():
                self._fail(host, f"a refused {type(job).__name__} changed the weights")
            return
        if isinstance(result, Rescued):
            if change.any():
                self._fail(host, "it refused to follow for the distance, and moved")
            self._rescues[candidate.digest] = result.norm
            return
        if not np.isfinite(change).all():
            self._fail(host, "the weights are not finite any more")
        if isinstance(job, Respond):
            self._halves[candidate.digest] = _Half(change, scale)
            self.lost_halves += 1
        elif isinstance(job, Finish):
            self._opposite(host, candidate, change, scale)

    def _take(self, host: Host, sides: tuple[str, ...], payload: bytes) -> _Candidate:
        waiting = self._candidates.get(host.key, [])
        found = [one for one in waiting if one.side in sides and one.payload == payload]
        if not found:
            self._fail(host, f"it applied a payload as {sides[0]} that no genuine frame brought")
        usable = [one for one in found if (host.key, one.digest, one.side) not in self._applied]
        if not usable:
            self._fail(host, f"it applied the same {sides[0]} twice")
        candidate = min(usable, key=lambda one: one.seq)
        if candidate.side == "offer":
            highest = self._highest.get((host.key, candidate.author), -1)
            usable = [one for one in usable if one.seq > highest]
            if not usable:
                self._fail(
                    host,
                    f"it applied number {candidate.seq} of {candidate.author.hex()[:8]} after number {highest}",
                )
            candidate = min(usable, key=lambda one: one.seq)
            self._highest[host.key, candidate.author] = candidate.seq
        waiting.remove(candidate)
        self._applied[host.key, candidate.digest, candidate.side] = None
        return candidate

    def _opposite(self, host: Host, candidate: _Candidate, change: FloatArray, scale: float) -> None:
        moved = float(np.linalg.norm(change.astype(np.float64)))
        if candidate.clip != _CLIP_NONE:
            limit = candidate.clip * _CLIP_UNIT / 2.0
            slack = limit * _CLIP_SLACK + _ROUNDING * (1.0 + scale) * len(change) ** 0.5
            if moved > limit + slack:
                self._fail(host, f"a reply moved it by {moved:.3g}; it had declared at most {limit:.3g}")
        rescue = self._rescues.pop(candidate.digest, None)
        if rescue is not None:
            self.rescued_halves += 1
            slack = rescue * _CLIP_SLACK + _ROUNDING * (1.0 + scale) * len(change) ** 0.5
            if abs(moved - rescue / 2.0) > slack:
                self._fail(host, f"a rescue moved it by {moved:.3g}, expected {rescue / 2.0:.3g}")
            return
        half = self._halves.pop(candidate.digest, None)
        if half is None:
            return  # the responder is hostile: bounded above, and nothing else is promised
        self.lost_halves -= 1
        self.whole += 1
        error = float(np.abs(change + half.change).max())
        if error > _ROUNDING * max(scale, half.scale, 1e-3):
            self._fail(host, f"the halves of an exchange do not cancel: {error:.3g} is left of the sum")

    # --- what the swarm tells -------------------------------------------------------------------------

    def accused(self, host: Host, news: Refused) -> None:
        """An honest node refused something."""
        if news.by_us and news.peer in self._ids and news.reason in ACCUSING:
            self._fail(
                host, f"it accuses the honest {self._ids[news.peer].hex()[:8]}: {news.reason}, {news.detail}"
            )

    def stopped(self, host: Host) -> None:
        """The program died: what had arrived and was not applied never will be."""
        self._candidates.pop(host.key, None)
        self._orders.pop(host.key, None)

    def forgot(self, host: Host, marks: dict[bytes, int]) -> None:
        """Power loss took marks of these authors: what is still there counts from now on."""
        for author, kept in marks.items():
            if self._highest.get((host.key, author), -1) > kept:
                self._highest[host.key, author] = kept
                for receiver, digest, side in list(self._applied):
                    if (
                        receiver == host.key
                        and side == "offer"
                        and self._asked.get(digest, (author,))[0] == author
                    ):
                        del self._applied[receiver, digest, side]

    def bounds(self, host: Host, sizes: Mapping[str, tuple[int, float]]) -> None:
        """Sizes of tables and queues, each with its limit."""
        self.checks += 1
        for name, (size, limit) in sizes.items():
            if size > limit:
                self._fail(host, f"{name} has {size} entries, expected at most {limit:g}")

    def fail(self, host: Host, what: str) -> NoReturn:
        self._fail(host, what)

    # --- inside -----------------------------------------------------------------------------------------

    def _candidate(
        self, tag: bytes, source: NodeId, source_key: PublicKey, target_key: PublicKey, frame: bytes
    ) -> _Candidate | None:
        """What may be applied because of this frame; None: nothing."""
        try:
            message = _exchange.decode(frame)
            header = _fields.decode(message.header)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if header.author != source_key or header.to != target_key or header.run != self._run:
            return None
        if hashlib.sha256(message.payload).digest() != header.hash:
            return None
        if not self._holds(tag, header.author, message):
            return None
        if tag == b"offer":
            digest = hashlib.sha256(message.header).digest()
            return _Candidate(source, header.author, header.seq, digest, header.hash, "offer")
        author, to, clip = self._asked.get(header.offer, (b"", b"", 0))
        if author != target_key or to != source_key:
            return None
        return _Candidate(source, header.author, header.seq, header.offer, header.hash, header.verdict, clip)

    def _holds(self, tag: bytes, author: bytes, message: _Exchange) -> bool:
        """Whether the signature is right. Of honest authors only what they really sent is."""
        if author in self._honest:
            return self._sent.get(message.signature, False)
        try:
            prefix = b"p2pnode/" + tag + b"/v1\0" + self._network
            VerifyKey(author).verify(prefix + message.header, message.signature)
        except (BadSignatureError, ValueError):
            return False
        return True

    def _own_record(self, key: bytes, data: bytes, now: float) -> None:
        if data in self._records:
            return
        self._records[data] = None
        record = _record.decode(data)
        body = _body.decode(record.body)
        if body.key == key:
            self._once(key, body.seq, record.signature, now)

    def _once(self, key: bytes, seq: int, signature: bytes, now: float) -> None:
        self.checks += 1
        # Ed25519 is deterministic: another signature is another thing signed.
        if self._signed.setdefault(key, {}).setdefault(seq, signature) != signature:
            raise ViolationError(
                f"at {now:.6f} s: key {key.hex()[:8]} signed two things with sequence number {seq};"
                f" replay with: {self._replay}"
            )

    def _fail(self, host: Host, what: str) -> NoReturn:
        raise ViolationError(f"node {host.index} ({host.key.hex()[:8]}): {what}; replay with: {self._replay}")


def _tag(frame: bytes) -> bytes:
    """The kind of a message, from its first bytes: a small map whose first key is "_"."""
    if len(frame) < 5 or frame[0] & 0xF0 != 0x80 or frame[1:3] != b"\xa1_" or not 0xA0 <= frame[3] < 0xC0:
        return b""
    return frame[4 : 4 + frame[3] - 0xA0]
