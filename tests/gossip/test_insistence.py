"""Everything that a peer can cause, a hundred thousand times: the core never raises, and what it keeps is bounded.

One node is given the events of one stranger, over and over, with a clock that goes on; its effects are not carried
out. Afterwards it still exchanges with an honest peer.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from crypto.identity import Identity, Signature
from crypto.signing import Purpose, network_id
from gossip import wire
from gossip.dht.ids import node_id, provider_key
from gossip.dht.kinds import PeerRecord, ProviderRecord
from gossip.dht.records import sign_record
from gossip.errors import Reason
from gossip.events import (
    Compute,
    DialFailed,
    Done,
    Event,
    Exchanged,
    JobRefused,
    PeerDown,
    PeerUp,
    Received,
    Woken,
)
from gossip.protocol import Protocol
from gossip.run.session import Session

TIMES = 100_000
STEP_S = 0.001

STRANGER = Identity.from_seed(b"s" * 32)
KEY = STRANGER.public_key
ID = node_id(KEY)
NETWORK = network_id("main")
UP = PeerUp(ID, KEY, "10.9.9.9:7400", True)
DOWN = PeerDown(ID, "reset")


def record(number: int = 1) -> bytes:
    return sign_record(
        STRANGER,
        NETWORK,
        PeerRecord(addresses=("10.9.9.9:7400",), key=KEY, run=bytes(32), seq=number, ttl_s=60),
    )


def hello(victim: Any) -> bytes:
    return wire.encode(wire.Hello("x", {}, {"dht": [1], "exchange": [1], "run": [1]}, record()))


def provider(victim: Any) -> bytes:
    place = provider_key(victim.run.id, 0)
    return sign_record(
        STRANGER,
        NETWORK,
        ProviderRecord(addresses=("10.9.9.9:7400",), key=KEY, place=place, seq=1, ttl_s=60),
    )


def frames(*made: bytes) -> Iterator[Event]:
    """The connection is made, its hello has come, and then these frames over and over."""
    return itertools.cycle(Received(ID, frame) for frame in made)


def offer(victim: Any, *, seq: int, weight: float = 0.5) -> bytes:
    """An offer with which nothing is wrong."""
    payload = np.full(sum(victim.run.shard_sizes), weight, "<f4").tobytes()
    header = wire.encode_header(
        wire.OfferHeader(
            age=100,
            author=KEY,
            clip=2**63 - 1,
            codec="f32",
            hash=hashlib.sha256(payload).digest(),
            nonce=bytes(8),
            reference=victim.run.reference,
            run=victim.run.id,
            seq=seq,
            shard=0,
            to=victim.identity.public_key,
        )
    )
    return wire.encode(wire.OfferMessage(header, payload, STRANGER.sign(Purpose.OFFER, NETWORK, header)))


def reply() -> bytes:
    return wire.encode(wire.ReplyMessage(b"x", b"", Signature(bytes(64))))


# What the stranger does, as a function of its victim. The events repeat for ever.
INSISTENT: dict[str, Callable[[Any], Iterator[Event]]] = {
    "it hangs up before its hello": lambda victim: itertools.cycle((UP, DOWN)),
    "it hangs up after its hello": lambda victim: itertools.cycle((UP, Received(ID, hello(victim)), DOWN)),
    "it comes back while it is banned": lambda victim: itertools.cycle((UP, Received(ID, b"\xc0"), DOWN)),
    "its address does not answer": lambda victim: itertools.repeat(
        DialFailed("10.9.9.9:7400", ID, "refused")
    ),
    "an address that nobody asked for does not answer": lambda victim: itertools.repeat(
        DialFailed("10.9.9.9:7400", None, "refused")
    ),
    "every connection is another key": lambda victim: (
        event
        for number in itertools.count()
        for event in (
            PeerUp(node_id(number.to_bytes(32, "big")), number.to_bytes(32, "big"), "10.9.9.9:1", True),  # type: ignore[arg-type]
            PeerDown(node_id(number.to_bytes(32, "big")), "reset"),  # type: ignore[arg-type]
        )
    ),
    "hello": lambda victim: frames(hello(victim)),
    "ping": lambda victim: frames(wire.encode(wire.Ping(1))),
    "pong": lambda victim: frames(wire.encode(wire.Pong(1))),
    "find_node": lambda victim: (
        Received(ID, wire.encode(wire.FindNode(n, n.to_bytes(32, "little")))) for n in itertools.count()
    ),
    "get_records": lambda victim: frames(wire.encode(wire.GetRecords(bytes(32), 1))),
    "put_record": lambda victim: frames(wire.encode(wire.PutRecord(1, provider(victim)))),
    "put_record of junk": lambda victim: frames(wire.encode(wire.PutRecord(1, b"junk"))),
    "nodes": lambda victim: frames(wire.encode(wire.Nodes(1, [record()]))),
    "records": lambda victim: frames(wire.encode(wire.Records(1, [], [record()]))),
    "stored": lambda victim: frames(wire.encode(wire.Stored(1, ""))),
    "offer, with which nothing is wrong": lambda victim: (
        Received(ID, offer(victim, seq=seq)) for seq in itertools.count(1)
    ),
    "offer, always the same": lambda victim: frames(offer(victim, seq=5)),
    "offer of junk": lambda victim: frames(wire.encode(wire.OfferMessage(b"x", b"", bytes(64)))),
    "reply of junk": lambda victim: frames(reply()),
    "bye": lambda victim: frames(wire.encode(wire.Bye("x" * 200))),
    "an unknown message": lambda victim: frames(b"\x81\xa1_\xa7weather"),
    "ever other unknown messages": lambda victim: (
        Received(ID, b"\x81\xa1_\xa8" + f"{n:08x}".encode()) for n in itertools.count()
    ),
    "unsupported": lambda victim: (
        Received(ID, wire.encode(wire.Unsupported(str(n)))) for n in itertools.count()
    ),
    "holds": lambda victim: frames(
        wire.encode(wire.Holds([wire.Share(victim.run.id, [0])])), wire.encode(wire.Holds([]))
    ),
    "ever other runs": lambda victim: (
        Received(ID, wire.encode(wire.Holds([wire.Share(n.to_bytes(32, "big"), [0])])))
        for n in itertools.count()
    ),
    "get_manifest": lambda victim: frames(wire.encode(wire.GetManifest(1, victim.run.id))),
    "manifest": lambda victim: frames(wire.encode(wire.ManifestMessage(victim.run.manifest, 1))),
    "every connection with a hello, and then silence": lambda victim: itertools.cycle(
        (UP, Received(ID, hello(victim)), Received(ID, wire.encode(wire.FindNode(1, ID))), DOWN)
    ),
    "no message at all": lambda victim: frames(b"", b"\xff" * 100, bytes(1000)),
}


def sizes(thing: Any, path: str = "node", depth: int = 3) -> dict[str, int]:
    """How much each table of a node holds, found by looking into its parts."""
    found: dict[str, int] = {}
    names = [n for c in type(thing).__mro__ for n in getattr(c, "__slots__", ())] or list(vars(thing))
    for name in names:
        value = getattr(thing, name)
        if isinstance(value, dict | list | set):
            found[f"{path}.{name}"] = len(value)
            inner = value.values() if isinstance(value, dict) else value
            parts = [part for part in inner if isinstance(part, Protocol | Session)]
            for part in parts:
                found |= sizes(part, f"{path}.{name}.{type(part).__name__}", depth)
        elif depth and type(value).__module__.startswith("gossip.") and hasattr(value, "__dict__"):
            found |= sizes(value, f"{path}.{name}", depth - 1)
    return found


@pytest.mark.parametrize("what", INSISTENT)
def test_a_peer_that_insists_neither_ends_nor_fills_a_node(net: Any, quiet: Any, what: str) -> None:
    victim, honest = net.add(config=quiet, weight=0.5), net.add(config=quiet, weight=0.6)
    net.run(2.0)
    node, now = victim.node, net.now
    node.handle(UP, now)
    node.handle(Received(ID, hello(victim)), now)
    events = INSISTENT[what](victim)

    for event in itertools.islice(events, TIMES):
        now += STEP_S
        if isinstance(event, Received) and ID not in node._connections:
            node.handle(UP, now)
        for effect in node.handle(event, now):
            if isinstance(effect, Compute):
                node.handle(Done(effect.ticket, JobRefused(Reason.TOO_DISTANT, "")), now)
        while node.deadline <= now:
            node.handle(Woken(), now)

    # 4,096 failures, 4,096 verified records, ... : the limits of the single tables are tested beside each of them.
    too_many = {path: count for path, count in sizes(node).items() if count > 9_000}
    assert not too_many
    assert not {name: sizes for name, sizes in node.bounds().items() if sizes[0] > sizes[1]}
    node.handle(DOWN, now)
    net.now = now
    net.run(400.0)  # any ban and any rest is over, any bucket full
    before = len([n for n in honest.news if isinstance(n, Exchanged)])
    net.exchange(honest, victim)
    assert len([n for n in honest.news if isinstance(n, Exchanged)]) == before + 1
