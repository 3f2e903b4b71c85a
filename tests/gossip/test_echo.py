"""A protocol that the house does not have, in a node of the house."""

from typing import Any

from gossip import wire
from gossip.wire.canonical import encode, tag_in
from tests.support.echo import Echo, EchoMessage


def ask(net: Any, asker: Any, other: Any, text: str) -> bool:
    with net.turn(asker, "echo") as out:
        asked: bool = asker.node.protocol("echo").ask(other.id, text, net.now, out)
    return asked


def test_two_nodes_echo(net: Any, quiet: Any) -> None:
    a, b = (net.add(config=quiet, weight=1.0, more=[Echo]) for _ in range(2))
    net.run(2.0)

    assert ask(net, a, b, "hello?")
    assert ask(net, b, a, "who is there?")
    net.run(2.0)

    assert a.node.protocol("echo").heard == [(b.id, "hello?")]
    assert b.node.protocol("echo").heard == [(a.id, "who is there?")]
    assert a.node.protocol("echo").unanswered == []
    assert a.refused() == b.refused() == {}
    assert a.node.bounds()["echo.requests"] == (0, 8)
    shown = a.node.snapshot(net.now).peers[0].protocols
    assert shown == {"connection": 1, "dht": 1, "echo": 1, "exchange": 1, "run": 1}


def test_a_peer_without_the_protocol_is_not_asked_and_nothing_else_changes(net: Any, quiet: Any) -> None:
    a, plain = net.add(config=quiet, weight=1.0, more=[Echo]), net.add(config=quiet, weight=2.0)
    net.run(2.0)

    assert not ask(net, a, plain, "hello?")
    net.exchange(a, plain)

    assert "echo" not in {tag_in(frame) for _, _, frame in net.frames}
    assert a.node.snapshot(net.now).exchanges == plain.node.snapshot(net.now).exchanges == 1


def test_a_peer_without_the_protocol_that_is_asked_all_the_same_says_that_it_does_not_know_it(
    net: Any, quiet: Any
) -> None:
    a, plain = net.add(config=quiet, weight=1.0, more=[Echo]), net.add(config=quiet, weight=2.0)
    net.run(2.0)
    net.wire = lambda source, target, frame: (
        [encode(EchoMessage(1, "x"))] if source is a and tag_in(frame) == "offer" else [frame]
    )
    net.exchange(a, plain)

    said = [wire.decode(frame) for source, _, frame in net.frames if source is plain]
    assert wire.Unsupported("echo") in said
    assert plain.refused() == a.refused(by_us=False) == {"unsupported": 1}
    assert (a.id, plain.id) in net.links


def test_an_echo_that_does_not_come_is_missed_once(net: Any, quiet: Any) -> None:
    a, b = (net.add(config=quiet, weight=1.0, more=[Echo]) for _ in range(2))
    net.run(2.0)
    net.wire = lambda source, target, frame: [] if tag_in(frame) == "echoed" else [frame]

    ask(net, a, b, "hello?")
    net.run(5.0)

    assert a.node.protocol("echo").unanswered == [(b.id, "hello?")]
    assert a.node.protocol("echo").heard == []
