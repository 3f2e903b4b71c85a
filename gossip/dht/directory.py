"""The DHT as one node plays it: answering requests, running lookups, keeping the table alive, publishing.

Glue between the routing table, the lookup machine and the record store (each of them pure and ignorant of the
others) and the requests and answers on the wire. Every request has a number, a deadline and one peer that may
answer it. Records are parsed when they arrive and verified before anybody is dialled because of them.
"""

import random
from collections.abc import Callable
from functools import lru_cache
from math import inf

from msgspec import Struct

from crypto.identity import PublicKey, Signer, Verify
from gossip.addresses import is_loopback
from gossip.config import DhtConfig
from gossip.deadlines import Deadlines
from gossip.dht.ids import Key, NodeId, node_id
from gossip.dht.lookup import Lookup
from gossip.dht.records import (
    ADDRESSES_MAX,
    Opened,
    Peeked,
    PeerRecord,
    ProviderRecord,
    R,
    RecordStore,
    open_record,
    peek_record,
    sign_record,
)
from gossip.dht.routing import Contact, RoutingTable, subnet_of
from gossip.errors import Reason, RemoteError
from gossip.events import Effect, Emit, Looked, Refused
from gossip.sequence import Sequence
from gossip.wire import (
    FindNode,
    GetRecords,
    Nodes,
    Ping,
    Pong,
    PutRecord,
    Records,
    Stored,
)

# Records remembered by their bytes, as what they parse to: the same few hundred come back in every answer. Shared by
# all nodes of a process, of which a simulator has thousands. At most 1 kB each.
PARSED_MAX = 16384
# Verdicts on signatures that one node remembers.
VERIFIED_MAX = 4096
# A lookup that only reads is content with so many nearest nodes: each of them keeps another sample of the providers. So
# is one that refreshes a bucket: every answer on the way brings k contacts. One that stores goes on until the k nearest
# are known.
READ_WIDTH = 4

# Own addresses learned from connections. Wired, wireless, a tunnel and one to spare: a guess.
REACHED_MAX = 4

Request = FindNode | GetRecords | PutRecord | Ping
Answer = Nodes | Records | Stored | Pong


class _Asked(Struct):
    """A request without an answer yet."""

    peer: NodeId
    contact: Contact
    answer: type[Answer]
    lookup: int  # number of the lookup it belongs to; 0: none


class _Running(Struct):
    machine: Lookup
    purpose: str
    place: Key | None  # where records are looked for, too; None: nodes only


class Directory:
    """Args:
    send: Puts a message on the way to a contact, dialling if need be; False when that cannot be done now.
    addresses: Where others reach us, as far as we were told; connections tell more (`reached_at`).
    found: Told each provider record that a lookup brings, and the place it was found at.
    nearby: Whether a peer is connected over loopback: no other is told loopback addresses, or believed.
    secret: 16 bytes for the record store's choice of what to keep.
    """

    def __init__(
        self,
        *,
        identity: Signer,
        verify: Verify,
        network: bytes,
        run: bytes,
        addresses: tuple[str, ...],
        config: DhtConfig,
        sequence: Sequence,
        deadlines: Deadlines,
        rng: random.Random,
        send: Callable[[Contact, Request, float, list[Effect]], bool],
        found: Callable[[Contact, Key], None],
        nearby: Callable[[NodeId], bool],
        secret: bytes,
    ) -> None:
        self._identity = identity
        self._check = verify
        self._network = network
        self._run = run
        self._given = addresses
        self._reached: dict[str, None] = {}  # local ends of connections, the one seen last at the end
        self.addresses = addresses
        self._own = node_id(identity.public_key)
        self._config = config
        self._sequence = sequence
        self._deadlines = deadlines
        self._rng = rng
        self._send = send
        self._found = found
        self._nearby = nearby
        # The node refreshes every 0.8 to 1.2 intervals; what was not looked into since the last time is due.
        self.table = RoutingTable(self._own, k=config.k, refresh_interval_s=0.8 * config.refresh_interval_s)
        self.records = RecordStore(
            self._own,
            records_max=config.records_max,
            per_place_max=config.providers_per_key_max,
            ttl_s_max=config.record_ttl_s_max,
            secret=secret,
        )
        self._asked: dict[int, _Asked] = {}
        self._running: dict[int, _Running] = {}
        self._number = 0
        self._verified: dict[bytes, bool] = {}
        self._published: dict[Key, float] = {}  # place -> when our provider record was last put there
        self._provider_records: dict[Key, bytes] = {}
        self.lookups = 0

    # --- own records --------------------------------------------------------------------------------

    def reached_at(self, address: str) -> None:
        """A connection has this end: those on the network that it comes from can reach us there.

        A machine on several networks has an address in each, and one that moves has another tomorrow. The newest come
        first, before what we were told at the start, but behind those that are reached from everywhere; the one that no
        connection had for the longest time goes.
        """
        seen = address in self._reached
        self._reached.pop(address, None)
        self._reached[address] = None
        if seen:
            return
        if len(self._reached) > REACHED_MAX:
            del self._reached[next(iter(self._reached))]
        addresses = dict.fromkeys([*reversed(self._reached), *self._given])
        if set(addresses) == set(self.addresses):
            return
        before = self.told(nearby=True)
        self.addresses = tuple(sorted(addresses, key=lambda one: subnet_of(one) is None))[:ADDRESSES_MAX]
        if self.told(nearby=True) != before:
            self._published.clear()  # what was published leads elsewhere

    def told(self, *, nearby: bool) -> tuple[str, ...]:
        """Our addresses as a peer may hear them. One on this machine (`nearby`) is told a loopback address, too, where
        there is no other: records are passed on, so the others do for both."""
        far = tuple(address for address in self.addresses if not is_loopback(address))
        return far or (self.addresses if nearby else ())

    def peer_record(self, told: tuple[str, ...], out: list[Effect]) -> bytes:
        """A fresh signed record of our own addresses, of which those `told` are in it."""
        record = PeerRecord(
            addresses=told,
            key=self._identity.public_key,
            run=self._run,
            seq=self._sequence.take(out),
            ttl_s=int(self._config.record_ttl_s_max),
        )
        return sign_record(self._identity, self._network, record)

    # --- facts about peers ----------------------------------------------------------------------------

    def introduce(self, record: bytes, peer: NodeId, now: float, out: list[Effect]) -> Contact:
        """A connected peer showed its own record. Raises RemoteError where it is not its own.

        Not verified here: the channel has proved whose it is. The signature is for third parties, and everybody
        checks it before dialling because of a record.
        """
        contact = self._heard(record, None, peer)
        if contact is None or contact.node != peer:
            raise RemoteError(Reason.BAD_RECORD, "the record in hello is not the sender's own")
        probe = self.table.offer(contact, now)
        self.table.alive(peer, now)
        if probe is not None:
            self._ask(probe, Ping(self._next()), Pong, 0, now, out)
        return contact

    def unreachable(self, peer: NodeId, now: float, out: list[Effect]) -> None:
        """No address of `peer` answers."""
        self.table.failed(peer, now)
        self.lost(peer, now, out)

    def lost(self, peer: NodeId, now: float, out: list[Effect]) -> None:
        """The connection to `peer` ended: what it was asked stays unanswered. It may well be alive."""
        for number, asked in list(self._asked.items()):
            if asked.peer == peer:
                self._fail(number, now, out)

    def overdue(self, number: int, now: float, out: list[Effect]) -> NodeId | None:
        """The deadline of a request has come: who kept silent."""
        asked = self._asked.get(number)
        if asked is None:
            return None
        self.table.failed(asked.peer, now)
        self._fail(number, now, out)
        return asked.peer

    def slow(self, number: int, now: float, out: list[Effect]) -> None:
        """A query of a lookup has become slow: another one takes its place in flight."""
        if number in self._running:
            self._drive(number, now, out)

    # --- requests of others ---------------------------------------------------------------------------

    def answer(self, peer: NodeId, message: Request, now: float) -> Answer:
        """Raises RemoteError only for a PutRecord that is refused; the caller turns that into Stored too."""
        match message:
            case Ping():
                return Pong(message.n)
            case FindNode():
                return Nodes(message.n, self._nearest(message.target, peer))
            case GetRecords():
                place = Key(message.key)
                records = self.records.get(place, now, limit=20, rng=self._rng)
                if not self._nearby(peer):
                    records = [record for record in records if not stays_here(record, place)]
                return Records(message.n, self._nearest(message.key, peer), records)
            case PutRecord():
                self.records.put(self._open(message.record, ProviderRecord), now)
                return Stored(message.n, "")

    # --- answers to us --------------------------------------------------------------------------------

    def answered(self, peer: NodeId, message: Answer, now: float, out: list[Effect]) -> None:
        asked = self._asked.get(message.n)
        if asked is None or asked.peer != peer or asked.answer is not type(message):
            raise RemoteError(Reason.UNEXPECTED, f"an answer to a request {message.n} that is not open")
        del self._asked[message.n]
        self._deadlines.clear(("request", message.n))
        self.table.alive(peer, now)
        running = self._running.get(asked.lookup)
        if running is None:
            return
        if isinstance(message, Nodes | Records):
            named = message.records if isinstance(message, Nodes) else message.nodes
            contacts = [c for record in named if (c := self._heard(record, None, peer)) is not None]
            if isinstance(message, Records) and running.place is not None:
                self._collect(message.records, running.place, peer)
            running.machine.answered(peer, contacts)
        self._drive(asked.lookup, now, out)

    # --- lookups --------------------------------------------------------------------------------------

    def look_up(
        self, target: bytes, purpose: str, now: float, out: list[Effect], *, place: Key | None = None
    ) -> bool:
        """Start a lookup; False when the table is empty. `place`: collect the records under this key too."""
        # The table keeps the dead for a while. Where they are the k nearest, the living beside them lead further.
        k = self._config.k
        seeds = [*self.table.closest(target, k), *self.table.closest(target, k, live=True)]
        if not seeds:
            return False
        self.table.looked(target, now)
        number = self._next()
        reads = purpose == "refresh" or (place is not None and not self._publish_due(place, now))
        width = READ_WIDTH if reads else self._config.k
        machine = Lookup(target, own=self._own, k=width, alpha=self._config.alpha, seeds=seeds)
        self._running[number] = _Running(machine, purpose, place)
        self._drive(number, now, out)
        return True

    def refresh(self, now: float, out: list[Effect]) -> None:
        """Look into the buckets nobody looked into for a while; forget what expired."""
        self.records.expire(now)
        for target in self.table.refresh_targets(now, self._rng):
            self.look_up(target, "refresh", now, out)

    @property
    def looking(self) -> list[str]:
        """Purposes of the lookups under way."""
        return [running.purpose for running in self._running.values()]

    # --- inside ---------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _nearest(self, target: bytes, asker: NodeId) -> list[bytes]:
        contacts = self.table.closest(target, self._config.k + 1, live=True)
        nearby = self._nearby(asker)
        records = [
            c.record for c in contacts if c.node != asker and (nearby or not stays_here(c.record, None))
        ]
        return records[: self._config.k]

    def _heard(self, record: bytes, place: Key | None, peer: NodeId) -> Contact | None:
        """`contact_of` a record that `peer` sent."""
        return contact_of(record, place) if self._nearby(peer) else contact_elsewhere(record, place)

    def _drive(self, number: int, now: float, out: list[Effect]) -> None:
        running = self._running[number]
        machine = running.machine
        while not machine.done:
            contacts = machine.next(now)
            if not contacts:
                self._deadlines.set(("lookup", number), machine.deadline)
                return
            for contact in contacts:
                if not self._query(running, number, contact, now, out):
                    machine.failed(contact.node)
        del self._running[number]
        self._deadlines.clear(("lookup", number))
        self.lookups += 1
        nearest = machine.result()
        if running.place is not None:
            self._publish(running.place, nearest, now, out)
        out.append(Emit(Looked(running.purpose, machine.hops, machine.queried, len(nearest))))

    def _query(self, running: _Running, number: int, contact: Contact, now: float, out: list[Effect]) -> bool:
        if not self._verify(contact.record):
            out.append(
                Emit(Refused(contact.node, Reason.BAD_SIGNATURE, True, "a record not signed by its owner"))
            )
            return False
        n = self._next()
        if running.place is None:
            return self._ask(contact, FindNode(n, running.machine.target), Nodes, number, now, out)
        return self._ask(contact, GetRecords(running.place, n), Records, number, now, out)

    def _ask(
        self,
        contact: Contact,
        message: Request,
        answer: type[Answer],
        lookup: int,
        now: float,
        out: list[Effect],
    ) -> bool:
        if not self._send(contact, message, now, out):
            return False
        self._asked[message.n] = _Asked(contact.node, contact, answer, lookup)
        self._deadlines.set(("request", message.n), now + self._config.request_timeout_s)
        return True

    def _fail(self, number: int, now: float, out: list[Effect]) -> None:
        asked = self._asked.pop(number)
        self._deadlines.clear(("request", number))
        running = self._running.get(asked.lookup)
        if running is not None:
            running.machine.failed(asked.peer)
            self._drive(asked.lookup, now, out)

    def _collect(self, records: list[bytes], place: Key, peer: NodeId) -> None:
        for record in records:
            contact = self._heard(record, place, peer)
            if contact is not None:
                self._found(contact, place)

    def _publish(self, place: Key, nearest: list[Contact], now: float, out: list[Effect]) -> None:
        """Put our provider record to the nodes nearest to the place, if it is time again."""
        if not nearest or not self._publish_due(place, now):
            return  # where nobody answered, the next lookup tries again
        interval = self._config.publish_interval_s
        # Jitter keeps nodes that started together from publishing together for ever.
        self._published[place] = now - interval * self._rng.uniform(0.0, 0.2)
        # One record for all: where we have loopback addresses only, it is for those on this machine.
        told = self.told(nearby=True)
        record = sign_record(
            self._identity,
            self._network,
            ProviderRecord(
                addresses=told,
                key=self._identity.public_key,
                place=place,
                seq=self._sequence.take(out),
                ttl_s=int(self._config.record_ttl_s_max),
            ),
        )
        try:
            self.records.put(self._open(record, ProviderRecord), now)
        except RemoteError:
            pass  # our own store is full; those nearest to the place are asked next
        for contact in nearest:
            if stays_here(record, place) and not self._nearby(contact.node):
                continue
            self._ask(contact, PutRecord(self._next(), record), Stored, 0, now, out)

    def _publish_due(self, place: Key, now: float) -> bool:
        date = self._published.get(place, -inf) + self._config.publish_interval_s
        return bool(self.addresses) and now >= date

    def _open(self, record: bytes, kind: type[R]) -> Opened[R]:
        return open_record(record, self._network, kind, verify=self._check)

    def verified(self, contact: Contact) -> bool:
        """Whether the record behind `contact` is signed by its owner. Checked once per record."""
        return self._verify(contact.record)

    def _verify(self, record: bytes) -> bool:
        known = self._verified.get(record)
        if known is not None:
            return known
        valid = False
        for kind in (PeerRecord, ProviderRecord):
            try:
                self._open(record, kind)
            except RemoteError:  # of the other kind, or false: then the other kind refuses it too
                continue
            valid = True
            break
        self._verified[record] = valid
        if len(self._verified) > VERIFIED_MAX:
            del self._verified[next(iter(self._verified))]
        return valid


# By what the record was named as, too: whoever names a peer record as a provider's must not hide it from us.
@lru_cache(maxsize=PARSED_MAX)
def contact_of(record: bytes, place: Key | None) -> Contact | None:
    """The contact that a peer record tells of, or a provider record of `place`, not verified; None where it is no such
    record. Somebody's true record of another place would bring us a node that does not hold our shard.
    """
    try:
        peeked: Peeked[PeerRecord] | Peeked[ProviderRecord]
        peeked = peek_record(record, PeerRecord) if place is None else peek_record(record, ProviderRecord)
    except RemoteError:
        return None
    if isinstance(peeked.record, ProviderRecord) and peeked.record.place != place:
        return None
    return Contact(peeked.node, PublicKey(peeked.record.key), tuple(peeked.record.addresses), record)


@lru_cache(maxsize=PARSED_MAX)
def contact_elsewhere(record: bytes, place: Key | None) -> Contact | None:
    """`contact_of` a record that came from another machine: its loopback addresses are not ours to dial. They would be
    our own ports, or those of whatever else runs here."""
    contact = contact_of(record, place)
    if contact is None or not any(map(is_loopback, contact.addresses)):
        return contact
    addresses = tuple(address for address in contact.addresses if not is_loopback(address))
    return Contact(contact.node, contact.key, addresses, contact.record)


@lru_cache(maxsize=PARSED_MAX)
def stays_here(record: bytes, place: Key | None) -> bool:
    """Whether a record (as of `contact_of`) has only loopback addresses: of no use to another machine, and none of its
    business."""
    contact = contact_of(record, place)
    return contact is not None and bool(contact.addresses) and all(map(is_loopback, contact.addresses))
