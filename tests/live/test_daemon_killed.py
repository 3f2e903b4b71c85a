"""SIGKILL of a real daemon at random moments: identity, sequence numbers and model go on where they were.

The partner is a daemon in this process; it writes down every number that the victim signs, over all its lives.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio

from crypto.identity import Identity
from gossip import wire
from gossip.config import Config, LearningConfig
from gossip.dht.ids import node_id
from gossip.errors import RemoteError
from gossip.events import Effect, Event, Received
from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.task import Leaf, RunInfo, Schema, vector_hash
from p2pnode.daemon import Daemon
from p2pnode.store import MemoryStore, SqliteStore
from p2pnode.tcp import TcpTransport

KILLS = 6

# What both processes share: a run, and a trainer that needs no JAX.
SCHEMA = Schema((Leaf("w", (1000,), "float32"),))
GENESIS = np.zeros(1000, np.float32)
LEARNING = LearningConfig(round_interval_s=0.005, save_interval_s=0.1)
CONFIG = Config(learning=LEARNING)
RUN = RunInfo(b"r" * 32, "main", "bowl/1", SCHEMA.id, vector_hash(GENESIS), (1000,))
VICTIM = Identity.from_seed(b"v" * 32)


class Bowl:
    schema = SCHEMA

    def run(self, inputs: list[TrainInput]) -> list[TrainOutput]:
        return [TrainOutput(0.1 * (np.float32(1) - i.params), (), 1.0, i.steps) for i in inputs]

    def evaluate(self, vectors: object) -> list[dict[str, float]]:
        return [{"rows": 1.0}]


def learner() -> Learner:
    batches = partial(iter, lambda: {"x": np.zeros((1, 1), np.float32)}, None)
    return Learner(RUN, GENESIS, exchange=CONFIG.exchange, learning=LEARNING, batches=lambda seed: batches())


def daemon(identity: Identity, store: MemoryStore | SqliteStore, *, join: tuple[str, ...] = ()) -> Daemon:
    return Daemon(
        identity=identity,
        config=CONFIG,
        run=RUN,
        learner=learner(),
        trainer=Bowl(),  # type: ignore[arg-type]
        store=store,
        transport=TcpTransport(),
        listen="127.0.0.1:0",
        join=join,
        entropy=os.urandom,
        rng=random.Random(),
    )


def main(folder: str, address: str) -> None:
    """What the victim runs."""
    trio.run(daemon(VICTIM, SqliteStore(Path(folder)), join=(address,)).run)


class Numbers:
    """Listens at the partner's node for numbers signed by the victim."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.grown = trio.Event()

    def tap(self, handle: Callable[[Event, float], list[Effect]]) -> Callable[[Event, float], list[Effect]]:
        def tapped(event: Event, now: float) -> list[Effect]:
            if isinstance(event, Received):
                self._hear(event.frame)
            return handle(event, now)

        return tapped

    def _hear(self, frame: bytes) -> None:
        try:
            message = wire.decode(frame)
            header: wire.OfferHeader | wire.ReplyHeader
            if isinstance(message, wire.OfferMessage):
                header = wire.decode_offer_header(message.header)
            elif isinstance(message, wire.ReplyMessage):
                header = wire.decode_reply_header(message.header)
            else:
                return
        except RemoteError:
            return
        assert header.author == VICTIM.public_key
        self.seen.append(header.seq)
        self.grown.set()
        self.grown = trio.Event()


@pytest.mark.live
async def test_a_killed_daemon_goes_on_and_never_signs_a_number_twice(tmp_path: Path, root: Path) -> None:
    rng = random.Random(3)
    partner = daemon(Identity.from_seed(b"p" * 32), MemoryStore())
    numbers = Numbers()
    before_life: list[int] = []
    steps = 0
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partner.run)
        node = partner._node
        assert node is not None
        node.handle = numbers.tap(node.handle)  # type: ignore[method-assign]
        for life in range(KILLS):
            before_life.append(len(numbers.seen))
            victim = subprocess.Popen(  # noqa: ASYNC220  it is told to die, not waited for
                [sys.executable, __file__, str(tmp_path), address],
                env={**os.environ, "PYTHONPATH": str(root)},
                stdout=subprocess.DEVNULL,
            )
            try:
                with trio.fail_after(60):
                    while len(numbers.seen) < before_life[-1] + 5:
                        await numbers.grown.wait()
                    assert [peer["id"] for peer in partner.peers()] == [node_id(VICTIM.public_key).hex()]
                # The moment of death is what this test is about; nothing waits for it.
                await trio.sleep(rng.uniform(0.0, 0.5))
            finally:
                victim.send_signal(signal.SIGKILL)
                victim.wait()
            with trio.fail_after(10):
                while partner.peers():  # noqa: ASYNC110  the end of a connection, seen from outside
                    await trio.sleep(0.01)
            kept = await trio.to_thread.run_sync(_steps_on_disk, tmp_path)
            assert kept >= steps, f"life {life} began with {steps} steps and left {kept}"
            steps = kept
        nursery.cancel_scope.cancel()
    assert steps > 0, "no life lasted until its first snapshot"
    for first, last in zip(before_life, [*before_life[1:], len(numbers.seen)], strict=True):
        life_numbers = numbers.seen[first:last]
        # Within a life a cached reply may repeat its own number; across lives all are new.
        assert min(life_numbers) > max(numbers.seen[:first], default=0)
    assert "replayed" not in partner.status()["refused"]


def _steps_on_disk(folder: Path) -> int:
    """Optimiser steps behind the model that the next life begins with."""
    store = SqliteStore(folder)
    model = store.read_model(RUN)
    store.close()
    if model is None:
        return 0
    restored = learner()
    restored.load(model)  # whole, whatever the kill interrupted
    return restored.steps


if __name__ == "__main__":
    main(*sys.argv[1:])
