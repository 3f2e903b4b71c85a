"""The exchange of one shard between two peers (ShardPair), as messages and states; the arithmetic is elsewhere.

    initiator i                                    responder j
    Offer job: a = Q(x_i - A)
    OfferMessage(header, a) ------------------->   signature, run, sequence, bounds; then Respond job:
                                                   gate, clip, x_j += c/2
    Finish job: x_i -= c/2  <-------------------   ReplyMessage(header naming the offer's hash, c)

Where the strategy of the run is a push, the responder moves later and by itself (`events.Taken`), and the reply has the
verdict "taken" and no payload; the initiator has nothing to finish.

A newcomer (age 0) offers too, gets the responder's state instead of a change, and adopts it; a responder that is
itself a newcomer adopts what it was offered. A responder that is too far away to follow stays where it is and answers
with a change all the same (`events.Rescued`); the initiator cannot tell, and the sum moves by its half.

The patience with an answer begins when the offer has left, and begins anew as long as weights move between the two: how
long that takes is the link's business.

A node has at most two offers of a shard on the way, to different peers, and serves others meanwhile: each side applies
its half to its *current* weights, so the sum is kept whatever overlaps (docs/decisions/0002). The responder keeps its
replies, so that an offer repeated because the reply was lost is answered without being applied twice. A lost reply that
is never repeated leaves half an exchange: a small drift, measured in docs/learning.md.

Order of checks for what arrives: size (wire), budget (node), author, signature, run, sequence, bounds, payload.
"""

import hashlib
from math import ceil, inf, nan

from crypto.errors import CryptoError
from crypto.identity import PublicKey, Signature
from crypto.signing import Purpose
from gossip import persisted
from gossip.config import CODECS
from gossip.dht.ids import NodeId
from gossip.dht.routing import Contact
from gossip.errors import Reason, RemoteError
from gossip.events import (
    Adopt,
    Adopted,
    Exchanged,
    Finish,
    Finished,
    Job,
    JobRefused,
    JobResult,
    Offer,
    Offered,
    Refused,
    Rescued,
    Respond,
    Responded,
    Send,
    Taken,
)
from gossip.learning.codec import payload_bytes
from gossip.net.lanes import Lane
from gossip.net.patience import Patience
from gossip.outbox import Outbox, Timer
from gossip.protocol import Context, Silent
from gossip.run.holding import Ended, Holding, Incoming, Lasting, Outgoing
from gossip.run.reply_cache import ReplyCache
from gossip.wire.canonical import encode
from gossip.wire.exchange import (
    OfferHeader,
    OfferMessage,
    ReplyHeader,
    ReplyMessage,
    decode_offer_header,
    decode_reply_header,
    encode_header,
)

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
# Offers of one shard that may be on the way at the same time: one, and a second because the partner of the first is
# late. A silent partner then costs its own offer and does not hold up the others; more would only help where most
# partners are silent, and each is a payload in memory and a change computed from weights that have moved on since.
IN_FLIGHT_MAX = 2
# Offers that are over and may still be heard of, ours and withdrawn ones: those of the last minute or so. A guess.
CLOSED_MAX = 64
# Offers of the partner that may arrive while we wait for its reply, each with the progress that its weights made. An
# honest one has few, and waits for ours then; one that sends and sends, and never answers, would make us wait for ever.
OVERTAKEN_MAX = 4
# A repetition costs as much as the offer: no offer is repeated before it could have come and gone at this rate, which
# any machine reaches. 4 MiB wait for a second. A guess.
REPEATED_BYTES_PER_S = 2**22
# In a refusal of what no run of ours is asked for.
NO_RUN = bytes(32)
EMPTY_HASH = hashlib.sha256(b"").digest()


class Overdue(Timer, frozen=True):
    """The answer to an offer has not come in time."""

    number: int


class Exchanges:
    """All exchanges of one node, of all its runs."""

    def __init__(self, context: Context) -> None:
        config = context.config.exchange
        self._context = context
        self._config = config
        self._identity = context.identity
        self._network = context.network
        self._holdings: dict[bytes, Holding] = {}
        self._marks = persisted.marks(context.store)
        self._number = 0
        self._outgoing: dict[int, Outgoing] = {}  # by number
        self._incoming: dict[int, Incoming] = {}  # by the ticket of its job
        self._jobs: dict[int, int] = {}  # ticket of a job for an outgoing exchange -> its number
        self.replies = ReplyCache(replies_max=config.reply_cache_max, keep_s=config.timeout_s)
        self._closed: dict[bytes, None] = {}  # offers, by the hash of their header, that are over
        self.patience = Patience()

    def hold(self, holding: Holding) -> None:
        """Take part in the exchanges of one more run."""
        assert holding.info.id not in self._holdings
        self._holdings[holding.info.id] = holding

    # --- what the node asks -----------------------------------------------------------------------

    def full(self, holding: Holding, shard: int) -> bool:
        """Whether as many offers of `shard` are on the way as may be."""
        if len(self._outgoing) < IN_FLIGHT_MAX:
            return False
        flying = [o for o in self._outgoing.values() if o.shard == shard and o.holding is holding]
        return len(flying) >= IN_FLIGHT_MAX

    def waiting_for(self, peer: NodeId, holding: Holding, shard: int) -> bool:
        """Whether an offer of `shard` to `peer` is on the way."""
        return self._to(peer, holding, shard) is not None

    @property
    def partners(self) -> list[NodeId]:
        """Peers in an exchange right now."""
        return [o.contact.node for o in self._outgoing.values()] + [i.peer for i in self._incoming.values()]

    def initiate(self, holding: Holding, shard: int, contact: Contact, now: float, out: Outbox) -> int:
        """Begin an exchange of `shard` with `contact`; returns its number. `Ended` tells of its end."""
        assert not self.full(holding, shard)
        self._number += 1
        age = holding.ages[shard]
        outgoing = Outgoing(holding, self._number, shard, contact, "offering", age, begun=now)
        self._outgoing[outgoing.number] = outgoing
        self._compute(outgoing, Offer(shard, self._config.codec), out)
        return outgoing.number

    def bounds(self) -> dict[str, tuple[int, int]]:
        shards = sum(len(holding.ages) for holding in self._holdings.values())
        return {
            "incoming": (len(self._incoming), INCOMING_MAX),
            "outgoing": (len(self._outgoing), IN_FLIGHT_MAX * shards),
            "closed": (len(self._closed), CLOSED_MAX),
            "marks": (len(self._marks), MARKS_MAX),
            "patience": self.patience.bounds(),
            **self.replies.bounds(),
        }

    # --- facts ------------------------------------------------------------------------------------

    def done(self, ticket: int, result: JobResult, now: float, out: Outbox) -> bool:
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

    def lost(self, peer: NodeId, now: float, out: Outbox) -> None:
        """No connection to `peer` any more, or none to be had."""
        for outgoing in list(self._outgoing.values()):
            if outgoing.contact.node == peer and outgoing.state == "waiting":
                self._refused(peer, Reason.TIMEOUT, "the connection went, or none could be made", False, out)
                outgoing.ticket = 0
                self._end(outgoing, Reason.TIMEOUT, out)

    def sent(self, ticket: int, now: float, out: Outbox) -> Lasting | None:
        """A frame has left: if it was an offer, we begin to wait for the answer.

        Returns:
            The exchange, where that is another date than when the offer was put on the way.
        """
        outgoing = self._sending(ticket)
        if outgoing is None:
            return None
        outgoing.ticket = 0
        if now == outgoing.moved_at:
            return None
        if not outgoing.repeated:
            outgoing.since = now
        self._wait(outgoing, now, out)
        return Lasting(outgoing.holding.info.id, outgoing.number, outgoing.begun)

    def unsent(self, ticket: int, out: Outbox) -> None:
        """A frame will not arrive."""
        outgoing = self._sending(ticket)
        if outgoing is not None:
            outgoing.ticket = 0
            self._refused(outgoing.contact.node, Reason.TIMEOUT, "our offer could not be sent", False, out)
            self._end(outgoing, Reason.TIMEOUT, out)

    def progress(self, peer: NodeId, now: float, out: Outbox) -> list[Lasting]:
        """Something large moves between us and `peer`: the exchanges with it that go on."""
        lasting = []
        for outgoing in self._outgoing.values():
            if (
                outgoing.contact.node == peer
                and outgoing.state == "waiting"
                and outgoing.overtaken <= OVERTAKEN_MAX
            ):
                lasting.append(Lasting(outgoing.holding.info.id, outgoing.number, outgoing.begun))
                self._wait(outgoing, now, out)
        return lasting

    def leaving(self, number: int | None) -> bool:
        """Whether the offer of this exchange goes out on a connection and has not left whole."""
        outgoing = self._outgoing.get(number) if number is not None else None
        return (
            outgoing is not None
            and outgoing.ticket != 0
            and outgoing.contact.node in self._context.connections
        )

    def _sending(self, ticket: int) -> Outgoing | None:
        for outgoing in self._outgoing.values():
            if outgoing.ticket == ticket:
                return outgoing
        return None

    def overdue(self, number: int, now: float, out: Outbox) -> bool:
        """The deadline of an exchange has come: repeat the offer once, then give up.

        Returns:
            False where nobody is late, because the offer has not left or the answer is here.
        """
        outgoing = self._outgoing.get(number)
        if outgoing is None or outgoing.state != "waiting":
            return False
        peer = outgoing.contact.node
        if outgoing.ticket:
            limit = outgoing.moved_at + self._config.timeout_s
            if now < limit:
                out.timer(Overdue(number), limit)
                return False
            self._refused(peer, Reason.TIMEOUT, "our offer did not leave", False, out)
            self._end(outgoing, Reason.TIMEOUT, out)
            return True
        first, outgoing.repeated = not outgoing.repeated, True
        if first and self._put(outgoing, now, out):
            return True
        self.patience.silent(peer)
        out.fact(Silent(peer))
        self._refused(peer, Reason.TIMEOUT, "no answer to our offer", False, out)
        self._end(outgoing, Reason.TIMEOUT, out)
        return True

    def offered(
        self, peer: NodeId, key: PublicKey, message: OfferMessage, ready: bool, now: float, out: Outbox
    ) -> None:
        """An offer arrived. Raises RemoteError for whatever is wrong with it; nothing is changed then.

        Args:
            ready: False while we are leaving: refuse.
        """
        for outgoing in self._outgoing.values():
            outgoing.overtaken += outgoing.contact.node == peer
        digest = hashlib.sha256(message.header).digest()
        reply = self.replies.get(digest, peer)
        if reply is not None:
            out.send_frame(reply)
            return
        if digest in self._closed or (
            self._incoming and any(incoming.hash == digest for incoming in self._incoming.values())
        ):
            return  # a repetition of the offer that we are working on, or that was withdrawn for ours
        header = decode_offer_header(message.header)
        self._check_parties(key, header.author, header.to)
        self._check_signature(key, Purpose.OFFER, message.header, message.signature)
        holding = self._holdings.get(header.run)
        if holding is None:
            ours = " or ".join(run.hex()[:16] for run in self._holdings) or "none"
            raise RemoteError(
                Reason.OTHER_RUN,
                f"expected run {ours}, got {header.run.hex()[:16]}; check-task on both sides shows what differs",
            )
        if header.seq <= self._marks.get(header.author, 0):
            raise RemoteError(
                Reason.REPLAYED,
                f"sequence number {header.seq} is not above {self._marks[header.author]}",
            )
        # Counted as used even if refused below: a copy of it must not be accepted later.
        self._mark(header.author, header.seq, out)
        if header.reference != holding.info.reference:
            raise RemoteError(
                Reason.UNKNOWN_REFERENCE, f"reference {header.reference.hex()[:16]} is not held here"
            )
        self._check_payload(holding, header.shard, header.codec, header.hash, message.payload)
        if not ready:
            raise RemoteError(Reason.NOT_READY, "this node is leaving")
        if self._crossed(peer, holding, header.shard, out):
            self._close(digest)
            return
        if len(self._incoming) >= INCOMING_MAX:
            raise RemoteError(Reason.BUSY, f"{INCOMING_MAX} other offers are being worked on")
        moves = holding.moves.get(peer, 0)
        if moves >= MOVES_MAX and not holding.alone:
            raise RemoteError(Reason.BUSY, f"{MOVES_MAX} offers of one peer per round of ours are enough")
        job = self._answer_to(holding, header, message.payload)
        out.persist([persisted.mark_entry(header.author, header.seq)])
        holding.moves[peer] = moves + 1
        ticket = out.compute(job, holding.info.id, peer=peer)
        self._incoming[ticket] = Incoming(holding, header.shard, peer, key, digest, header.age, header.codec)

    def refuse(
        self,
        peer: NodeId,
        key: PublicKey,
        message: OfferMessage,
        error: RemoteError,
        now: float,
        out: Outbox,
    ) -> None:
        """Tell the initiator, signed, why its offer was refused."""
        self._reply(
            peer,
            key,
            hashlib.sha256(message.header).digest(),
            None,
            shard=0,
            verdict="refused",
            now=now,
            out=out,
            reason=error.reason,
            detail=error.detail,
        )

    def replied(self, peer: NodeId, key: PublicKey, message: ReplyMessage, now: float, out: Outbox) -> None:
        """A reply arrived. Raises RemoteError for whatever is wrong with it; we go on waiting then."""
        header = decode_reply_header(message.header)
        if header.offer in self._closed:
            return  # a second copy of the reply, because the offer was repeated; or too late, and counted as that
        for open_ in self._outgoing.values():
            if open_.state == "finishing" and open_.hash == header.offer and open_.contact.node == peer:
                return  # likewise, while the first copy is being applied
        outgoing = self._question(peer, header)
        shard = outgoing.shard
        self._check_parties(key, header.author, header.to)
        self._check_signature(key, Purpose.REPLY, message.header, message.signature)
        # From when the offer left first, also after a repetition: too long at worst, which is the safe side. Of a slow
        # link this includes the way of the weights.
        self.patience.answered(peer, now - outgoing.since)
        ages = outgoing.holding.ages
        if header.verdict == "refused":
            reason = Reason(header.reason) if header.reason in _REASONS else Reason.UNEXPECTED
            self._refused(peer, reason, header.detail, False, out)
            self._end(outgoing, reason, out)
        elif header.verdict == "state" and ages[shard] > 0 and outgoing.age == 0:
            self._end(outgoing, None, out)  # somebody else's offer made us adopt meanwhile
        elif header.verdict == "adopted" and outgoing.age > 0:
            out.emit(Exchanged(peer, shard, "donor", nan, nan))
            self._end(outgoing, None, out)
        elif header.verdict == "taken" and outgoing.age > 0 and header.shard == shard:
            out.emit(Exchanged(peer, shard, "initiator", nan, nan))
            self._end(outgoing, None, out)
        elif header.verdict == "change" and outgoing.age > 0 and header.shard == shard:
            self._check_payload(outgoing.holding, shard, header.codec, header.hash, message.payload)
            self._compute(outgoing, Finish(shard, header.codec, message.payload, outgoing.clip), out)
            outgoing.state = "finishing"
        elif header.verdict == "state" and outgoing.age == 0 and header.age > 0 and header.shard == shard:
            self._check_payload(outgoing.holding, shard, header.codec, header.hash, message.payload)
            self._compute(outgoing, Adopt(shard, header.codec, message.payload), out)
            outgoing.state = "finishing"
            outgoing.age = min(header.age, AGE_MAX)
        else:
            raise RemoteError(
                Reason.UNEXPECTED,
                f"verdict {header.verdict!r} does not answer an offer of age {outgoing.age}",
            )

    def _to(self, peer: NodeId, holding: Holding, shard: int) -> Outgoing | None:
        for outgoing in self._outgoing.values():
            if outgoing.shard == shard and outgoing.contact.node == peer and outgoing.holding is holding:
                return outgoing
        return None

    def _crossed(self, peer: NodeId, holding: Holding, shard: int, out: Outbox) -> bool:
        """Both offered the same shard to each other: the offer of the larger id stands, and both know it.

        Returns True where ours stands: then the other one is working on it. If both were served, the two nodes
        would merely swap their weights. An offer that we have not sent yet is never sent: the other one could not
        know that we have served its own, and would give that up for ours.
        """
        outgoing = self._to(peer, holding, shard)
        if outgoing is None:
            return False
        if outgoing.state == "offering":
            outgoing.state = "withdrawn"
        if outgoing.state != "waiting":
            return False
        if self._context.own > peer:
            return True
        self._end(outgoing, Reason.BUSY, out, crossed=True)
        return False

    # --- checks -------------------------------------------------------------------------------------

    def _check_parties(self, key: PublicKey, author: bytes, to: bytes) -> None:
        if author != key:
            raise RemoteError(Reason.MISADDRESSED, f"signed by {author.hex()[:16]}, sent by {key.hex()[:16]}")
        if to != self._identity.public_key:
            raise RemoteError(Reason.MISADDRESSED, f"addressed to {to.hex()[:16]}, not to this node")

    def _check_signature(self, key: PublicKey, purpose: Purpose, header: bytes, signature: bytes) -> None:
        try:
            self._context.verify(key, purpose, self._network, header, Signature(signature))
        except CryptoError as error:
            raise RemoteError(Reason.BAD_SIGNATURE, "the signature does not fit the header") from error

    def _check_payload(self, holding: Holding, shard: int, codec: str, digest: bytes, payload: bytes) -> None:
        sizes = holding.info.shard_sizes
        if shard >= len(sizes):
            raise RemoteError(Reason.UNKNOWN_SHARD, f"shard {shard} of a model of {len(sizes)} shards")
        if codec not in CODECS:
            raise RemoteError(Reason.UNKNOWN_CODEC, f"expected one of {', '.join(CODECS)}")
        expected = payload_bytes(codec, sizes[shard])
        if len(payload) != expected:
            raise RemoteError(Reason.WRONG_LENGTH, f"expected {expected} bytes, got {len(payload)}")
        if hashlib.sha256(payload).digest() != digest:
            raise RemoteError(Reason.WRONG_HASH, "the payload does not hash to what the header says")

    def _question(self, peer: NodeId, header: ReplyHeader) -> Outgoing:
        for outgoing in self._outgoing.values():
            if (
                outgoing.hash == header.offer
                and outgoing.contact.node == peer
                and outgoing.state == "waiting"
            ):
                return outgoing
        raise RemoteError(Reason.UNEXPECTED, "a reply to an offer that is not open (any more)")

    # --- steps --------------------------------------------------------------------------------------

    def _answer_to(self, holding: Holding, header: OfferHeader, payload: bytes) -> Job:
        age = holding.ages[header.shard]
        if header.age > 0 and age > 0:
            clip = inf if header.clip == CLIP_NONE else header.clip * CLIP_UNIT
            return Respond(header.shard, header.codec, payload, clip)
        if header.age > 0:
            return Adopt(header.shard, header.codec, payload)
        if age > 0:
            return Offer(header.shard, STATE_CODEC)
        raise RemoteError(Reason.NOT_READY, "this node is a newcomer too")

    def _outgoing_done(self, outgoing: Outgoing, result: JobResult, now: float, out: Outbox) -> None:
        shard, peer = outgoing.shard, outgoing.contact.node
        match result:
            case Offered():
                self._offer(outgoing, result, now, out)
            case Finished():
                out.emit(Exchanged(peer, shard, "initiator", nan, result.norm))
                self._end(outgoing, None, out)
            case Adopted():
                outgoing.holding.ages[shard] = outgoing.age
                out.emit(Exchanged(peer, shard, "adopter", result.distance, nan))
                self._end(outgoing, None, out)
            case JobRefused():
                self._refused(peer, result.reason, result.detail, True, out)
                self._end(outgoing, result.reason, out)
            case _:
                raise AssertionError(f"{type(result).__name__} answers no job of an exchange")

    def _offer(self, outgoing: Outgoing, result: Offered, now: float, out: Outbox) -> None:
        if outgoing.state == "withdrawn":
            self._end(outgoing, Reason.BUSY, out, crossed=True)
            return
        clip = CLIP_NONE if result.clip == inf else min(CLIP_NONE - 1, ceil(result.clip / CLIP_UNIT))
        header = encode_header(
            OfferHeader(
                age=outgoing.age,
                author=self._identity.public_key,
                clip=clip,
                codec=self._config.codec,
                hash=hashlib.sha256(result.payload).digest(),
                nonce=self._context.entropy(8),
                reference=outgoing.holding.info.reference,
                run=outgoing.holding.info.id,
                seq=self._context.sequence.take(out),
                shard=outgoing.shard,
                to=outgoing.contact.key,
            )
        )
        signature = self._identity.sign(Purpose.OFFER, self._network, header)
        outgoing.frame = encode(OfferMessage(header, result.payload, signature))
        outgoing.hash = hashlib.sha256(header).digest()
        outgoing.state = "waiting"
        outgoing.clip = result.clip
        if not self._put(outgoing, now, out):
            self._end(outgoing, Reason.TIMEOUT, out)

    def _put(self, outgoing: Outgoing, now: float, out: Outbox) -> bool:
        """Put the offer on the way; False where that cannot be done now. Our patience begins when it has left."""
        contact, ticket = outgoing.contact, out.ticket()
        order = Send(contact.node, outgoing.frame, Lane.BULK, ticket)
        if not out.send_frame(order, addresses=contact.addresses):
            return False
        outgoing.ticket = ticket
        if not outgoing.repeated:
            outgoing.since = now  # until we hear that it has left
        self._wait(outgoing, now, out)
        return True

    def _wait(self, outgoing: Outgoing, now: float, out: Outbox) -> None:
        """Something has moved: from now on, for an answer. If the offer has not left, `overdue` waits longer."""
        outgoing.moved_at = now
        patience = self._patience_s(outgoing.contact.node, outgoing.frame)
        out.timer(Overdue(outgoing.number), now + patience * (2.0 if outgoing.repeated else 1.0))

    def _incoming_done(self, incoming: Incoming, result: JobResult, now: float, out: Outbox) -> None:
        shard, peer, key, digest = incoming.shard, incoming.peer, incoming.key, incoming.hash
        match result:
            case Responded() | Rescued():
                role = "responder"
                if isinstance(result, Rescued):
                    role = "rescuer"
                    self._refused(peer, Reason.TOO_DISTANT, result.detail, True, out)
                out.emit(Exchanged(peer, shard, role, result.distance, result.norm))
                self._reply(
                    peer,
                    key,
                    digest,
                    incoming.holding,
                    shard=shard,
                    verdict="change",
                    now=now,
                    out=out,
                    codec=incoming.codec,
                    payload=result.payload,
                )
            case Taken():
                out.emit(Exchanged(peer, shard, "responder", result.distance, result.norm))
                self._reply(
                    peer, key, digest, incoming.holding, shard=shard, verdict="taken", now=now, out=out
                )
            case Offered():
                out.emit(Exchanged(peer, shard, "donor", nan, nan))
                self._reply(
                    peer,
                    key,
                    digest,
                    incoming.holding,
                    shard=shard,
                    verdict="state",
                    now=now,
                    out=out,
                    codec=STATE_CODEC,
                    payload=result.payload,
                )
            case Adopted():
                incoming.holding.ages[shard] = min(incoming.age, AGE_MAX)
                out.emit(Exchanged(peer, shard, "adopter", result.distance, nan))
                self._reply(
                    peer, key, digest, incoming.holding, shard=shard, verdict="adopted", now=now, out=out
                )
            case JobRefused():
                self._refused(peer, result.reason, result.detail, True, out)
                self._reply(
                    peer,
                    key,
                    digest,
                    incoming.holding,
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
        holding: Holding | None,
        *,
        shard: int,
        verdict: str,
        now: float,
        out: Outbox,
        codec: str = "",
        payload: bytes = b"",
        reason: str = "",
        detail: str = "",
    ) -> None:
        header = encode_header(
            ReplyHeader(
                age=holding.ages[shard] if holding is not None else 0,
                author=self._identity.public_key,
                codec=codec,
                detail=detail[:200],
                hash=hashlib.sha256(payload).digest() if payload else EMPTY_HASH,
                offer=offer,
                reason=reason,
                run=holding.info.id if holding is not None else NO_RUN,
                seq=self._context.sequence.take(out),
                shard=shard,
                to=key,
                verdict=verdict,
            )
        )
        signature = self._identity.sign(Purpose.REPLY, self._network, header)
        message = ReplyMessage(header, payload, signature)
        reply = Send(peer, encode(message), message.lane)
        self.replies.keep(offer, reply, now)
        out.send_frame(reply)

    def _end(self, outgoing: Outgoing, reason: Reason | None, out: Outbox, *, crossed: bool = False) -> None:
        del self._outgoing[outgoing.number]
        if outgoing.ticket:
            out.recall(outgoing.contact.node, outgoing.ticket)
        if outgoing.hash:
            self._close(outgoing.hash)
        out.timer(Overdue(outgoing.number), inf)
        run, peer = outgoing.holding.info.id, outgoing.contact.node
        out.fact(Ended(run, outgoing.number, peer, outgoing.shard, reason, crossed))

    def _close(self, offer: bytes) -> None:
        self._closed[offer] = None
        if len(self._closed) > CLOSED_MAX:
            del self._closed[next(iter(self._closed))]

    def _compute(self, outgoing: Outgoing, job: Job, out: Outbox) -> None:
        ticket = out.compute(job, outgoing.holding.info.id, peer=outgoing.contact.node)
        self._jobs[ticket] = outgoing.number

    def _mark(self, author: bytes, seq: int, out: Outbox) -> None:
        self._marks.pop(author, None)
        self._marks[author] = seq
        if len(self._marks) > MARKS_MAX:
            oldest = next(iter(self._marks))
            del self._marks[oldest]
            out.persist([persisted.forgotten_mark_entry(oldest)])

    def _refused(self, peer: NodeId, reason: Reason, detail: str, by_us: bool, out: Outbox) -> None:
        out.emit(Refused(peer, reason, by_us, detail))

    # --- how long to wait ---------------------------------------------------------------------------

    def _patience_s(self, peer: NodeId, offer: bytes) -> float:
        """Time to an answer to `offer` that is seldom exceeded; a third of the whole limit while nothing is known."""
        limit = self._config.timeout_s / 3.0
        usual = self.patience.usual_s(peer)
        if usual == 0.0:
            return limit
        # The floor keeps a fast local network from repeating at every hiccup of a busy machine, which is longer for a
        # large frame: there and back it is encrypted, hashed and applied at both ends.
        floor = max(0.25, len(offer) / REPEATED_BYTES_PER_S)
        return min(limit, max(floor, usual))


_REASONS = frozenset(reason.value for reason in Reason)
