"""The DHT as one node plays it: answering requests, running lookups, keeping the table alive, publishing.

Glue between the routing table, the lookup machine and the record store, each of them pure and ignorant of the others.
Records are parsed when they arrive and verified before anybody is dialled because of them.
"""

from math import inf
from typing import TypeAlias

from msgspec import Struct

from gossip.dht.ids import Key, NodeId
from gossip.dht.kinds import ProviderRecord
from gossip.dht.lookup import Lookup
from gossip.dht.records import contact_elsewhere, contact_of, open_record, sign_record, stays_here
from gossip.dht.routing import Contact, RoutingTable
from gossip.dht.store import OWNED_PART, SAMPLE_MAX, RecordStore
from gossip.errors import Reason, RemoteError
from gossip.events import Looked, PeerDown, Refused, Sent, Unsent
from gossip.outbox import Outbox, Timer
from gossip.protocol import Context, Entered, Incoming, Protocol, Provide, ProviderFound, Ready, Unreached
from gossip.requests import Requests
from gossip.snapshot import DhtView
from gossip.wire import dht as schema
from gossip.wire.dht import FindNode, GetRecords, Nodes, Ping, Pong, PutRecord, Records, Stored

# A lookup that only reads is content with so many nearest nodes: each of them keeps another sample of the providers. So
# is one that refreshes a bucket: every answer on the way brings k contacts. One that stores goes on until the k nearest
# are known.
READ_WIDTH = 4
# Requests per peer: twice what a join needs at once, and a lookup each second after that. A guess.
REQUESTS_PER_S = 50.0
REQUESTS_BURST = 400.0
# Requests of ours under way: a lookup has at most alpha on each path, and there is one lookup for each shard and
# bucket.
ASKED_MAX = 4096
# A node that was alone and is let in again looks around at once, but not more often than this. Lookups open
# connections, and where few are allowed, connections close others; those who lost their last one by that would look
# around, too, for ever: 20 nodes with 6 connections each got to 900 events a second so. A guess, above the pauses of
# the first walks.
ENTER_S = 10.0
# Look around sooner right after the start: the first interval is a 16th of the steady one, then it doubles.
WALK_START = 16.0

Answer: TypeAlias = Nodes | Records | Stored | Pong


class _Running(Struct):
    machine: Lookup
    purpose: str
    place: Key | None  # where records are looked for, too; None: nodes only


class RequestOverdue(Timer, frozen=True):
    number: int


class QuerySlow(Timer, frozen=True):
    """A query of this lookup has lost its place among those in flight."""

    lookup: int


class WalkDue(Timer, frozen=True):
    pass


class RefreshDue(Timer, frozen=True):
    pass


class Dht(Protocol):
    """The protocol `dht`."""

    name = "dht"
    messages = schema.MESSAGES

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config = context.config.dht
        self._config = config
        # The node refreshes every 0.8 to 1.2 intervals; what was not looked into since the last time is due.
        self.table = RoutingTable(context.own, k=config.k, refresh_interval_s=0.8 * config.refresh_interval_s)
        secret = context.entropy(16)
        owned_max = config.records_max // OWNED_PART
        # Of kinds whose places are shared, and of those whose places have one owner, among them all unknown kinds.
        self.records, self.owned = (
            RecordStore(
                context.own,
                records_max=records_max,
                per_place_max=config.providers_per_key_max,
                ttl_s_max=config.record_ttl_s_max,
                secret=secret,
            )
            for records_max in (config.records_max - owned_max, owned_max)
        )
        # Why a request was made: the number of the lookup it belongs to; 0: none.
        self._requests: Requests[int] = Requests(
            RequestOverdue, timeout_s=config.request_timeout_s, limit=ASKED_MAX
        )
        self._running: dict[int, _Running] = {}
        self._provided: dict[Key, None] = {}
        self._published: dict[Key, float] = {}  # place -> when our provider record was last put there
        self._told = 0  # version of our addresses that was published
        self._walk_s = context.config.membership.walk_interval_s / WALK_START
        self._entered_at = -inf
        self.lookups = 0
        self.handlers = {
            Ready: self._introduce,
            PeerDown: self._lost,
            Unreached: self._unreached,
            Entered: self._enter,
            Provide: self._provide,
            Sent: self._requests.sent,
            Unsent: self._unsent,
            RequestOverdue: self._overdue,
            QuerySlow: self._slow,
            WalkDue: self._walk_due,
            RefreshDue: self._refresh,
            Ping: self._answer,
            FindNode: self._answer,
            GetRecords: self._answer,
            PutRecord: self._put,
            Pong: self._answered,
            Nodes: self._answered,
            Records: self._answered,
            Stored: self._answered,
        }

    def start(self, now: float, out: Outbox) -> None:
        self._set_refresh(now, out)

    # --- facts about peers ----------------------------------------------------------------------------

    def _introduce(self, fact: Ready, now: float, out: Outbox) -> None:
        """A connected peer showed its own record, and speaks this protocol or not."""
        if self.name not in fact.protocols:
            return
        probe = self.table.offer(fact.contact, now)
        self.table.alive(fact.peer, now)
        if probe is not None:
            self._ask(probe, Ping(self._requests.next()), Pong, 0, now, out)

    def _unreached(self, fact: Unreached, now: float, out: Outbox) -> None:
        self.table.failed(fact.peer, now)
        self._lose(fact.peer, now, out)

    def _lost(self, event: PeerDown, now: float, out: Outbox) -> None:
        self._lose(event.peer, now, out)

    def _lose(self, peer: NodeId, now: float, out: Outbox) -> None:
        """What the peer was asked stays unanswered. It may well be alive."""
        for lookup in self._requests.lost(peer, out):
            self._fail(lookup, peer, now, out)

    def _overdue(self, timer: RequestOverdue, now: float, out: Outbox) -> None:
        asked = self._requests.overdue(timer.number, out)
        if asked is not None:
            if asked.silent:
                self.table.failed(asked.peer, now)
            self._fail(asked.why, asked.peer, now, out)

    def _unsent(self, event: Unsent, now: float, out: Outbox) -> None:
        asked = self._requests.unsent(event.ticket, out)
        if asked is not None:
            self._fail(asked.why, asked.peer, now, out)

    def _fail(self, lookup: int, peer: NodeId, now: float, out: Outbox) -> None:
        running = self._running.get(lookup)
        if running is not None:
            running.machine.failed(peer)
            self._drive(lookup, now, out)

    # --- requests of others ---------------------------------------------------------------------------

    def _spend(self, peer: NodeId, now: float) -> None:
        self.context.connections.charge(peer, now, rate=REQUESTS_PER_S, burst=REQUESTS_BURST)

    def _answer(self, event: Incoming, now: float, out: Outbox) -> None:
        self._spend(event.peer, now)
        match event.message:
            case Ping(n):
                out.send(event.peer, Pong(n))
            case FindNode(n, target):
                out.send(event.peer, Nodes(n, self._nearest(target, event.peer)))
            case GetRecords(key, n):
                records = self._kept(Key(key), now)
                if not self.context.connections.nearby(event.peer):
                    records = [record for record in records if not stays_here(record, Key(key))]
                out.send(event.peer, Records(n, self._nearest(key, event.peer), records))

    def _put(self, event: Incoming, now: float, out: Outbox) -> None:
        self._spend(event.peer, now)
        message: PutRecord = event.message
        self._keep(message.record, now)
        out.send(event.peer, Stored(message.n, ""))

    def _keep(self, record: bytes, now: float) -> None:
        """Keep a record of any kind, which nobody has looked at.

        Raises:
            RemoteError: false, or not kept: as `RecordStore.put`.
        """
        opened = open_record(record, self.context.network, verify=self.context.verify)
        if not opened.kind.kept:
            raise RemoteError(
                Reason.BAD_RECORD, f"records of the kind {opened.kind.name!r} are not kept for others"
            )
        store = self.records if opened.kind.shared else self.owned
        store.put(opened, now)

    def _kept(self, place: Key, now: float) -> list[bytes]:
        """What is stored under `place`. The record of its only owner is always among it: others can name the place."""
        rng = self.context.rng
        owned = self.owned.get(place, now, limit=1, rng=rng)
        return owned + self.records.get(place, now, limit=SAMPLE_MAX - len(owned), rng=rng)

    def refused(self, event: Incoming, error: RemoteError, now: float, out: Outbox) -> None:
        if isinstance(event.message, PutRecord):
            out.send(event.peer, Stored(event.message.n, error.reason))

    # --- answers to us --------------------------------------------------------------------------------

    def _answered(self, event: Incoming, now: float, out: Outbox) -> None:
        peer, message = event.peer, event.message
        lookup = self._requests.answered(peer, message, out)
        self.table.alive(peer, now)
        running = self._running.get(lookup)
        if running is None:
            return
        if isinstance(message, Nodes | Records):
            named = message.records if isinstance(message, Nodes) else message.nodes
            contacts = [c for record in named if (c := self._heard(record, None, peer)) is not None]
            if isinstance(message, Records) and running.place is not None:
                self._collect(message.records, running.place, peer, out)
            running.machine.answered(peer, contacts)
        self._drive(lookup, now, out)

    # --- lookups --------------------------------------------------------------------------------------

    def _enter(self, fact: Entered, now: float, out: Outbox) -> None:
        """A peer answers: find our neighbourhood, then those who hold what we hold."""
        if now < self._entered_at + ENTER_S:
            return  # the next walk looks around
        self._entered_at = now
        self.look_up(self.context.own, "join", now, out)
        self._walk(now, out)

    def _provide(self, fact: Provide, now: float, out: Outbox) -> None:
        self._provided[fact.key] = None

    def _walk_due(self, timer: WalkDue, now: float, out: Outbox) -> None:
        self._walk(now, out)

    def _walk(self, now: float, out: Outbox) -> None:
        """Look for those who hold what we hold, and become one that is found."""
        for place in self._provided:
            self.look_up(place, "providers", now, out, place=place)
        out.timer(WalkDue(), now + self._walk_s * self.context.rng.uniform(0.8, 1.2))
        self._walk_s = min(2.0 * self._walk_s, self.context.config.membership.walk_interval_s)

    def look_up(
        self, target: bytes, purpose: str, now: float, out: Outbox, *, place: Key | None = None
    ) -> bool:
        """Start a lookup; False when the table is empty. `place`: collect the records under this key too."""
        # The table keeps the dead for a while. Where they are the k nearest, the living beside them lead further.
        k = self._config.k
        seeds = [*self.table.closest(target, k), *self.table.closest(target, k, live=True)]
        if not seeds:
            return False
        self.table.looked(target, now)
        number = self._requests.next()
        reads = purpose == "refresh" or (place is not None and not self._publish_due(place, now))
        width = READ_WIDTH if reads else self._config.k
        machine = Lookup(target, own=self.context.own, k=width, alpha=self._config.alpha, seeds=seeds)
        self._running[number] = _Running(machine, purpose, place)
        self._drive(number, now, out)
        return True

    def _slow(self, timer: QuerySlow, now: float, out: Outbox) -> None:
        """A query has become slow: another one takes its place in flight."""
        if timer.lookup in self._running:
            self._drive(timer.lookup, now, out)

    def _refresh(self, timer: RefreshDue, now: float, out: Outbox) -> None:
        """Look into the buckets that no lookup went into for a while; forget what expired."""
        self.records.expire(now)
        self.owned.expire(now)
        for target in self.table.refresh_targets(now, self.context.rng):
            self.look_up(target, "refresh", now, out)
        self._set_refresh(now, out)

    def _set_refresh(self, now: float, out: Outbox) -> None:
        interval = self._config.refresh_interval_s
        out.timer(RefreshDue(), now + interval * self.context.rng.uniform(0.8, 1.2))

    @property
    def active(self) -> list[str]:
        """Purposes of the lookups under way."""
        return [running.purpose for running in self._running.values()]

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {
            "requests": self._requests.bounds(),
            # One for each shard that we hold, for each bucket, and one for ourselves; twice, since a walk may begin
            # before the last one has ended.
            "lookups": (len(self._running), 2 * (len(self._provided) + 258)),
            "records": self.records.bounds(),
            "owned records": self.owned.bounds(),
            "contacts": (len(self.table), 256 * self._config.k),
        }

    def snapshot(self, now: float) -> DhtView:
        return DhtView(len(self.table), len(self.records) + len(self.owned), self.lookups, self.active)

    # --- inside ---------------------------------------------------------------------------------------

    def _nearest(self, target: bytes, asker: NodeId) -> list[bytes]:
        contacts = self.table.closest(target, self._config.k + 1, live=True)
        nearby = self.context.connections.nearby(asker)
        records = [
            c.record for c in contacts if c.node != asker and (nearby or not stays_here(c.record, None))
        ]
        return records[: self._config.k]

    def _heard(self, record: bytes, place: Key | None, peer: NodeId) -> Contact | None:
        """`contact_of` a record that `peer` sent."""
        nearby = self.context.connections.nearby(peer)
        return contact_of(record, place) if nearby else contact_elsewhere(record, place)

    def _drive(self, number: int, now: float, out: Outbox) -> None:
        running = self._running[number]
        machine = running.machine
        while not machine.done:
            contacts = machine.next(now)
            if not contacts:
                out.timer(QuerySlow(number), machine.deadline)
                return
            for contact in contacts:
                if not self._query(running, number, contact, now, out):
                    machine.failed(contact.node)
        del self._running[number]
        out.timer(QuerySlow(number), inf)
        self.lookups += 1
        nearest = machine.result()
        if running.place is not None:
            self._publish(running.place, nearest, now, out)
        out.emit(Looked(running.purpose, machine.hops, machine.queried, len(nearest)))

    def _query(self, running: _Running, number: int, contact: Contact, now: float, out: Outbox) -> bool:
        if not self.context.verified(contact):
            out.emit(Refused(contact.node, Reason.BAD_SIGNATURE, True, "a record not signed by its owner"))
            return False
        n = self._requests.next()
        if running.place is None:
            return self._ask(contact, FindNode(n, running.machine.target), Nodes, number, now, out)
        return self._ask(contact, GetRecords(running.place, n), Records, number, now, out)

    def _ask(
        self,
        contact: Contact,
        question: FindNode | GetRecords | PutRecord | Ping,
        answer: type[Answer],
        lookup: int,
        now: float,
        out: Outbox,
    ) -> bool:
        return self._requests.ask(
            contact.node, question, answer, lookup, now, out, addresses=contact.addresses
        )

    def _collect(self, records: list[bytes], place: Key, peer: NodeId, out: Outbox) -> None:
        for record in records:
            contact = self._heard(record, place, peer)
            if contact is not None:
                out.fact(ProviderFound(place, contact))

    def _publish(self, place: Key, nearest: list[Contact], now: float, out: Outbox) -> None:
        """Put our provider record to the nodes nearest to the place, if it is time again."""
        if not nearest or not self._publish_due(place, now):
            return  # where no node answered, the next lookup tries again
        interval = self._config.publish_interval_s
        context = self.context
        # Jitter keeps nodes that started together from publishing together for ever.
        self._published[place] = now - interval * context.rng.uniform(0.0, 0.2)
        # One record for all: where we have loopback addresses only, it is for those on this machine.
        told = context.addresses.told(nearby=True)
        record = sign_record(
            context.identity,
            context.network,
            ProviderRecord(
                addresses=told,
                key=context.identity.public_key,
                place=place,
                seq=context.sequence.take(out),
                ttl_s=int(self._config.record_ttl_s_max),
            ),
        )
        try:
            self._keep(record, now)
        except RemoteError:
            pass  # our own store is full; those nearest to the place are asked next
        for contact in nearest:
            if stays_here(record, place) and not context.connections.nearby(contact.node):
                continue
            self._ask(contact, PutRecord(self._requests.next(), record), Stored, 0, now, out)

    def _publish_due(self, place: Key, now: float) -> bool:
        addresses = self.context.addresses
        if addresses.version != self._told:
            self._told = addresses.version
            self._published.clear()  # what was published leads elsewhere
        date = self._published.get(place, -inf) + self._config.publish_interval_s
        return bool(addresses.all) and now >= date
