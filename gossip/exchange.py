"""The exchange of one shard between two peers (ShardPair), as messages and states; the arithmetic is elsewhere.

    initiator i                                    responder j
    Offer job: a = Q(x_i - A)
    OfferMessage(header, a) ------------------->   signature, run, sequence, bounds; then Respond job:
                                                   gate, clip, x_j += c/2
    Finish job: x_i -= c/2  <-------------------   ReplyMessage(header naming the offer's hash, c)

A newcomer (age 0) offers too, gets the responder's state instead of a change, and adopts it; a responder that is
itself a newcomer adopts what it was offered. A responder that is too far away to follow stays where it is and answers
with a change all the same (`events.Rescued`); the initiator cannot tell, and the sum moves by its half.

A node has at most two offers of a shard on the way, to different peers, and serves others meanwhile: each side applies
its half to its *current* weights, so the sum is kept whatever overlaps (docs/decisions/0002). The responder keeps its
replies, so that an offer repeated because the reply was lost is answered without being applied twice. A lost reply that
is never repeated leaves half an exchange: a small drift, measured in docs/learning.md.

Order of checks for what arrives: size (wire), budget (node), author, signature, run, sequence, bounds, payload.
"""

import hashlib
from collections.abc import Callable
from math import ceil, inf, nan

from msgspec import Struct

from crypto.errors import CryptoError
from crypto.identity import PublicKey, Signature, Signer, Verify
from crypto.signing import Purpose
from gossip import memory, wire
from gossip.config import CODECS, ExchangeConfig
from gossip.deadlines import Deadlines
from gossip.dht.ids import NodeId, node_id
from gossip.errors import Reason, RemoteError
from gossip.events import (
    Adopt,
    Adopted,
    Compute,
    Effect,
    Emit,
    Exchanged,
    Finish,
    Finished,
    Job,
    JobRefused,
    JobResult,
    Offer,
    Offered,
    Persist,
    Refused,
    Rescued,
    Respond,
    Responded,
    Send,
)
from gossip.learning.codec import payload_bytes
from gossip.learning.task import RunInfo
from gossip.sequence import Sequence
from gossip.wire import OfferHeader, OfferMessage, ReplyHeader, ReplyMessage

# A newcomer copies the donor's state without loss: once per life, so four bytes a value are worth it.
STATE_CODEC = "f32"
CLIP_UNIT = 1e-6
CLIP_NONE = 2**63 - 1
# Authors whose sequence numbers are remembered. A replay needs a connection authenticated as the author, so
# forgetting the oldest gives nothing to a third party.
MARKS_MAX = 65536
AGE_MAX = 2**53
# Offers being worked on at the same time; more are answered "busy". Bounds the memory held by payloads to 32 MiB.
INCOMING_MAX = 8
# Offers of one peer that may move us between two of our own rounds. Partners are drawn at random, so an honest one
# seldom comes twice; one that comes again and again would carry us wherever it likes, a clip length at a time, and
# widen the clip limit with each step (measured: a factor of ten in 14 contacts). No limit with one known partner.
MOVES_MAX = 2
# Replies kept in memory, whatever their number: eight of the largest. 64 states for newcomers would be 256 MiB.
REPLIES_BYTES_MAX = 2**25
# One peer has at most one part in so many of them: it waits for one reply per shard, and a flood of offers must not
# push out what others may still ask for. We would have moved, and they not.
REPLIES_SHARE = 8
# Offers of one shard that may be on the way at the same time: one, and a second because the partner of the first is
# late. A silent partner then costs its own offer and does not hold up the others; more would only help where most
# partners are silent, and each is a payload in memory and a change computed from weights that have moved on since.
IN_FLIGHT_MAX = 2
# Bounds of the deviation of answer times. The upper one is doubled five times before it reaches the timeout's order;
# without it, a partner that never answers would let it grow for ever, until it is no number any more.
DEVIATION_S_MAX = 60.0
# Offers that are over and may still be heard of, ours and withdrawn ones: those of the last minute or so. A guess.
CLOSED_MAX = 64
# A repetition costs as much as the offer: no offer is repeated before it could have come and gone at this rate, which
# any machine reaches. 4 MiB wait for a second. A guess.
REPEATED_BYTES_PER_S = 2**22
EMPTY_HASH = hashlib.sha256(b"").digest()


class Ended(Struct, frozen=True):
    """An exchange that we initiated is over."""

    number: int
    peer: NodeId
    shard: int
    reason: Reason | None  # None: applied
    crossed: bool = False  # given up for the partner's own offer: this pair is exchanging all the same


class _Outgoing(Struct):
    number: int
    shard: int
    peer: NodeId
    key: PublicKey
    state: str  # offering, waiting, finishing; withdrawn: offering no more
    age: int
    since: float = 0.0
    hash: bytes = b""
    frame: bytes = b""
    clip: float = inf  # the largest change that we accept back
    repeated: bool = False


class _Incoming(Struct):
    shard: int
    peer: NodeId
    key: PublicKey
    hash: bytes
    age: int
    codec: str


class Exchanges:
    """All exchanges of one node.

    Args:
        ages: Local steps behind each shard, 0 for a newcomer.
        marks: Highest accepted sequence number per author, from the last life.
        send: Puts a frame on the way to a peer, dialling if need be; False when that cannot be done now.
    """

    def __init__(
        self,
        *,
        identity: Signer,
        verify: Verify,
        network: bytes,
        run: RunInfo,
        config: ExchangeConfig,
        ages: list[int],
        marks: dict[bytes, int],
        sequence: Sequence,
        tickets: Callable[[], int],
        deadlines: Deadlines,
        entropy: Callable[[int], bytes],
        send: Callable[[NodeId, bytes, float, list[Effect]], bool],
    ) -> None:
        self._identity = identity
        self._verify = verify
        self._own = node_id(identity.public_key)
        self._network = network
        self._run = run
        self._config = config
        self._sequence = sequence
        self._tickets = tickets
        self._deadlines = deadlines
        self._entropy = entropy
        self._send = send
        self.ages = ages
        self._marks = marks
        self._number = 0
        self._outgoing: dict[int, _Outgoing] = {}  # by number
        self._incoming: dict[int, _Incoming] = {}  # by the ticket of its job
        self._jobs: dict[int, int] = {}  # ticket of a job for an outgoing exchange -> its number
        # Hash of an offer's header -> to whom, frame, date: oldest first.
        self._replies: dict[bytes, tuple[NodeId, bytes, float]] = {}
        self._replies_to: dict[NodeId, dict[bytes, None]] = {}  # the same offers, oldest first, by peer
        self._replies_bytes = 0
        self._moves: dict[NodeId, int] = {}  # offers worked on since our last round began, by peer
        self._alone = True
        self._closed: dict[bytes, None] = {}  # offers, by the hash of their header, that are over
        # Smoothed time to an answer and its deviation (Jacobson 1988, as in RFC 6298), so that nobody has to guess.
        self._answer_s = 0.0
        self._answer_s_deviation = 0.0
        self.ended: list[Ended] = []

    # --- what the node asks -----------------------------------------------------------------------

    def full(self, shard: int) -> bool:
        """Whether as many offers of `shard` are on the way as may be."""
        return sum(o.shard == shard for o in self._outgoing.values()) >= IN_FLIGHT_MAX

    def waiting_for(self, peer: NodeId, shard: int) -> bool:
        """Whether an offer of `shard` to `peer` is on the way."""
        return any(o.peer == peer and o.shard == shard for o in self._outgoing.values())

    @property
    def partners(self) -> list[NodeId]:
        """Peers in an exchange right now: not to be dropped as idle."""
        return [o.peer for o in self._outgoing.values()] + [i.peer for i in self._incoming.values()]

    def initiate(self, shard: int, peer: NodeId, key: PublicKey, now: float, out: list[Effect]) -> int:
        """Begin an exchange of `shard` with `peer`; returns its number. Its end is told through `ended`."""
        assert not self.full(shard)
        self._number += 1
        number = self._number
        self._outgoing[number] = _Outgoing(number, shard, peer, key, "offering", self.ages[shard], since=now)
        self._compute(number, Offer(shard, self._config.codec), out)
        return number

    def new_round(self, *, alone: bool) -> None:
        """A round of ours begins. `alone`: no more than one partner is known."""
        self._moves.clear()
        self._alone = alone

    # --- facts ------------------------------------------------------------------------------------

    def done(self, ticket: int, result: JobResult, now: float, out: list[Effect]) -> bool:
        """A job ended; False if it was not one of ours."""
        incoming = self._incoming.pop(ticket, None)
        if incoming is not None:
            self._incoming_done(incoming, result, now, out)
            return True
        number = self._jobs.pop(ticket, None)
        if number is None:
            return False
        self._outgoing_done(self._outgoing[number], result, now, out)
        return True

    def lost(self, peer: NodeId, now: float, out: list[Effect]) -> None:
        """No connection to `peer` any more, or none to be had."""
        for outgoing in list(self._outgoing.values()):
            if outgoing.peer == peer and outgoing.state == "waiting":
                self._refused(peer, Reason.TIMEOUT, "the connection went, or none could be made", False, out)
                self._end(outgoing, Reason.TIMEOUT)

    def overdue(self, number: int, now: float, out: list[Effect]) -> NodeId | None:
        """The deadline of an exchange has come: repeat the offer once, then give up.

        Returns:
            Who kept silent, where we gave up.
        """
        outgoing = self._outgoing.get(number)
        if outgoing is None or outgoing.state != "waiting":
            return None
        if not outgoing.repeated and self._send(outgoing.peer, outgoing.frame, now, out):
            outgoing.repeated = True
            self._deadlines.set(("exchange", number), now + 2.0 * self._patience_s(outgoing.frame))
            return None
        # Either the peer is gone, which says nothing about the others, or the network has become slower than the
        # estimate allows for; widen it so that the next sample can get through.
        self._answer_s_deviation = min(1.5 * self._answer_s_deviation, DEVIATION_S_MAX)
        self._refused(outgoing.peer, Reason.TIMEOUT, "no answer to our offer", False, out)
        self._end(outgoing, Reason.TIMEOUT)
        return outgoing.peer

    def offered(
        self, peer: NodeId, key: PublicKey, message: OfferMessage, ready: bool, now: float, out: list[Effect]
    ) -> None:
        """An offer arrived. Raises RemoteError for whatever is wrong with it; nothing is changed then.

        Args:
            ready: False while we are leaving: refuse.
        """
        digest = hashlib.sha256(message.header).digest()
        known = self._replies.get(digest)
        if known is not None and known[0] == peer:
            out.append(Send(peer, known[1]))
            return
        if digest in self._closed or (
            self._incoming and any(incoming.hash == digest for incoming in self._incoming.values())
        ):
            return  # a repetition of the offer that we are working on, or that was withdrawn for ours
        header = wire.decode_offer_header(message.header)
        self._check_parties(key, header.author, header.to)
        self._check_signature(key, Purpose.OFFER, message.header, message.signature)
        if header.run != self._run.id:
            raise RemoteError(
                Reason.OTHER_RUN,
                f"expected run {self._run.id.hex()[:16]}, got {header.run.hex()[:16]}; "
                "check-task on both sides shows what differs",
            )
        if header.seq <= self._marks.get(header.author, 0):
            raise RemoteError(
                Reason.REPLAYED,
                f"sequence number {header.seq} is not above {self._marks[header.author]}",
            )
        # Counted as used even if refused below: a copy of it must not be accepted later.
        self._mark(header.author, header.seq, out)
        if header.reference != self._run.reference:
            raise RemoteError(
                Reason.UNKNOWN_REFERENCE, f"reference {header.reference.hex()[:16]} is not held here"
            )
        self._check_payload(header.shard, header.codec, header.hash, message.payload)
        if not ready:
            raise RemoteError(Reason.NOT_READY, "this node is leaving")
        if self._crossed(peer, header.shard):
            self._close(digest)
            return
        if len(self._incoming) >= INCOMING_MAX:
            raise RemoteError(Reason.BUSY, f"{INCOMING_MAX} other offers are being worked on")
        moves = self._moves.get(peer, 0)
        if moves >= MOVES_MAX and not self._alone:
            raise RemoteError(Reason.BUSY, f"{MOVES_MAX} offers of one peer per round of ours are enough")
        job = self._answer_to(header, message.payload)
        out.append(Persist((memory.mark_entry(header.author, header.seq),)))
        self._moves[peer] = moves + 1
        ticket = self._tickets()
        self._incoming[ticket] = _Incoming(header.shard, peer, key, digest, header.age, header.codec)
        out.append(Compute(ticket, job))

    def refuse(
        self,
        peer: NodeId,
        key: PublicKey,
        message: OfferMessage,
        error: RemoteError,
        now: float,
        out: list[Effect],
    ) -> None:
        """Tell the initiator, signed, why its offer was refused."""
        self._reply(
            peer,
            key,
            hashlib.sha256(message.header).digest(),
            shard=0,
            verdict="refused",
            now=now,
            out=out,
            reason=error.reason,
            detail=error.detail,
        )

    def replied(
        self, peer: NodeId, key: PublicKey, message: ReplyMessage, now: float, out: list[Effect]
    ) -> None:
        """A reply arrived. Raises RemoteError for whatever is wrong with it; we go on waiting then."""
        header = wire.decode_reply_header(message.header)
        if header.offer in self._closed:
            return  # a second copy of the reply, because the offer was repeated; or too late, and counted as that
        for open_ in self._outgoing.values():
            if open_.state == "finishing" and open_.hash == header.offer and open_.peer == peer:
                return  # likewise, while the first copy is being applied
        outgoing = self._question(peer, header)
        shard = outgoing.shard
        self._check_parties(key, header.author, header.to)
        self._check_signature(key, Purpose.REPLY, message.header, message.signature)
        # From the first sending, also after a repetition: too long at worst, which is the safe side.
        self._answered(now - outgoing.since)
        if header.verdict == "refused":
            reason = Reason(header.reason) if header.reason in _REASONS else Reason.UNEXPECTED
            self._refused(peer, reason, header.detail, False, out)
            self._end(outgoing, reason)
        elif header.verdict == "state" and self.ages[shard] > 0 and outgoing.age == 0:
            self._end(outgoing, None)  # somebody else's offer made us adopt meanwhile
        elif header.verdict == "adopted" and outgoing.age > 0:
            out.append(Emit(Exchanged(peer, shard, "donor", nan, nan)))
            self._end(outgoing, None)
        elif header.verdict == "change" and outgoing.age > 0 and header.shard == shard:
            self._check_payload(shard, header.codec, header.hash, message.payload)
            outgoing.state = "finishing"
            self._compute(outgoing.number, Finish(shard, header.codec, message.payload, outgoing.clip), out)
        elif header.verdict == "state" and outgoing.age == 0 and header.age > 0 and header.shard == shard:
            self._check_payload(shard, header.codec, header.hash, message.payload)
            outgoing.state = "finishing"
            outgoing.age = min(header.age, AGE_MAX)
            self._compute(outgoing.number, Adopt(shard, header.codec, message.payload), out)
        else:
            raise RemoteError(
                Reason.UNEXPECTED,
                f"verdict {header.verdict!r} does not answer an offer of age {outgoing.age}",
            )

    def _crossed(self, peer: NodeId, shard: int) -> bool:
        """Both offered the same shard to each other: the offer of the larger id stands, and both know it.

        Returns True where ours stands: then the other one is working on it. If both were served, the two nodes
        would merely swap their weights. An offer that we have not sent yet is never sent: the other one could not
        know that we have served its own, and would give that up for ours.
        """
        ours = (o for o in self._outgoing.values() if o.shard == shard and o.peer == peer)
        outgoing = next(ours, None)  # no more than one, see `waiting_for`
        if outgoing is None:
            return False
        if outgoing.state == "offering":
            outgoing.state = "withdrawn"
        if outgoing.state != "waiting":
            return False
        if self._own > peer:
            return True
        self._end(outgoing, Reason.BUSY, crossed=True)
        return False

    # --- checks -------------------------------------------------------------------------------------

    def _check_parties(self, key: PublicKey, author: bytes, to: bytes) -> None:
        if author != key:
            raise RemoteError(Reason.MISADDRESSED, f"signed by {author.hex()[:16]}, sent by {key.hex()[:16]}")
        if to != self._identity.public_key:
            raise RemoteError(Reason.MISADDRESSED, f"addressed to {to.hex()[:16]}, not to this node")

    def _check_signature(self, key: PublicKey, purpose: Purpose, header: bytes, signature: bytes) -> None:
        try:
            self._verify(key, purpose, self._network, header, Signature(signature))
        except CryptoError as error:
            raise RemoteError(Reason.BAD_SIGNATURE, "the signature does not fit the header") from error

    def _check_payload(self, shard: int, codec: str, digest: bytes, payload: bytes) -> None:
        if shard >= len(self._run.shard_sizes):
            raise RemoteError(
                Reason.UNKNOWN_SHARD, f"shard {shard} of a model of {len(self._run.shard_sizes)} shards"
            )
        if codec not in CODECS:
            raise RemoteError(Reason.UNKNOWN_CODEC, f"expected one of {', '.join(CODECS)}")
        expected = payload_bytes(codec, self._run.shard_sizes[shard])
        if len(payload) != expected:
            raise RemoteError(Reason.WRONG_LENGTH, f"expected {expected} bytes, got {len(payload)}")
        if hashlib.sha256(payload).digest() != digest:
            raise RemoteError(Reason.WRONG_HASH, "the payload does not hash to what the header says")

    def _question(self, peer: NodeId, header: ReplyHeader) -> _Outgoing:
        for outgoing in self._outgoing.values():
            if outgoing.hash == header.offer and outgoing.peer == peer and outgoing.state == "waiting":
                return outgoing
        raise RemoteError(Reason.UNEXPECTED, "a reply to an offer that is not open (any more)")

    # --- steps --------------------------------------------------------------------------------------

    def _answer_to(self, header: OfferHeader, payload: bytes) -> Job:
        if header.age > 0 and self.ages[header.shard] > 0:
            clip = inf if header.clip == CLIP_NONE else header.clip * CLIP_UNIT
            return Respond(header.shard, header.codec, payload, clip)
        if header.age > 0:
            return Adopt(header.shard, header.codec, payload)
        if self.ages[header.shard] > 0:
            return Offer(header.shard, STATE_CODEC)
        raise RemoteError(Reason.NOT_READY, "this node is a newcomer too")

    def _outgoing_done(self, outgoing: _Outgoing, result: JobResult, now: float, out: list[Effect]) -> None:
        shard = outgoing.shard
        match result:
            case Offered():
                self._offer(outgoing, result, now, out)
            case Finished():
                out.append(Emit(Exchanged(outgoing.peer, shard, "initiator", nan, result.norm)))
                self._end(outgoing, None)
            case Adopted():
                self.ages[shard] = outgoing.age
                out.append(Emit(Exchanged(outgoing.peer, shard, "adopter", result.distance, nan)))
                self._end(outgoing, None)
            case JobRefused():
                self._refused(outgoing.peer, result.reason, result.detail, True, out)
                self._end(outgoing, result.reason)
            case _:
                raise AssertionError(f"{type(result).__name__} answers no job of an exchange")

    def _offer(self, outgoing: _Outgoing, result: Offered, now: float, out: list[Effect]) -> None:
        if outgoing.state == "withdrawn":
            self._end(outgoing, Reason.BUSY, crossed=True)
            return
        clip = CLIP_NONE if result.clip == inf else min(CLIP_NONE - 1, ceil(result.clip / CLIP_UNIT))
        header = wire.encode_header(
            OfferHeader(
                age=outgoing.age,
                author=self._identity.public_key,
                clip=clip,
                codec=self._config.codec,
                hash=hashlib.sha256(result.payload).digest(),
                nonce=self._entropy(8),
                reference=self._run.reference,
                run=self._run.id,
                seq=self._sequence.take(out),
                shard=outgoing.shard,
                to=outgoing.key,
            )
        )
        signature = self._identity.sign(Purpose.OFFER, self._network, header)
        outgoing.frame = wire.encode(OfferMessage(header, result.payload, signature))
        outgoing.hash = hashlib.sha256(header).digest()
        outgoing.state = "waiting"
        outgoing.since = now
        outgoing.clip = result.clip
        if self._send(outgoing.peer, outgoing.frame, now, out):
            self._deadlines.set(("exchange", outgoing.number), now + self._patience_s(outgoing.frame))
        else:
            self._end(outgoing, Reason.TIMEOUT)

    def _incoming_done(self, incoming: _Incoming, result: JobResult, now: float, out: list[Effect]) -> None:
        shard, peer, key, digest = incoming.shard, incoming.peer, incoming.key, incoming.hash
        match result:
            case Responded() | Rescued():
                role = "responder"
                if isinstance(result, Rescued):
                    role = "rescuer"
                    self._refused(peer, Reason.TOO_DISTANT, result.detail, True, out)
                out.append(Emit(Exchanged(peer, shard, role, result.distance, result.norm)))
                self._reply(
                    peer,
                    key,
                    digest,
                    shard=shard,
                    verdict="change",
                    now=now,
                    out=out,
                    codec=incoming.codec,
                    payload=result.payload,
                )
            case Offered():
                out.append(Emit(Exchanged(peer, shard, "donor", nan, nan)))
                self._reply(
                    peer,
                    key,
                    digest,
                    shard=shard,
                    verdict="state",
                    now=now,
                    out=out,
                    codec=STATE_CODEC,
                    payload=result.payload,
                )
            case Adopted():
                self.ages[shard] = min(incoming.age, AGE_MAX)
                out.append(Emit(Exchanged(peer, shard, "adopter", result.distance, nan)))
                self._reply(peer, key, digest, shard=shard, verdict="adopted", now=now, out=out)
            case JobRefused():
                self._refused(peer, result.reason, result.detail, True, out)
                self._reply(
                    peer,
                    key,
                    digest,
                    shard=shard,
                    verdict="refused",
                    now=now,
                    out=out,
                    reason=result.reason,
                    detail=result.detail,
                )
            case _:
                raise AssertionError(f"{type(result).__name__} answers no job of an exchange")

    def _reply(
        self,
        peer: NodeId,
        key: PublicKey,
        offer: bytes,
        *,
        shard: int,
        verdict: str,
        now: float,
        out: list[Effect],
        codec: str = "",
        payload: bytes = b"",
        reason: str = "",
        detail: str = "",
    ) -> None:
        header = wire.encode_header(
            ReplyHeader(
                age=self.ages[shard],
                author=self._identity.public_key,
                codec=codec,
                detail=detail[:200],
                hash=hashlib.sha256(payload).digest() if payload else EMPTY_HASH,
                offer=offer,
                reason=reason,
                run=self._run.id,
                seq=self._sequence.take(out),
                shard=shard,
                to=key,
                verdict=verdict,
            )
        )
        signature = self._identity.sign(Purpose.REPLY, self._network, header)
        frame = wire.encode(ReplyMessage(header, payload, signature))
        self._forget_reply(offer)  # of another peer, which sent the same header and was refused
        theirs = self._replies_to.get(peer)
        if theirs and len(theirs) * REPLIES_SHARE >= self._config.reply_cache_max:
            self._forget_reply(next(iter(theirs)))
        self._replies[offer] = (peer, frame, now)
        self._replies_to.setdefault(peer, {})[offer] = None
        self._replies_bytes += len(frame)
        while len(self._replies) > 1:
            oldest, (_, _, date) = next(iter(self._replies.items()))
            if (
                len(self._replies) <= self._config.reply_cache_max
                and self._replies_bytes <= REPLIES_BYTES_MAX
                and now - date <= self._config.timeout_s  # who asks again does so within a third of this
            ):
                break
            self._forget_reply(oldest)
        out.append(Send(peer, frame))

    def _forget_reply(self, offer: bytes) -> None:
        kept = self._replies.pop(offer, None)
        if kept is not None:
            self._replies_bytes -= len(kept[1])
            theirs = self._replies_to[kept[0]]
            del theirs[offer]
            if not theirs:
                del self._replies_to[kept[0]]

    def _end(self, outgoing: _Outgoing, reason: Reason | None, *, crossed: bool = False) -> None:
        del self._outgoing[outgoing.number]
        if outgoing.hash:
            self._close(outgoing.hash)
        self._deadlines.clear(("exchange", outgoing.number))
        self.ended.append(Ended(outgoing.number, outgoing.peer, outgoing.shard, reason, crossed))

    def _close(self, offer: bytes) -> None:
        self._closed[offer] = None
        if len(self._closed) > CLOSED_MAX:
            del self._closed[next(iter(self._closed))]

    def _compute(self, number: int, job: Job, out: list[Effect]) -> None:
        ticket = self._tickets()
        self._jobs[ticket] = number
        out.append(Compute(ticket, job))

    def _mark(self, author: bytes, seq: int, out: list[Effect]) -> None:
        self._marks.pop(author, None)
        self._marks[author] = seq
        if len(self._marks) > MARKS_MAX:
            oldest = next(iter(self._marks))
            del self._marks[oldest]
            out.append(Persist((memory.forgotten_mark_entry(oldest),)))

    def _refused(self, peer: NodeId, reason: Reason, detail: str, by_us: bool, out: list[Effect]) -> None:
        out.append(Emit(Refused(peer, reason, by_us, detail)))

    # --- how long to wait ---------------------------------------------------------------------------

    @property
    def late_s(self) -> float:
        """Time after which a partner that has not answered is late. 0 while nothing is known."""
        # At least twice the usual time: where a network always takes the same, the deviation is next to nothing.
        return self._answer_s + max(4.0 * self._answer_s_deviation, self._answer_s)

    def _patience_s(self, offer: bytes) -> float:
        """Time to an answer to `offer` that is seldom exceeded; a third of the whole limit while nothing is known."""
        limit = self._config.timeout_s / 3.0
        if self._answer_s == 0.0:
            return limit
        # The floor keeps a fast local network from repeating at every hiccup of a busy machine, which is longer for a
        # large frame: there and back it is encrypted, hashed and applied at both ends.
        floor = max(0.25, len(offer) / REPEATED_BYTES_PER_S)
        return min(limit, max(floor, self._answer_s + 4.0 * self._answer_s_deviation))

    def _answered(self, seconds: float) -> None:
        if self._answer_s == 0.0:
            self._answer_s, self._answer_s_deviation = seconds, seconds / 2.0
            return
        error = seconds - self._answer_s
        self._answer_s += error / 8.0
        self._answer_s_deviation += (abs(error) - self._answer_s_deviation) / 4.0


_REASONS = frozenset(reason.value for reason in Reason)
