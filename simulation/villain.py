"""Hostile nodes: members of the network with real keys, on the real wire, each with one way to do harm.

A villain is a real node that somebody has modified: it joins, answers and exchanges like everybody, so that it is
connected and known, and now and then sends what no honest node would. Every hostile frame is registered with its kind,
so that it is counted where it really reaches an honest node.
"""

import hashlib
import random
import struct
from collections.abc import Callable, Iterable
from math import inf, nan

import msgspec
import numpy as np

from crypto.identity import PublicKey
from crypto.signing import Purpose, network_id
from gossip import wire
from gossip.dht.ids import NodeId, provider_key
from gossip.dht.kinds import ProviderRecord
from gossip.dht.records import SignedRecord, sign_record
from gossip.errors import RemoteError
from gossip.events import Effect, Event, PeerDown, PeerUp, Persist, Received, Send, Woken
from gossip.learning.codec import code, pack, payload_bytes, unpack, value
from gossip.learning.task import RunInfo
from gossip.net.lanes import LIMITS, Lane
from gossip.node import Node
from gossip.outbox import Outbox
from simulation.machines import Host
from simulation.seeds import Seeds

# Frames of others that a villain remembers, to send them again.
REMEMBERED = 32
# More than the burst of requests that a peer may make (gossip/node.py).
FLOOD_FRAMES = 450
# What a poisoner multiplies its weights by.
HUGE = np.float32(1e6)

Mark = Callable[[bytes, str], None]


class Orders(Outbox):
    """Puts what a sequence has to persist among the effects of an attack."""

    def __init__(self, effects: list[Effect]) -> None:
        self._effects = effects

    def persist(self, entries: Iterable[tuple[str, bytes]], *, fsync: bool = False) -> None:
        self._effects.append(Persist(tuple(entries), fsync))


class Villain:
    """A core around a real node.

    Args:
        node: Joins and answers as it should.
        host: Whose identity signs.
        act: One of `simulation.swarm.draw.HOSTILE_KINDS`.
        run: Of the honest nodes.
        every_s: Mean time between two attacks.
        mark: Registers a hostile frame.
    """

    def __init__(
        self,
        node: Node,
        host: Host,
        act: str,
        *,
        run: RunInfo,
        seeds: Seeds,
        now: float,
        every_s: float,
        mark: Mark,
    ) -> None:
        self._node = node
        self._identity = host.identity
        self._act = act
        self._run = run
        self._network = network_id(run.network)
        self._rng: random.Random = seeds.random("villain", host.index, host.life)
        self._every_s = every_s
        self._mark = mark
        self._peers: dict[NodeId, PublicKey] = {}
        self._heard: list[tuple[NodeId, bytes]] = []
        self._said: list[tuple[NodeId, bytes]] = []
        self._held: list[Send] = []
        self._next = now + every_s * self._rng.uniform(0.5, 1.5)

    @property
    def deadline(self) -> float:
        return min(self._node.deadline, self._next)

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, PeerUp):
            self._peers[event.peer] = event.key
        elif isinstance(event, PeerDown):
            self._peers.pop(event.peer, None)
        effects: list[Effect] = []
        if isinstance(event, Received):
            kind = _kind(event.frame)
            if kind in ("offer", "reply", "put_record"):
                self._heard.append((event.peer, event.frame))
                del self._heard[:-REMEMBERED]
            if kind == "offer" and self._act == "forged":
                self._forge_reply(event.peer, event.frame, effects)
        if not isinstance(event, Woken) or self._node.deadline <= now:
            for effect in self._node.handle(event, now):
                if isinstance(effect, Send):
                    self._say(effect, effects)
                else:
                    effects.append(effect)
        if now >= self._next:
            self._next = now + self._every_s * self._rng.uniform(0.5, 1.5)
            self._attack(effects)
        return effects

    # --- what the node wants to say -------------------------------------------------------------------

    def _say(self, send: Send, out: list[Effect]) -> None:
        kind = _kind(send.frame)
        exchange = kind in ("offer", "reply")
        if self._act == "false_address" and kind in ("hello", "put_record"):
            self._mark(send.frame, self._act)
        if not exchange:
            out.append(send)
            return
        if self._act.startswith("poison_"):
            send = msgspec.structs.replace(send, frame=self._poisoned(send.frame))
        self._said.append((send.peer, send.frame))
        del self._said[:-REMEMBERED]
        if self._act == "reordered":
            self._held.append(send)
            if len(self._held) >= 3:
                for held in reversed(self._held):
                    self._mark(held.frame, self._act)
                    out.append(held)
                self._held.clear()
            return
        out.append(send)
        if self._act == "equivocation" and kind == "offer":
            message = wire.decode(send.frame)
            assert isinstance(message, wire.OfferMessage)
            header = wire.decode_offer_header(message.header)
            again = msgspec.structs.replace(header, nonce=self._rng.randbytes(8))
            self._hostile(send.peer, self._offer(again, message.payload), out)

    # --- attacks ----------------------------------------------------------------------------------------

    def _attack(self, out: list[Effect]) -> None:
        if not self._peers:
            return
        peer = self._rng.choice(list(self._peers))
        match self._act:
            case "forged":
                self._forge(peer, out)
            case "impersonated":
                others = [frame for source, frame in self._heard if source != peer]
                if others:
                    self._hostile(peer, self._rng.choice(others), out)
            case "replayed":
                self._replay(peer, out)
            case "oversized":
                big = bytes(wire.FRAME_BYTES_MAX + 1)
                many = b"\x81\xa1_\xdd" + (wire.ELEMENTS_MAX + 1).to_bytes(4, "big")
                self._hostile(peer, self._rng.choices((big, many), (1, 4))[0], out)
            case "junk":
                self._hostile(peer, self._junk(), out)
            case "equivocation":
                self._two_records(peer, out)
            case "flood" if self._rng.random() < 0.1:  # costs us as much as them
                for number in range(FLOOD_FRAMES):
                    self._hostile(peer, wire.encode(wire.Ping(number)), out)
            case "other_run":
                header = msgspec.structs.replace(
                    self._header(peer, out), run=hashlib.sha256(self._run.id).digest()
                )
                self._hostile(peer, self._offer(header, self._payload()), out)
            case _:
                pass  # it does its harm in what its node says

    def _hostile(self, peer: NodeId, frame: bytes, out: list[Effect]) -> None:
        self._mark(frame, self._act)
        out.append(Send(peer, frame, _lane(frame)))

    def _forge(self, peer: NodeId, out: list[Effect]) -> None:
        """An offer in our name that is not signed, one with another payload than it says, one in the name of another,
        and a record of another."""
        payload = self._payload()
        header = self._header(peer, out)
        message = wire.OfferMessage(wire.encode_header(header), payload, bytes(64))
        self._hostile(peer, wire.encode(message), out)
        # Signed by us and whole, but for a payload that the signature does not speak of.
        bad = payload[:-1] + bytes([payload[-1] ^ 1])
        self._hostile(peer, self._offer(self._header(peer, out), bad), out)
        other = self._rng.choice(list(self._peers.values()))
        self._hostile(peer, self._offer(msgspec.structs.replace(header, author=other), payload), out)
        record = ProviderRecord(
            addresses=("10.254.0.1:1",),
            key=other,
            place=provider_key(self._run.id, 0),
            seq=2**40,
            ttl_s=60,
        )
        forged = wire.encode_struct(SignedRecord(body=wire.encode_struct(record), signature=bytes(64)))
        self._hostile(peer, wire.encode(wire.PutRecord(1, forged)), out)

    def _forge_reply(self, peer: NodeId, frame: bytes, out: list[Effect]) -> None:
        """Before our node answers: a change in its name that is not signed."""
        try:
            message = wire.decode(frame)
            assert isinstance(message, wire.OfferMessage)
            asked = wire.decode_offer_header(message.header)
        except RemoteError:
            return
        payload = self._payload()
        header = wire.ReplyHeader(
            age=1,
            author=self._identity.public_key,
            codec="f32",
            detail="",
            hash=hashlib.sha256(payload).digest(),
            offer=hashlib.sha256(message.header).digest(),
            reason="",
            run=self._run.id,
            seq=2**40,
            shard=0,
            to=asked.author,
            verdict="change" if asked.age > 0 else "state",
        )
        forged = wire.ReplyMessage(wire.encode_header(header), payload, bytes(64))
        self._hostile(peer, wire.encode(forged), out)

    def _replay(self, peer: NodeId, out: list[Effect]) -> None:
        """What we said before, to whom we said it and to others; and what others said, back to themselves."""
        frames = [frame for target, frame in self._said if target == peer] or [
            frame for _, frame in self._said + self._heard
        ]
        if frames:
            self._hostile(peer, self._rng.choice(frames), out)
        mine = [frame for source, frame in self._heard if source == peer]
        if mine:
            self._hostile(peer, self._rng.choice(mine), out)

    def _junk(self) -> bytes:
        rng = self._rng
        if not self._heard or rng.random() < 0.4:
            return rng.randbytes(rng.randrange(1, 200))
        frame = bytearray(rng.choice(self._heard)[1])
        if rng.random() < 0.5:
            return bytes(frame[: rng.randrange(1, len(frame))])
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
        return bytes(frame)

    def _two_records(self, peer: NodeId, out: list[Effect]) -> None:
        """Two different provider records under one number, to one peer."""
        number = self._node.context.sequence.take(Orders(out))
        for ttl_s in (60, 61):
            record = ProviderRecord(
                addresses=("10.254.0.1:1",),
                key=self._identity.public_key,
                place=provider_key(self._run.id, 0),
                seq=number,
                ttl_s=ttl_s,
            )
            signed = sign_record(self._identity, self._network, record)
            self._hostile(peer, wire.encode(wire.PutRecord(ttl_s, signed)), out)

    # --- the parts of an offer ---------------------------------------------------------------------------

    def _header(self, peer: NodeId, out: list[Effect]) -> wire.OfferHeader:
        payload = self._payload()
        return wire.OfferHeader(
            age=1,
            author=self._identity.public_key,
            clip=2**63 - 1,
            codec="f32",
            hash=hashlib.sha256(payload).digest(),
            nonce=self._rng.randbytes(8),
            reference=self._run.reference,
            run=self._run.id,
            seq=self._node.context.sequence.take(Orders(out)),
            shard=0,
            to=self._peers[peer],
        )

    def _offer(self, header: wire.OfferHeader, payload: bytes) -> bytes:
        data = wire.encode_header(header)
        return wire.encode(
            wire.OfferMessage(data, payload, self._identity.sign(Purpose.OFFER, self._network, data))
        )

    def _payload(self) -> bytes:
        return bytes(payload_bytes("f32", self._run.shard_sizes[0]))

    def _poisoned(self, frame: bytes) -> bytes:
        """The same message with other values, signed anew under the same number."""
        message = wire.decode(frame)
        assert isinstance(message, wire.OfferMessage | wire.ReplyMessage)
        if not message.payload:
            return frame
        if isinstance(message, wire.OfferMessage):
            offer = wire.decode_offer_header(message.header)
            payload = self._poison(offer.codec, message.payload, offer.shard)
            header = msgspec.structs.replace(offer, hash=hashlib.sha256(payload).digest(), clip=2**63 - 1)
            bad = self._offer(header, payload)
        else:
            reply = wire.decode_reply_header(message.header)
            payload = self._poison(reply.codec, message.payload, reply.shard)
            data = wire.encode_header(msgspec.structs.replace(reply, hash=hashlib.sha256(payload).digest()))
            signature = self._identity.sign(Purpose.REPLY, self._network, data)
            bad = wire.encode(wire.ReplyMessage(data, payload, signature))
        self._mark(bad, self._act)
        return bad

    def _poison(self, codec: str, payload: bytes, shard: int) -> bytes:
        size = self._run.shard_sizes[shard]
        if self._act == "poison_nan":
            bad = struct.pack("<f", self._rng.choice((nan, inf, -inf)))
            return bad + payload[4:]  # the first value, or the first scale
        vector = value(unpack(codec, payload, size))
        vector = -vector if self._act == "poison_flip" else vector * HUGE + np.float32(1)
        return pack(code(np, codec, vector.astype(np.float32)))


def _kind(frame: bytes) -> str:
    """The kind of a message that a node of ours made: a small map whose first value is the tag."""
    if len(frame) < 5 or frame[1:3] != b"\xa1_":
        return ""
    return frame[4 : 4 + max(0, frame[3] - 0xA0)].decode("ascii", "replace")


def _lane(frame: bytes) -> Lane:
    """Where a node would send it: what is too large for control by bulk."""
    return Lane.CONTROL if len(frame) <= LIMITS[Lane.CONTROL].frame_bytes else Lane.BULK
