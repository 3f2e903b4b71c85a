"""Entering the network: one living address among many dead ones is found, and dead ones are asked ever more seldom."""

import random
from math import inf
from typing import Any

from gossip.events import Join
from gossip.net.entrances import ADDRESSES_MAX, PAUSE_S_MAX, TRIED_MAX, Entrances


def test_the_one_living_address_behind_many_dead_ones_is_found(net: Any) -> None:
    living = net.add()
    newcomer = net.add()
    newcomer.start(net.now)  # without the address that `add` told it
    dead = tuple(f"10.1.0.{number}:7400" for number in range(64))
    net.tell(newcomer, Join((*dead, living.address)))
    net.run(30.0)
    assert newcomer.node.snapshot(net.now).peers


def test_every_address_is_tried_before_any_is_tried_twice() -> None:
    bootstrap = Entrances(random.Random(1))
    addresses = [f"host{number}:1" for number in range(65)]
    bootstrap.add(addresses)
    now, tried = 0.0, []
    while len(tried) < 65:
        taken, now = bootstrap.take(now)
        assert len(taken) <= TRIED_MAX
        tried += taken
    assert sorted(tried[:65]) == sorted(addresses)
    assert tried[:65] != addresses  # shuffled


def test_a_dead_address_is_tried_at_most_once_a_minute_in_the_end() -> None:
    bootstrap = Entrances(random.Random(1))
    bootstrap.add(["dead:1"])
    now, dates = 0.0, []
    for _ in range(2000):  # more often than a power of two allows
        taken, again = bootstrap.take(now)
        assert taken == ["dead:1"]
        dates.append(now)
        now = again
    assert dates[1] < 2.0
    assert dates[-1] - dates[-2] >= 0.5 * PAUSE_S_MAX


def test_a_node_that_entered_begins_anew_when_it_is_alone_again() -> None:
    bootstrap = Entrances(random.Random(1))
    bootstrap.add(["a:1"])
    assert bootstrap.take(0.0)[0] == ["a:1"]
    assert bootstrap.take(0.0)[0] == []
    bootstrap.reset()
    assert bootstrap.take(0.0)[0] == ["a:1"]


def test_what_is_remembered_is_tried_beside_what_was_named() -> None:
    bootstrap = Entrances(random.Random(1))
    assert bootstrap.take(0.0) == ([], inf)
    assert bootstrap.take(0.0, ["old:1"])[0] == ["old:1"]


def test_no_more_addresses_are_kept_than_the_limit() -> None:
    bootstrap = Entrances(random.Random(1))
    for number in range(2 * ADDRESSES_MAX):
        bootstrap.add([f"host{number}:1"])
    assert len(bootstrap.named) == ADDRESSES_MAX
