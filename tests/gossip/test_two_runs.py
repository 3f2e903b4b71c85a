"""Two runs in one node, over one connection for each peer: each is learned as if the other were not there."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossip import wire
from gossip.config import Config
from gossip.events import Connected, Exchanged, Leave, StateChanged


@pytest.fixture
def brisk() -> Config:
    """A round each 0.2 s, in which nothing is learned: what the weights do is the exchanges' doing."""
    config = Config()
    return replace(config, learning=replace(config.learning, round_interval_s=0.2, save_interval_s=0.0))


@pytest.fixture
def apples(new_run: Any) -> Any:
    return new_run(name="apples/1", values=200, shard_max=200)


@pytest.fixture
def pears(new_run: Any) -> Any:
    return new_run(name="pears/1", values=64, shard_max=32)


def offered(net: Any) -> Counter[tuple[int, int, bytes]]:
    """(from, to, run) of every offer that was sent."""
    found: Counter[tuple[int, int, bytes]] = Counter()
    for source, target, frame in net.frames:
        message = wire.decode(frame)
        if isinstance(message, wire.OfferMessage):
            header = wire.decode_offer_header(message.header)
            found[source.number, target.number, header.run] += 1
    return found


def test_each_run_converges_by_itself_and_neither_moves_the_other(
    net: Any, brisk: Config, apples: Any, pears: Any
) -> None:
    a, b = (
        net.add(runs=[apples, pears], config=brisk, weights=weights) for weights in ((1.0, 10.0), (2.0, 20.0))
    )

    net.run(30.0)

    for run, mean in ((apples, 1.5), (pears, 15.0)):
        held = [peer.learners[run.id].weights() for peer in (a, b)]
        np.testing.assert_allclose(held, mean, rtol=0.02)
        np.testing.assert_allclose(sum(held), 2 * mean, rtol=1e-5)
    for peer in (a, b):
        assert peer.refused() == {}
        assert len(peer.node.snapshot(net.now).peers) == 1
        assert sum(isinstance(news, Connected) for news in peer.news) == 1
    sent = offered(net)
    assert min(sent[way, 3 - way, run.id] for way in (1, 2) for run in (apples, pears)) > 50


def test_a_run_at_rest_stays_to_the_bit_while_the_other_is_exchanged(
    net: Any, quiet: Config, apples: Any, pears: Any
) -> None:
    a, b = (net.add(runs=[apples, pears], config=quiet, weights=weights) for weights in ((1, 10), (2, 20)))
    net.run(2.0)
    before = [peer.learners[pears.id].weights().copy() for peer in (a, b)]

    for _ in range(5):
        net.exchange(a, b)

    np.testing.assert_allclose(a.learner.weights(), 1.5, rtol=0.01)
    for peer, weights in zip((a, b), before, strict=True):
        np.testing.assert_array_equal(peer.learners[pears.id].weights(), weights)


def test_a_peer_with_one_of_the_two_exchanges_that_one(
    net: Any, brisk: Config, apples: Any, pears: Any
) -> None:
    both = net.add(runs=[apples, pears], config=brisk, weights=(1.0, 10.0))
    apple = net.add(run=apples, config=brisk, weight=2.0)
    pear = net.add(run=pears, config=brisk, weight=20.0)

    net.run(30.0)

    np.testing.assert_allclose([both.learner.weights(), apple.learner.weights()], 1.5, rtol=0.02)
    held = [both.learners[pears.id].weights(), pear.learner.weights()]
    np.testing.assert_allclose(held, 15.0, rtol=0.02)
    assert set(offered(net)) == {
        (1, 2, apples.id),
        (2, 1, apples.id),
        (1, 3, pears.id),
        (3, 1, pears.id),
    }
    assert both.refused() == {}
    # These two know each other and share nothing; each reads why.
    assert apple.refused() == pear.refused() == {"other_run": 1}
    assert both.node.snapshot(net.now).shares_run(apple.id)
    assert not pear.node.snapshot(net.now).shares_run(apple.id)


def test_a_newcomer_to_both_adopts_each_from_those_who_hold_it(
    net: Any, brisk: Config, apples: Any, pears: Any
) -> None:
    net.add(run=apples, config=brisk, weight=1.0)
    net.add(run=pears, config=brisk, weight=2.0)
    new = net.add(runs=[apples, pears], config=brisk)

    net.run(9.0)  # less than a newcomer's patience, after which it would begin by itself

    roles = [news.role for news in new.news if isinstance(news, Exchanged)]
    assert roles.count("adopter") == 3, "one shard of apples, two of pears"
    np.testing.assert_allclose(new.learners[apples.id].weights(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(new.learners[pears.id].weights(), 2.0, rtol=1e-5)
    states = [news.state for news in new.news if isinstance(news, StateChanged)]
    assert states == ["joining", "training"], "joining until it holds both"


def test_a_node_that_restarts_goes_on_with_both(net: Any, brisk: Config, apples: Any, pears: Any) -> None:
    a, b = (net.add(runs=[apples, pears], config=brisk, weights=weights) for weights in ((1, 10), (2, 20)))
    net.run(10.0)
    rounds = [view.round for view in b.node.snapshot(net.now).protocols["exchange"].runs]
    net.tell(b, Leave())
    net.run(1.0)
    net.cut(a, b, "stopped")
    net.run(1.0)

    b.start(net.now)
    views = b.node.snapshot(net.now).protocols["exchange"].runs
    assert [view.run for view in views] == [apples.id, pears.id]
    assert all(view.round >= before for view, before in zip(views, rounds, strict=True))
    assert min(age for view in views for age in view.ages) > 100
    before = b.node.snapshot(net.now).exchanges
    net.run(10.0)
    assert b.node.snapshot(net.now).exchanges > before + 20
