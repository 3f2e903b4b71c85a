"""Questions that wait for an answer: number, deadline, who was asked, and why. One implementation for every protocol.

number = requests.next()
requests.ask(peer, Question(number, ...), Answer, why, now, out)    False: it cannot be asked now
requests.sent(event, now, out)                                      it has left: its time begins
why = requests.answered(peer, answer, out)                          RemoteError: nothing of the kind was asked
requests.unsent(ticket, out), requests.overdue(number, out)         it stays unanswered; None: it was answered
"""

from collections.abc import Sequence
from math import inf
from typing import Generic, TypeVar

from msgspec import Struct

from gossip.dht.ids import NodeId
from gossip.errors import Reason, RemoteError
from gossip.events import Sent
from gossip.outbox import Outbox, Timer
from gossip.protocol import Silent
from gossip.wire.canonical import Message

Why = TypeVar("Why")


class _Asked(Struct, Generic[Why]):
    peer: NodeId
    answer: type[Message]
    why: Why
    at: float  # when it was asked
    ticket: int  # of its frame, until that has left; then 0


class Unanswered(Struct, Generic[Why], frozen=True):
    """A question that is over."""

    peer: NodeId
    why: Why
    silent: bool  # it had left this machine: that no answer came says something about the peer


class Requests(Generic[Why]):
    """The open questions of one protocol.

    Args:
        overdue: Type of the timer that names a number; its owner's handler calls `overdue`.
        timeout_s: Patience with an answer, from when the question has left; before that, with a connection.
        limit: More are not asked; `ask` is False then. Our own lookups set the pace, so this is never met honestly.
    """

    def __init__(self, overdue: type[Timer], *, timeout_s: float, limit: int) -> None:
        self._timer = overdue
        self._timeout_s = timeout_s
        self._limit = limit
        self._number = 0
        self._open: dict[int, _Asked[Why]] = {}
        self._leaving: dict[int, int] = {}  # ticket of a frame that has not left -> number of its question

    def next(self) -> int:
        self._number += 1
        return self._number

    def ask(
        self,
        peer: NodeId,
        question: Message,
        answer: type[Message],
        why: Why,
        now: float,
        out: Outbox,
        *,
        addresses: Sequence[str] = (),
    ) -> bool:
        """Send `question`, whose field `n` is a number of `next`; `answer` is the type that answers it."""
        if len(self._open) >= self._limit:
            return False
        ticket = out.ticket()
        if not out.send(peer, question, addresses=addresses, ticket=ticket):
            return False
        number: int = question.n  # type: ignore[attr-defined]  # every question has one
        self._open[number] = _Asked(peer, answer, why, now, ticket)
        self._leaving[ticket] = number
        out.timer(self._timer(number), now + self._timeout_s)
        return True

    def sent(self, event: Sent, now: float, out: Outbox) -> None:
        """A question has left: its time begins."""
        number = self._leaving.pop(event.ticket, None)
        if number is not None:
            asked = self._open[number]
            asked.ticket = 0
            if now > asked.at:  # else the timer stands already
                out.timer(self._timer(number), now + self._timeout_s)

    def unsent(self, ticket: int, out: Outbox) -> Unanswered[Why] | None:
        """A question will not arrive."""
        number = self._leaving.get(ticket)
        if number is None:
            return None
        out.timer(self._timer(number), inf)
        asked = self._close(number)
        return Unanswered(asked.peer, asked.why, silent=False)

    def answered(self, peer: NodeId, message: Message, out: Outbox) -> Why:
        """Why `message` was asked for, which counts as answered from now on.

        Raises:
            RemoteError: UNEXPECTED; this peer was not asked that, or not for an answer of this type.
        """
        number: int = message.n  # type: ignore[attr-defined]
        asked = self._open.get(number)
        if asked is None or asked.peer != peer or asked.answer is not type(message):
            raise RemoteError(Reason.UNEXPECTED, f"an answer to a request {number} that is not open")
        self._close(number)
        out.timer(self._timer(number), inf)
        return asked.why

    def overdue(self, number: int, out: Outbox) -> Unanswered[Why] | None:
        """The date of a question has come. Where it has not left, nobody kept silent."""
        if number not in self._open:
            return None
        asked = self._open[number]
        silent = asked.ticket == 0
        self._close(number)
        if silent:
            out.fact(Silent(asked.peer))
        return Unanswered(asked.peer, asked.why, silent)

    def lost(self, peer: NodeId, out: Outbox) -> list[Why]:
        """The connection to `peer` is gone: what it was asked stays unanswered."""
        numbers = [number for number, asked in self._open.items() if asked.peer == peer]
        for number in numbers:
            out.timer(self._timer(number), inf)
        return [self._close(number).why for number in numbers]

    def _close(self, number: int) -> _Asked[Why]:
        asked = self._open.pop(number)
        if asked.ticket:
            del self._leaving[asked.ticket]
        return asked

    def bounds(self) -> tuple[int, int]:
        return len(self._open), self._limit
