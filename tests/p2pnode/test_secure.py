"""Secure connections over memory: what is proved, and what junk on the port costs. Virtual time."""

import random
import re
from collections.abc import Callable
from typing import TypeAlias

import pytest
import trio
import trio.testing

from crypto.channel import SecureChannel
from crypto.identity import Identity
from crypto.noise import KeyPair
from crypto.signing import network_id
from gossip.dht.ids import node_id
from gossip.net.simultaneous_open import HANDSHAKE_S
from p2pnode.metrics import Failure
from p2pnode.secure import (
    FIRST_BYTE_S,
    LinkError,
    SecureConnection,
    open_secure,
)
from p2pnode.transport import Link
from simulation.memory import MemoryNetwork

Clock: TypeAlias = trio.testing.MockClock

entropy: Callable[[int], bytes] = random.Random("secure").randbytes
ALICE, BOB = Identity.generate(entropy), Identity.generate(entropy)


async def links() -> tuple[Link, Link]:
    network = MemoryNetwork()
    listener = await network.host("10.0.0.1").listen("10.0.0.1:1")
    near = await network.host("10.0.0.2").dial("10.0.0.1:1")
    return near, await listener.accept()


async def secured(
    link: Link, identity: Identity, *, initiator: bool, network: str = "main"
) -> SecureConnection:
    return await open_secure(
        link,
        identity=identity,
        network=network_id(network),
        initiator=initiator,
        static=KeyPair.generate(entropy),
        entropy=entropy,
    )


async def connections() -> tuple[SecureConnection, SecureConnection]:
    near, far = await links()
    ends: dict[bool, SecureConnection] = {}

    async def handshake(link: Link, identity: Identity, initiator: bool) -> None:
        ends[initiator] = await secured(link, identity, initiator=initiator)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handshake, near, ALICE, True)
        nursery.start_soon(handshake, far, BOB, False)
    return ends[True], ends[False]


async def heard(connection: SecureConnection) -> list[bytes]:
    while not (messages := (await connection.receive())[0]):
        pass
    return messages


async def test_each_end_learns_the_key_of_the_other_and_messages_arrive(autojump_clock: Clock) -> None:
    alice, bob = await connections()
    assert (alice.key, bob.key) == (BOB.public_key, ALICE.public_key)
    assert alice.peer == node_id(BOB.public_key)
    await alice.send([b"", b"x", b"y" * 1000])
    assert await heard(bob) == [b"", b"x", b"y" * 1000]
    messages, size = [], 0
    await alice.send([b"z" * 1000])
    while not messages:
        messages, size = await bob.receive()
    assert size == 2 + 1000 + 16


async def test_finishing_lets_the_last_messages_arrive(autojump_clock: Clock) -> None:
    alice, bob = await connections()
    await alice.send([b"goodbye"])
    await alice.finish()
    assert await heard(bob) == [b"goodbye"]
    with pytest.raises(LinkError) as caught:
        await bob.receive()
    assert caught.value.failure is Failure.CLOSED
    await bob.send([b"farewell"])  # the other direction still works
    assert await heard(alice) == [b"farewell"]


def http() -> list[bytes]:
    return [b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"]


def noise_of_nothing() -> list[bytes]:
    return [entropy(4096)]


def half_a_handshake() -> list[bytes]:
    return [(288).to_bytes(2, "big"), entropy(100)]


def one_byte_after_another() -> list[bytes]:
    return [b"\x01", *[b"\x20"] * 20]


@pytest.mark.parametrize(
    ("junk", "failure", "after_s"),
    [
        (list, Failure.SILENT, FIRST_BYTE_S),
        (http, Failure.CRYPTO, 0.0),
        (noise_of_nothing, Failure.CRYPTO, 0.0),
        (half_a_handshake, Failure.SLOW, HANDSHAKE_S),
        (one_byte_after_another, Failure.SLOW, HANDSHAKE_S),
    ],
)
async def test_junk_on_the_port_ends_in_time_with_a_reason(
    junk: Callable[[], list[bytes]], failure: Failure, after_s: float, autojump_clock: Clock
) -> None:
    near, far = await links()

    async def stranger() -> None:
        with trio.move_on_after(2 * HANDSHAKE_S):
            try:
                for number, piece in enumerate(junk()):
                    await trio.sleep(0.4 if number else 0)
                    await near.send_all(piece)
            except trio.BrokenResourceError:
                pass  # it was shown the door

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger)
        start = trio.current_time()
        with pytest.raises(LinkError) as caught:
            await secured(far, BOB, initiator=False)
        assert caught.value.failure is failure
        assert trio.current_time() - start == pytest.approx(after_s)
        # Nothing was left open.
        with pytest.raises(trio.ClosedResourceError):
            await far.send_all(b"x")


async def test_hanging_up_during_the_handshake_is_seen(autojump_clock: Clock) -> None:
    near, far = await links()
    await near.aclose()
    with pytest.raises(LinkError) as caught:
        await secured(far, BOB, initiator=False)
    assert caught.value.failure is Failure.CLOSED


async def test_nodes_of_another_network_do_not_get_through(autojump_clock: Clock) -> None:
    near, far = await links()
    failures: list[Failure] = []

    async def attempt(link: Link, identity: Identity, initiator: bool, network: str) -> None:
        with pytest.raises(LinkError) as caught:
            await secured(link, identity, initiator=initiator, network=network)
        failures.append(caught.value.failure)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, near, ALICE, True, "main")
        nursery.start_soon(attempt, far, BOB, False, "other")
    assert Failure.CRYPTO in failures


async def test_an_altered_byte_ends_the_connection(autojump_clock: Clock) -> None:
    alice, bob = await connections()
    await alice.link.send_all(b"\x00\x40" + bytes(0x40))
    with pytest.raises(LinkError) as caught:
        await bob.receive()
    assert caught.value.failure is Failure.CRYPTO


def first_message(version: int) -> bytes:
    channel = SecureChannel(
        identity=ALICE, network=network_id("main"), version=version, initiator=True, entropy=entropy
    )
    return channel.data_to_send()


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (1, "speaks the protocol of p2pnode 0.1, we speak version 2. The peer has to be updated."),
        (3, "speaks version 3 of the protocol, we speak version 2. Update this node."),
    ],
)
async def test_a_peer_of_another_version_is_told_ours_and_named(
    version: int, sentence: str, autojump_clock: Clock
) -> None:
    near, far = await links()
    await near.send_all(first_message(version))
    with pytest.raises(LinkError, match=re.escape(sentence)) as caught:
        await secured(far, BOB, initiator=False)
    assert caught.value.failure is Failure.VERSION
    assert await near.receive_some(100) == b"\0\2\0\2"


@pytest.mark.parametrize(
    ("answer", "failure", "sentence"),
    [
        (b"\0\2\0\3", Failure.VERSION, "speaks version 3 of the protocol, we speak version 2. Update"),
        (b"", Failure.CLOSED, "before it answered: it speaks the protocol of p2pnode 0.1"),
    ],
)
async def test_whoever_refuses_us_for_our_version_is_named(
    answer: bytes, failure: Failure, sentence: str, autojump_clock: Clock
) -> None:
    near, far = await links()

    async def refuse() -> None:
        await far.receive_some(1000)
        if answer:
            await far.send_all(answer)
        await far.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(LinkError, match=re.escape(sentence)) as caught:
            await secured(near, ALICE, initiator=True)
    assert caught.value.failure is failure


async def test_a_cancelled_handshake_leaves_nothing_open(autojump_clock: Clock) -> None:
    near, far = await links()
    with trio.move_on_after(FIRST_BYTE_S / 2):
        await secured(far, BOB, initiator=False)
    assert await near.receive_some(1) == b""
