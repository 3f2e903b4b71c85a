"""What a new protocol costs: two messages and a machine of its own, registered by `make_node(..., more=[Echo])`.

A peer that is asked repeats what was said. In the house the messages would stand in a file of gossip/wire.
"""

from gossip.dht.ids import NodeId
from gossip.events import Sent, Unsent
from gossip.outbox import Outbox, Timer
from gossip.protocol import Context, Incoming, Protocol
from gossip.requests import Requests
from gossip.wire.canonical import U63, Message, Text


class EchoMessage(Message, frozen=True, tag="echo"):
    n: U63
    text: Text


class Echoed(Message, frozen=True, tag="echoed"):
    n: U63
    text: Text


class EchoOverdue(Timer, frozen=True):
    number: int


class Echo(Protocol):
    name = "echo"
    messages = (EchoMessage, Echoed)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._requests: Requests[str] = Requests(EchoOverdue, timeout_s=1.0, limit=8)
        self.heard: list[tuple[NodeId, str]] = []  # who repeated what
        self.unanswered: list[tuple[NodeId, str]] = []
        self.handlers = {
            EchoMessage: self._asked,
            Echoed: self._answered,
            EchoOverdue: self._overdue,
            Sent: self._requests.sent,
            Unsent: self._unsent,
        }

    def ask(self, peer: NodeId, text: str, now: float, out: Outbox) -> bool:
        """Have `peer` repeat `text`; False where it cannot be asked now."""
        question = EchoMessage(self._requests.next(), text)
        return self._requests.ask(peer, question, Echoed, text, now, out)

    def _asked(self, event: Incoming, now: float, out: Outbox) -> None:
        self.context.connections.charge(event.peer, now, rate=10.0, burst=20.0)
        out.send(event.peer, Echoed(event.message.n, event.message.text))

    def _answered(self, event: Incoming, now: float, out: Outbox) -> None:
        self._requests.answered(event.peer, event.message, out)
        self.heard.append((event.peer, event.message.text))

    def _overdue(self, timer: EchoOverdue, now: float, out: Outbox) -> None:
        if (asked := self._requests.overdue(timer.number, out)) is not None:
            self.unanswered.append((asked.peer, asked.why))

    def _unsent(self, event: Unsent, now: float, out: Outbox) -> None:
        if (asked := self._requests.unsent(event.ticket, out)) is not None:
            self.unanswered.append((asked.peer, asked.why))

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {"requests": self._requests.bounds()}
