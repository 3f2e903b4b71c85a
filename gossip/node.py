"""A peer: one event in, effects out. Everything a daemon or a simulated node decides is decided here.

    node = Node(...)                      one identity in one run
    effects = node.handle(event, now)     never blocks; never raises for a peer's fault
    node.deadline                         when it next wants `Woken`; inf: never
    node.snapshot()                       what people may see

The node goes round: train on local data, exchange one shard with a random holder, again. A newcomer first tries to
adopt what others have. The parts (links, directory, membership, exchanges) do not know each other; this file routes
events to them and is the one place where a peer's fault (RemoteError) becomes a counter, an answer and, if it
happens too often, the end of the connection.
"""

import itertools
import random
from collections.abc import Callable, Mapping
from math import inf, nan
from typing import Any

from crypto.identity import PublicKey, Signer, Verify, verify
from crypto.signing import network_id
from gossip import memory, wire
from gossip.config import Config
from gossip.counters import Counters
from gossip.deadlines import Deadlines
from gossip.dht.directory import Directory, Request
from gossip.dht.ids import Key, NodeId, node_id, provider_key
from gossip.dht.routing import Contact
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
    Join,
    Learned,
    Leave,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    Refused,
    Save,
    Saved,
    Send,
    StateChanged,
    Train,
    Trained,
    Unreachable,
    Woken,
)
from gossip.exchange import Ended, Exchanges
from gossip.hello import Hellos
from gossip.learning.task import RunInfo
from gossip.links import Links
from gossip.membership import Membership
from gossip.net.bootstrap import Bootstrap
from gossip.sequence import Sequence
from gossip.snapshot import PeerView, Snapshot

# Faults on one connection after which it is closed. One can be an accident of versions, ten are not.
FAULTS_MAX = 10
# So long its connections are closed at once. Long enough to cost a flooder, short enough to forgive a fixed bug.
BAN_S = 60.0
# Requests in a row without an answer after which a connection counts as dead.
SILENT_MAX = 3
# Requests to the DHT per peer: twice what a join needs at once, and a lookup each second after that. A guess.
REQUESTS_PER_S = 50.0
REQUESTS_BURST = 400.0
# Partners tried in one round while they answer "busy".
TRIES = 3
# Holders drawn until one is neither resting nor late already: with one in four of these, a round in 256 has no partner.
DRAWS = 4
# Several newcomers who found only newcomers may begin: nobody older is there (see `_newcomer_ended`).
NEWCOMERS_ASKED = 5
# Pause of a node that lost its last connection before it dials again. A guess.
ALONE_S = 1.0
# Whoever was alone and is let in again looks around at once, but not more often than this. Lookups open connections,
# and where few are allowed, connections close others; those who lost their last one by that would look around, too, for
# ever: 20 nodes with 6 connections each got to 900 events a second so. A guess, above the pauses of the first walks.
ENTER_S = 10.0
# A partner is forgotten after so many failed dials in a row; a later lookup may find it again.
FORGET_FAILURES = 2
# A peer that says falsely that a number of ours was used makes us leave out numbers, but not more often than this.
SKIP_S = 60.0
# Training jobs in a row without a finite change that are called diverged: one may be a bad batch. A guess.
DIVERGED = 3
# The membership key changes so often (docs/security.md, T19); only matters above `pool_max` nodes.
ROTATE_S = 600.0
# Look around sooner right after the start: the first interval is a 16th of the steady one, then it doubles.
WALK_START = 16.0


class Node:
    """One peer.

    Args:
        identity: Who signs.
        config: Settings, see gossip/config.py.
        run: What is trained; peers of another run are refused.
        addresses: Where others can reach us, "host:port"; empty: only outbound, until a `PeerUp` says more.
        rng: For choices that need not be secret.
        entropy: entropy(n) -> n secret random bytes.
        store: What `Persist` kept in the last life; empty for a new node.
        has_model: Whether the Learner restored a snapshot of the weights; without one the node is a newcomer.
        now: Seconds on a clock that never goes back.
        verify: Checks signatures. Only the simulator gives another one.
    """

    def __init__(
        self,
        identity: Signer,
        config: Config,
        run: RunInfo,
        *,
        addresses: tuple[str, ...],
        rng: random.Random,
        entropy: Callable[[int], bytes],
        store: Mapping[str, bytes],
        has_model: bool,
        now: float,
        verify: Verify = verify,
    ) -> None:
        self.identity = identity
        self.id = node_id(identity.public_key)
        self._config = config
        self._run = run
        self._rng = rng
        self._entropy = entropy
        self._deadlines = Deadlines()
        self._tickets = itertools.count(1).__next__
        network = network_id(config.network)
        self._sequence = Sequence(memory.ceiling(store), used=has_model)
        self._links = Links(connections_max=config.connections_max, rng=rng)
        self._directory = Directory(
            identity=identity,
            verify=verify,
            network=network,
            run=run.id,
            addresses=addresses,
            config=config.dht,
            sequence=self._sequence,
            deadlines=self._deadlines,
            rng=rng,
            send=self._send_request,
            found=self._provider_found,
            nearby=self._links.nearby,
            secret=entropy(16),
        )
        self._membership = Membership(self.id, pool_max=config.membership.pool_max, key=entropy(16))
        self._exchanges = Exchanges(
            identity=identity,
            verify=verify,
            network=network,
            run=run,
            config=config.exchange,
            ages=memory.ages(store, run, has_model),
            marks=memory.marks(store),
            sequence=self._sequence,
            tickets=self._tickets,
            deadlines=self._deadlines,
            entropy=entropy,
            send=self._send_frame,
        )
        self._places = {provider_key(run.id, shard): shard for shard in range(len(run.shard_sizes))}
        # Shards in the order of their last exchange, the longest ago first.
        self._turn = list(range(len(run.shard_sizes)))
        self._remembered = memory.peers(store)
        self._bootstrap = Bootstrap(rng)
        self._walk_s = config.membership.walk_interval_s / WALK_START
        self._hellos = Hellos(run, self._directory)
        self._same_run: dict[NodeId, bool] = {}
        self._state = "starting"
        self._entered = False  # somebody let us into the network since we were last alone
        self._entered_at = -inf  # when we last looked around because of that
        self._skipped_at = -inf
        self._joined = all(age > 0 for age in self._exchanges.ages)
        self._newcomers: dict[NodeId, None] = {}
        self._round = memory.rounds(store) if has_model else 0
        self._round_at = now
        # Number of the exchange that this round waits for. Older ones may still be open: not ours to wait for.
        self._awaited: int | None = None
        self._tries = 0
        self._train_ticket = 0
        self._save_ticket = 0
        self._loss = nan
        self._dropped = 0  # training jobs in a row whose change was not finite
        self._counters = Counters()
        learning = config.learning
        self._deadlines.set(("bootstrap",), now)
        self._deadlines.set(("refresh",), now + config.dht.refresh_interval_s * rng.uniform(0.8, 1.2))
        self._deadlines.set(("rotate",), now + ROTATE_S * rng.uniform(0.8, 1.2))
        if learning.save_interval_s > 0:
            self._deadlines.set(("save",), now + learning.save_interval_s * rng.uniform(0.8, 1.2))
        self._deadlines.set(("round",), now + learning.round_interval_s * rng.random())
        if not self._joined:
            self._deadlines.set(("patience",), now + config.exchange.join_patience_s)

    # --- the four nouns -----------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        return self._deadlines.next

    @property
    def state(self) -> str:
        return self._state

    def handle(self, event: Event, now: float) -> list[Effect]:
        out: list[Effect] = []
        match event:
            case Received():
                self._received(event, now, out)
            case Done():
                self._done(event, now, out)
            case Woken():
                for name in self._deadlines.due(now):
                    self._due(name, now, out)  # type: ignore[arg-type]  # every name set is a tuple
            case PeerUp():
                self._peer_up(event, now, out)
            case PeerDown():
                self._peer_down(event, now, out)
            case DialFailed():
                self._dial_failed(event, now, out)
            case Join():
                self._bootstrap.add(event.addresses)
                self._deadlines.set(("bootstrap",), now)
            case Leave():
                self._leave(out)
        if self._exchanges.ended:
            ended, self._exchanges.ended = self._exchanges.ended, []
            for end in ended:
                self._exchange_ended(end, now, out)
        if out:
            self._counters.hear(out, self._links)
        return out

    def snapshot(self, now: float) -> Snapshot:
        return Snapshot(
            node=self.id,
            state=self._state,
            run=self._run.id,
            task=self._run.task,
            schema=self._run.schema,
            shards=len(self._run.shard_sizes),
            ages=list(self._exchanges.ages),
            round=self._round,
            loss=self._loss,
            changes_dropped=self._counters.changes_dropped,
            exchanges=self._counters.exchanged,
            initiated=self._counters.initiated,
            refused=dict(self._counters.refused),
            refused_by_peers=dict(self._counters.refused_by_peers),
            peers=[
                PeerView(
                    node,
                    link.address,
                    link.inbound,
                    now - link.since,
                    self._same_run.get(node, False),
                    self._counters.exchanged_with.get(node, 0),
                    link.faults,
                )
                for node, link in self._links.items()
            ],
            pool=len(self._membership),
            contacts=len(self._directory.table),
            records=len(self._directory.records),
            lookups=self._directory.lookups,
            lost_frames=self._counters.lost_frames,
        )

    # --- connections --------------------------------------------------------------------------------

    def _peer_up(self, event: PeerUp, now: float, out: list[Effect]) -> None:
        self._links.opened(event, now)
        if self._links.banned(event.peer, now):
            out.append(Drop(event.peer, "it broke the protocol a moment ago"))
            return
        if event.local:
            self._directory.reached_at(event.local)
        hello = self._hellos.frame(nearby=self._links.nearby(event.peer), out=out)
        out.append(Send(event.peer, hello))
        self._links.flush(event.peer, out)
        self._deadlines.set(("hello", event.peer), now + self._config.dht.request_timeout_s)
        out.append(Emit(Connected(event.peer, event.address, event.inbound)))
        self._links.shed([*self._exchanges.partners, event.peer], out)

    def _peer_down(self, event: PeerDown, now: float, out: list[Effect]) -> None:
        if not self._links.closed(event.peer, now):
            return
        self._deadlines.clear(("hello", event.peer))
        self._same_run.pop(event.peer, None)
        self._counters.exchanged_with.pop(event.peer, None)
        out.append(Emit(Disconnected(event.peer, event.reason)))
        self._directory.lost(event.peer, now, out)
        self._exchanges.lost(event.peer, now, out)
        if not len(self._links):
            self._entered = False
            self._deadlines.set(("bootstrap",), now + ALONE_S * self._rng.uniform(0.5, 1.5))

    def _dial_failed(self, event: DialFailed, now: float, out: list[Effect]) -> None:
        out.append(Emit(Unreachable(event.address, event.reason)))
        if event.peer is None or not self._links.dial_failed(event, now, out):
            return
        self._directory.unreachable(event.peer, now, out)
        self._exchanges.lost(event.peer, now, out)
        if self._links.failures(event.peer) >= FORGET_FAILURES:
            self._membership.forget(event.peer)

    def _send_frame(self, peer: NodeId, frame: bytes, now: float, out: list[Effect]) -> bool:
        contact = self._membership.contact(peer)
        sent = self._links.send(peer, contact.addresses if contact else (), frame, now, out)
        self._counters.lost_frames += not sent
        return sent

    def _send_request(self, contact: Contact, message: Request, now: float, out: list[Effect]) -> bool:
        return self._links.send(contact.node, contact.addresses, wire.encode(message), now, out)

    # --- messages -----------------------------------------------------------------------------------

    def _received(self, event: Received, now: float, out: list[Effect]) -> None:
        link = self._links.get(event.peer)
        if link is None:
            return  # the connection ended while the frame was under way
        self._links.used(link)
        try:
            message = wire.decode(event.frame)
        except RemoteError as error:
            self._fault(event.peer, error, now, out)
            return
        try:
            self._message(event.peer, link.key, message, now, out)
        except RemoteError as error:
            self._fault(event.peer, error, now, out)
            if isinstance(message, wire.OfferMessage) and error.reason is not Reason.RATE_LIMITED:
                self._exchanges.refuse(event.peer, link.key, message, error, now, out)
            elif isinstance(message, wire.PutRecord):
                out.append(Send(event.peer, wire.encode(wire.Stored(message.n, error.reason))))

    def _message(
        self, peer: NodeId, key: PublicKey, message: wire.AnyMessage, now: float, out: list[Effect]
    ) -> None:
        match message:
            case wire.OfferMessage():
                rate = self._config.exchange.offers_per_peer_s
                self._budget(peer, now, rate=rate, burst=4.0 * rate)
                ready = self._state != "stopping"
                self._exchanges.offered(peer, key, message, ready, now, out)
            case wire.ReplyMessage():
                self._exchanges.replied(peer, key, message, now, out)
                self._answered(peer)
            case wire.FindNode() | wire.GetRecords() | wire.PutRecord() | wire.Ping():
                self._budget(peer, now, rate=REQUESTS_PER_S, burst=REQUESTS_BURST)
                out.append(Send(peer, wire.encode(self._directory.answer(peer, message, now))))
            case wire.Nodes() | wire.Records() | wire.Stored() | wire.Pong():
                self._directory.answered(peer, message, now, out)
                self._answered(peer)
            case wire.Hello():
                self._budget(peer, now, rate=REQUESTS_PER_S, burst=REQUESTS_BURST)
                self._greeted(peer, message, now, out)
            case wire.Bye():
                # It says why it closes; whoever runs this node should read it.
                out.append(Drop(peer, f"the peer said goodbye: {ascii(message.reason[:120])[1:-1]}"))

    def _greeted(self, peer: NodeId, hello: wire.Hello, now: float, out: list[Effect]) -> None:
        contact = self._directory.introduce(hello.record, peer, now, out)
        self._links.greeted(peer)
        self._deadlines.clear(("hello", peer))
        same = hello.run == self._run.id
        self._same_run[peer] = same
        if same:
            for shard in hello.shards:
                if shard < len(self._run.shard_sizes):
                    self._membership.observe(contact, shard)
        else:
            # It may have changed its run, or somebody said falsely that it holds our shards.
            self._membership.forget(peer)
            detail = self._run.difference(run=hello.run, schema=hello.schema, task=hello.task)
            out.append(Emit(Refused(peer, Reason.OTHER_RUN, True, detail)))
        if not self._entered:
            self._enter(now, out)

    def _budget(self, peer: NodeId, now: float, *, rate: float, burst: float) -> None:
        if not self._links.spend(peer, now, rate=rate, burst=burst):
            raise RemoteError(Reason.RATE_LIMITED, f"more than {rate:g} requests a second")

    def _answered(self, peer: NodeId) -> None:
        if (link := self._links.get(peer)) is not None:
            link.silent = 0

    def _silent(self, peer: NodeId, out: list[Effect]) -> None:
        """It did not answer a request in time. TCP does not tell when the other end lost its power."""
        if (link := self._links.get(peer)) is not None:
            link.silent += 1
            if link.silent >= SILENT_MAX:
                out.append(Drop(peer, f"no answer to {SILENT_MAX} requests in a row"))

    def _fault(self, peer: NodeId, error: RemoteError, now: float, out: list[Effect]) -> None:
        """The one place where a peer's fault has consequences."""
        out.append(Emit(Refused(peer, error.reason, True, error.detail)))
        link = self._links.get(peer)
        if link is None or error.reason in HARMLESS:
            return
        link.faults += 1
        if link.faults == FAULTS_MAX or error.reason in (Reason.MALFORMED, Reason.OVERSIZED):
            bye = wire.Bye(f"{error.reason}: {error.detail}"[:200])
            out.append(Send(peer, wire.encode(bye)))
            out.append(Drop(peer, str(error.reason)))
            self._links.ban(peer, now + BAN_S)
            if (contact := self._membership.contact(peer)) is not None:
                self._remembered = [a for a in self._remembered if a not in contact.addresses]
                self._membership.forget(peer)

    # --- entering the network -----------------------------------------------------------------------

    def _enter(self, now: float, out: list[Effect]) -> None:
        """Somebody answers: find our neighbourhood, then holders of our shards."""
        self._entered = True
        self._bootstrap.reset()
        self._change_state(self._working_state(), out)
        if now < self._entered_at + ENTER_S:
            return  # the next walk looks around
        self._entered_at = now
        self._directory.look_up(self.id, "join", now, out)
        self._walk(now, out)

    def _walk(self, now: float, out: list[Effect]) -> None:
        """Look for holders of our shards, and become one that is found."""
        self._remember()
        self._look_back(out)
        for place in self._places:
            self._directory.look_up(place, "providers", now, out, place=place)
        self._deadlines.set(("walk",), now + self._walk_s * self._rng.uniform(0.8, 1.2))
        self._walk_s = min(2.0 * self._walk_s, self._config.membership.walk_interval_s)

    def _look_back(self, out: list[Effect]) -> None:
        """Dial one address that nobody whom we know has.

        Two parts of a network that formed apart, or forgot each other during a long partition, do not find each other
        by lookups, and nobody in them is alone: without this they would stay two networks.
        """
        known = {address for contact in self._membership.contacts() for address in contact.addresses}
        known.update(link.address for _, link in self._links.items())
        known.update(self._directory.addresses)
        gone = [a for a in dict.fromkeys([*self._bootstrap.named, *self._remembered]) if a not in known]
        if gone:
            out.append(Dial(self._rng.choice(gone), None))

    def _provider_found(self, contact: Contact, place: Key) -> None:
        shard = self._places.get(place)
        if shard is not None:
            # What is known is better: this record is not verified yet.
            self._membership.observe(self._membership.contact(contact.node) or contact, shard)

    def _dial_bootstrap(self, now: float, out: list[Effect]) -> None:
        """As long as nobody is connected: try all known addresses, ever more seldom, for ever."""
        if len(self._links) or self._state == "stopping":
            return
        if self._state != "starting":
            self._change_state(self._working_state(), out)
        remembered = self._rng.sample(self._remembered, min(3, len(self._remembered)))
        addresses, again = self._bootstrap.take(now, remembered)
        out.extend(Dial(address, None) for address in addresses)
        self._deadlines.set(("bootstrap",), again)
        if again == inf and self._joined:
            # Nobody to look for, and a model from the last life.
            self._change_state(self._working_state(), out)

    # --- time ---------------------------------------------------------------------------------------

    def _due(self, name: tuple[Any, ...], now: float, out: list[Effect]) -> None:
        match name:
            case ("round",):
                self._begin_round(now, out)
            case ("exchange", number):
                silent = self._exchanges.overdue(number, now, out)
                if silent is not None:
                    self._silent(silent, out)
                if number == self._awaited:  # learning does not stand still because a partner does
                    self._next_exchange(now, out)
            case ("late",):
                self._next_exchange(now, out)
            case ("request", number):
                peer = self._directory.overdue(number, now, out)
                if peer is not None:
                    self._silent(peer, out)
            case ("hello", peer):
                out.append(Drop(peer, "it did not introduce itself"))
            case ("lookup", number):
                self._directory.slow(number, now, out)
            case ("walk",):
                self._walk(now, out)
            case ("bootstrap",):
                self._dial_bootstrap(now, out)
            case ("refresh",):
                self._directory.refresh(now, out)
                interval = self._config.dht.refresh_interval_s
                self._deadlines.set(("refresh",), now + interval * self._rng.uniform(0.8, 1.2))
            case ("rotate",):
                self._membership.rotate(self._entropy(16))
                self._deadlines.set(("rotate",), now + ROTATE_S)
            case ("save",):
                self._save(now, out)
            case ("patience",):
                self._begin_alone(out)
            case _:
                raise AssertionError(f"no such deadline: {name}")

    # --- learning -----------------------------------------------------------------------------------

    @property
    def _training(self) -> bool:
        limit = self._config.learning.rounds_max
        return self._joined and (limit == 0 or self._round < limit)

    def _working_state(self) -> str:
        if not len(self._links) and (self._bootstrap.named or self._remembered):
            return "isolated"
        if not self._joined:
            return "joining"
        learning = "diverged" if self._dropped >= DIVERGED else "training"
        return learning if self._training else "exchanging"

    def _begin_round(self, now: float, out: list[Effect]) -> None:
        if self._state == "stopping":
            return
        self._round_at = now
        self._awaited = None
        self._tries = TRIES
        self._exchanges.new_round(alone=len(self._membership) <= 1)
        if self._joined:
            # Without steps the job only refreshes the averaged read-out.
            steps = self._config.learning.local_steps if self._training else 0
            self._train_ticket = self._tickets()
            out.append(Compute(self._train_ticket, Train(steps)))
        else:
            self._begin_exchange(now, out)

    def _begin_exchange(self, now: float, out: list[Effect]) -> None:
        """Offer the shard whose last exchange is longest ago to a random holder of it."""
        self._tries -= 1
        for shard in self._turn:
            if self._exchanges.full(shard) or (not self._joined and self._exchanges.ages[shard] > 0):
                continue
            partner = self._draw(shard, now)
            if partner is None:
                continue
            self._awaited = self._exchanges.initiate(shard, partner.node, partner.key, now, out)
            if self._exchanges.late_s > 0:
                self._deadlines.set(("late",), now + self._exchanges.late_s)
            return
        self._end_round(now)

    def _draw(self, shard: int, now: float) -> Contact | None:
        """A random holder of `shard` that can be offered to now."""
        for _ in range(DRAWS):
            partner = self._membership.partner(shard, self._rng)
            if partner is None:
                return None
            if self._links.resting(partner.node, now) or self._exchanges.waiting_for(partner.node, shard):
                continue
            if partner.node in self._links or self._directory.verified(partner):
                return partner
            self._membership.forget(partner.node)
        return None

    def _next_exchange(self, now: float, out: list[Effect]) -> None:
        """The partner of this round is busy, or late: another one, as long as this round may try."""
        if self._tries > 0 and self._state != "stopping":
            self._begin_exchange(now, out)
        else:
            self._end_round(now)

    def _exchange_ended(self, end: Ended, now: float, out: list[Effect]) -> None:
        if end.reason is None:
            self._turn.remove(end.shard)
            self._turn.append(end.shard)
            self._counters.initiated += 1
        if end.reason is Reason.REPLAYED and now >= self._skipped_at + SKIP_S:
            # Our disk is older than what we signed: restored from a backup, perhaps. It must not happen again.
            self._skipped_at = now
            self._sequence.skip(out)
        if not self._joined:
            self._newcomer_ended(end, out)
        if end.number != self._awaited:
            return
        if end.reason is Reason.BUSY and not end.crossed:
            self._next_exchange(now, out)
        else:
            self._end_round(now)

    def _end_round(self, now: float) -> None:
        self._awaited = None
        self._deadlines.clear(("late",))
        interval = self._config.learning.round_interval_s * self._rng.uniform(0.9, 1.1)
        # max: a round that took longer than the interval is followed at once, without trying to catch up.
        self._deadlines.set(("round",), max(now, self._round_at + interval))

    def _newcomer_ended(self, end: Ended, out: list[Effect]) -> None:
        """A newcomer adopted, or learned that the one it asked is a newcomer too."""
        if end.reason is Reason.NOT_READY:
            self._newcomers[end.peer] = None
        if all(age > 0 for age in self._exchanges.ages):
            self._begin(out)
        elif self._newcomers and len(self._newcomers) >= min(NEWCOMERS_ASKED, len(self._membership)):
            self._begin_alone(out)

    def _begin_alone(self, out: list[Effect]) -> None:
        """Nobody has anything to adopt: begin from genesis, which is the same for all."""
        if self._joined:
            return
        for shard, age in enumerate(self._exchanges.ages):
            self._exchanges.ages[shard] = max(age, 1)
        self._begin(out)

    def _begin(self, out: list[Effect]) -> None:
        self._joined = True
        self._newcomers.clear()
        self._deadlines.clear(("patience",))
        self._change_state(self._working_state(), out)

    def _done(self, event: Done, now: float, out: list[Effect]) -> None:
        result = event.result
        if event.ticket == self._train_ticket:
            assert isinstance(result, Trained)
            self._train_ticket = 0
            if self._training:
                self._trained(result, out)
            if self._state != "stopping":
                self._begin_exchange(now, out)
        elif event.ticket == self._save_ticket:
            assert isinstance(result, Saved)
            self._save_ticket = 0
            learned = (memory.ages_entry(self._exchanges.ages), memory.rounds_entry(self._round))
            out.append(Persist((*learned, self._peers_entry())))
        elif not self._exchanges.done(event.ticket, result, now, out):
            raise AssertionError(f"a result for the unknown ticket {event.ticket}")
        elif not self._joined and all(age > 0 for age in self._exchanges.ages):
            self._begin(out)  # somebody's offer made us adopt before our own did

    def _trained(self, result: Trained, out: list[Effect]) -> None:
        self._round += 1
        self._loss = result.loss
        self._dropped = self._dropped + 1 if result.dropped else 0
        for shard in range(len(self._exchanges.ages)):
            self._exchanges.ages[shard] += result.steps
        out.append(Emit(Learned(self._round, result.steps, result.loss, result.dropped)))
        if self._state in ("training", "diverged"):
            self._change_state(self._working_state(), out)

    def _save(self, now: float, out: list[Effect]) -> None:
        if self._save_ticket == 0 and self._joined:
            self._save_ticket = self._tickets()
            out.append(Compute(self._save_ticket, Save()))
        interval = self._config.learning.save_interval_s
        self._deadlines.set(("save",), now + interval * self._rng.uniform(0.8, 1.2))

    def _peers_entry(self) -> tuple[str, bytes]:
        self._remember()
        return memory.peers_entry(self._remembered)

    def _remember(self) -> None:
        """Addresses to try when we are alone, now and in the next life. A long silence empties pool and table, but not
        this: those who were there longest stay until others take their places."""
        present = [c.addresses[0] for c in self._membership.contacts() if c.addresses]
        self._remembered = list(dict.fromkeys([*present, *self._remembered]))[: memory.PEERS_MAX]

    # --- the end ------------------------------------------------------------------------------------

    def _leave(self, out: list[Effect]) -> None:
        self._change_state("stopping", out)
        bye = wire.encode(wire.Bye("leaving"))
        out.extend(Send(peer, bye) for peer, _ in self._links.items())
        out.append(Persist((self._peers_entry(),)))
        if self._save_ticket == 0 and self._joined:
            self._save_ticket = self._tickets()
            out.append(Compute(self._save_ticket, Save()))

    def _change_state(self, state: str, out: list[Effect]) -> None:
        if state != self._state and self._state != "stopping":
            self._state = state
            out.append(Emit(StateChanged(state)))
