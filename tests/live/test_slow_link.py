"""A model of megabytes over links of a megabit a second: slow is not dead, and a ping does not wait for a model.

Whole daemons with real sockets, each behind a slow link of its own (`tests/support/throttle.py`) that all who dial it
pass. Two have trained before; a third is new.
"""

import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import trio

from crypto.identity import Identity
from gossip import wire
from gossip.config import Config, LearningConfig
from gossip.dht.ids import NodeId
from gossip.errors import RemoteError
from gossip.events import Effect, Event, PeerDown, Received, Send
from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.shards import shard_sizes
from gossip.learning.task import Leaf, RunInfo, Schema, vector_hash
from gossip.persisted import learned_entries
from p2pnode.daemon import Daemon
from p2pnode.store import MemoryStore
from p2pnode.tcp import TcpTransport
from tests.support.throttle import Throttle

BITS_PER_S = 1e6
DELAY_S = 0.1
PING_EVERY_S = 0.25
# No number of a request that the DHT makes.
PINGS_FROM = 2**40


class Bowl:
    """Training that costs nothing: this is about what is carried."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def run(self, inputs: list[TrainInput]) -> list[TrainOutput]:
        return [TrainOutput(0.1 * (np.float32(1) - i.params), (), 1.0, i.steps) for i in inputs]

    def evaluate(self, vectors: object) -> list[dict[str, float]]:
        return [{"rows": 1.0}]


class Swarm:
    """Daemons that learn one model of `values` float32."""

    def __init__(self, values: int, **settings: Any) -> None:
        learning = LearningConfig(round_interval_s=1.0, save_interval_s=3600.0)
        self.config = Config(learning=learning, **settings)
        self.schema = Schema((Leaf("w", (values,), "float32"),))
        self.genesis = np.zeros(values, np.float32)
        self.sizes = tuple(shard_sizes(values, learning.shard_values_max))
        self.run = RunInfo(b"r" * 32, "main", "bowl/1", self.schema.id, vector_hash(self.genesis), self.sizes)
        self.first_address = ""

    def _learner(self) -> Learner:
        batches = partial(iter, lambda: {"x": np.zeros((1, 1), np.float32)}, None)
        config = self.config
        return Learner(
            self.run,
            self.genesis,
            exchange=config.exchange,
            learning=config.learning,
            batches=lambda seed: batches(),
        )

    async def start(
        self,
        nursery: trio.Nursery,
        name: bytes,
        *,
        old: bool,
        through: str = "",
        bits_per_s: float = BITS_PER_S,
    ) -> "Member":
        """A daemon behind its link, and in the swarm of the first one.

        Args:
            old: It has trained before.
            through: The address of the first one, where it is not that of its link.
        """
        store = MemoryStore()
        if old:
            store.write_model(self.run, self._learner().dump())
            store.put(learned_entries(self.run, [100] * len(self.sizes), 0), fsync=False)
        link = Throttle(bits_per_s=bits_per_s, delay_s=DELAY_S)
        address: str = await nursery.start(link.run)
        daemon = Daemon(
            identity=Identity.from_seed(name * 32),
            config=self.config,
            run=self.run,
            learner=self._learner(),
            trainer=Bowl(self.schema),  # type: ignore[arg-type]
            store=store,
            transport=TcpTransport(),
            listen="127.0.0.1:0",
            advertise=(address,),
            join=tuple(filter(None, [through or self.first_address])),
            entropy=os.urandom,
            rng=random.Random(name),
        )
        self.first_address = self.first_address or address
        member = Member(daemon)
        link.target = await nursery.start(daemon.run)
        member.listen()
        return member


class Member:
    """A daemon, and what its node hears."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.lost: list[str] = []  # connections that ended, and why
        self.round_trips: list[float] = []
        self._pinged: dict[int, float] = {}
        self._next = PINGS_FROM
        self._ping_at = 0.0

    def listen(self) -> None:
        node = self.daemon._node
        assert node is not None
        node.handle = self._tap(node.handle)  # type: ignore[method-assign]

    @property
    def peers(self) -> list[NodeId]:
        return [NodeId(bytes.fromhex(peer["id"])) for peer in self.daemon.peers()]

    @property
    def status(self) -> dict[str, Any]:
        return self.daemon.status()

    def pending_s(self) -> float:
        """How long the oldest ping without an answer waits."""
        return trio.current_time() - min(self._pinged.values(), default=trio.current_time())

    def _tap(self, handle: Callable[[Event, float], list[Effect]]) -> Callable[[Event, float], list[Effect]]:
        def tapped(event: Event, now: float) -> list[Effect]:
            if isinstance(event, Received):
                self._hear(event.frame, now)
            elif isinstance(event, PeerDown):
                self.lost.append(event.reason)
            effects = handle(event, now)
            if now >= self._ping_at:
                self._ping_at = now + PING_EVERY_S
                effects = [*effects, *(self._ping(peer, now) for peer in self.peers)]
            return effects

        return tapped

    def _ping(self, peer: NodeId, now: float) -> Send:
        self._next += 1
        self._pinged[self._next] = now
        return Send(peer, wire.encode(wire.Ping(self._next)))

    def _hear(self, frame: bytes, now: float) -> None:
        try:
            message = wire.decode(frame)
        except RemoteError:
            return
        if isinstance(message, wire.Pong) and message.n in self._pinged:
            self.round_trips.append(now - self._pinged.pop(message.n))


def check_pings(members: list[Member]) -> None:
    trips = [trip for member in members for trip in member.round_trips]
    assert len(trips) > 100
    assert np.percentile(trips, 99) < 1.0, f"of {len(trips)} pings, the slowest took {max(trips):.2f} s"
    assert max(member.pending_s() for member in members) < 2.0, "a ping was lost"


def check_transfers(transfers: list[dict[str, Any]]) -> None:
    """What `status` said while models were under way: what, with whom, how far, how fast."""
    assert {one["direction"] for one in transfers} == {"in", "out"}
    assert all(0 <= one["bytes"] <= one["of"] for one in transfers)
    assert all(len(one["peer"]) == 64 for one in transfers)
    rates = [one["bytes_per_s"] for one in transfers if one["bytes"] > one["of"] / 2]
    assert np.median(rates) == pytest.approx(BITS_PER_S / 8, rel=0.4)


async def watched(members: list[Member], done: Callable[[], bool], *, seconds: float) -> list[dict[str, Any]]:
    """Waits until `done`, at most `seconds`; what `status` showed under way meanwhile."""
    transfers = []
    with trio.move_on_after(seconds):
        while not done():
            await trio.sleep(1.0)  # a second of the life of a slow link
            transfers += [one for member in members for one in member.status["transfers"]]
    return transfers


@pytest.mark.live
async def test_over_a_megabit_a_model_of_4_mb_is_exchanged_and_adopted() -> None:
    """At 1 Mbit/s the state takes a newcomer 32 s, an offer or a change 8 s."""
    swarm = Swarm(1_000_000)
    async with trio.open_nursery() as nursery:
        old = [await swarm.start(nursery, name, old=True) for name in (b"a", b"b")]
        newcomer = await swarm.start(nursery, b"c", old=False)
        members = [*old, newcomer]
        transfers = await watched(members, lambda: False, seconds=60.0)
        assert sum(member.status["initiated"] for member in old) >= 2
        assert newcomer.status["ages"] >= [100], (
            "it adopted what the others have, and began nothing of its own"
        )
        assert [member.lost for member in members] == [[], [], []]
        check_pings(members)
        check_transfers(transfers)
        nursery.cancel_scope.cancel()


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_over_a_megabit_a_model_of_40_mb_is_adopted_shard_after_shard() -> None:
    swarm = Swarm(10_000_000)
    async with trio.open_nursery() as nursery:
        old = [await swarm.start(nursery, name, old=True) for name in (b"a", b"b")]
        newcomer = await swarm.start(nursery, b"c", old=False)
        members = [*old, newcomer]

        def adopted() -> bool:
            return min(newcomer.status["ages"]) >= 100

        transfers = await watched(members, adopted, seconds=1200.0)
        assert adopted(), newcomer.status["ages"]
        assert sum(member.status["initiated"] for member in old) >= 10
        assert [member.lost for member in members] == [[], [], []]
        check_pings(members)
        check_transfers(transfers)
        nursery.cancel_scope.cancel()


@pytest.mark.live
async def test_a_peer_below_the_floor_is_left_with_a_sentence_and_the_others_go_on() -> None:
    swarm = Swarm(100_000, floor_bytes_s=2000.0)
    async with trio.open_nursery() as nursery:
        old = [await swarm.start(nursery, name, old=True, bits_per_s=8e6) for name in (b"a", b"b")]
        bad_line = Throttle(old[0].daemon.address, bits_per_s=8e3, delay_s=DELAY_S)
        through = await nursery.start(bad_line.run)
        crawling = await swarm.start(nursery, b"c", old=True, through=through, bits_per_s=8e3)
        await watched(old, lambda: bool(crawling.lost), seconds=60.0)
        reasons = {reason for member in [*old, crawling] for reason in member.lost}
        assert any("2000 bytes a second" in reason for reason in reasons), reasons
        before = [member.status["initiated"] for member in old]
        await watched(old, lambda: False, seconds=5.0)
        assert all(now.status["initiated"] > then for now, then in zip(old, before, strict=True))
        nursery.cancel_scope.cancel()
