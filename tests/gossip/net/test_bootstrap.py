"""Finding back: how often an address that nobody has is dialled, and what is kept of peers for the next life."""

from typing import Any

from gossip import persisted
from gossip.events import Dial, Join, Persist

GONE = "10.9.9.9:7400"


def dials(net: Any, peer: Any, address: str) -> list[float]:
    """When `peer` dials `address`, from now on."""
    dates: list[float] = []
    dial = net._dial

    def watched(source: Any, order: Dial) -> None:
        if source is peer and order.address == address:
            dates.append(net.now)
        dial(source, order)

    net._dial = watched
    return dates


def test_a_node_that_loses_its_last_connection_again_and_again_does_not_look_back_each_time(
    net: Any, quiet: Any
) -> None:
    """Where connections are few they close one another, and looking back opens more."""
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=1.0)
    net.run(30.0)
    net.tell(b, Join((GONE,)))
    dates = dials(net, b, GONE)

    for _ in range(40):
        net.cut(a, b, "connection limit")
        net.run(0.1)
        net.connect(a, b)
        net.run(0.4)

    assert 1 <= len(dates) <= 3


def test_peers_are_kept_for_the_next_life_and_written_only_where_they_changed(net: Any, quiet: Any) -> None:
    a = net.add(config=quiet, weight=1.0)
    writes: list[Any] = []
    carry_out = net._carry_out

    def watched(peer: Any, effects: list[Any]) -> None:
        if peer is a:
            kept = [e for e in effects if isinstance(e, Persist) and e.entries[0][0] == persisted.PEERS_KEY]
            writes.extend(kept)
        carry_out(peer, effects)

    net._carry_out = watched
    b = net.add(config=quiet, weight=1.0)
    net.run(600.0)

    assert [effect.entries for effect in writes] == [(persisted.peers_entry([b.address]),)]
    assert persisted.peers(a.store) == [b.address]
