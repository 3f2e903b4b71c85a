"""Which of several connections with one peer is the one. Pure: the caller owns the connections and tells the time.

Theory of operation
===================

Two nodes often dial each other in the same moment, and a peer that lost power dials again while we still hold its dead
connection. The core wants at most one connection for each peer, and both ends must keep the same one.

**Decider and follower.** Of two nodes the one with the smaller id decides, and the other follows. A connection is
*proven* when its handshake is complete, so that each end knows the other's id. Then, whoever dialled:

1. The decider says one word, as the first frame of the connection. *Accepted*: this is the one from now on, and the one
   before it, if any, is replaced. *Duplicate*: it keeps the one it has, and closes this one.
2. The follower says and believes nothing before the word. On *accepted* it takes the connection, and what it had is
   replaced. On *duplicate* it closes. It waits for the word HANDSHAKE_S at most, and then closes.

`VERDICTS` has all that the decider goes by: what it holds, and which end dialled the new one. A connection that is
*young* may be the other half of a simultaneous open, so it stays. One that is *settled* (older than SETTLED_S) stays
against a dial of our own; but where the peer dials, it has lost the old one and does not know it, or would not have
dialled. One that is *closing* stands in nobody's way.

**Why both ends take the same one.** Deciding and taking is one step at the decider, so it has one connection at a time,
and only the order in which the follower hears two *accepted* matters. Let the decider accept c1 and then c2. If c1 had
not ended by then, it was settled: more than SETTLED_S = 3 HANDSHAKE_S old. The follower's handshake of c1 ended within
HANDSHAKE_S of that verdict, and its wait for the word within HANDSHAKE_S more: it has taken c1 or given it up before c2
is even accepted, so it never takes c1 after c2. If c1 had ended at the decider, the follower may hear of both in the
wrong order, and replace c2 by c1; but the end of c1 follows its word on the same connection. Then both ends have none,
and who wants to talk dials.

**How long they may differ.** While the decider has c2 and the follower still has c1, the word about c2 is on its way,
or the end of c1 or c2 is. The follower gives up waiting for a word after HANDSHAKE_S. So both ends hold different
connections for at most HANDSHAKE_S and the time in which an end learns that the other one has ended: a flight where the
network lives, the patience with a silent peer (`gossip/node.py`) where it does not. An end that holds a dead connection
lets its peer in again after SETTLED_S at the latest, if it decides, and at once, if it follows.

**Rejected.** A rule that both ends apply on their own, as BGP's (RFC 4271, 6.8: keep the one that the larger identifier
dialled), needs no word. But it cannot tell a simultaneous open from a redial after a crash, because the two ends learn
of a connection's beginning and end at different times (docs/decisions/0004-one-connection-for-each-peer.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from gossip.dht.ids import NodeId

C = TypeVar("C")

# Until a dial is answered: name resolution and TCP connect; two tries of SYN (1 s, 2 s) and some slowness of name
# servers.
DIAL_S = 10.0
# Until a handshake is complete, three messages of 300 bytes; and then until the follower has its word.
HANDSHAKE_S = 5.0
# Older connections are no half of a simultaneous open. Above the 2 * HANDSHAKE_S in which the follower has taken or
# given up what was accepted; the third is slack, for clocks and queues.
SETTLED_S = 3 * HANDSHAKE_S


class Role(Enum):
    """What an end is towards one peer."""

    DECIDER = auto()
    FOLLOWER = auto()


class Word(Enum):
    """The decider's first frame on a connection; the values are its bytes."""

    ACCEPTED = b"\x01accepted"
    DUPLICATE = b"\x00duplicate"


class Holding(Enum):
    """What a decider has with a peer when another connection with it is proven."""

    NOTHING = auto()
    YOUNG = auto()
    SETTLED = auto()
    CLOSING = auto()


class Dialler(Enum):
    """Which end dialled the new connection."""

    WE = auto()
    PEER = auto()


VERDICTS: dict[tuple[Holding, Dialler], Word] = {
    (Holding.NOTHING, Dialler.WE): Word.ACCEPTED,
    (Holding.NOTHING, Dialler.PEER): Word.ACCEPTED,
    (Holding.YOUNG, Dialler.WE): Word.DUPLICATE,
    (Holding.YOUNG, Dialler.PEER): Word.DUPLICATE,
    (Holding.SETTLED, Dialler.WE): Word.DUPLICATE,
    (Holding.SETTLED, Dialler.PEER): Word.ACCEPTED,
    (Holding.CLOSING, Dialler.WE): Word.ACCEPTED,
    (Holding.CLOSING, Dialler.PEER): Word.ACCEPTED,
}


@dataclass(slots=True)
class _Taken(Generic[C]):
    connection: C
    since: float
    closing: bool = False


class SimultaneousOpen(Generic[C]):
    """The connections that one node has taken, at most one for each peer.

    Args:
        own: The id of the node.
    """

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._taken: dict[NodeId, _Taken[C]] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def __iter__(self) -> Iterator[tuple[NodeId, C]]:
        """(peer, connection), the oldest peer first. Take a copy before changing anything."""
        for peer, taken in self._taken.items():
            yield peer, taken.connection

    def get(self, peer: NodeId) -> C | None:
        """The one connection with a peer, closing or not."""
        taken = self._taken.get(peer)
        return taken.connection if taken is not None else None

    def role(self, peer: NodeId) -> Role:
        """Both ends see it the same way. A node has no connection with itself."""
        assert peer != self._own, "nobody decides or follows"
        return Role.DECIDER if self._own < peer else Role.FOLLOWER

    def holding(self, peer: NodeId, now: float) -> Holding:
        """What there is with a peer."""
        taken = self._taken.get(peer)
        if taken is None:
            return Holding.NOTHING
        if taken.closing:
            return Holding.CLOSING
        return Holding.SETTLED if now - taken.since > SETTLED_S else Holding.YOUNG

    def decide(self, peer: NodeId, connection: C, *, inbound: bool, now: float) -> tuple[Word, C | None]:
        """As the decider: a connection is proven. It is taken where the word is *accepted*.

        Args:
            inbound: Whether the peer dialled it.

        Returns:
            The word for the peer, and the connection that was replaced, for the caller to end.
        """
        assert self.role(peer) is Role.DECIDER, "the word is the peer's"
        word = VERDICTS[self.holding(peer, now), Dialler.PEER if inbound else Dialler.WE]
        return word, self._take(peer, connection, now) if word is Word.ACCEPTED else None

    def accepted(self, peer: NodeId, connection: C, *, now: float) -> C | None:
        """As the follower: the peer has accepted a connection, which is taken. Returns the one that was replaced."""
        assert self.role(peer) is Role.FOLLOWER, "the word is ours"
        return self._take(peer, connection, now)

    def closing(self, peer: NodeId, connection: C) -> None:
        """A connection is about to end, and stands in the way of no other."""
        taken = self._taken.get(peer)
        if taken is not None and taken.connection == connection:
            taken.closing = True

    def ended(self, peer: NodeId, connection: C) -> None:
        """A connection is gone, if it was not replaced before."""
        taken = self._taken.get(peer)
        if taken is not None and taken.connection == connection:
            del self._taken[peer]

    def _take(self, peer: NodeId, connection: C, now: float) -> C | None:
        before = self._taken.pop(peer, None)
        self._taken[peer] = _Taken(connection, now)
        return before.connection if before is not None else None
