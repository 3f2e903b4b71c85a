"""The first and the last words on a connection: `hello`, `bye`, and that a message is not known here.

Growth of the network is in `hello`: it lists the protocols that its sender speaks, with versions. Two peers speak the
highest version of each that both name; a peer from the future is no bad peer, and neither is one from the past.
"""

from math import inf

from gossip.dht.ids import NodeId
from gossip.dht.kinds import PeerRecord
from gossip.dht.records import contact_elsewhere, contact_of, sign_record
from gossip.errors import Reason, RemoteError
from gossip.events import Leave, PeerDown, PeerUp, Refused
from gossip.outbox import Outbox, Timer
from gossip.protocol import Banned, Context, Incoming, Protocol, Ready, Unsupported
from gossip.wire import connection as schema
from gossip.wire.connection import EXTRA_BYTES_MAX, Bye, Hello

# Messages of this protocol per peer: a hello or two, and what a later version does not know. As for the DHT, a guess.
MESSAGES_PER_S = 50.0
MESSAGES_BURST = 400.0


# Hellos kept, since the record in one costs a number. Two are in use, for peers on this machine and elsewhere; others
# tell addresses that have changed since.
HELLOS_MAX = 4


class HelloOverdue(Timer, frozen=True):
    peer: NodeId


class Greeting(Protocol):
    """Args:
    agent: What we say we are, for people: "p2pnode/0.2.0".
    """

    name = "connection"
    messages = schema.MESSAGES

    def __init__(self, context: Context, *, agent: str) -> None:
        super().__init__(context)
        self._agent = agent
        self._hellos: dict[tuple[str, ...], Hello] = {}  # by the addresses that they tell
        self.handlers = {
            PeerUp: self._up,
            PeerDown: self._down,
            HelloOverdue: self._overdue,
            Hello: self._greeted,
            Bye: self._left,
            schema.Unsupported: self._not_spoken,
            Unsupported: self._unsupported,
            Banned: self._banned,
            Leave: self._leave,
        }

    def _up(self, event: PeerUp, now: float, out: Outbox) -> None:
        addresses = self.context.addresses
        if event.local:
            addresses.reached_at(event.local)
        told = addresses.told(nearby=self.context.connections.nearby(event.peer))
        if told not in self._hellos:
            if len(self._hellos) >= HELLOS_MAX:
                self._hellos.clear()
            self._hellos[told] = Hello(self._agent, {}, dict(self.context.protocols), self._record(told, out))
        out.send(event.peer, self._hellos[told])
        out.timer(HelloOverdue(event.peer), now + self.context.config.dht.request_timeout_s)

    def _record(self, told: tuple[str, ...], out: Outbox) -> bytes:
        """A fresh signed record of our own addresses, of which those `told` are in it."""
        context = self.context
        return sign_record(
            context.identity,
            context.network,
            PeerRecord(
                addresses=told,
                key=context.identity.public_key,
                run=bytes(32),
                seq=context.sequence.take(out),
                ttl_s=int(context.config.dht.record_ttl_s_max),
            ),
        )

    def _down(self, event: PeerDown, now: float, out: Outbox) -> None:
        out.timer(HelloOverdue(event.peer), inf)

    def _overdue(self, timer: HelloOverdue, now: float, out: Outbox) -> None:
        out.drop(timer.peer, "it did not introduce itself")

    def _spend(self, peer: NodeId, now: float) -> None:
        self.context.connections.charge(peer, now, rate=MESSAGES_PER_S, burst=MESSAGES_BURST)

    def _greeted(self, event: Incoming, now: float, out: Outbox) -> None:
        hello: Hello = event.message
        self._spend(event.peer, now)
        if sum(len(name) + len(value) for name, value in hello.extra.items()) > EXTRA_BYTES_MAX:
            raise RemoteError(Reason.OVERSIZED, f"`extra` of hello holds more than {EXTRA_BYTES_MAX} bytes")
        # Not verified here: the channel has proved whose it is. The signature is for third parties, and all of them
        # check it before they dial because of a record.
        nearby = self.context.connections.nearby(event.peer)
        contact = contact_of(hello.record, None) if nearby else contact_elsewhere(hello.record, None)
        if contact is None or contact.node != event.peer:
            raise RemoteError(Reason.BAD_RECORD, "the record in hello is not the sender's own")
        agreed = {
            name: max(common)
            for name, ours in self.context.protocols.items()
            if (common := set(ours) & set(hello.protocols.get(name, ())))
        }
        out.timer(HelloOverdue(event.peer), inf)
        out.fact(Ready(event.peer, contact, agreed))

    def _left(self, event: Incoming, now: float, out: Outbox) -> None:
        # It says why it closes; the operator of this node should read it.
        out.drop(event.peer, f"the peer said goodbye: {ascii(event.message.reason[:120])[1:-1]}")

    def _not_spoken(self, event: Incoming, now: float, out: Outbox) -> None:
        self._spend(event.peer, now)
        tag = ascii(event.message.tag)[1:-1]
        out.emit(Refused(event.peer, Reason.UNSUPPORTED, False, f"the peer does not know our message {tag}"))

    def _unsupported(self, fact: Unsupported, now: float, out: Outbox) -> None:
        out.send(fact.peer, schema.Unsupported(fact.tag))

    def _banned(self, fact: Banned, now: float, out: Outbox) -> None:
        out.send(fact.peer, Bye(f"{fact.reason}: {fact.detail}"[:200]))
        out.drop(fact.peer, fact.reason)

    def _leave(self, event: Leave, now: float, out: Outbox) -> None:
        bye = Bye("leaving")
        for peer, _ in self.context.connections.items():
            out.send(peer, bye)
