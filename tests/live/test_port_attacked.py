"""A crowd of strangers at the port of a working daemon, over real sockets (docs/security.md, T31)."""

import os
import random
from functools import partial

import numpy as np
import pytest
import trio

from crypto.identity import Identity
from gossip.config import Config, LearningConfig
from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.task import Leaf, RunInfo, Schema, vector_hash
from p2pnode.daemon import Daemon
from p2pnode.store import MemoryStore
from p2pnode.tcp import TcpTransport

SILENT, JUNK = 300, 300
SCHEMA = Schema((Leaf("w", (1000,), "float32"),))
GENESIS = np.zeros(1000, np.float32)
CONFIG = Config(learning=LearningConfig(round_interval_s=0.02))
RUN = RunInfo(b"r" * 32, "main", "bowl/1", SCHEMA.id, vector_hash(GENESIS), (1000,))


class Bowl:
    schema = SCHEMA

    def run(self, inputs: list[TrainInput]) -> list[TrainOutput]:
        return [TrainOutput(0.1 * (np.float32(1) - i.params), (), 1.0, i.steps) for i in inputs]

    def evaluate(self, vectors: object) -> list[dict[str, float]]:
        return [{"rows": 1.0}]


def daemon(join: tuple[str, ...] = ()) -> Daemon:
    batches = partial(iter, lambda: {"x": np.zeros((1, 1), np.float32)}, None)
    learner = Learner(
        RUN, GENESIS, exchange=CONFIG.exchange, learning=CONFIG.learning, batches=lambda seed: batches()
    )
    return Daemon(
        identity=Identity.generate(os.urandom),
        config=CONFIG,
        run=RUN,
        learner=learner,
        trainer=Bowl(),  # type: ignore[arg-type]
        store=MemoryStore(),
        transport=TcpTransport(),
        listen="127.0.0.1:0",
        join=join,
        entropy=os.urandom,
        rng=random.Random(),
    )


async def exchanges_reach(one: Daemon, count: int) -> None:
    while one.status()["exchanges"] < count:  # noqa: ASYNC110  seen from outside
        await trio.sleep(0.02)


@pytest.mark.live
async def test_learning_goes_on_while_strangers_crowd_the_port() -> None:
    victim = daemon()
    async with trio.open_nursery() as nursery:
        address = await nursery.start(victim.run)
        await nursery.start(daemon(join=(address,)).run)
        with trio.fail_after(60):
            await exchanges_reach(victim, 10)
        before = victim.status()

        async def stranger(words: bytes) -> None:
            try:
                link = await TcpTransport().dial(address)
                async with link:
                    await link.send_all(words)
                    while await link.receive_some(100):
                        pass
            except (OSError, trio.BrokenResourceError):
                pass  # turned away

        with trio.fail_after(60):
            async with trio.open_nursery() as crowd:
                for number in range(SILENT + JUNK):
                    crowd.start_soon(stranger, b"" if number < SILENT else b"GET / HTTP/1.1\r\n\r\n")
                await exchanges_reach(victim, before["exchanges"] + 20)
        after = victim.status()
        turned = sum(after["counters"]["turned_away"].values())
        failed = sum(after["counters"]["handshakes_failed"].values())
        # Each stranger cost one connection, counted once; nobody is left inside but the partner.
        assert turned + failed == SILENT + JUNK
        assert turned > 0
        assert after["connections"] == before["connections"]
        assert len(victim.peers()) == 1
        assert after["memory_bytes"] - before["memory_bytes"] < 64 * 2**20
        # And once they are gone, a newcomer gets in.
        newcomer = daemon(join=(address,))
        await nursery.start(newcomer.run)
        with trio.fail_after(60):
            await exchanges_reach(newcomer, 1)
        nursery.cancel_scope.cancel()
