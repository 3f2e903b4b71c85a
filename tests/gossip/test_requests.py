"""Questions that wait for an answer: each is answered, overdue or lost once, and by the peer that was asked only."""

from itertools import count
from math import inf
from random import Random

import pytest

from crypto.identity import PublicKey
from gossip.dht.ids import NodeId
from gossip.errors import Reason, RemoteError
from gossip.events import Dial, PeerUp, Send, Sent
from gossip.net.connections import Connections
from gossip.outbox import Outbox, Timer, Turn
from gossip.protocol import Silent
from gossip.requests import Requests, Unanswered
from gossip.wire import FindNode, Nodes, Ping, Pong, encode

TIMEOUT_S = 3.0
FIRST_TICKET = 101
A, B, GONE = (NodeId(bytes([number]) * 32) for number in (1, 2, 3))


class Overdue(Timer, frozen=True):
    number: int


class Desk:
    """The open questions of a node that is connected to A and B, and what it said in the turns so far."""

    def __init__(self, *, limit: int = 4) -> None:
        self.requests: Requests[str] = Requests(Overdue, timeout_s=TIMEOUT_S, limit=limit)
        self.connections = Connections(connections_max=8, rng=Random(0))
        self.turn = Turn()
        self.out = Outbox(
            self.turn,
            self.connections,
            count(1).__next__,
            ticket=count(FIRST_TICKET).__next__,
            owner=None,
            protocol="dht",
        )
        for node in (A, B):
            self.connections.opened(PeerUp(node, PublicKey(bytes(32)), "10.0.0.1:1", False), 0.0)
            self.connections.ready(node, {"dht": 1}, [])

    def ping(self, peer: NodeId, why: str, now: float = 0.0) -> int:
        number = self.requests.next()
        assert self.requests.ask(peer, Ping(number), Pong, why, now, self.out)
        return number

    def sent(self, peer: NodeId, ticket: int = FIRST_TICKET, now: float = 0.0) -> None:
        self.requests.sent(Sent(peer, ticket), now, self.out)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_question_goes_out_with_a_deadline_and_its_answer_says_why_it_was_asked(desk: Desk) -> None:
    number = desk.ping(A, "is it alive?", now=10.0)
    assert desk.turn.effects == [Send(A, encode(Ping(number)), ticket=FIRST_TICKET)]
    assert desk.turn.timers == [(Overdue(number), 13.0)]
    desk.turn.timers.clear()

    assert desk.requests.answered(A, Pong(number), desk.out) == "is it alive?"

    assert desk.turn.timers == [(Overdue(number), inf)]
    assert desk.turn.facts == []
    assert desk.requests.bounds() == (0, 4)


def test_what_nobody_asked_is_unexpected_and_changes_nothing(desk: Desk) -> None:
    number = desk.ping(A, "why")
    desk.turn.timers.clear()
    for peer, answer in (
        (A, Pong(number + 1)),  # of another number
        (B, Pong(number)),  # of another peer
        (A, Nodes(number, [])),  # of another type
    ):
        with pytest.raises(RemoteError) as caught:
            desk.requests.answered(peer, answer, desk.out)
        assert caught.value.reason is Reason.UNEXPECTED
    assert desk.turn.timers == []
    assert desk.turn.facts == []
    assert desk.requests.answered(A, Pong(number), desk.out) == "why"


def test_an_answer_counts_once(desk: Desk) -> None:
    number = desk.ping(A, "why")
    desk.requests.answered(A, Pong(number), desk.out)
    with pytest.raises(RemoteError, match="not open"):
        desk.requests.answered(A, Pong(number), desk.out)


def test_a_deadline_tells_who_kept_silent_and_a_late_answer_is_unexpected(desk: Desk) -> None:
    number = desk.ping(A, "why")
    desk.sent(A)
    assert desk.requests.overdue(number, desk.out) == Unanswered(A, "why", silent=True)
    assert desk.turn.facts == [Silent(A)]
    assert desk.requests.overdue(number, desk.out) is None
    with pytest.raises(RemoteError, match="not open"):
        desk.requests.answered(A, Pong(number), desk.out)


def test_the_time_of_a_question_begins_when_it_has_left(desk: Desk) -> None:
    number = desk.ping(A, "why", now=10.0)
    desk.turn.timers.clear()
    desk.sent(A, now=12.0)
    assert desk.turn.timers == [(Overdue(number), 15.0)]


def test_nobody_kept_silent_where_the_question_did_not_leave(desk: Desk) -> None:
    number = desk.ping(A, "why")
    assert desk.requests.overdue(number, desk.out) == Unanswered(A, "why", silent=False)
    assert desk.turn.facts == []
    desk.turn.timers.clear()
    desk.sent(A)
    assert desk.turn.timers == [], "it is over, though it leaves after all"


def test_a_question_that_cannot_be_sent_is_over_at_once_and_nobody_is_blamed(desk: Desk) -> None:
    number = desk.ping(A, "why")
    desk.turn.timers.clear()
    assert desk.requests.unsent(FIRST_TICKET, desk.out) == Unanswered(A, "why", silent=False)
    assert desk.turn.timers == [(Overdue(number), inf)]
    assert desk.turn.facts == []
    assert desk.requests.unsent(FIRST_TICKET, desk.out) is None
    assert desk.requests.bounds()[0] == 0


def test_an_answer_may_come_before_we_hear_that_the_question_has_left(desk: Desk) -> None:
    number = desk.ping(A, "why")
    assert desk.requests.answered(A, Pong(number), desk.out) == "why"
    desk.turn.timers.clear()
    desk.sent(A, now=1.0)
    assert desk.turn.timers == []


def test_a_deadline_after_the_answer_says_nothing(desk: Desk) -> None:
    number = desk.ping(A, "why")
    desk.requests.answered(A, Pong(number), desk.out)
    desk.turn.facts.clear()
    assert desk.requests.overdue(number, desk.out) is None
    assert desk.turn.facts == []


def test_a_lost_connection_ends_the_questions_to_this_peer_and_blames_it_for_no_silence(desk: Desk) -> None:
    first, other, second = desk.ping(A, "one"), desk.ping(B, "other"), desk.ping(A, "two")
    desk.turn.timers.clear()

    assert desk.requests.lost(A, desk.out) == ["one", "two"]

    assert desk.turn.timers == [(Overdue(first), inf), (Overdue(second), inf)]
    assert desk.turn.facts == []
    assert desk.requests.answered(B, Pong(other), desk.out) == "other"
    assert desk.requests.lost(A, desk.out) == []


def test_who_cannot_be_reached_is_not_asked(desk: Desk) -> None:
    question = FindNode(desk.requests.next(), bytes(32))
    assert not desk.requests.ask(GONE, question, Nodes, "why", 0.0, desk.out)
    assert desk.requests.bounds()[0] == 0
    assert desk.turn.timers == []

    assert desk.requests.ask(GONE, question, Nodes, "why", 0.0, desk.out, addresses=("10.0.0.9:1",))
    assert desk.turn.effects == [Dial("10.0.0.9:1", GONE)]
    assert desk.requests.bounds()[0] == 1


def test_a_protocol_that_the_peer_does_not_speak_is_not_asked_for(desk: Desk) -> None:
    desk.connections.ready(A, {"run": 1}, [])
    assert not desk.requests.ask(A, Ping(desk.requests.next()), Pong, "why", 0.0, desk.out)
    assert desk.requests.bounds()[0] == 0


def test_no_more_are_open_than_the_limit_and_an_end_of_any_kind_makes_room() -> None:
    desk = Desk(limit=3)
    numbers = [desk.ping(A, "why") for _ in range(3)]
    desk.turn.effects.clear()
    assert not desk.requests.ask(B, Ping(desk.requests.next()), Pong, "why", 0.0, desk.out)
    assert desk.turn.effects == [], "what is not open is not said"

    desk.requests.answered(A, Pong(numbers[0]), desk.out)
    desk.ping(B, "why")
    desk.requests.overdue(numbers[1], desk.out)
    desk.ping(B, "why")
    desk.requests.lost(B, desk.out)
    assert desk.requests.bounds() == (1, 3)
