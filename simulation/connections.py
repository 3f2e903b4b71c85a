"""How machines of a world connect: dials, handshakes, ends.

A handshake is three legs, as TCP's or Noise's. Which connection of two machines is the one, the rule says that the
daemon asks, too (gossip/net/simultaneous_open.py). The decider's word travels with the first leg that it sends
once it knows who the other one is: with the second where it is dialled, with the third where it dials. Both ends open
when the third leg has arrived, so neither has a connection that the other has not, but for what is on the way. An end
knows of the other one what has arrived, and no more.
"""

from typing import Any, Protocol

from gossip.dht.ids import NodeId
from gossip.events import DialFailed, Event, PeerDown, PeerUp
from gossip.net.simultaneous_open import DIAL_S, Role, SimultaneousOpen, Word
from simulation.agenda import ANSWER, CLOSED, GIVE_UP, KNOCK, OPENED, RISEN, Agenda
from simulation.machines import Dialling, Host, Link
from simulation.network import LinkModel


class Carrier(Protocol):
    """The world, as connections know it."""

    agenda: Agenda
    by_address: dict[str, Host]
    network: LinkModel
    now: float

    def deliver(self, host: Host, event: Event) -> None:
        """Gives a running node an event."""
        ...


class Connections:
    """Args:
    world: Carries out what happens.
    silence_s: After so long an end gives up a connection on which nothing comes any more.
    """

    def __init__(self, world: Carrier, silence_s: float) -> None:
        self._world = world
        self._silence_s = silence_s

    def dial(self, host: Host, address: str, peer: NodeId | None) -> None:
        """The first leg; ends with PeerUp or DialFailed."""
        target = self._world.by_address.get(address)
        host.dialled += 1
        name = host.index << 32 | host.dialled
        host.dials[name] = Dialling(address, peer, target)
        self._world.agenda.push(self._world.now + DIAL_S, GIVE_UP, host, host.life, name)
        if target is None:
            return
        leg = self._world.network.knock(host.index, target.index, self._world.now)
        if leg is not None:
            self._world.agenda.travel(self._world.now + leg, KNOCK, host, target, name, (peer, host.life))

    def step(self, kind: int, host: Host, first: Any, name: Any, content: Any) -> None:
        """A step of a connection from its first leg to its end."""
        if kind == KNOCK:
            self._knocked(host, first, name, content)
        elif kind == ANSWER:
            self._answered(host, first, name, content)
        elif kind == OPENED:
            self._opened(host, first, name, content)
        elif kind == CLOSED:
            # By its name: the sender may be another node by now, with another key.
            peer = next((peer for peer, taken in host.opening if taken == name), None)
            if peer is not None and self.lose(host, peer) is not None:
                self._world.deliver(host, PeerDown(peer, content))
        elif host.life != first or host.core is None or name not in host.dials:
            pass  # of an earlier life, or it came to an end
        elif kind == RISEN:
            del host.dials[name]
            self._open(host, content, name, inbound=False)
        else:
            assert kind == GIVE_UP, f"unknown kind of entry {kind}"
            dial = host.dials[name]
            if not dial.rising:
                there = dial.target is not None and dial.target.id in host.links
                self._fail(host, name, "already connected" if there else "no answer")

    def _knocked(self, host: Host, source: Host, name: int, asked: tuple[NodeId | None, int]) -> None:
        """A dial has reached the machine: it is answered, whether a program runs there or not."""
        wanted, asked_by = asked
        now = self._world.now
        if not self._world.network.admits(source.index, host.index, now):
            return
        life, peer = host.life, source.id
        reason = self._refusal(host, source, wanted)
        if not reason and host.opening.role(peer) is Role.DECIDER:
            reason = self._decide(host, source, name, inbound=True)
        leg = self._world.network.reliable(host.index, source.index, now)
        if leg is not None:
            self._world.agenda.travel(now + leg, ANSWER, host, source, name, (life, asked_by, reason))
        if host.opening.get(peer) == name:
            given_up = now + DIAL_S if leg is not None else now
            self._world.agenda.call(given_up, host, lambda: self._not_opened(host, life, peer, name))

    def _refusal(self, host: Host, source: Host, wanted: NodeId | None) -> str:
        """Why `source` may not connect, whatever else there is; empty: it may."""
        if host is source:
            return "the address is our own"
        if host.core is None:
            return "connection refused"
        if wanted is not None and wanted != host.id:
            return "another node answered"
        return ""

    def _decide(self, host: Host, peer: Host, name: int, *, inbound: bool) -> str:
        """The word on a connection as the reason why not; empty: accepted, and what it replaces has ended."""
        word, replaced = host.opening.decide(peer.id, name, inbound=inbound, now=self._world.now)
        if word is Word.DUPLICATE:
            return "already connected"
        self._replace(host, peer, replaced)
        return "" if host.core is not None else "connection reset"  # its program may end with what it is told

    def _not_opened(self, host: Host, life: int, peer: NodeId, name: int) -> None:
        """What was accepted has not opened: the answer, or the third leg, is lost."""
        link = host.links.get(peer)
        if host.life == life and (link is None or link.name != name):
            host.opening.ended(peer, name)

    def _answered(self, host: Host, source: Host, name: int, answer: tuple[int, int, str]) -> None:
        life, asked_by, reason = answer
        dial = host.dials.get(name)
        if host.core is None or host.life != asked_by or dial is None:
            if not reason:  # as a kernel says of a connection that it does not know
                self._say_closed(host, source, name, "connection reset")
            return
        if not reason and host.opening.role(source.id) is Role.DECIDER:
            reason = self._decide(host, source, name, inbound=False)
            if host.core is None:
                return
            if reason and source.id not in host.links:
                # The other one is about to open: "already connected" is true when it has.
                dial.duplicate = True
                return
        if reason:
            self._fail(host, name, reason)
            return
        leg = self._world.network.reliable(host.index, source.index, self._world.now)
        if leg is None:
            return  # given up when nothing has come for long enough
        dial.opens_at = self._world.now + leg
        self._world.agenda.push(dial.opens_at, RISEN, host, host.life, name, source)
        self._world.agenda.travel(dial.opens_at, OPENED, host, source, name, life)

    def _opened(self, host: Host, source: Host, name: int, life: int) -> None:
        if host.core is not None and host.life == life:
            self._open(host, source, name, inbound=True)
        else:  # the program that answered has ended
            self._say_closed(host, source, name, "connection reset")

    def _open(self, host: Host, peer: Host, name: int, *, inbound: bool) -> None:
        """This end of a connection is open from now on."""
        if host.opening.role(peer.id) is Role.FOLLOWER:
            self._replace(host, peer, host.opening.accepted(peer.id, name, now=self._world.now))
        if host.opening.get(peer.id) != name:  # given up, or the program has ended
            self._say_closed(host, peer, name, "connection reset")
            return
        host.links[peer.id] = Link(name, peer, self._world.now)
        self._world.deliver(host, PeerUp(peer.id, peer.key, peer.address, inbound))
        for waiting in [name for name, dial in host.dials.items() if dial.duplicate and dial.target is peer]:
            if waiting in host.dials:
                self._fail(host, waiting, "already connected")

    def _replace(self, host: Host, peer: Host, replaced: int | None) -> None:
        """A connection ends because another one takes its place."""
        old = host.links.get(peer.id)
        if replaced is None or old is None or old.name != replaced:
            return  # there was none, or it has not opened
        del host.links[peer.id]
        self._say_closed(host, peer, old.name, "replaced by a newer connection")
        self._world.deliver(host, PeerDown(peer.id, "replaced by a newer connection"))

    def lose(self, host: Host, peer: NodeId) -> Link | None:
        """This end of a connection is no more. Returns what it was; None: it had not opened, or there was none."""
        taken = host.opening.get(peer)
        if taken is not None:
            host.opening.ended(peer, taken)
        return host.links.pop(peer, None)

    def _fail(self, host: Host, name: int, reason: str) -> None:
        dial = host.dials.pop(name)
        if dial.target is not None:
            host.opening.ended(dial.target.id, name)
        self._world.deliver(host, DialFailed(dial.address, dial.peer, reason))

    def drop(self, host: Host, peer: NodeId, reason: str) -> None:
        """A node ends a connection, if it has it."""
        if peer not in host.links:
            return
        link = self.lose(host, peer)
        assert link is not None
        life = host.life

        def closed() -> None:
            if host.life == life and host.core is not None and peer not in host.links:
                self._world.deliver(host, PeerDown(peer, reason))

        self._world.agenda.call(self._world.now, host, closed)
        self._say_closed(host, link.peer, link.name, "closed by the peer")

    def _say_closed(self, host: Host, peer: Host, name: int, reason: str, *, opens_at: float = 0.0) -> None:
        """Tells the other end that the connection is closed at this one, behind what was sent."""
        delay = self._world.network.reliable(host.index, peer.index, self._world.now)
        if delay is None:
            self._fall_silent(host, peer, name, opens_at)
        else:
            self._world.agenda.travel(self._world.now + delay, CLOSED, host, peer, name, reason)

    def _fall_silent(self, host: Host, peer: Host, name: int, opens_at: float = 0.0) -> None:
        """The other end hears nothing any more, and gives the connection up; one on its way, when it has opened."""
        date = max(self._world.now, opens_at) + self._silence_s
        self._world.agenda.travel(date, CLOSED, host, peer, name, "timed out")

    def break_cut(self, host: Host) -> None:
        """A machine gives up its connections across a cut: nothing has come on them for long enough."""
        world = self._world
        for peer, link in list(host.links.items()):
            if host.core is None or host.links.get(peer) is not link:
                continue  # the end of another one has had this consequence
            there, back = (host.index, link.peer.index), (link.peer.index, host.index)
            if world.network.cut(*there, world.now) or world.network.cut(*back, world.now):
                self.lose(host, peer)
                world.deliver(host, PeerDown(peer, "timed out"))

    def end(self, host: Host, *, silent: bool) -> None:
        """All of a machine whose program has ended.

        Args:
            silent: The machine has ended with it, and no kernel closes the connections.
        """
        links, host.links = host.links, {}
        dials, host.dials = host.dials, {}
        host.opening = SimultaneousOpen(host.id)
        ends = [(link.peer, link.name, link.since) for link in links.values()]
        ends += [
            (dial.target, name, dial.opens_at)
            for name, dial in dials.items()
            if dial.rising and dial.target is not None
        ]
        for peer, name, opens_at in ends:
            if silent:
                self._fall_silent(host, peer, name, opens_at)
            else:
                self._say_closed(host, peer, name, "closed by the peer", opens_at=opens_at)
