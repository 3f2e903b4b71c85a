"""A handful of real nodes on a perfect wire: real signatures, codec and weights, virtual time, no simulator.

The simulator has its own world; here a test wants to hold single frames in its hand.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from crypto.identity import Identity
from gossip import persisted
from gossip.config import Config
from gossip.dht.ids import NodeId
from gossip.dht.routing import Contact
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
    Recall,
    Received,
    Refused,
    Save,
    Saved,
    Send,
    Sent,
    Train,
    Unsent,
    Woken,
)
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.saved import SavedModel
from gossip.learning.task import RunInfo, run_of, vector_hash
from gossip.net.sampling import Membership
from gossip.node import Make
from gossip.outbox import Outbox
from gossip.peer import make_node
from gossip.run import manifest
from gossip.run.holding import Holding

DELAY_S = 0.01
VALUES = 200


def make_run(*, values: int = VALUES, shard_max: int = VALUES, name: str = "test/1") -> RunInfo:
    """A run whose genesis is all zeros."""
    keys = manifest.Keys(
        genesis=manifest.Genesis(vector_hash(np.zeros(values, np.float32)), 0),
        network="main",
        rules={"block": 64},
        schema=manifest.shape(hashlib.sha256(b"schema").digest(), []),
        shard_values=shard_max,
        strategy="shard-pair/1",
        task=name,
    )
    return run_of(manifest.make(keys), values)


class Peer:
    """One node with its learners, one for each run, and its disk."""

    def __init__(
        self,
        number: int,
        runs: Sequence[RunInfo],
        config: Config,
        now: float,
        more: Sequence[Make] = (),
        *,
        told: bool = True,
    ) -> None:
        self.number = number
        self.address = f"10.0.0.{number}:7400"
        self.told = told  # knows its address from the start, else from its connections
        self.runs = list(runs)
        self.run = self.runs[0]
        self.config = config
        self.more = more
        self.store: dict[str, bytes] = {}
        self.snapshots: dict[bytes, SavedModel] = {}  # by run
        self.rng = random.Random(number)
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.news: list[News] = []
        self.change = 0.0  # what a training job adds to each weight
        self.start(now)

    def start(self, now: float) -> None:
        """Begin a life from what the disk holds."""
        self.learners = {run.id: self._learner(run) for run in self.runs}
        self.learner = self.learners[self.run.id]
        self.node = make_node(
            self.identity,
            self.config,
            [(run, run.id in self.snapshots) for run in self.runs],
            addresses=(self.address,) if self.told else (),
            rng=self.rng,
            entropy=self.rng.randbytes,
            store=dict(self.store),
            now=now,
            more=self.more,
        )

    def _learner(self, run: RunInfo) -> Learner:
        genesis = np.zeros(sum(run.shard_sizes), np.float32)
        config = self.config
        learner = Learner(run, genesis, exchange=config.exchange, learning=config.learning, node=self.number)
        if run.id in self.snapshots:
            learner.load(self.snapshots[run.id])
        return learner

    @property
    def id(self) -> NodeId:
        return self.node.id

    @property
    def holding(self) -> Holding:
        """What the node holds of its run."""
        holding: Holding = self.node.protocol("exchange").sessions[self.run.id].holding
        return holding

    @property
    def pool(self) -> Membership:
        """The holders that the node knows."""
        pool: Membership = self.node.protocol("exchange").sessions[self.run.id].pool
        return pool

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
        # Seconds until a frame has left; nothing arrives before.
        self.leaving_s: Callable[[Send], float] = lambda order: 0.0
        self.recalled: list[tuple[Peer, Recall]] = []

    def add(
        self,
        *,
        run: RunInfo | None = None,
        runs: Sequence[RunInfo] = (),
        config: Config | None = None,
        weight: float | None = None,
        weights: Sequence[float] = (),
        more: Sequence[Make] = (),
        told: bool = True,
    ) -> Peer:
        """Add a node that knows the first one's address.

        Args:
            run: What it takes part in.
            runs: The same, of a node with several.
            weight: The node has been learning for a while, and each of its weights is this; None: a newcomer.
            weights: The same, one for each run.
            more: Protocols besides the usual ones.
            told: The node knows its own address.
        """
        peer = Peer(
            len(self.peers) + 1, runs or [run or make_run()], config or Config(), self.now, more, told=told
        )
        for held, each in zip(peer.runs, weights or [weight] * len(peer.runs), strict=True):
            if each is not None:
                peer.learners[held.id]._x[:] = each
                peer.snapshots[held.id] = peer.learners[held.id].dump()
                peer.store.update(persisted.learned_entries(held, [100] * len(held.shard_sizes), 0))
        if peer.snapshots:
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
        self.initiate(source, target, shard)
        self.run(1.0)

    def initiate(self, source: Peer, target: Peer, shard: int = 0) -> None:
        """Have `source` offer `shard` to `target` now."""
        contact = Contact(target.id, target.identity.public_key, (target.address,), b"")
        with self.turn(source) as out:
            exchanges = source.node.protocol("exchange").exchanges
            exchanges.initiate(source.holding, shard, contact, self.now, out)

    @contextmanager
    def turn(self, peer: Peer, protocol: str = "exchange") -> Iterator[Outbox]:
        """Let a test speak for a protocol of `peer`; what it says is carried out afterwards."""
        peer.node._turn.now = self.now
        yield peer.node._outboxes[protocol]
        self._carry_out(peer, peer.node._release(self.now))

    def _carry_out(self, peer: Peer, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    linked = (peer.id, effect.peer) in self.links
                    took = self.leaving_s(effect) if linked else 0.0
                    if effect.ticket:
                        kind = Sent if linked else Unsent
                        self.post(took, peer.id, kind(effect.peer, effect.ticket))
                    if linked:
                        other = self.peers[effect.peer]
                        self.frames.append((peer, other, effect.frame))
                        for frame in self.wire(peer, other, effect.frame):
                            self.post(took + DELAY_S, other.id, Received(peer.id, frame))
                case Recall():
                    self.recalled.append((peer, effect))
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
        learner = peer.learners[order.run]
        match order.job:
            case Train(steps) if steps > 0:
                change = np.full(learner.weights().size, peer.change, np.float32)
                output = TrainOutput(change=change, optimiser=(), loss=1.0, steps=steps)
                self.post(0.001, peer.id, Done(order.ticket, learner.trained(output)))
            case Save():
                peer.snapshots[order.run] = learner.dump()
                self.post(0.0, peer.id, Done(order.ticket, Saved(peer.snapshots[order.run].size_bytes)))
            case job:
                self.post(0.0, peer.id, Done(order.ticket, learner.run(job)))


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
