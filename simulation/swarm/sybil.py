"""One person with many keys: Sybils that sit around a place of the DHT, and Sybils that surround one victim.

Douceur 2002 named the first; the second is the eclipse of Singh, Ngan, Druschel and Wallach 2006, and of Heilman,
Kendler, Zohar and Goldberg 2015. Keys are free, so that ids near any target are found by trying; machines and networks
are not: all Sybils of one person have addresses of one /24, which is what the routing table's limits rest on.

- `sybil`: the keys nearest to the place where holders of our model are listed. They promise to keep records and forget
  them, and name only each other.
- `eclipse`: half of the keys are nearest to a victim, the others anywhere. All of them connect to it again and again,
  answer its lookups only with themselves, and are honest to everybody else, so that nobody warns it.
"""

import random
from collections.abc import Callable

from crypto.identity import Identity
from crypto.signing import network_id
from gossip import wire
from gossip.dht.ids import Key, NodeId, node_id
from gossip.dht.kinds import ProviderRecord
from gossip.dht.records import sign_record
from gossip.errors import RemoteError
from gossip.events import Dial, Effect, Event, PeerDown, PeerUp, Received, Send, Woken
from gossip.learning.task import RunInfo
from gossip.node import Node
from simulation.machines import Host
from simulation.seeds import Seeds
from simulation.villain import Mark, Orders

# Leading bits that a Sybil's id shares with its target: with at most some forty honest nodes about, whose nearest
# shares five or six. 256 tries of some 50 us each.
NEAR_BITS = 8
# What a record of theirs claims; the receiver's limit is shorter.
TTL_S = 7200


def identity_near(target: bytes, entropy: Callable[[int], bytes], bits: int = NEAR_BITS) -> Identity:
    """An identity whose id begins with the same `bits` bits as `target`: by trying."""
    aim = int.from_bytes(target, "big") >> (8 * len(target) - bits)
    while True:
        identity = Identity.generate(entropy)
        if int.from_bytes(node_id(identity.public_key), "big") >> (256 - bits) == aim:
            return identity


class Band:
    """What the Sybils of one person know of each other.

    Args:
        act: "sybil" or "eclipse".
        place: Where they forget records.
        victim: Whom they surround; None: nobody.
    """

    def __init__(self, act: str, place: Key, victim: Host | None) -> None:
        self.act = act
        self.place = place
        self.victim = victim
        self.peer_records: dict[NodeId, bytes] = {}
        self.provider_records: dict[NodeId, bytes] = {}


class Sybil:
    """A core around a real node, that answers some questions itself.

    Args:
        node: Joins, exchanges, and answers what is not to be falsified.
        host: Whose identity signs.
        band: Its fellows.
        run: Of the honest nodes.
        every_s: Mean time between two visits to the victim.
        mark: Registers a hostile frame.
    """

    def __init__(
        self,
        node: Node,
        host: Host,
        band: Band,
        *,
        run: RunInfo,
        seeds: Seeds,
        now: float,
        every_s: float,
        mark: Mark,
    ) -> None:
        self._node = node
        self._host = host
        self._band = band
        self._network = network_id(run.network)
        self._rng: random.Random = seeds.random("villain", host.index, host.life)
        self._every_s = every_s
        self._mark = mark
        self._with_victim = False
        self._next = now + every_s * self._rng.uniform(0.0, 1.0)

    @property
    def deadline(self) -> float:
        return min(self._node.deadline, self._next)

    def handle(self, event: Event, now: float) -> list[Effect]:
        victim = self._band.victim
        if victim is not None and isinstance(event, PeerUp | PeerDown) and event.peer == victim.id:
            self._with_victim = isinstance(event, PeerUp)
        effects: list[Effect] = []
        if isinstance(event, Received) and self._lied(event, effects):
            return effects
        if not isinstance(event, Woken) or self._node.deadline <= now:
            effects += self._node.handle(event, now)
        for effect in effects:
            if isinstance(effect, Send):
                self._listen(effect.frame)
        if now >= self._next:
            self._next = now + self._every_s * self._rng.uniform(0.5, 1.5)
            if victim is not None and not self._with_victim:
                effects.append(Dial(victim.address, None))
        return effects

    def _listen(self, frame: bytes) -> None:
        """Our node introduces itself: its fellows are going to name it."""
        if frame[1:9] == b"\xa1_\xa5hello":
            hello = wire.decode(frame)
            assert isinstance(hello, wire.Hello)
            self._band.peer_records[self._node.id] = hello.record
            if self._band.victim is not None:
                self._mark(frame, self._band.act)

    def _lied(self, event: Received, out: list[Effect]) -> bool:
        """Answers in place of our node where that does harm."""
        band = self._band
        if band.victim is not None and event.peer != band.victim.id:
            return False
        try:
            message = wire.decode(event.frame)
        except RemoteError:
            return False
        fellows = [record for node, record in band.peer_records.items() if node != self._node.id][:20]
        answer: wire.AnyMessage
        match message:
            case wire.FindNode():
                answer = wire.Nodes(message.n, fellows)
            case wire.GetRecords():
                self._provide(out)
                found = list(band.provider_records.values()) if message.key == band.place else []
                answer = wire.Records(message.n, fellows, found[:20])
            case wire.PutRecord():
                answer = wire.Stored(message.n, "")
            case _:
                return False
        frame = wire.encode(answer)
        self._mark(frame, band.act)
        out.append(Send(event.peer, frame))
        return True

    def _provide(self, out: list[Effect]) -> None:
        """Once: a genuine record that we hold the model."""
        if self._node.id in self._band.provider_records:
            return
        record = ProviderRecord(
            addresses=(self._host.address,),
            key=self._host.key,
            place=self._band.place,
            seq=self._node.context.sequence.take(Orders(out)),
            ttl_s=TTL_S,
        )
        signed = sign_record(self._host.identity, self._network, record)
        self._band.provider_records[self._node.id] = signed
