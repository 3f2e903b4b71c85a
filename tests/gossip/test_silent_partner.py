"""A partner that never answers costs its own offers, and does not hold up the others."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gossip import wire
from gossip.config import Config
from gossip.events import Exchanged

INTERVAL_S = 0.25


def exchanges_per_s(net: Any, *, silent: bool) -> float:
    """What one of four honest nodes initiates, with a fifth node that takes offers and is silent, or honest too."""
    base = Config()
    config = replace(base, learning=replace(base.learning, round_interval_s=INTERVAL_S, save_interval_s=0.0))
    peers = [net.add(config=config, weight=1.0) for _ in range(5)]
    net.run(10.0)
    mute = peers[-1]
    if silent:
        # It answers the DHT, so that it stays connected, and no offer.
        net.wire = lambda source, target, frame: (
            [] if source is mute and isinstance(wire.decode(frame), wire.ReplyMessage) else [frame]
        )
    before = initiated(peers[0])
    net.run(40.0)
    return (initiated(peers[0]) - before) / 40.0


def initiated(peer: Any) -> int:
    return sum(isinstance(n, Exchanged) and n.role == "initiator" for n in peer.news)


def test_a_silent_partner_does_not_slow_an_honest_node_down(net: Any) -> None:
    clean = exchanges_per_s(net, silent=False)
    assert clean == pytest.approx(4.0, rel=0.1)
    assert exchanges_per_s(type(net)(), silent=True) > 0.9 * clean


def test_no_more_than_two_offers_of_a_shard_are_on_the_way_and_never_two_to_one_peer(
    net: Any, new_run: Callable[..., Any]
) -> None:
    run = new_run(values=100, shard_max=50)
    peers = [net.add(run=run, weight=1.0) for _ in range(6)]
    net.run(5.0)
    net.wire = lambda source, target, frame: (
        [] if isinstance(wire.decode(frame), wire.ReplyMessage) else [frame]
    )
    most = 0
    for _ in range(300):
        net.run(0.02)
        flying = [
            (o.shard, o.contact.node) for o in peers[0].node.protocol("exchange").exchanges._outgoing.values()
        ]
        assert len(set(flying)) == len(flying)
        for shard in (0, 1):
            count = sum(s == shard for s, _ in flying)
            assert count <= 2
            most = max(most, count)
    assert most == 2
