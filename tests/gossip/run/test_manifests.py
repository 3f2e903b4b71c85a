"""What two peers without a common run read of each other's, and what a liar can make of it."""

import hashlib
from typing import Any

import msgspec
import pytest

from gossip import wire
from gossip.dht.ids import NodeId
from gossip.events import PeerDown, PeerUp, Received, Refused
from gossip.run import manifest
from tests.support.by_hand import Stranger


def details(peer: Any) -> list[str]:
    """What `peer` was told of other runs."""
    return [n.detail for n in peer.news if isinstance(n, Refused) and n.reason.value == "other_run"]


class Visitor:
    """A peer whose frames the test writes, and what the node of ours says to it."""

    def __init__(self, net: Any, node: Any, number: int = 99) -> None:
        self.net = net
        self.node = node
        self.stranger = Stranger(node, protocols={"run": [1]}, extra={}, seed=bytes([number]) * 32)
        self.id: NodeId = NodeId(self.stranger.id)
        self.said: list[wire.AnyMessage] = []
        self._tell(PeerUp(self.id, self.stranger.identity.public_key, "10.9.9.9:1", True))
        self._tell(Received(self.id, self.stranger.hello()))

    def say(self, message: wire.AnyMessage) -> list[wire.AnyMessage]:
        """What the node answers."""
        before = len(self.said)
        self._tell(Received(self.id, wire.encode(message)))
        return self.said[before:]

    def leave(self) -> None:
        self._tell(PeerDown(self.id, "cable"))

    def _tell(self, event: Any) -> None:
        effects = self.node.node.handle(event, self.net.now)
        self.said += [wire.decode(e.frame) for e in effects if hasattr(e, "frame")]
        self.net._carry_out(self.node, [e for e in effects if not hasattr(e, "frame")])


def another(new_run: Any, **changes: Any) -> bytes:
    """A manifest that differs from that of `new_run()`."""
    document = msgspec.msgpack.decode(new_run().manifest) | changes
    return msgspec.msgpack.encode(document, order="sorted")


@pytest.fixture
def ours(net: Any, quiet: Any) -> Any:
    return net.add(config=quiet, weight=1.0)


def test_both_sides_read_key_by_key_what_differs(net: Any, quiet: Any, new_run: Any) -> None:
    a = net.add(config=quiet, run=new_run(name="apples/1", values=200))
    b = net.add(config=quiet, run=new_run(name="pears/1", values=200, shard_max=50))
    net.run(5.0)

    for peer in (a, b):
        [detail] = details(peer)
        assert a.run.id.hex()[:12] in detail
        assert b.run.id.hex()[:12] in detail
        for word in ("'apples/1'", "'pears/1'", "200", "50"):
            assert word in detail
    assert not a.node.snapshot(net.now).shares_run(b.id)


def test_a_manifest_is_fetched_once_for_each_run_and_told_for_each_peer(
    net: Any, ours: Any, new_run: Any
) -> None:
    data = another(new_run, task="pears/1")
    holds = wire.Holds([wire.Share(manifest.run_id(data), [0])])
    first = Visitor(net, ours, 91)
    [question] = first.say(holds)
    assert question == wire.GetManifest(1, manifest.run_id(data))
    assert first.say(holds) == [], "it says the same again"
    assert details(ours) == []
    first.say(wire.ManifestMessage(data, 1))
    assert len(details(ours)) == 1

    assert Visitor(net, ours, 92).say(holds) == []
    assert len(details(ours)) == 2
    assert details(ours)[0] == details(ours)[1]


def test_another_document_than_that_of_the_run_is_refused(net: Any, ours: Any, new_run: Any) -> None:
    visitor = Visitor(net, ours)
    [question] = visitor.say(wire.Holds([wire.Share(manifest.run_id(another(new_run, task="a/1")), [0])]))
    assert isinstance(question, wire.GetManifest)
    visitor.say(wire.ManifestMessage(another(new_run, task="b/1"), question.n))
    assert details(ours) == []
    assert ours.refused() == {"wrong_hash": 1}
    assert ours.node.bounds()["run.known"][0] == 0


def test_a_manifest_that_nobody_asked_for_is_unexpected(net: Any, ours: Any, new_run: Any) -> None:
    Visitor(net, ours).say(wire.ManifestMessage(another(new_run, task="a/1"), 1))
    assert ours.refused() == {"unexpected": 1}
    assert ours.node.bounds()["run.known"][0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [({"_": "manifest/2"}, "manifest/2"), ({"rules": 3}, "cannot be read here")],
    ids=["later version", "of another shape"],
)
def test_a_manifest_that_cannot_be_read_is_told_as_that(
    net: Any, ours: Any, new_run: Any, change: dict[str, Any], words: str
) -> None:
    data = another(new_run, **change)
    visitor = Visitor(net, ours)
    visitor.say(wire.Holds([wire.Share(manifest.run_id(data), [0])]))
    visitor.say(wire.ManifestMessage(data, 1))
    [detail] = details(ours)
    assert words in detail
    assert ours.refused() == {"other_run": 1}


def test_a_peer_that_knows_no_manifest_leaves_the_ids_to_be_told(net: Any, ours: Any) -> None:
    visitor = Visitor(net, ours)
    visitor.say(wire.Holds([wire.Share(hashlib.sha256(b"a run").digest(), [0])]))
    visitor.say(wire.ManifestMessage(b"", 1))
    [detail] = details(ours)
    assert "no manifest to compare" in detail
    assert ours.run.id.hex()[:12] in detail


def test_what_is_told_of_a_peers_manifest_cannot_move_a_terminal(net: Any, ours: Any, new_run: Any) -> None:
    data = another(new_run, task="\x1b[2J\u202e!", licence="\x07")
    visitor = Visitor(net, ours)
    visitor.say(wire.Holds([wire.Share(manifest.run_id(data), [0])]))
    visitor.say(wire.ManifestMessage(data, 1))
    [detail] = details(ours)
    assert detail.isprintable()
    assert "\u202e" not in detail


def test_our_own_manifest_and_those_that_we_know_are_passed_on(net: Any, ours: Any, new_run: Any) -> None:
    data = another(new_run, task="pears/1")
    run = manifest.run_id(data)
    first, second = Visitor(net, ours, 91), Visitor(net, ours, 92)
    assert second.say(wire.GetManifest(7, run)) == [wire.ManifestMessage(b"", 7)]
    first.say(wire.Holds([wire.Share(run, [0])]))
    first.say(wire.ManifestMessage(data, 1))
    first.leave()

    assert second.say(wire.GetManifest(8, run)) == [wire.ManifestMessage(data, 8)]
    assert second.say(wire.GetManifest(9, ours.run.id)) == [wire.ManifestMessage(ours.run.manifest, 9)]


def test_a_manifest_that_does_not_come_is_asked_for_again_when_the_peer_comes_back(
    net: Any, ours: Any
) -> None:
    holds = wire.Holds([wire.Share(bytes(32), [0])])
    visitor = Visitor(net, ours)
    assert len(visitor.say(holds)) == 1
    net.run(5.0)
    visitor.leave()
    assert ours.node.bounds()["run.requests"][0] == 0
    assert len(Visitor(net, ours).say(holds)) == 1
