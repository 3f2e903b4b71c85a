"""Nodes that find each other, join, exchange and survive: the core without any driver of production."""

from dataclasses import replace
from math import inf, nan

import numpy as np

from gossip import persisted, wire
from gossip.config import Config
from gossip.events import Connected, DialFailed, Exchanged, Join, Learned, Leave, Looked, StateChanged
from gossip.run.session import DIVERGED


def slow_rounds(config: Config) -> Config:
    """Fewer rounds, so that a test of many nodes stays short."""
    return replace(config, learning=replace(config.learning, round_interval_s=1.0))


def test_two_newcomers_find_each_other_and_begin_from_genesis(net):
    a, b = net.add(), net.add()

    net.run(20.0)

    assert a.node.state == b.node.state == "training"
    assert a.node.snapshot(net.now).learning.pool == b.node.snapshot(net.now).learning.pool == 1
    assert min(a.node.snapshot(net.now).exchanges, b.node.snapshot(net.now).exchanges) > 50


def test_thirty_nodes_that_know_one_address_all_find_each_other(net):
    peers = [net.add(config=slow_rounds(Config())) for _ in range(30)]

    net.run(20.0)

    assert [p.node.snapshot(net.now).learning.pool for p in peers] == [29] * 30


def test_newcomer_adopts_and_the_others_do_not_move(net, quiet):
    old = [net.add(config=quiet, weight=0.5) for _ in range(4)]
    net.run(5.0)
    before = [p.learner.weights().copy() for p in old]

    new = net.add(
        config=replace(quiet, learning=replace(quiet.learning, round_interval_s=0.05, rounds_max=1))
    )
    net.run(2.0)

    assert any(isinstance(n, Exchanged) and n.role == "adopter" for n in new.news)
    np.testing.assert_allclose(new.learner.weights(), 0.5, atol=1e-6)
    for peer, weights in zip(old, before, strict=True):
        np.testing.assert_allclose(peer.learner.weights(), weights, atol=1e-6)


def test_exchange_moves_both_to_their_mean_and_keeps_the_sum(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(2.0)

    net.exchange(a, b)

    np.testing.assert_allclose(a.learner.weights(), 1.5, rtol=0.01)
    np.testing.assert_allclose(a.learner.weights() + b.learner.weights(), 3.0, rtol=1e-5)


def test_exchanges_of_a_sharded_model_take_the_shards_in_turn(net, new_run):
    config = Config()
    config = replace(config, learning=replace(config.learning, local_steps=0))
    run = new_run(values=200, shard_max=50)
    a, _ = (net.add(run=run, config=config, weight=w) for w in (1.0, 2.0))

    net.run(10.0)

    for shard in range(4):
        applied = [n for n in a.news if isinstance(n, Exchanged) and n.shard == shard]
        assert len(applied) > 20
    np.testing.assert_allclose(a.learner.weights(), 1.5, rtol=0.01)


def test_lost_reply_is_repeated_and_applied_once(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(2.0)
    lost = []

    def lose_first_reply(source, target, frame):
        if isinstance(wire.decode(frame), wire.ReplyMessage) and not lost:
            lost.append(frame)
            return []
        return [frame]

    net.wire = lose_first_reply
    net.exchange(a, b)
    net.run(10.0)

    assert lost
    np.testing.assert_allclose(a.learner.weights() + b.learner.weights(), 3.0, rtol=1e-5)
    np.testing.assert_allclose(b.learner.weights(), 1.5, rtol=0.01)


def test_second_copy_of_a_reply_is_no_refusal_while_the_first_is_being_applied(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(2.0)
    net.wire = lambda source, target, frame: (
        [frame] * (2 if isinstance(wire.decode(frame), wire.ReplyMessage) else 1)
    )
    net.exchange(a, b)
    net.run(10.0)

    assert not a.node.snapshot(net.now).refused
    np.testing.assert_allclose(a.learner.weights() + b.learner.weights(), 3.0, rtol=1e-5)


def test_partner_that_vanishes_costs_one_exchange_and_the_round_goes_on(net):
    a, _, c = (net.add() for _ in range(3))
    net.run(15.0)
    net.wire = lambda source, target, frame: [] if c in (source, target) else [frame]
    rounds = a.node.snapshot(net.now).learning.round

    net.run(30.0)

    assert a.node.snapshot(net.now).learning.round > rounds + 50
    assert a.refused(by_us=False)["timeout"] > 0


def test_peer_of_another_run_is_told_the_difference_and_never_exchanges(net, new_run):
    a = net.add(run=new_run(name="one/1"))
    b = net.add(run=new_run(name="two/1"))

    net.run(15.0)

    assert a.refused() == {"other_run": 1}
    detail = next(n.detail for n in a.news if getattr(n, "reason", "") == "other_run")
    assert "'one/1'" in detail
    assert "'two/1'" in detail
    assert a.node.snapshot(net.now).exchanges == b.node.snapshot(net.now).exchanges == 0


def test_isolated_node_goes_on_learning_and_keeps_trying(net):
    a, b = net.add(), net.add()
    net.run(15.0)
    net.cut(a, b, "cable")
    real, net.wire = net.connect, None
    net.connect = lambda a, b: net.post(5.0, a.id, DialFailed(b.address, b.id, "no answer"))

    net.run(5.0)
    rounds = b.node.snapshot(net.now).learning.round
    assert b.node.state == "isolated"

    net.run(20.0)
    assert b.node.snapshot(net.now).learning.round > rounds + 100
    net.connect, net.wire = real, lambda source, target, frame: [frame]
    net.run(120.0)
    assert b.node.state == "training"
    assert StateChanged("isolated") in b.news


def test_leaving_node_says_goodbye_and_answers_no_offer(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(2.0)

    net.tell(b, Leave())
    net.run(0.3)

    assert b.node.state == "stopping"
    assert (a.id, b.id) not in net.links


def test_restart_never_signs_a_used_number_again(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(2.0)
    numbers = []

    def watch(source, target, frame):
        message = wire.decode(frame)
        if source is a and isinstance(message, wire.OfferMessage):
            numbers.append(wire.decode_offer_header(message.header).seq)
        return [frame]

    net.wire = watch
    for life in range(3):
        for _ in range(3):
            net.exchange(a, b)
        net.cut(a, b, f"SIGKILL {life}")
        net.run(1.0)
        a.start(net.now)
        net.connect(a, b)
        net.run(1.0)

    assert len(numbers) == 9
    assert numbers == sorted(set(numbers))


def test_high_water_marks_survive_a_restart(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(2.0)
    net.exchange(a, b)
    offer = next(f for s, t, f in net.frames if isinstance(wire.decode(f), wire.OfferMessage))
    net.cut(a, b, "SIGKILL")
    net.run(1.0)
    b.start(net.now)
    net.connect(a, b)
    net.run(1.0)
    weights = b.learner.weights().copy()

    from gossip.events import Received

    net.post(0.0, b.id, Received(a.id, offer))
    net.run(1.0)

    assert b.refused()["replayed"] == 1
    np.testing.assert_array_equal(b.learner.weights(), weights)


def test_connections_stay_within_their_limit(net):
    config = replace(slow_rounds(Config()), connections_max=5)
    peers = [net.add(config=config) for _ in range(15)]

    net.run(20.0)

    # One more may be open for the moment in which the surplus is being closed.
    assert max(len(p.node.snapshot(net.now).peers) for p in peers) <= 7
    assert min(p.node.snapshot(net.now).exchanges for p in peers) > 5


def test_newcomer_whose_first_hello_was_lost_gets_in_all_the_same(net, quiet):
    first = net.add(config=quiet, weight=1.0)
    lost = []

    def lose_first_hello(source, target, frame):
        if source is first and not lost:
            lost.append(frame)
            return []
        return [frame]

    net.wire = lose_first_hello
    new = net.add(config=quiet)
    net.run(30.0)

    assert lost
    assert new.node.snapshot(net.now).learning.pool == 1


def test_node_restored_from_an_old_disk_is_refused_once_and_then_heals(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(2.0)
    old = dict(a.store)
    for _ in range(1100):  # beyond the block that the old disk had reserved
        with net.turn(a) as out:
            a.node.context.sequence.take(out)
    net.exchange(a, b)
    net.cut(a, b, "restored")
    net.run(1.0)
    a.store = old
    a.start(net.now)
    net.connect(a, b)
    net.run(1.0)

    net.exchange(a, b)
    net.exchange(a, b)

    assert b.refused() == {"replayed": 1}
    assert (a.id, b.id) in net.links
    roles = [n.role for n in a.news if isinstance(n, Exchanged)]
    assert roles == ["initiator", "initiator"]


def test_first_node_of_a_network_looks_around_once_somebody_comes(net):
    first = net.add(config=slow_rounds(Config()))
    net.run(15.0)
    assert first.node.state == "training"

    net.add(config=slow_rounds(Config()))
    net.run(10.0)

    assert first.node.snapshot(net.now).dht.lookups >= 2


def test_node_that_trains_in_vain_says_diverged_until_a_change_is_finite_again(net):
    a, b = net.add(), net.add()
    net.run(15.0)
    assert (a.node.state, b.node.state) == ("training", "training")

    b.change = nan
    net.run(5.0)

    assert (a.node.state, b.node.state) == ("training", "diverged")
    seen = b.node.snapshot(net.now)
    assert seen.learning.changes_dropped == sum(n.dropped for n in b.news if isinstance(n, Learned)) > 10
    assert a.node.snapshot(net.now).learning.changes_dropped == 0
    assert np.isfinite(b.learner.weights()).all()
    exchanges = seen.exchanges

    b.change = 0.0
    net.run(5.0)

    assert b.node.state == "training"
    assert b.node.snapshot(net.now).exchanges > exchanges
    assert b.node.snapshot(net.now).learning.changes_dropped == seen.learning.changes_dropped
    assert [n.state for n in b.news if isinstance(n, StateChanged)][-2:] == ["diverged", "training"]


def test_one_bad_batch_is_counted_and_is_not_called_diverged(net):
    net.add()
    b = net.add()
    net.run(15.0)
    for _ in range(10):
        b.change = inf
        before = b.node.snapshot(net.now).learning.round
        while b.node.snapshot(net.now).learning.round < before + DIVERGED - 1:
            net.run(0.001)
        b.change = 0.0
        while b.node.snapshot(net.now).learning.round < before + DIVERGED:
            net.run(0.001)
    assert b.node.snapshot(net.now).learning.changes_dropped == 10 * (DIVERGED - 1)
    assert StateChanged("diverged") not in b.news


def test_node_that_has_trained_enough_does_not_say_diverged(net, quiet):
    config = Config()
    config = replace(config, learning=replace(config.learning, rounds_max=5))
    net.add()
    b = net.add(config=config)
    b.change = nan
    net.run(30.0)
    assert b.node.state == "exchanging"
    assert b.node.snapshot(net.now).learning.changes_dropped == 5


def test_node_whose_entrance_is_closed_says_isolated_and_learns_alone(net):
    net.add()
    net._dial = lambda peer, dial: net.post(1.0, peer.id, DialFailed(dial.address, dial.peer, "refused"))
    alone = net.add(config=slow_rounds(Config()))
    net.run(15.0)

    assert alone.node.state == "isolated"
    assert alone.node.snapshot(net.now).learning.round > 2


def test_two_halves_that_formed_apart_become_one_network(net):
    """Neither half is alone, so that nobody says isolated; each has an address of the other that was closed once."""
    open_dial = net._dial
    apart = True

    def dial(peer, order):
        other = next((p for p in net.peers.values() if p.address == order.address), None)
        if apart and other is not None and (peer.number <= 2) != (other.number <= 2):
            net.post(1.0, peer.id, DialFailed(order.address, order.peer, "no route"))
        else:
            open_dial(peer, order)

    net._dial = dial
    peers = [net.add(config=slow_rounds(Config())) for _ in range(4)]
    net.tell(peers[3], Join((peers[2].address,)))
    net.run(30.0)
    assert [peer.node.snapshot(net.now).learning.pool for peer in peers] == [1, 1, 1, 1]

    apart = False
    net.run(300.0)
    assert [peer.node.snapshot(net.now).learning.pool for peer in peers] == [3, 3, 3, 3]


def test_newcomer_that_adopts_what_it_was_offered_begins_at_once(net, quiet):
    old, new = net.add(config=quiet, weight=0.5), net.add(config=quiet)
    net.run(2.0)
    assert new.node.state == "joining"

    net.exchange(old, new)

    assert new.node.state == "training"


def test_lone_node_with_a_model_works_from_the_start(net, quiet):
    alone = net.add(config=quiet, weight=1.0)
    net.run(0.1)
    assert alone.node.state == "training"


def test_node_with_a_model_but_no_numbers_skips_those_it_may_have_used(net, quiet):
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    a.node.context.sequence.__init__(0)  # its first life, in which it came to its model, began at one
    net.run(2.0)
    net.exchange(a, b)
    net.cut(a, b, "state.sqlite was emptied")
    net.run(1.0)
    a.store = {name: value for name, value in a.store.items() if name.startswith(persisted.AGES_KEY)}
    a.start(net.now)
    net.connect(a, b)
    net.run(1.0)

    net.exchange(a, b)

    assert b.refused() == {}


def test_node_that_loses_its_last_connection_again_and_again_does_not_look_around_each_time(net):
    """Where connections are few they close one another, and looking around opens more."""
    a, b = net.add(), net.add()
    net.run(15.0)
    b.news.clear()

    for _ in range(20):
        net.cut(a, b, "connection limit")
        net.connect(a, b)
        net.run(0.5)

    assert len([news for news in b.news if isinstance(news, Connected)]) >= 20
    assert len([news for news in b.news if isinstance(news, Looked) and news.purpose == "join"]) <= 2
