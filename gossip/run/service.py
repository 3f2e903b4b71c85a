"""The protocol `exchange`: the sessions of a node, and the exchanges of all of them."""

from collections.abc import Iterable
from itertools import chain

from gossip.dht.ids import NodeId
from gossip.dht.routing import Contact
from gossip.errors import Reason, RemoteError
from gossip.events import Done, Leave, PeerDown, Progress, Sent, Unsent
from gossip.learning.task import RunInfo
from gossip.outbox import Outbox
from gossip.protocol import Banned, Context, Held, Incoming, Protocol, ProviderFound, Ready, Unreached
from gossip.run.exchange import Exchanges, Overdue
from gossip.run.holding import Ended
from gossip.run.session import (
    FORGET_FAILURES,
    PartnerLate,
    PatienceOver,
    RotateDue,
    RoundDue,
    RunTimer,
    SaveDue,
    Session,
)
from gossip.snapshot import ExchangeView
from gossip.wire import exchange as schema
from gossip.wire.exchange import OfferMessage, ReplyMessage


class Exchange(Protocol):
    """Args:
    runs: What this node takes part in, and whether it has a model of it from an earlier life.
    now: Seconds.
    """

    name = "exchange"
    messages = schema.MESSAGES

    def __init__(self, context: Context, *, runs: Iterable[tuple[RunInfo, bool]], now: float) -> None:
        super().__init__(context)
        self.exchanges = Exchanges(context)
        self.sessions = {
            info.id: Session(context, info, self.exchanges, has_model=has_model, now=now)
            for info, has_model in runs
        }
        self._contacts: dict[NodeId, Contact] = {}  # connected peers, until they say what they hold
        self._leaving = False
        self.handlers = {
            OfferMessage: self._offered,
            ReplyMessage: self._replied,
            Ready: self._ready,
            PeerDown: self._lost,
            Sent: self._sent,
            Unsent: self._unsent,
            Progress: self._progress,
            Unreached: self._unreached,
            Banned: self._banned,
            Held: self._held,
            ProviderFound: self._found,
            Leave: self._leave,
            Done: self._done,
            Ended: self._ended,
            Overdue: self._overdue,
            **dict.fromkeys((RoundDue, PartnerLate, PatienceOver, SaveDue, RotateDue), self._due),
        }

    def start(self, now: float, out: Outbox) -> None:
        for session in self.sessions.values():
            session.start(now, out)

    # --- messages -----------------------------------------------------------------------------------

    def _offered(self, event: Incoming, now: float, out: Outbox) -> None:
        rate = self.context.config.exchange.offers_per_peer_s
        self.context.connections.charge(event.peer, now, rate=rate, burst=4.0 * rate)
        self.exchanges.offered(event.peer, event.key, event.message, not self._leaving, now, out)

    def _replied(self, event: Incoming, now: float, out: Outbox) -> None:
        self.exchanges.replied(event.peer, event.key, event.message, now, out)

    def refused(self, event: Incoming, error: RemoteError, now: float, out: Outbox) -> None:
        if isinstance(event.message, OfferMessage) and error.reason is not Reason.RATE_LIMITED:
            self.exchanges.refuse(event.peer, event.key, event.message, error, now, out)

    # --- facts about peers --------------------------------------------------------------------------

    def _ready(self, fact: Ready, now: float, out: Outbox) -> None:
        if self.name in fact.protocols:
            self._contacts[fact.peer] = fact.contact
        else:
            self._forget(fact.peer)

    def _held(self, fact: Held, now: float, out: Outbox) -> None:
        contact = self._contacts.get(fact.peer)
        for run, session in self.sessions.items():
            if contact is not None and run in fact.shards:
                session.held(contact, fact.shards[run])
            else:
                # It may have changed its runs, or somebody said falsely that it holds our shards.
                session.pool.forget(fact.peer)

    def _found(self, fact: ProviderFound, now: float, out: Outbox) -> None:
        for session in self.sessions.values():
            session.found(fact.key, fact.contact)

    def _lost(self, event: PeerDown, now: float, out: Outbox) -> None:
        self._contacts.pop(event.peer, None)
        self.exchanges.lost(event.peer, now, out)
        if event.slow:
            self._forget(event.peer)

    def _sent(self, event: Sent, now: float, out: Outbox) -> None:
        left = self.exchanges.sent(event.ticket, now, out)
        if left is not None:
            self.sessions[left.run].left(left.number, event.peer, now, out)

    def _unsent(self, event: Unsent, now: float, out: Outbox) -> None:
        self.exchanges.unsent(event.ticket, out)

    def _progress(self, event: Progress, now: float, out: Outbox) -> None:
        """Something large moves between us and a peer: it lives, and a model may be on its way."""
        for lasting in self.exchanges.progress(event.peer, now, out):
            self.sessions[lasting.run].lasts(lasting, event.peer, now, out)

    def _unreached(self, fact: Unreached, now: float, out: Outbox) -> None:
        self.exchanges.lost(fact.peer, now, out)
        if fact.failures >= FORGET_FAILURES:
            self._forget(fact.peer)

    def _banned(self, fact: Banned, now: float, out: Outbox) -> None:
        self._forget(fact.peer)

    def _forget(self, peer: NodeId) -> None:
        for session in self.sessions.values():
            session.pool.forget(peer)

    # --- timers, jobs, the end ----------------------------------------------------------------------

    def _due(self, timer: RunTimer, now: float, out: Outbox) -> None:
        self.sessions[timer.run].due(timer, now, out)

    def _overdue(self, timer: Overdue, now: float, out: Outbox) -> None:
        if self.exchanges.overdue(timer.number, now, out):
            for session in self.sessions.values():
                session.overdue(timer.number, now, out)

    def _ended(self, end: Ended, now: float, out: Outbox) -> None:
        self.sessions[end.run].ended(end, now, out)

    def _done(self, event: Done, now: float, out: Outbox) -> None:
        ours = self.exchanges.done(event.ticket, event.result, now, out)
        for session in self.sessions.values():
            if ours:
                session.exchanged(out)
            elif session.done(event.ticket, event.result, now, out):
                break

    def _leave(self, event: Leave, now: float, out: Outbox) -> None:
        self._leaving = True
        for session in self.sessions.values():
            session.leave(out)

    # --- for the node -------------------------------------------------------------------------------

    def contacts(self) -> Iterable[Contact]:
        return chain.from_iterable(session.pool.contacts() for session in self.sessions.values())

    def partners(self) -> list[NodeId]:
        return self.exchanges.partners

    def bounds(self) -> dict[str, tuple[int, int]]:
        pools = sum(len(session.pool) for session in self.sessions.values())
        limit = self.context.config.membership.pool_max * len(self.sessions)
        return {**self.exchanges.bounds(), "pool": (pools, limit)}

    def snapshot(self, now: float) -> ExchangeView:
        return ExchangeView([session.snapshot() for session in self.sessions.values()])
