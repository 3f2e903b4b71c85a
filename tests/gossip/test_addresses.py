"""A node that does not know its addresses learns them from its connections, and loopback stays on the machine."""

from typing import Any

import pytest

from crypto.identity import Identity
from crypto.signing import network_id
from gossip import wire
from gossip.addresses import is_loopback
from gossip.dht.ids import NodeId, node_id, provider_key
from gossip.dht.kinds import PEER, PeerRecord, ProviderRecord
from gossip.dht.records import peek_record, sign_record
from gossip.events import PeerDown, PeerUp, Received, Send
from gossip.net.own_addresses import REACHED_MAX

NETWORK = network_id("main")


def stranger(number: int) -> Identity:
    return Identity.from_seed(bytes([200 + number]) * 32)


def name(number: int) -> NodeId:
    return node_id(stranger(number).public_key)


def connect(peer: Any, number: int, *, remote: str = "10.0.0.99:1", local: str = "") -> Any:
    """Connect stranger `number` to a node; returns the hello that the node sends it."""
    up = PeerUp(name(number), stranger(number).public_key, remote, True, local)
    sent = [e for e in peer.node.handle(up, 0.0) if isinstance(e, Send) and e.peer == name(number)]
    hello = wire.decode(sent[0].frame)
    assert isinstance(hello, wire.Hello)
    return hello


def told(hello: Any) -> tuple[str, ...]:
    """The addresses in a hello."""
    record: PeerRecord = peek_record(hello.record, PEER).record
    return record.addresses


def says(peer: Any, number: int, message: Any) -> list[Any]:
    """Have a stranger send a message; returns what the node answers it."""
    effects = peer.node.handle(Received(name(number), wire.encode(message)), 1.0)
    return [wire.decode(e.frame) for e in effects if isinstance(e, Send) and e.peer == name(number)]


def hello_of(number: int, *addresses: str, run: bytes) -> wire.Hello:
    key = stranger(number).public_key
    record = PeerRecord(addresses=addresses, key=key, run=run, seq=1, ttl_s=3600)
    protocols = {"dht": [1], "exchange": [1], "run": [1]}
    return wire.Hello("test", {}, protocols, sign_record(stranger(number), NETWORK, record))


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.8.7:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("localhost:1", True),
        ("a.LocalHost:1", True),
        ("10.0.0.1:1", False),
        ("[fe80::1%eth0]:1", False),
        ("[2001:db8::1]:1", False),
        ("localhost.example.org:1", False),
        ("seed:1", False),
        ("", False),
    ],
)
def test_loopback_is_known_by_its_text(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_the_end_of_a_connection_is_told_to_that_peer_and_to_all_that_follow(net: Any, quiet: Any) -> None:
    peer = net.add(config=quiet, told=False)
    assert told(connect(peer, 0)) == ()
    assert told(connect(peer, 1, local="10.0.0.1:7400")) == ("10.0.0.1:7400",)
    again = connect(peer, 2, local="10.0.0.1:7400")
    assert told(again) == ("10.0.0.1:7400",)
    assert told(connect(peer, 3, local="192.168.7.1:7400")) == ("192.168.7.1:7400", "10.0.0.1:7400")


def test_peers_that_are_told_the_same_get_one_hello(net: Any, quiet: Any) -> None:
    """A record costs a number, and a peer that changes its interface must not use them up."""
    peer = net.add(config=quiet, told=False)
    first = connect(peer, 0, local="10.0.0.1:7400")
    connect(peer, 1, local="10.0.0.2:7400")
    assert connect(peer, 2, remote="127.0.0.1:9", local="127.0.0.1:7400") == connect(peer, 3)
    assert connect(peer, 4, local="10.0.0.1:7400") != first


def test_loopback_is_told_over_loopback_only_and_only_for_want_of_another(net: Any, quiet: Any) -> None:
    peer = net.add(config=quiet, told=False)
    assert told(connect(peer, 0, remote="127.0.0.1:9", local="127.0.0.1:7400")) == ("127.0.0.1:7400",)
    assert told(connect(peer, 1)) == ()
    assert told(connect(peer, 2, local="10.0.0.1:7400")) == ("10.0.0.1:7400",)
    assert told(connect(peer, 3, remote="127.0.0.1:9", local="127.0.0.1:7400")) == ("10.0.0.1:7400",)


def test_own_addresses_are_bounded_and_those_that_all_can_reach_come_first(net: Any, quiet: Any) -> None:
    peer = net.add(config=quiet)  # told 10.0.0.1:7400
    for number in range(20):
        local = "198.51.101.1:7400" if number == 18 else f"10.1.0.{number}:7400"
        hello = connect(peer, number, local=local)
        peer.node.handle(PeerDown(name(number), "done"), 0.0)
    assert told(hello) == (
        "198.51.101.1:7400",
        "10.1.0.19:7400",
        "10.1.0.17:7400",
        "10.1.0.16:7400",
        "10.0.0.1:7400",
    )
    assert len(told(hello)) == REACHED_MAX + 1


def test_records_of_this_machine_are_not_passed_on_to_another(net: Any, quiet: Any) -> None:
    """Peer records and provider records; a peer on this machine gets both."""
    peer = net.add(config=quiet)
    place = provider_key(peer.run.id, 0)
    here = "127.0.0.1:7"
    for number, remote in ((0, here), (1, "127.0.0.1:8"), (2, "10.0.0.5:1")):
        connect(peer, number, remote=remote)
        own = (here,) if number == 0 else ()
        says(peer, number, hello_of(number, *own, run=peer.run.id))
    owner = stranger(0)
    provided = ProviderRecord(addresses=(here,), key=owner.public_key, place=place, seq=1, ttl_s=100)
    (stored,) = says(peer, 0, wire.PutRecord(1, sign_record(owner, NETWORK, provided)))
    assert stored == wire.Stored(1, "")

    def seen(number: int) -> tuple[bool, bool]:
        (nodes,) = says(peer, number, wire.FindNode(2, name(0)))
        (records,) = says(peer, number, wire.GetRecords(place, 3))
        named = [peek_record(record, PEER).node for record in (*nodes.records, *records.nodes)]
        return name(0) in named, bool(records.records)

    assert seen(1) == (True, True)
    assert seen(2) == (False, False)


def test_loopback_addresses_from_another_machine_are_not_believed(net: Any, quiet: Any) -> None:
    """They would be our own ports: whoever names them would choose whom we talk to."""
    peer = net.add(config=quiet)
    for number, remote, kept in ((0, "10.0.0.5:1", ("10.0.0.5:7400",)), (1, "127.0.0.1:9", None)):
        addresses = ("127.0.0.1:22", "10.0.0.5:7400", "[::1]:22")
        connect(peer, number, remote=remote)
        says(peer, number, hello_of(number, *addresses, run=peer.run.id))
        (contact,) = [
            c for c in peer.node.protocol("dht").table.closest(name(number), 8) if c.node == name(number)
        ]
        assert contact.addresses == (kept or addresses)


def test_nodes_that_learned_their_addresses_outlive_their_hub(net: Any) -> None:
    """Three machines on a network that leads nowhere: two know the first, and find each other through it."""
    hub, a, b = (net.add(told=False) for _ in range(3))
    net.run(60.0)
    assert (a.id, b.id) in net.links
    for other in (a, b):
        net.cut(hub, other, "the hub died")
    del net.peers[hub.id]
    hub.address = "nowhere:1"
    net.run(1.0)
    before = a.node.snapshot(net.now).learning.initiated, b.node.snapshot(net.now).learning.initiated
    net.run(60.0)
    after = a.node.snapshot(net.now).learning.initiated, b.node.snapshot(net.now).learning.initiated
    assert after[0] > before[0] + 10
    assert after[1] > before[1] + 10
