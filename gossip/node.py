"""A peer: one event in, effects out. Everything a daemon or a simulated node decides is decided here.

    node = Node(protocols, ...)           one identity; `gossip.peer.make_node` composes the usual one
    effects = node.handle(event, now)     never blocks; never raises for a peer's fault
    node.deadline                         when it next wants `Woken`; inf: never
    node.snapshot(now)                    what people may see

The node is a network citizen: it has an identity, connections, budgets, and a memory of who behaved badly. What it does
for people are protocols (gossip/protocol.py). This file knows none of them: it gives each event to those that have a
handler for it, carries what one has to say to the others, and is the one place where a peer's fault (RemoteError)
becomes a counter, an answer and, if it happens too often, the end of the connection.
"""

import functools
import itertools
import random
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from crypto.identity import Signer, Verify, verify
from crypto.signing import network_id
from gossip import persisted
from gossip.config import Config
from gossip.counters import Counters
from gossip.deadlines import Deadlines
from gossip.dht.ids import NodeId, node_id
from gossip.dht.routing import Contact, subnet_of
from gossip.errors import HARMLESS, Reason, RemoteError
from gossip.events import (
    Compute,
    Connected,
    Dial,
    DialFailed,
    Disconnected,
    Done,
    Drop,
    Effect,
    Emit,
    Event,
    Faulted,
    Leave,
    PeerDown,
    PeerUp,
    Persist,
    Progress,
    Recall,
    Received,
    Refused,
    Sent,
    StateChanged,
    Unreachable,
    Unsent,
    Woken,
)
from gossip.net.connections import Connection, Connections
from gossip.net.own_addresses import OwnAddresses
from gossip.outbox import Fact, Outbox, Turn
from gossip.protocol import (
    Alone,
    Banned,
    Context,
    Entered,
    Incoming,
    Protocol,
    Ready,
    Silent,
    Unreached,
    Unsupported,
    Working,
)
from gossip.sequence import Sequence as Numbers
from gossip.snapshot import PeerView, Snapshot
from gossip.wire.canonical import Codec, Message, UnsupportedError, tag_in, tag_of

# Faults on one connection after which it is closed. One can be an accident of versions, ten are not.
FAULTS_MAX = 10
# So long its connections are closed at once. Long enough to cost a flooder, short enough to forgive a fixed bug.
BAN_S = 60.0
# Requests in a row without an answer after which a connection counts as dead, if nothing else comes on it either.
SILENT_MAX = 3
# Frames of no protocol that both speak, per peer: they cost what a request costs.
UNSUPPORTED_PER_S = 50.0
UNSUPPORTED_BURST = 400.0
# Tags that one connection is told of as unsupported; a version that has more says them in vain.
UNSUPPORTED_MAX = 64
# Faults of our own that one origin (a peer, or a public subnet) may bring about before its peers are banned. A guess:
# one may be chance, three are a method.
CAUSED_MAX = 3
# Origins that are remembered, and from how many on `status` says degraded: then it is not they, it is us.
ORIGINS_MAX = 64
DEGRADED_FROM = 3

# Deadlines that moved leave a stale entry behind until their date; far above what a busy node has at a time.
DEADLINES_MAX = 8192
# Jobs under way: training, saving, eight offers of others and two of ours for each shard. A guess far above it.
JOBS_MAX = 4096
# What a node with several runs is doing: the first of these that one of them is doing.
STATES = ("joining", "diverged", "training", "exchanging")

Make = Callable[[Context], Protocol]


class Node:
    """One peer.

    Args:
        protocols: Make the protocols, in the order in which each event is given to them.
        identity: Who signs.
        config: Settings, see gossip/config.py.
        addresses: Where others can reach us, "host:port"; empty: only outbound.
        rng: For choices that need not be secret.
        entropy: entropy(n) -> n secret random bytes.
        store: What `Persist` kept in the last life; empty for a new node.
        used: This identity may have signed numbers that the store does not remember.
        now: Seconds on a clock that never goes back.
        verify: Checks signatures. Only the simulator gives another one.
        isolate: Whether a fault of ours that a peer's event meets costs that peer only. Only a simulator says no: it
            looks for such faults.
    """

    def __init__(
        self,
        protocols: Sequence[Make],
        *,
        identity: Signer,
        config: Config,
        addresses: tuple[str, ...],
        rng: random.Random,
        entropy: Callable[[int], bytes],
        store: Mapping[str, bytes],
        used: bool,
        now: float,
        verify: Verify = verify,
        isolate: bool = True,
    ) -> None:
        self.identity = identity
        self._isolate = isolate
        self.id = node_id(identity.public_key)
        self._deadlines = Deadlines()
        self._turn = Turn()
        self._connections = Connections(connections_max=config.connections_max, rng=rng)
        self._counters = Counters()
        self.context = Context(
            identity=identity,
            own=self.id,
            verify=verify,
            network=network_id(config.network),
            config=config,
            addresses=OwnAddresses(addresses),
            rng=rng,
            entropy=entropy,
            sequence=Numbers(persisted.ceiling(store), used=used),
            store=store,
            connections=self._connections,
            contacts=self._contacts,
        )
        self._protocols = [make(self.context) for make in protocols]
        spoken = [protocol for protocol in self._protocols if protocol.messages]
        self.context.protocols = {p.name: [p.version] for p in sorted(spoken, key=lambda p: p.name)}
        self._codec = _codec(tuple(message for protocol in spoken for message in protocol.messages))
        # Who handles a type of event, fact, timer or message.
        self._hears: dict[type, list[tuple[Protocol, Outbox]]] = {}
        self._own: dict[type, Callable[[Any], None]] = {
            Silent: self._silent,
            Ready: self._ready,
            Working: self._worked,
            Alone: self._alone,
            Entered: self._entered,
        }
        numbers, count = itertools.count(1).__next__, len(self._protocols)
        self._outboxes: dict[str, Outbox] = {}
        for index, protocol in enumerate(self._protocols):
            out = Outbox(
                self._turn,
                self._connections,
                numbers,
                # The ticket of a frame says whose it is, modulo `count`: of a lost one nothing need be remembered.
                ticket=itertools.count(count + index, count).__next__,
                owner=protocol,
                protocol=protocol.name,
            )
            self._outboxes[protocol.name] = out
            for kind in protocol.handlers:
                self._hears.setdefault(kind, []).append((protocol, out))
        # Ticket of a job -> who ordered it, and on behalf of which peer.
        self._jobs: dict[int, tuple[Protocol, NodeId | None]] = {}
        self._state = "starting"
        self._begun = False  # the state tells from now on what the node does
        self._seeking = False  # there are addresses to try while we are alone
        self._working: dict[bytes, str] = {}  # what each run is doing
        self._origins: dict[
            Hashable, int
        ] = {}  # where events came from that met faults of ours, and how many
        self._turn.now = now
        for protocol in self._protocols:
            protocol.start(now, self._outboxes[protocol.name])
        assert not self._release(now), "a start orders nothing: a driver carries out what answers an event"

    # --- the four nouns -----------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        return self._deadlines.next

    @property
    def state(self) -> str:
        return self._state

    def handle(self, event: Event, now: float) -> list[Effect]:
        self._turn.now = now
        try:
            self._take(event, now)
            return self._release(now)
        except Exception as error:  # noqa: BLE001  # the core's one boundary between a peer's event and our own bugs
            return self._failed(event, error, now)

    def protocol(self, name: str) -> Any:
        """The protocol of this name, for tests and the simulator."""
        return next(protocol for protocol in self._protocols if protocol.name == name)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """Every table that others can make larger: "protocol.table" -> (size, limit)."""
        found = {f"connections.{name}": sizes for name, sizes in self._connections.bounds().items()}
        partners = len(self._partners())
        # Those in the middle of something are not closed, and one may have come this moment.
        found["connections.open"] = (
            len(self._connections),
            self.context.config.connections_max + partners + 1,
        )
        found["node.deadlines"] = (self._deadlines.size, DEADLINES_MAX)
        found["node.jobs"] = (len(self._jobs), JOBS_MAX)
        found["node.origins"] = (len(self._origins), ORIGINS_MAX)
        for protocol in self._protocols:
            found.update({f"{protocol.name}.{name}": sizes for name, sizes in protocol.bounds().items()})
        return found

    def snapshot(self, now: float) -> Snapshot:
        shown = {p.name: view for p in self._protocols if (view := p.snapshot(now)) is not None}
        return Snapshot(
            node=self.id,
            state=self._state,
            degraded=len(self._origins) >= DEGRADED_FROM,
            exchanges=self._counters.exchanged,
            refused=dict(self._counters.refused),
            refused_by_peers=dict(self._counters.refused_by_peers),
            peers=[
                PeerView(
                    node,
                    connection.address,
                    connection.inbound,
                    now - connection.since,
                    dict(connection.protocols),
                    self._counters.exchanged_with.get(node, 0),
                    connection.faults,
                )
                for node, connection in self._connections.items()
            ],
            lost_frames=self._connections.lost_frames,
            protocols=shown,
        )

    # --- events in ----------------------------------------------------------------------------------

    def _take(self, event: Event, now: float) -> None:
        kind = type(event)
        if kind is Received:
            self._received(event, now)  # type: ignore[arg-type]
        elif kind is Sent or kind is Unsent:
            protocol = self._protocols[event.ticket % len(self._protocols)]  # type: ignore[union-attr]
            protocol.handle(event, now, self._outboxes[protocol.name])
        elif kind is Done:
            ticket: int = event.ticket  # type: ignore[union-attr]
            assert ticket in self._jobs, f"a result for the unknown ticket {ticket}"
            protocol, _ = self._jobs[ticket]
            protocol.handle(event, now, self._outboxes[protocol.name])
            del self._jobs[ticket]
        elif kind is Woken:
            for timer in self._deadlines.due(now):
                self._tell(timer, now)
        elif kind is PeerUp:
            self._peer_up(event, now)  # type: ignore[arg-type]
        elif kind is PeerDown:
            self._peer_down(event, now)  # type: ignore[arg-type]
        elif kind is DialFailed:
            self._dial_failed(event, now)  # type: ignore[arg-type]
        else:
            if kind is Leave:
                self._change_state("stopping")
            elif kind is Progress:
                self._moving(event, now)  # type: ignore[arg-type]
            self._tell(event, now)

    def _tell(self, event: Any, now: float) -> None:
        for protocol, out in self._hears.get(type(event), ()):
            protocol.handle(event, now, out)

    def _received(self, event: Received, now: float) -> None:
        peer = event.peer
        connection = self._connections.get(peer)
        if connection is None:
            return  # the connection ended while the frame was under way
        self._connections.heard(connection, now)
        try:
            message = self._codec.decode(event.frame)
        except UnsupportedError as error:
            self._unsupported(peer, connection, error, now)
            return
        except RemoteError as error:
            tag = tag_in(event.frame)
            kind = self._codec.tags.get(tag)
            if kind is None or self._hears[kind][0][0].name in connection.protocols:
                self._fault(peer, error, now)
            else:  # a tag of ours, which was another thing in the version that the peer speaks
                self._unsupported(peer, connection, UnsupportedError(tag), now)
            return
        protocol, out = self._hears[type(message)][0]
        if protocol.name not in connection.protocols:
            self._unsupported(peer, connection, UnsupportedError(tag_of(type(message))), now)
            return
        incoming = Incoming(peer, connection.key, message)
        try:
            protocol.handle(incoming, now, out)
        except RemoteError as error:
            self._fault(peer, error, now)
            protocol.refused(incoming, error, now, out)

    def _moving(self, event: Progress, now: float) -> None:
        if (connection := self._connections.get(event.peer)) is not None:
            self._connections.heard(connection, now)

    def _peer_up(self, event: PeerUp, now: float) -> None:
        self._connections.opened(event, now)
        if self._connections.banned(event.peer, now):
            self._order(Drop(event.peer, "it broke the protocol a moment ago"))
            return
        self._order(Emit(Connected(event.peer, event.address, event.inbound)))
        self._tell(event, now)
        self._connections.shed([*self._partners(), event.peer], self._turn.effects)

    def _peer_down(self, event: PeerDown, now: float) -> None:
        if not self._connections.closed(event.peer, now):
            return
        if event.slow:
            self._connections.too_slow(event.peer, now)
        self._counters.exchanged_with.pop(event.peer, None)
        self._order(Emit(Disconnected(event.peer, event.reason)))
        self._tell(event, now)

    def _dial_failed(self, event: DialFailed, now: float) -> None:
        self._order(Emit(Unreachable(event.address, event.reason)))
        if event.peer is None or not self._connections.dial_failed(event, now, self._turn.effects):
            return
        self._tell(Unreached(event.peer, self._connections.failures(event.peer)), now)

    # --- whose fault it is --------------------------------------------------------------------------

    def _fault(self, peer: NodeId, error: RemoteError, now: float) -> None:
        """The one place where a peer's fault has consequences."""
        self._order(Emit(Refused(peer, error.reason, True, error.detail)))
        connection = self._connections.get(peer)
        if connection is None or error.reason in HARMLESS:
            return
        connection.faults += 1
        if connection.faults == FAULTS_MAX or error.reason in (Reason.MALFORMED, Reason.OVERSIZED):
            self._ban(peer, error.reason, error.detail, now)

    def _ban(self, peer: NodeId, reason: str, detail: str, now: float) -> None:
        self._connections.ban(peer, now + BAN_S)
        self._turn.facts.append(Banned(peer, reason, detail))

    def _unsupported(self, peer: NodeId, connection: Connection, error: UnsupportedError, now: float) -> None:
        """A message of no protocol that both speak: said once, and harmless otherwise."""
        if not self._connections.spend(peer, now, rate=UNSUPPORTED_PER_S, burst=UNSUPPORTED_BURST):
            return
        if error.tag in connection.unsupported or len(connection.unsupported) >= UNSUPPORTED_MAX:
            return
        connection.unsupported[error.tag] = None
        self._order(Emit(Refused(peer, error.reason, True, error.detail)))
        self._turn.facts.append(Unsupported(peer, error.tag))

    def _failed(self, event: Event, error: Exception, now: float) -> list[Effect]:
        """A fault of ours. Where a peer's event brought it about, that peer is dropped and everything else goes on.

        What the handlers had ordered inside this machine stays ordered, because their state says so; what they had
        said to others is not said.
        """
        peer = getattr(event, "peer", None)
        if isinstance(event, Done) and event.ticket in self._jobs:
            peer = self._jobs.pop(event.ticket)[1]
        if peer is None or not self._isolate:
            raise error
        turn = self._turn
        turn.effects = [e for e in turn.effects if isinstance(e, Persist | Compute | Dial | Recall)]
        turn.facts.clear()
        frame = event.frame if isinstance(event, Received) else b""
        self._order(
            Emit(Faulted(peer, type(event).__name__, frame, "".join(traceback.format_exception(error))))
        )
        connection = self._connections.get(peer)
        origin = (subnet_of(connection.address) if connection is not None else None) or peer
        self._origins[origin] = self._origins.pop(origin, 0) + 1
        if len(self._origins) > ORIGINS_MAX:
            del self._origins[next(iter(self._origins))]
        if self._origins[origin] >= CAUSED_MAX:
            self._connections.ban(peer, now + BAN_S)
        self._order(Drop(peer, "an event of this peer met a fault of ours"))
        return self._release(now)

    # --- effects out --------------------------------------------------------------------------------

    def _order(self, effect: Effect) -> None:
        self._turn.effects.append(effect)

    def _release(self, now: float) -> list[Effect]:
        """Carry facts to those that want to hear them; then everything that was said in this turn counts."""
        turn = self._turn
        while turn.facts:
            facts, turn.facts = turn.facts, []
            for fact in facts:
                self._heard(fact, now)
        if turn.timers:
            for timer, date in turn.timers:
                self._deadlines.set(timer, date)
            turn.timers.clear()
        if turn.tickets:
            for ticket, owner, peer in turn.tickets:
                self._jobs[ticket] = (owner, peer)
            turn.tickets.clear()
        effects = turn.effects
        if effects:
            self._counters.hear(effects, self._connections)
            turn.effects = []
        return effects

    def _heard(self, fact: Fact, now: float) -> None:
        """What concerns the node itself comes before what its protocols make of it."""
        own = self._own.get(type(fact))
        if own is not None:
            own(fact)
        for protocol, out in self._hears.get(type(fact), ()):
            protocol.handle(fact, now, out)

    def _ready(self, fact: Ready) -> None:
        if fact.peer in self._connections:
            self._connections.ready(fact.peer, fact.protocols, self._turn.effects)

    def _worked(self, fact: Working) -> None:
        self._working[fact.run] = fact.state
        self._begun |= fact.begun
        self._review()

    def _alone(self, fact: Alone) -> None:
        self._seeking = fact.seeking
        self._begun |= not fact.seeking and "joining" not in self._working.values()
        self._review()

    def _entered(self, fact: Entered) -> None:
        self._begun = True
        self._review()

    def _silent(self, fact: Silent) -> None:
        """It did not answer a request in time. TCP does not tell when the other end lost its power."""
        connection, patience_s = self._connections.get(fact.peer), self.context.config.dht.request_timeout_s
        if connection is not None and self._turn.now >= connection.heard_at + patience_s:
            connection.silent += 1
            if connection.silent >= SILENT_MAX:
                self._order(Drop(fact.peer, f"no answer to {SILENT_MAX} requests in a row"))

    # --- what the node is doing ---------------------------------------------------------------------

    def _review(self) -> None:
        if not self._begun:
            return
        states = self._working.values()
        if not len(self._connections) and self._seeking:
            self._change_state("isolated")
        else:
            self._change_state(next((state for state in STATES if state in states), "idle"))

    def _change_state(self, state: str) -> None:
        if state != self._state and self._state != "stopping":
            self._state = state
            self._order(Emit(StateChanged(state)))

    def _partners(self) -> list[NodeId]:
        """Peers in the middle of something with us: not to be dropped as idle."""
        return [peer for protocol in self._protocols for peer in protocol.partners()]

    def _contacts(self) -> list[Contact]:
        return [contact for protocol in self._protocols for contact in protocol.contacts()]


@functools.cache
def _codec(messages: tuple[type[Message], ...]) -> Codec:
    """One for all nodes of a process that speak the same."""
    return Codec(messages)
