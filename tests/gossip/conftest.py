"""A handful of real nodes on a perfect wire: real signatures, codec and weights, virtual time, no simulator.

The simulator has its own world; here a test wants to hold single frames in its hand.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from crypto.identity import Identity
from gossip.config import Config
from gossip.dht.ids import NodeId
from gossip.errors import Reason
from gossip.events import (
    Compute,
    Dial,
    DialFailed,
    Done,
    Drop,
    Effect,
    Emit,
    Event,
    Join,
    News,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    Refused,
    Save,
    Saved,
    Send,
    Train,
    Woken,
)
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.shards import shard_sizes
from gossip.learning.task import RunInfo, vector_hash
from gossip.node import Node

DELAY_S = 0.01
VALUES = 200


def make_run(*, values: int = VALUES, shard_max: int = VALUES, name: str = "test/1") -> RunInfo:
    """A run whose genesis is all zeros."""
    return RunInfo(
        id=hashlib.sha256(name.encode()).digest(),
        network="main",
        task=name,
        schema=hashlib.sha256(b"schema").digest(),
        reference=vector_hash(np.zeros(values, np.float32)),
        shard_sizes=shard_sizes(values, shard_max),
    )


class Peer:
    """One node with its learner and its disk."""

    def __init__(self, number: int, run: RunInfo, config: Config, now: float, *, told: bool = True) -> None:
        self.number = number
        self.address = f"10.0.0.{number}:7400"
        self.told = told  # knows its address from the start, else from its connections
        self.run = run
        self.config = config
        self.store: dict[str, bytes] = {}
        self.snapshot = b""
        self.rng = random.Random(number)
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.news: list[News] = []
        self.change = 0.0  # what a training job adds to each weight
        self.start(now)

    def start(self, now: float) -> None:
        """Begin a life from what the disk holds."""
        genesis = np.zeros(sum(self.run.shard_sizes), np.float32)
        self.learner = Learner(
            self.run, genesis, exchange=self.config.exchange, learning=self.config.learning, node=self.number
        )
        if self.snapshot:
            self.learner.load(self.snapshot)
        self.node = Node(
            self.identity,
            self.config,
            self.run,
            addresses=(self.address,) if self.told else (),
            rng=self.rng,
            entropy=self.rng.randbytes,
            store=dict(self.store),
            has_model=bool(self.snapshot),
            now=now,
        )

    @property
    def id(self) -> NodeId:
        return self.node.id

    def refused(self, *, by_us: bool = True) -> dict[str, int]:
        counts: dict[str, int] = {}
        for news in self.news:
            if isinstance(news, Refused) and news.by_us == by_us:
                counts[news.reason.value] = counts.get(news.reason.value, 0) + 1
        return counts


class Net:
    """Nodes, a heap of events and a wire that a test may look into.

    `wire(source, target, frame)` returns the frames that arrive instead: [frame] by default.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.peers: dict[NodeId, Peer] = {}
        self.links: dict[tuple[NodeId, NodeId], None] = {}
        self.wire: Callable[[Peer, Peer, bytes], list[bytes]] = lambda source, target, frame: [frame]
        self.frames: list[tuple[Peer, Peer, bytes]] = []
        self._heap: list[tuple[float, int, NodeId, Event]] = []
        self._count = itertools.count()

    def add(
        self,
        *,
        run: RunInfo | None = None,
        config: Config | None = None,
        weight: float | None = None,
        told: bool = True,
    ) -> Peer:
        """Add a node that knows the first one's address.

        Args:
            weight: The node has been learning for a while, and each of its weights is this; None: a newcomer.
            told: The node knows its own address.
        """
        peer = Peer(len(self.peers) + 1, run or make_run(), config or Config(), self.now, told=told)
        if weight is not None:
            peer.learner._x[:] = weight
            peer.snapshot = peer.learner.dump()
            ages = [100] * len(peer.run.shard_sizes)
            peer.store["ages"] = bytes([0x90 + len(ages), *ages])
            peer.start(self.now)
        first = next(iter(self.peers.values()), None)
        self.peers[peer.id] = peer
        if first is not None:
            self.tell(peer, Join((first.address,)))
        return peer

    def tell(self, peer: Peer, event: Event) -> None:
        self._carry_out(peer, peer.node.handle(event, self.now))

    def post(self, delay_s: float, node: NodeId, event: Event) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._count), node, event))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(200_000):
            peer = min(self.peers.values(), key=lambda p: p.node.deadline)
            date = peer.node.deadline
            if self._heap and self._heap[0][0] <= date:
                when, _, node, event = self._heap[0]
                if when > end:
                    break
                heapq.heappop(self._heap)
                self.now = when
                if node in self.peers:  # a test may take a node away
                    self.tell(self.peers[node], event)
            elif date > end:
                break
            else:
                self.now = max(self.now, date)
                self.tell(peer, Woken())
        else:
            raise AssertionError("the nodes do not come to rest")
        self.now = end

    def connect(self, a: Peer, b: Peer) -> None:
        self.links[a.id, b.id] = self.links[b.id, a.id] = None
        for here, there, inbound in ((a, b, False), (b, a, True)):
            local = "" if here.told else here.address
            up = PeerUp(there.id, there.identity.public_key, there.address, inbound, local)
            self.post(DELAY_S, here.id, up)

    def cut(self, a: Peer, b: Peer, reason: str) -> None:
        if (a.id, b.id) in self.links:
            del self.links[a.id, b.id], self.links[b.id, a.id]
            self.post(DELAY_S, a.id, PeerDown(b.id, reason))
            self.post(DELAY_S, b.id, PeerDown(a.id, reason))

    def exchange(self, source: Peer, target: Peer, shard: int = 0) -> None:
        """Have `source` offer `shard` to `target` now, and let it end."""
        effects: list[Effect] = []
        source.node._exchanges.initiate(shard, target.id, target.identity.public_key, self.now, effects)
        self._carry_out(source, effects)
        self.run(1.0)

    def _carry_out(self, peer: Peer, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    if (peer.id, effect.peer) in self.links:
                        other = self.peers[effect.peer]
                        self.frames.append((peer, other, effect.frame))
                        for frame in self.wire(peer, other, effect.frame):
                            self.post(DELAY_S, other.id, Received(peer.id, frame))
                case Dial():
                    self._dial(peer, effect)
                case Drop():
                    self.cut(peer, self.peers[effect.peer], effect.reason)
                case Compute():
                    self._compute(peer, effect)
                case Persist():
                    peer.store.update(effect.entries)
                case Emit():
                    peer.news.append(effect.news)

    def _dial(self, peer: Peer, dial: Dial) -> None:
        other = next((p for p in self.peers.values() if p.address == dial.address), None)
        if other is None or dial.peer not in (None, other.id):
            self.post(DELAY_S, peer.id, DialFailed(dial.address, dial.peer, "nobody there"))
        elif (peer.id, other.id) not in self.links and other is not peer:
            self.connect(peer, other)

    def _compute(self, peer: Peer, order: Compute) -> None:
        match order.job:
            case Train(steps) if steps > 0:
                change = np.full(sum(peer.run.shard_sizes), peer.change, np.float32)
                output = TrainOutput(change=change, optimiser=(), loss=1.0, steps=steps)
                self.post(0.001, peer.id, Done(order.ticket, peer.learner.trained(output)))
            case Save():
                peer.snapshot = peer.learner.dump()
                self.post(0.0, peer.id, Done(order.ticket, Saved(len(peer.snapshot))))
            case job:
                self.post(0.0, peer.id, Done(order.ticket, peer.learner.run(job)))


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def quiet() -> Config:
    """Rounds so seldom that a test causes each exchange itself."""
    config = Config()
    return replace(config, learning=replace(config.learning, round_interval_s=1e9, save_interval_s=0.0))


@pytest.fixture
def new_run() -> Callable[..., RunInfo]:
    return make_run


@pytest.fixture
def reasons() -> type[Reason]:
    return Reason
