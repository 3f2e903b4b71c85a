"""A slow link is not a silent partner: what moves is waited for, what does not leave is nobody's fault.

The wire of these tests holds back the large and says when it moves, instead of the lanes of a daemon.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from gossip import wire
from gossip.config import Config
from gossip.events import Exchanged, Progress, Refused, Send, Sent
from gossip.net.lanes import Lane

EVERY_S = 1.0


class Slow:
    """The way from one node to another: offers and replies with a payload are held until a test lets them pass.

    Args:
        net: The fixture.
        source: Whose weights are held.
    """

    def __init__(self, net: Any, source: Any) -> None:
        self._net, self._source = net, source
        self.held: list[tuple[Any, Send]] = []  # to whom, and what
        self._carry_out = net._carry_out
        net._carry_out = self._filter

    def _filter(self, peer: Any, effects: list[Any]) -> None:
        passed = []
        for effect in effects:
            if peer is self._source and isinstance(effect, Send) and effect.lane is Lane.BULK:
                self.held.append((self._net.peers[effect.peer], effect))
            else:
                passed.append(effect)
        self._carry_out(peer, passed)

    def moves(self, seconds: float, *others: Any) -> None:
        """So long, something large moves between the source and these."""
        for _ in range(round(seconds / EVERY_S)):
            self._net.run(EVERY_S)
            for other in others:
                self._net.tell(self._source, Progress(other.id))
                self._net.tell(other, Progress(self._source.id))

    def passes(self) -> None:
        """The oldest of what is held has left, and arrives."""
        target, order = self.held.pop(0)
        self._carry_out(self._source, [order])
        assert target.id == order.peer


def pair(net: Any, quiet: Config, **settings: Any) -> tuple[Any, Any]:
    config = replace(quiet, exchange=replace(quiet.exchange, **settings))
    a, b = net.add(config=config, weight=1.0), net.add(config=config, weight=3.0)
    net.run(5.0)
    return a, b


def ends(peer: Any) -> list[str]:
    return [
        n.role if isinstance(n, Exchanged) else n.detail for n in peer.news if type(n) in (Exchanged, Refused)
    ]


def test_weights_travel_in_bulk_and_refusals_and_questions_do_not() -> None:
    offer = wire.OfferMessage(b"h", b"weights", bytes(64))
    assert offer.lane is Lane.BULK
    assert wire.ReplyMessage(b"h", b"weights", bytes(64)).lane is Lane.BULK
    assert wire.ReplyMessage(b"h", b"", bytes(64)).lane is Lane.CONTROL
    small = [message for message in wire.MESSAGES if message not in (wire.OfferMessage, wire.ReplyMessage)]
    assert {message.lane for message in small} == {wire.Message.lane}


def test_silence_counts_from_when_the_offer_has_left(net: Any, quiet: Config) -> None:
    a, b = pair(net, quiet, timeout_s=9.0)
    net.wire = lambda source, target, frame: [] if source is b and b"reply" in frame[:16] else [frame]
    link = Slow(net, a)
    net.initiate(a, b)
    net.run(0.1)
    link.moves(20.0, b)
    link.passes()
    net.run(2.9)
    assert link.held == [], "it is not repeated yet"
    net.run(0.2)
    assert len(link.held) == 1, "it is repeated after a third of the limit"
    link.passes()
    net.run(6.2)
    assert ends(a) == ["no answer to our offer"]
    assert a.node._connections.get(b.id).silent == 1


def test_rounds_go_on_beside_an_exchange_that_lasts(net: Any, quiet: Config) -> None:
    config = replace(quiet, learning=replace(quiet.learning, round_interval_s=1.0))
    a, b = net.add(config=config, weight=1.0), net.add(config=quiet, weight=1.0)
    link = Slow(net, a)
    net.run(2.0)
    rounds = a.node.snapshot(net.now).learning.round
    link.moves(9.0, b)
    assert a.node.snapshot(net.now).learning.round <= rounds + 1, "the round waits for its exchange"
    link.moves(20.0, b)
    assert a.node.snapshot(net.now).learning.round > rounds + 5
    assert len({order.ticket for _, order in link.held}) == len(link.held) <= 2


def test_progress_is_a_sign_of_life_and_news_of_a_frame_reach_who_sent_it(net: Any, quiet: Config) -> None:
    a, b = pair(net, quiet)
    connection = a.node._connections.get(b.id)
    connection.silent = 2
    net.tell(a, Progress(b.id))
    assert connection.silent == 0

    heard: list[tuple[str, int]] = []
    for protocol in a.node._protocols:
        protocol.handlers[Sent] = partial(_hear, heard, protocol.name)
    tickets = [(name, out.ticket()) for name, out in a.node._outboxes.items()]
    for _, ticket in tickets:
        net.tell(a, Sent(b.id, ticket))
    assert heard == tickets


def _hear(heard: list[tuple[str, int]], name: str, event: Sent, now: float, out: Any) -> None:
    heard.append((name, event.ticket))
