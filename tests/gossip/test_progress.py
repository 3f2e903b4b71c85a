"""Slow is not dead: a node waits as long as weights move, and no longer."""

from dataclasses import replace
from typing import Any

import pytest

from gossip import wire
from gossip.events import Disconnected, Exchanged, PeerDown, Progress, Received, Send, Unsent
from gossip.net.connections import SLOW_S
from gossip.net.lanes import Lane


def _exchanges(peer: Any) -> Any:
    return peer.node.protocol("exchange").exchanges


def slowly(net: Any, seconds: float) -> None:
    """From now on what goes by bulk takes so long to leave, and both ends hear each second that it moves."""

    def leaving(order: Send) -> float:
        if order.lane is not Lane.BULK:
            return 0.0
        [source] = [peer for peer in net.peers.values() if peer.id != order.peer]
        for second in range(1, int(seconds)):
            net.post(float(second), source.id, Progress(order.peer))
            net.post(float(second), order.peer, Progress(source.id))
        return seconds

    net.leaving_s = leaving


@pytest.mark.parametrize("seconds", [0.0, 2.0, 30.0, 300.0])
def test_an_exchange_takes_as_long_as_its_weights_move(net: Any, quiet: Any, seconds: float) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    slowly(net, seconds)
    net.exchange(a, b)
    net.run(2 * seconds + 10.0)
    assert a.node.snapshot(net.now).learning.initiated == 1
    assert a.refused(by_us=False) == b.refused(by_us=False) == {}
    offers = [frame for source, _, frame in net.frames if b"offer" in frame[:12] and source is a]
    assert len(offers) == 1, "nothing was repeated"


def test_our_patience_begins_when_the_offer_has_left(net: Any, quiet: Any) -> None:
    """On a network where answers take no time, an offer waits in its lane, longer than any answer took."""
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    for _ in range(5):
        net.exchange(a, b)
    assert _exchanges(a)._patience_s(b.id, b"") < 1.0
    net.leaving_s = lambda order: 5.0 if order.peer == b.id and order.lane is Lane.BULK else 0.0
    net.exchange(a, b)
    net.run(20.0)
    assert a.node.snapshot(net.now).learning.initiated == 6
    assert len([f for s, _, f in net.frames if b"offer" in f[:12] and s is a]) == 6


def test_what_neither_leaves_nor_moves_is_given_up_and_recalled(net: Any, quiet: Any) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    net.leaving_s = lambda order: 1e6 if order.lane is Lane.BULK else 0.0
    net.exchange(a, b)
    net.run(quiet.exchange.timeout_s)
    assert a.refused(by_us=False) == {"timeout": 1}
    [(peer, recall)] = net.recalled
    assert (peer, recall.peer) == (a, b.id)
    assert _exchanges(a).partners == []


def test_an_offer_that_cannot_be_sent_ends_its_exchange_at_once(net: Any, quiet: Any) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    net.leaving_s = lambda order: 1e6 if order.lane is Lane.BULK else 0.0
    net.exchange(a, b)
    ticket = next(iter(_exchanges(a)._outgoing.values())).ticket
    assert ticket > 0
    net.tell(a, Unsent(b.id, ticket + 1))
    assert _exchanges(a).partners == [b.id], "that was another frame"
    net.tell(a, Unsent(b.id, ticket))
    assert _exchanges(a).partners == []
    assert a.refused(by_us=False) == {"timeout": 1}


def test_of_two_offers_that_cross_the_one_that_does_not_stand_is_recalled(net: Any, quiet: Any) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    small, large = sorted((a, b), key=lambda peer: peer.id)
    net.leaving_s = lambda order: 3.0 if order.lane is Lane.BULK and order.peer == large.id else 0.0
    net.exchange(small, large)
    net.exchange(large, small)
    net.run(10.0)
    assert [(peer, recall.peer) for peer, recall in net.recalled] == [(small, large.id)]
    assert large.node.snapshot(net.now).learning.initiated == 1


def test_a_partner_that_sends_and_never_answers_is_not_waited_for_for_ever(net: Any, quiet: Any) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    lose = {a.id: True}
    net.wire = lambda source, target, frame: [] if target.id in lose and b"reply" in frame[:12] else [frame]
    net.exchange(a, b)
    offer = next(frame for source, _, frame in net.frames if b"offer" in frame[:12] and source is a)
    message = wire.decode(offer)
    assert isinstance(message, wire.OfferMessage)
    for second in range(120):
        net.post(float(second), a.id, Progress(b.id))
        if second % 10 == 9:
            net.post(float(second), a.id, Received(b.id, offer))
    net.run(120.0)
    assert _exchanges(a).partners == []
    assert a.refused(by_us=False)["timeout"] == 1


def test_a_newcomer_waits_for_a_state_that_is_on_its_way(net: Any, quiet: Any) -> None:
    """Longer than `join_patience_s`, and begins nothing of its own meanwhile."""
    eager = replace(quiet, learning=replace(quiet.learning, round_interval_s=1.0))
    net.add(config=quiet, weight=1.0)
    new = net.add(config=eager)
    slowly(net, 4 * quiet.exchange.join_patience_s)
    net.run(1.5 * quiet.exchange.join_patience_s)
    assert new.node.state == "joining"
    net.run(9 * quiet.exchange.join_patience_s)
    assert min(new.node.snapshot(net.now).learning.ages) >= 100
    assert any(isinstance(news, Exchanged) and news.role == "adopter" for news in new.news)


@pytest.mark.parametrize("alive", [True, False])
def test_a_peer_of_whom_something_comes_is_not_silent(net: Any, quiet: Any, alive: bool) -> None:
    """Three requests without an answer end a connection on which nothing comes, and no other."""
    a, b = net.add(config=quiet), net.add(config=quiet)
    net.run(5.0)
    net.wire = lambda source, target, frame: [] if source is b else [frame]
    for number in range(3):
        with net.turn(a, "dht") as out:
            a.node.protocol("dht").look_up(bytes([number]) * 32, "walk", net.now, out)
    for _ in range(8):
        net.run(0.5)
        if alive:
            net.tell(a, Progress(b.id))
    assert [news.reason for news in a.news if isinstance(news, Disconnected)] == (
        [] if alive else ["no answer to 3 requests in a row"]
    )


def test_a_peer_below_the_floor_is_left_alone_for_a_while(net: Any, quiet: Any) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    del net.links[a.id, b.id], net.links[b.id, a.id]
    net.tell(a, PeerDown(b.id, "The peer took less than 4096 bytes a second.", slow=True))
    assert a.node._connections.resting(b.id, net.now + 0.9 * SLOW_S)
    assert not a.node._connections.resting(b.id, net.now + 1.1 * SLOW_S)
    assert a.pool.contact(b.id) is None
