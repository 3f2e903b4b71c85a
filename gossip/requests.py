"""Questions that wait for an answer: number, deadline, who was asked, and why. One implementation for every protocol.

number = requests.next()
requests.ask(peer, Question(number, ...), Answer, why, now, out)    False: it cannot be asked now
why = requests.answered(peer, answer)                               RemoteError: nothing of the kind was asked
peer, why = requests.overdue(number)                                None: it was answered meanwhile
"""

from collections.abc import Sequence
from math import inf
from typing import Generic, TypeVar

from msgspec import Struct

from gossip.dht.ids import NodeId
from gossip.errors import Reason, RemoteError
from gossip.outbox import Outbox, Timer
from gossip.protocol import Answered, Silent
from gossip.wire.canonical import Message

Why = TypeVar("Why")


class _Asked(Struct, Generic[Why]):
    peer: NodeId
    answer: type[Message]
    why: Why


class Requests(Generic[Why]):
    """The open questions of one protocol.

    Args:
        overdue: Type of the timer that names a number; its owner's handler calls `overdue`.
        timeout_s: Patience with an answer.
        limit: More are not asked; `ask` is False then. Our own lookups set the pace, so this is never met honestly.
    """

    def __init__(self, overdue: type[Timer], *, timeout_s: float, limit: int) -> None:
        self._timer = overdue
        self._timeout_s = timeout_s
        self._limit = limit
        self._number = 0
        self._open: dict[int, _Asked[Why]] = {}

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
        if len(self._open) >= self._limit or not out.send(peer, question, addresses=addresses):
            return False
        number: int = question.n  # type: ignore[attr-defined]  # every question has one
        self._open[number] = _Asked(peer, answer, why)
        out.timer(self._timer(number), now + self._timeout_s)
        return True

    def answered(self, peer: NodeId, message: Message, out: Outbox) -> Why:
        """Why `message` was asked for, which counts as answered from now on.

        Raises:
            RemoteError: UNEXPECTED; this peer was not asked that, or not for an answer of this type.
        """
        number: int = message.n  # type: ignore[attr-defined]
        asked = self._open.get(number)
        if asked is None or asked.peer != peer or asked.answer is not type(message):
            raise RemoteError(Reason.UNEXPECTED, f"an answer to a request {number} that is not open")
        del self._open[number]
        out.timer(self._timer(number), inf)
        out.fact(Answered(peer))
        return asked.why

    def overdue(self, number: int, out: Outbox) -> tuple[NodeId, Why] | None:
        """The date of a request has come: who kept silent, and why it was asked."""
        asked = self._open.pop(number, None)
        if asked is None:
            return None
        out.fact(Silent(asked.peer))
        return asked.peer, asked.why

    def lost(self, peer: NodeId, out: Outbox) -> list[Why]:
        """The connection to `peer` is gone: what it was asked stays unanswered."""
        numbers = [number for number, asked in self._open.items() if asked.peer == peer]
        for number in numbers:
            out.timer(self._timer(number), inf)
        return [self._open.pop(number).why for number in numbers]

    def bounds(self) -> tuple[int, int]:
        return len(self._open), self._limit
