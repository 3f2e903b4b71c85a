"""What liars can and cannot do to a node that looks around, and how one finds back after a long silence."""

import random
from dataclasses import replace
from typing import Any

import pytest

from crypto.identity import Identity
from crypto.signing import network_id
from gossip import persisted, wire
from gossip.dht.ids import Key, distance, node_id, provider_key
from gossip.dht.kinds import PeerRecord, ProviderRecord
from gossip.dht.records import sign_record
from gossip.dht.routing import Contact
from gossip.events import DialFailed, Leave, Looked, PeerUp, Received

NETWORK = network_id("main")
VICTIM = Identity.from_seed(b"\x55" * 32)


def provider(place: Key) -> bytes:
    return sign_record(
        VICTIM,
        NETWORK,
        ProviderRecord(addresses=("10.9.9.9:1",), key=VICTIM.public_key, place=place, seq=1, ttl_s=100),
    )


def test_naming_a_record_as_one_of_the_other_kind_does_not_hide_it(net: Any, quiet: Any) -> None:
    node = net.add(config=quiet)
    place = provider_key(node.run.id, 0)
    record = sign_record(
        VICTIM,
        NETWORK,
        PeerRecord(addresses=("10.9.9.9:1",), key=VICTIM.public_key, run=bytes(32), seq=1, ttl_s=100),
    )
    victim = node_id(VICTIM.public_key)

    with net.turn(node, "dht") as out:
        node.node.protocol("dht")._collect(
            [record], place, node.id, out
        )  # a liar: a peer record among the providers
    assert victim not in node.pool
    net.tell(node, PeerUp(victim, VICTIM.public_key, "10.9.9.9:1", True))
    net.tell(
        node, Received(victim, wire.encode(wire.Hello("x", {}, {"dht": [1]}, record)))
    )  # the victim itself

    assert [contact.node for contact in node.node.protocol("dht").table.closest(victim, 1)] == [victim]


def test_a_true_record_of_another_place_makes_nobody_a_holder(net: Any, quiet: Any) -> None:
    node = net.add(config=quiet)
    place = provider_key(node.run.id, 0)

    with net.turn(node, "dht") as out:
        node.node.protocol("dht")._collect(
            [provider(provider_key(b"other" + bytes(27), 0))], place, node.id, out
        )
    assert node.pool.partner(0, random.Random(1)) is None
    with net.turn(node, "dht") as out:
        node.node.protocol("dht")._collect([provider(place)], place, node.id, out)
    assert node.pool.partner(0, random.Random(1)) is not None


def test_a_holder_of_several_shards_is_known_for_each(net: Any, quiet: Any, new_run: Any) -> None:
    node = net.add(config=quiet, run=new_run(values=200, shard_max=100))
    for shard in (0, 1):
        place = provider_key(node.run.id, shard)
        with net.turn(node, "dht") as out:
            node.node.protocol("dht")._collect([provider(place)], place, node.id, out)

    assert all(node.pool.partner(shard, random.Random(1)) for shard in (0, 1))


def test_a_peer_that_says_it_is_of_another_run_leaves_the_pool(net: Any, quiet: Any, new_run: Any) -> None:
    node, other = net.add(config=quiet), net.add(config=quiet, run=new_run(name="other/1"))
    lie = Contact(other.id, other.identity.public_key, (other.address,), b"a provider record")
    node.pool.observe(lie, shard=0)

    net.run(2.0)

    assert (node.id, other.id) in net.links
    assert other.id not in node.pool


def test_what_nobody_took_is_published_again_soon(net: Any, quiet: Any) -> None:
    a, b = net.add(config=quiet), net.add(config=quiet)

    def deaf(source: Any, target: Any, frame: bytes) -> list[bytes]:
        answer = isinstance(wire.decode(frame), wire.Nodes | wire.Records)
        return [] if answer and net.now < 20.0 else [frame]

    net.wire = deaf
    net.run(200.0)

    place = provider_key(a.run.id, 0)
    for peer in (a, b):
        assert len(peer.node.protocol("dht").records.get(place, net.now, limit=20, rng=random.Random(1))) == 2


def test_the_refresh_interval_is_the_one_that_was_set(net: Any, quiet: Any) -> None:
    often = replace(
        quiet,
        dht=replace(quiet.dht, refresh_interval_s=60.0),
        membership=replace(quiet.membership, walk_interval_s=1e6),
    )
    node, _ = net.add(config=often), net.add(config=often)

    net.run(600.0)

    refreshes = [news for news in node.news if isinstance(news, Looked) and news.purpose == "refresh"]
    assert 6 <= len(refreshes) / len(node.node.protocol("dht").table.stats()) <= 12


@pytest.mark.parametrize("silent_s", [60.0, 3600.0])
def test_after_a_long_silence_those_who_are_left_find_each_other(
    net: Any, quiet: Any, silent_s: float
) -> None:
    """The only address they were started with is gone for good, pool and table have run empty."""
    first, b, c = (net.add(config=quiet) for _ in range(3))
    net.run(30.0)
    dial, back = net._dial, net.now + silent_s

    def through(peer: Any, order: Any) -> None:
        if net.now < back or order.address == first.address or peer is first:
            net.post(0.01, peer.id, DialFailed(order.address, order.peer, "no route"))
        else:
            dial(peer, order)

    net._dial = through
    for one, other in ((first, b), (first, c), (b, c)):
        net.cut(one, other, "no route")
    net.run(silent_s)
    assert not net.links
    net.run(300.0)

    assert (b.id, c.id) in net.links
    net.tell(b, Leave())
    assert c.address in persisted.peers(b.store)


def test_a_lookup_gets_past_the_dead_who_are_nearest(net: Any, quiet: Any) -> None:
    """The table keeps the dead for a while. Those of them that are the k nearest must not be all that is asked."""
    config = replace(quiet, dht=replace(quiet.dht, k=2))
    asker, living = net.add(config=config), net.add(config=config)
    net.run(5.0)
    directory = asker.node.protocol("dht")
    identities = [Identity.from_seed(bytes([number, 1]) * 16) for number in range(40)]
    target = node_id(identities[0].public_key)
    near = sorted(identities, key=lambda one: distance(node_id(one.public_key), target))[:2]
    assert distance(living.id, target) > distance(node_id(near[1].public_key), target)
    for dead in near:
        contact = Contact(node_id(dead.public_key), dead.public_key, ("10.9.9.9:1",), b"no record")
        directory.table.offer(contact, net.now)

    with net.turn(asker, "dht") as out:
        assert directory.look_up(target, "test", net.now, out)
    net.run(30.0)
    found = [news.found for news in asker.news if isinstance(news, Looked) and news.purpose == "test"]
    assert found == [1], "the living one answered"


def test_a_silent_query_frees_its_place_after_a_second(net: Any, quiet: Any) -> None:
    config = replace(quiet, dht=replace(quiet.dht, alpha=1))
    asker, silent, living = (net.add(config=config) for _ in range(3))
    net.run(5.0)
    asked: list[tuple[float, int]] = []

    def wire_with_a_silent_node(source: Any, target: Any, frame: bytes) -> list[bytes]:
        if source is asker and isinstance(wire.decode(frame), wire.FindNode):
            asked.append((net.now, target.number))
        return [] if source is silent else [frame]

    net.wire = wire_with_a_silent_node
    began = net.now
    with net.turn(asker, "dht") as out:  # the silent one is nearest
        assert asker.node.protocol("dht").look_up(silent.id, "test", net.now, out)
    net.run(10.0)

    assert [number for _, number in asked][:2] == [silent.number, living.number]
    assert asked[1][0] - began == pytest.approx(1.0, abs=0.05)
