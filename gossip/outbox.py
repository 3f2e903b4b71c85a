"""The one way out of a protocol.

Nothing that a handler says leaves the node before the handler has returned: `Turn` collects it, and the node releases
it. So a fault of ours in the middle of an event sends no half of an answer.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from gossip.dht.ids import NodeId
from gossip.events import Compute, Dial, Drop, Effect, Emit, Job, News, Persist, Send
from gossip.net.connections import Connections
from gossip.wire.canonical import Message, encode


class Timer(Struct, frozen=True):
    """Base of the names of deadlines. Each kind belongs to one protocol, which handles it by its type."""


class Fact(Struct, frozen=True):
    """Base of what protocols tell one another. Whoever has a handler for its type hears it, after the event."""


class Turn:
    """What the handlers of one event have said so far."""

    __slots__ = ("effects", "facts", "now", "tickets", "timers")

    def __init__(self) -> None:
        self.now = 0.0
        self.effects: list[Effect] = []
        self.timers: list[tuple[Timer, float]] = []
        self.facts: list[Fact] = []
        self.tickets: list[tuple[int, Any, NodeId | None]] = []  # of jobs: who ordered them, on whose behalf


class Outbox:
    """One protocol's end of a turn.

    Args:
        owner: Gets the results of the jobs ordered here.
        protocol: Its name: peers get its messages only where both speak it.
        number: Makes tickets of jobs.
        ticket: A number for one frame that is sent here: `Sent` or `Unsent` with it comes back to this protocol.
    """

    __slots__ = ("_connections", "_number", "_owner", "_protocol", "_turn", "ticket")

    def __init__(
        self,
        turn: Turn,
        connections: Connections,
        number: Callable[[], int],
        *,
        ticket: Callable[[], int],
        owner: Any,
        protocol: str,
    ) -> None:
        self._turn = turn
        self._connections = connections
        self._number = number
        self._owner = owner
        self._protocol = protocol
        self.ticket = ticket

    def send(self, peer: NodeId, message: Message, *, addresses: Sequence[str] = (), ticket: int = 0) -> bool:
        """Put a message on the way to `peer`, dialling `addresses` if need be.

        Args:
            ticket: Of `ticket`, where this protocol wants to hear that the message has left; 0: it does not.

        Returns:
            False where that cannot be done now: no connection and no address, too much waits already, or the peer
            does not speak this protocol.
        """
        return self.send_frame(Send(peer, encode(message), message.lane, ticket), addresses=addresses)

    def send_frame(self, order: Send, *, addresses: Sequence[str] = ()) -> bool:
        """As `send`, for a message that was encoded before."""
        turn = self._turn
        return self._connections.send(order, addresses, self._protocol, turn.now, turn.effects)

    def recall(self, peer: NodeId, ticket: int) -> None:
        """Nobody wants the frame with this ticket any more: send no more of it, if it has not left."""
        self._connections.recall(peer, ticket, self._turn.effects)

    def compute(self, job: Job, run: bytes, *, peer: NodeId | None = None) -> int:
        """Order a job of the learner of `run`; `Done` with the returned ticket comes back to this protocol.

        Args:
            peer: On whose behalf, if any: a fault of ours in what follows is laid at its door.
        """
        ticket = self._number()
        self._turn.tickets.append((ticket, self._owner, peer))
        self._turn.effects.append(Compute(ticket, job, run))
        return ticket

    def persist(self, entries: Iterable[tuple[str, bytes]], *, fsync: bool = False) -> None:
        """Make entries durable before anything that is said later leaves. An empty value deletes."""
        self._turn.effects.append(Persist(tuple(entries), fsync))

    def timer(self, timer: Timer, at: float) -> None:
        """Have `timer` handled at this date instead of any it had before; inf: never."""
        self._turn.timers.append((timer, at))

    def emit(self, news: News) -> None:
        """Tell people."""
        self._turn.effects.append(Emit(news))

    def fact(self, fact: Fact) -> None:
        """Tell siblings and the node."""
        self._turn.facts.append(fact)

    def dial(self, address: str, peer: NodeId | None = None) -> None:
        self._turn.effects.append(Dial(address, peer))

    def drop(self, peer: NodeId, reason: str) -> None:
        self._turn.effects.append(Drop(peer, reason))
