"""Entering the network, staying in it, and finding back.

A node that is alone tries the addresses that it was told or remembers, for ever and ever more seldom. Once somebody
answers, it looks around. Now and then it dials an address that nobody whom it knows has: two parts of a network that
formed apart, or forgot each other during a long partition, do not find each other by lookups, and nobody in them is
alone.
"""

from math import inf

from gossip import persisted
from gossip.events import Join, Leave, PeerDown
from gossip.net.entrances import Entrances
from gossip.outbox import Outbox, Timer
from gossip.protocol import Alone, Banned, Context, Entered, Protocol, Ready

# Pause of a node that lost its last connection before it dials again. A guess.
ALONE_S = 1.0
# Looking back opens a connection. A node that is let in again and again does it no more often than this: where few
# connections are allowed, they close one another. A guess, as for looking around (gossip/dht/service.py).
LOOK_BACK_S = 10.0
# Remembered peers tried at a time, beside the addresses that the operator named. A guess.
REMEMBERED_TRIED = 3


# The first look back comes after so small a part of the usual interval, which then doubles.
EARLY = 16.0


class BootstrapDue(Timer, frozen=True):
    pass


class LookBackDue(Timer, frozen=True):
    pass


class Bootstrap(Protocol):
    """A protocol without messages: what it needs, others answer."""

    name = "bootstrap"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._entrances = Entrances(context.rng)
        self._remembered = persisted.peers(context.store)
        self._kept = self._remembered  # what the disk has of them
        self._looked_back_at = -inf
        self._entered = False
        self._leaving = False
        # Soon after the start, then as often as holders are looked for.
        self._look_back_s = context.config.membership.walk_interval_s / EARLY
        self.handlers = {
            Join: self._join,
            Leave: self._leave,
            Ready: self._ready,
            PeerDown: self._down,
            Banned: self._banned,
            BootstrapDue: self._dial,
            LookBackDue: self._look_back,
        }

    def start(self, now: float, out: Outbox) -> None:
        out.timer(BootstrapDue(), now)

    def _join(self, event: Join, now: float, out: Outbox) -> None:
        self._entrances.add(event.addresses)
        out.timer(BootstrapDue(), now)

    def _leave(self, event: Leave, now: float, out: Outbox) -> None:
        self._leaving = True
        self._keep(out)

    def _ready(self, fact: Ready, now: float, out: Outbox) -> None:
        if not self._entered:
            self._entered = True
            self._entrances.reset()
            out.timer(LookBackDue(), max(now, self._looked_back_at + LOOK_BACK_S))
            out.fact(Entered())

    def _down(self, event: PeerDown, now: float, out: Outbox) -> None:
        if not len(self.context.connections):
            self._entered = False
            out.timer(BootstrapDue(), now + ALONE_S * self.context.rng.uniform(0.5, 1.5))

    def _banned(self, fact: Banned, now: float, out: Outbox) -> None:
        theirs = {a for c in self.context.contacts() if c.node == fact.peer for a in c.addresses}
        self._remembered = [address for address in self._remembered if address not in theirs]

    def _dial(self, timer: BootstrapDue, now: float, out: Outbox) -> None:
        """As long as nobody is connected: try all known addresses, ever more seldom, for ever."""
        if len(self.context.connections) or self._leaving:
            return
        remembered = self._remembered
        tried = self.context.rng.sample(remembered, min(REMEMBERED_TRIED, len(remembered)))
        addresses, again = self._entrances.take(now, tried)
        for address in addresses:
            out.dial(address)
        out.timer(BootstrapDue(), again)
        out.fact(Alone(again < inf))

    def _look_back(self, timer: LookBackDue, now: float, out: Outbox) -> None:
        """Dial one address that nobody whom we know has; keep what we know for the next life."""
        self._looked_back_at = now
        self._keep(out)
        context = self.context
        known = {address for contact in context.contacts() for address in contact.addresses}
        known.update(connection.address for _, connection in context.connections.items())
        known.update(context.addresses.all)
        named = dict.fromkeys([*self._entrances.named, *self._remembered])
        gone = [address for address in named if address not in known]
        if gone:
            out.dial(context.rng.choice(gone))
        out.timer(LookBackDue(), now + self._look_back_s * context.rng.uniform(0.8, 1.2))
        self._look_back_s = min(2.0 * self._look_back_s, context.config.membership.walk_interval_s)

    def _keep(self, out: Outbox) -> None:
        """Addresses to try when we are alone, now and in the next life. A long silence empties pool and table, but not
        this: those who were there longest stay until others take their places."""
        present = [c.addresses[0] for c in self.context.contacts() if c.addresses]
        self._remembered = list(dict.fromkeys([*present, *self._remembered]))[: persisted.PEERS_MAX]
        if self._remembered != self._kept:
            self._kept = self._remembered
            out.persist([persisted.peers_entry(self._kept)])

    @property
    def remembered(self) -> list[str]:
        """Addresses of peers from now and before, in the order in which they were met."""
        return list(self._remembered)

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {"remembered": (len(self._remembered), persisted.PEERS_MAX)}
