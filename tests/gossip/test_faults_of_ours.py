"""A bug of ours that a peer's event meets costs the connection with that peer, and nothing else.

The bug is planted everywhere: an event is handled again and again, each time with an exception at another call of a
function of the core. After each, every table is within its bounds, the peer is dropped, and the node still works.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest

from gossip import wire
from gossip.events import Drop, Emit, Event, Faulted, PeerDown, PeerUp, Received, Send, Woken
from gossip.node import BAN_S, CAUSED_MAX, DEGRADED_FROM

# The boundary itself, and what it needs to do its work: if that fails, there is nothing left to rely on.
SPARED = {"handle", "_failed", "_release", "_order"}


class PlantedError(RuntimeError):
    """The bug."""


@contextmanager
def bug_at(number: int) -> Iterator[list[str]]:
    """The `number`-th call of a function of the core, beneath `Node.handle`, raises. Yields the names of all calls."""
    calls: list[str] = []
    inside = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal inside
        code = frame.f_code
        if event != "call" or "/gossip/" not in code.co_filename or "/tests/" in code.co_filename:
            return None
        if code.co_name == "handle" and code.co_filename.endswith("gossip/node.py"):
            inside += 1
            return None
        caller = frame.f_back
        if inside and code.co_name not in SPARED and not beneath(caller, "_failed"):
            calls.append(code.co_name)
            if len(calls) == number:
                raise PlantedError(code.co_name)
        return None

    sys.settrace(trace)
    try:
        yield calls
    finally:
        sys.settrace(None)


def beneath(frame: FrameType | None, name: str) -> bool:
    while frame is not None:
        if frame.f_code.co_name == name:
            return True
        frame = frame.f_back
    return False


def scene(net: Any, quiet: Any) -> tuple[Any, Any, Any]:
    victim, peer, other = (net.add(config=quiet, weight=weight) for weight in (1.0, 2.0, 1.5))
    net.run(3.0)
    return victim, peer, other


def event_of(kind: str, net: Any, victim: Any, peer: Any) -> Event:
    """An event that `peer` really causes."""
    caught: list[bytes] = []
    wanted = {"offer": wire.OfferMessage, "reply": wire.ReplyMessage, "find_node": wire.FindNode}.get(kind)
    if kind == "up":
        net.cut(victim, peer, "cable")
        net.run(0.5)
        return PeerUp(peer.id, peer.identity.public_key, peer.address, True)
    if kind == "down":
        return PeerDown(peer.id, "cable")
    if kind == "hello":
        record = next(f for s, t, f in net.frames if s is peer and isinstance(wire.decode(f), wire.Hello))
        return Received(peer.id, record)
    if kind == "find_node":
        return Received(peer.id, wire.encode(wire.FindNode(7, bytes(32))))

    def keep(source: Any, target: Any, frame: bytes) -> list[bytes]:
        if source is peer and target is victim and wanted and isinstance(wire.decode(frame), wanted):
            caught.append(frame)
            return []
        return [frame]

    net.wire = keep
    if kind == "offer":
        net.initiate(peer, victim)
    else:
        net.initiate(victim, peer)
    net.run(0.1)
    net.wire = lambda source, target, frame: [frame]
    return Received(peer.id, caught[0])


@pytest.mark.parametrize("kind", ["offer", "reply", "find_node", "hello", "up", "down"])
def test_a_bug_at_any_call_costs_that_peer_and_nothing_else(net: Any, quiet: Any, kind: str) -> None:
    number = 0
    while True:
        number += 1
        world = type(net)()
        victim, peer, other = scene(world, quiet)
        event = event_of(kind, world, victim, peer)
        with bug_at(number) as calls:
            effects = victim.node.handle(event, world.now)
        if len(calls) < number:
            break  # every call has had its bug
        assert any(isinstance(e, Emit) and isinstance(e.news, Faulted) for e in effects), calls[-1]
        assert any(isinstance(e, Drop) and e.peer == peer.id for e in effects), calls[-1]
        assert not any(isinstance(e, Send) for e in effects), "half of an answer has left"
        over = {name: sizes for name, sizes in victim.node.bounds().items() if sizes[0] > sizes[1]}
        assert not over, calls[-1]
        world._carry_out(victim, effects)
        world.run(15.0)  # what it had to wait for is over
        exchanges = victim.node.protocol("exchange").exchanges
        assert not exchanges._outgoing, (calls[-1], exchanges._outgoing)
        assert not exchanges._incoming, calls[-1]
        total = victim.learner.weights() + other.learner.weights()
        world.exchange(victim, other)
        np.testing.assert_allclose(victim.learner.weights() + other.learner.weights(), total, rtol=1e-4)
        assert victim.node.snapshot(world.now).learning.initiated >= 1, calls[-1]
    assert number > 5, "nothing was traced"


def wake_for_ever(node: Any) -> None:
    for _ in range(10_000):
        node.handle(Woken(), node.deadline)


def break_for(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every find_node meets a bug."""

    def broken(*_: Any) -> None:
        raise PlantedError("find_node")

    monkeypatch.setitem(node.protocol("dht").handlers, wire.FindNode, broken)


def test_a_peer_that_meets_bugs_again_and_again_is_banned(
    net: Any, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, peer, _ = scene(net, quiet)
    break_for(victim.node, monkeypatch)
    for _ in range(CAUSED_MAX):
        net.tell(victim, Received(peer.id, wire.encode(wire.FindNode(7, bytes(32)))))
        net.run(0.2)
        assert not victim.node.snapshot(net.now).degraded
        net.connect(victim, peer)
        net.run(0.2)
    assert (victim.id, peer.id) not in net.links
    net.run(2.0 * BAN_S)
    net.connect(victim, peer)
    net.run(1.0)
    assert (victim.id, peer.id) in net.links


def test_bugs_met_by_unrelated_peers_are_called_degraded(
    net: Any, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, *peers = (net.add(config=quiet, weight=1.0) for _ in range(1 + DEGRADED_FROM))
    net.run(3.0)
    break_for(victim.node, monkeypatch)
    for peer in peers:
        assert not victim.node.snapshot(net.now).degraded
        net.tell(victim, Received(peer.id, wire.encode(wire.FindNode(7, bytes(32)))))
    assert victim.node.snapshot(net.now).degraded


def test_a_bug_without_a_peer_ends_the_node(net: Any, quiet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, _, _ = scene(net, quiet)

    def broken(*_: Any) -> None:
        raise PlantedError("timer")

    for kind in list(victim.node.protocol("dht").handlers):
        monkeypatch.setitem(victim.node.protocol("dht").handlers, kind, broken)
    with pytest.raises(PlantedError):
        wake_for_ever(victim.node)
