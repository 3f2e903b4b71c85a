"""The small parts of the node: deadlines, sequence numbers, the pool of partners, connections."""

import random
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from crypto.identity import PublicKey
from gossip import persisted
from gossip.deadlines import Deadlines
from gossip.dht.ids import NodeId
from gossip.dht.routing import Contact
from gossip.events import Dial, DialFailed, Drop, PeerUp, Persist, Recall, Send
from gossip.net.connections import NEWCOMERS, SLOW_S, Connections, inbound_kept
from gossip.net.sampling import Membership
from gossip.outbox import Outbox, Turn
from gossip.sequence import BLOCK, Sequence
from p2pnode.door import Limits

names = st.sampled_from("abcde")


@given(st.lists(st.tuples(names, st.one_of(st.none(), st.floats(0, 100)))), st.floats(0, 100))
def test_deadlines_fire_like_a_plain_dict(orders, now):
    deadlines, plain = Deadlines(), {}
    for name, when in orders:
        if when is None:
            deadlines.clear(name)
            plain.pop(name, None)
        else:
            deadlines.set(name, when)
            plain[name] = when

    assert deadlines.next == min(plain.values(), default=inf)
    due = deadlines.due(now)
    assert sorted(due) == sorted(name for name, when in plain.items() if when <= now)
    assert [plain[name] for name in due] == sorted(plain[name] for name in due)
    assert deadlines.next == min((w for w in plain.values() if w > now), default=inf)


def test_equal_deadlines_fire_in_the_order_they_were_set():
    deadlines = Deadlines()
    for name in "zebra":
        deadlines.set(name, 1.0)
    assert deadlines.due(1.0) == list("zebra")


@given(st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=5))
def test_numbers_rise_over_all_lives_and_are_reserved_before_use(lives):
    store, last = {}, 0
    turn = Turn()
    out = Outbox(turn, make_connections(), int, ticket=int, owner=None, protocol="test")
    for life in lives:
        sequence = Sequence(persisted.ceiling(store))
        for _ in range(life):
            turn.effects.clear()
            number = sequence.take(out)
            for effect in turn.effects:
                assert isinstance(effect, Persist)
                assert effect.fsync
                store.update(effect.entries)
            assert last < number < persisted.ceiling(store)
            last = number


def contact(number: int) -> Contact:
    key = PublicKey(number.to_bytes(32, "big"))
    return Contact(NodeId(random.Random(number).randbytes(32)), key, ("10.0.0.1:7400",), b"record")


def make_membership(pool_max: int) -> Membership:
    return Membership(NodeId(bytes(32)), pool_max=pool_max, key=bytes(16))


def test_partners_are_drawn_uniformly():
    """Chi-square over 50 holders: below the 99.9 % quantile of 49 degrees of freedom (85.4)."""
    membership, rng = make_membership(1024), random.Random(1)
    for number in range(50):
        membership.observe(contact(number), 0)
    counts = dict.fromkeys((contact(n).node for n in range(50)), 0)
    for _ in range(10_000):
        counts[membership.partner(0, rng).node] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 85.4


def test_flood_of_repetitions_does_not_enter_a_full_pool():
    """What counts is being seen, not how often: the pool is a uniform sample of the distinct ids."""
    membership = make_membership(100)
    loud, silent = [contact(n) for n in range(500)], [contact(n) for n in range(500, 1000)]
    for _ in range(20):
        for c in loud:
            membership.observe(c, 0)
    for c in silent:
        membership.observe(c, 0)
    share = sum(c.node in membership for c in silent)
    assert len(membership) == 100
    assert 30 <= share <= 70


def test_who_was_too_large_for_a_full_pool_may_enter_when_there_is_room_or_another_key():
    membership = make_membership(10)
    everybody = [contact(n) for n in range(200)]
    for c in everybody:
        membership.observe(c, 0)
    out = next(c for c in everybody if c.node not in membership)
    membership.observe(out, 0)
    assert out.node not in membership

    membership.forget(membership.contacts()[0].node)
    membership.observe(out, 0)
    assert out.node in membership

    before = {c.node for c in membership.contacts()}
    membership.rotate(b"k" * 16)
    for c in everybody:
        membership.observe(c, 0)
    after = {c.node for c in membership.contacts()}
    assert len(after) == 10
    assert len(after - before) > 3


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 2)), max_size=60))
def test_pool_draws_only_present_holders_of_the_shard(orders):
    membership, plain, rng = make_membership(1024), set(), random.Random(0)
    for add, number, shard in orders:
        if add:
            membership.observe(contact(number), shard)
            plain.add((number, shard))
        else:
            membership.forget(contact(number).node)
            plain = {(n, s) for n, s in plain if n != number}
    for shard in range(3):
        holders = {contact(n).node for n, s in plain if s == shard}
        drawn = {c.node for c in (membership.partner(shard, rng) for _ in range(100)) if c}
        assert drawn <= holders
        assert bool(drawn) == bool(holders)


def make_connections(connections_max: int = 3) -> Connections:
    return Connections(connections_max=connections_max, rng=random.Random(0))


def up(node: NodeId, *, inbound: bool = False) -> PeerUp:
    return PeerUp(node, PublicKey(bytes(32)), "10.0.0.1:7400", inbound)


def test_frames_wait_for_the_dial_and_leave_in_order():
    connections, node, out = make_connections(), contact(1).node, []
    assert connections.send(Send(node, b"one"), ("a:1",), "dht", 0.0, out)
    assert connections.send(Send(node, b"two"), ("a:1",), "dht", 0.0, out)
    assert out == [Dial("a:1", node)]

    out.clear()
    connections.opened(up(node), 1.0)
    connections.ready(node, {"dht": 1}, out)
    assert out == [Send(node, b"one"), Send(node, b"two")]


def test_frames_wait_for_the_hello_and_those_of_what_the_peer_does_not_speak_are_not_sent():
    connections, node, out = make_connections(), contact(1).node, []
    connections.opened(up(node), 0.0)
    assert connections.send(Send(node, b"hello"), (), "connection", 0.0, out)
    assert connections.send(Send(node, b"ping"), (), "dht", 0.0, out)
    assert connections.send(Send(node, b"weather"), (), "weather", 0.0, out)
    assert out == [Send(node, b"hello")]

    connections.ready(node, {"dht": 1}, out)
    assert out == [Send(node, b"hello"), Send(node, b"ping")]
    assert not connections.send(Send(node, b"weather"), (), "weather", 1.0, out)
    assert connections.bounds()["waiting"][0] == 0


def test_frames_that_waited_for_a_hello_are_lost_with_the_connection():
    connections, node, out = make_connections(), contact(1).node, []
    connections.opened(up(node), 0.0)
    connections.send(Send(node, b"ping"), (), "dht", 0.0, out)
    connections.closed(node, 1.0)
    connections.opened(up(node), 2.0)
    connections.ready(node, {"dht": 1}, out)
    assert out == []


def test_a_frame_that_nobody_wants_any_more_does_not_wait_and_is_recalled_where_it_may_be_leaving():
    connections, node, out = make_connections(), contact(1).node, []
    connections.send(Send(node, b"one", ticket=1), ("a:1",), "dht", 0.0, out)
    connections.send(Send(node, b"two", ticket=2), ("a:1",), "dht", 0.0, out)
    connections.recall(node, 1, out)
    connections.opened(up(node), 1.0)
    out.clear()
    connections.ready(node, {"dht": 1}, out)
    assert out == [Send(node, b"two", ticket=2)]

    out.clear()
    connections.recall(node, 2, out)
    assert out == [Recall(node, 2)]


def test_a_peer_that_was_too_slow_is_left_alone_for_minutes_and_may_come_itself():
    connections, node, out = make_connections(), contact(1).node, []
    connections.opened(up(node), 0.0)
    connections.ready(node, {"dht": 1}, out)
    connections.closed(node, 1.0)
    connections.too_slow(node, 1.0)
    assert connections.resting(node, 1.0 + SLOW_S - 1.0)
    assert not connections.resting(node, 1.0 + SLOW_S + 1.0)

    connections.opened(up(node, inbound=True), 2.0)
    connections.ready(node, {"dht": 1}, out)
    assert not connections.resting(node, 2.0)


def test_all_addresses_are_tried_before_a_peer_counts_as_unreachable():
    connections, node, out = make_connections(), contact(1).node, []
    connections.send(Send(node, b"frame"), ("a:1", "b:2"), "dht", 0.0, out)
    assert not connections.dial_failed(DialFailed("a:1", node, "refused"), 1.0, out)
    assert out[-1] == Dial("b:2", node)
    assert connections.dial_failed(DialFailed("b:2", node, "refused"), 2.0, out)
    assert connections.resting(node, 2.1)
    assert not connections.send(Send(node, b"frame"), ("a:1",), "dht", 2.1, out)


def test_rest_doubles_with_each_failure_and_ends_with_success():
    connections, node = make_connections(), contact(1).node
    for failures in range(1, 6):
        connections.rest(node, 0.0)
        assert connections.resting(node, 0.49 * 2 ** (failures - 1))
        assert not connections.resting(node, 1.51 * 2 ** (failures - 1))
    connections.opened(up(node), 0.0)
    assert connections.resting(node, 0.0)
    connections.ready(node, {}, [])
    assert not connections.resting(node, 0.0)


def test_peer_that_accepts_and_hangs_up_is_dialled_ever_more_seldom():
    connections, node, now, dials = make_connections(), contact(1).node, 0.0, 0
    while now < 60.0:
        out = []
        if connections.send(Send(node, b"frame"), ("a:1",), "dht", now, out):
            dials += 1
            connections.opened(up(node), now)
            connections.closed(node, now)
        now += 0.05
    assert dials <= 8


def test_least_recently_used_idle_connection_goes_first():
    connections, nodes = make_connections(3), [contact(n).node for n in range(5)]
    for node in nodes:
        connections.opened(up(node), 0.0)
        connections.ready(node, {"dht": 1}, [])
    connections.send(Send(nodes[0], b"used"), (), "dht", 1.0, [])
    out = []
    connections.shed([nodes[1]], out)
    assert out == [Drop(nodes[2], "connection limit"), Drop(nodes[3], "connection limit")]


def test_places_stay_free_for_those_who_come():
    """A daemon turns strangers away once 64 connections are open that others opened."""
    connections, nodes = make_connections(96), [contact(n).node for n in range(inbound_kept(96) + 2)]
    out = []
    for node in nodes:
        connections.opened(up(node, inbound=True), 0.0)
    connections.shed([nodes[0]], out)
    assert out == [Drop(nodes[1], "connection limit"), Drop(nodes[2], "connection limit")]
    assert Limits().inbound_max == inbound_kept(96) + NEWCOMERS


def test_budget_allows_the_burst_then_the_rate():
    connections, node = make_connections(), contact(1).node
    connections.opened(up(node), 0.0)
    assert sum(connections.spend(node, 0.0, rate=10.0, burst=20.0) for _ in range(100)) == 20
    assert sum(connections.spend(node, 1.0, rate=10.0, burst=20.0) for _ in range(100)) == 10
