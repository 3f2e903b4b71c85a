"""A few learners under any order of jobs, losses, trainings, restarts and lies: what must hold, holds.

The model beside the real thing is the plain sum: exchanges whose two halves are both applied do not move it, and a
rescue moves it by what the initiator took.
"""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gossip.config import CODECS, ExchangeConfig, LearningConfig
from gossip.events import (
    Adopt,
    Adopted,
    Finish,
    Finished,
    JobRefused,
    Offer,
    Offered,
    Rescued,
    Respond,
    Responded,
)
from gossip.learning.codec import payload_bytes
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.task import Leaf, Schema, run_info

NODES = 3
VALUES = 130
LEARNING = LearningConfig(shard_values_max=65)
GENESIS = np.linspace(-1, 1, VALUES, dtype=np.float32)


class Named:
    name = "vectors"
    version = "1"


def learner() -> Learner:
    task: Any = Named()
    schema = Schema((Leaf("x", (VALUES,), "float32"),))
    run = run_info(network="", task=task, schema=schema, genesis=GENESIS, learning=LEARNING)
    return Learner(run, GENESIS, exchange=ExchangeConfig(), learning=LEARNING)


nodes = st.integers(0, NODES - 1)
shards = st.integers(0, 1)
codecs = st.sampled_from(CODECS)


class Swarm(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.learners = [learner() for _ in range(NODES)]
        self.total = np.float64(NODES) * GENESIS.astype(np.float64)
        self.roundings = 1

    def part(self, shard: int) -> slice:
        return slice(65 * shard, 65 * (shard + 1))

    @rule(node=nodes, seed=st.integers(0, 1000), size=st.sampled_from([0.01, 0.1, 1.0]))
    def train(self, node: int, seed: int, size: float) -> None:
        change = (size * np.random.default_rng(seed).standard_normal(VALUES)).astype(np.float32)
        before = self.learners[node].weights().astype(np.float64)
        self.learners[node].trained(TrainOutput(change=change, optimiser=(), loss=0.0, steps=1))
        self.total += self.learners[node].weights() - before

    @rule(i=nodes, j=nodes, shard=shards, codec=codecs, clip=st.sampled_from([np.inf, 1.0, 0.01, 0.0]))
    def exchange(self, i: int, j: int, shard: int, codec: str, clip: float) -> None:
        if i == j:
            return
        offered = self.learners[i].run(Offer(shard, codec))
        assert isinstance(offered, Offered)
        assert len(offered.payload) == payload_bytes(codec, 65)
        answer = self.learners[j].run(Respond(shard, codec, offered.payload, min(clip, offered.clip)))
        if isinstance(answer, Responded | Rescued):
            assert answer.norm <= min(clip, offered.clip) * (1 + 1e-4)
            before = self.learners[i].weights().astype(np.float64)
            assert isinstance(
                self.learners[i].run(Finish(shard, codec, answer.payload, offered.clip)), Finished
            )
            if isinstance(answer, Rescued):
                self.total += self.learners[i].weights() - before
            self.roundings += 1

    @rule(i=nodes, j=nodes, shard=shards)
    def lose_the_reply(self, i: int, j: int, shard: int) -> None:
        offered = self.learners[i].run(Offer(shard, "int8"))
        assert isinstance(offered, Offered)
        before = self.learners[j].weights().astype(np.float64)
        self.learners[j].run(Respond(shard, "int8", offered.payload, offered.clip))
        self.total += self.learners[j].weights() - before

    @rule(i=nodes, j=nodes, shard=shards)
    def adopt(self, i: int, j: int, shard: int) -> None:
        offered = self.learners[i].run(Offer(shard, "f32"))
        assert isinstance(offered, Offered)
        before = self.learners[j].weights().astype(np.float64)
        if isinstance(self.learners[j].run(Adopt(shard, "f32", offered.payload)), Adopted):
            ours, theirs = self.learners[i].weights(), self.learners[j].weights()
            assert np.allclose(ours[self.part(shard)], theirs[self.part(shard)], atol=1e-5)
        self.total += self.learners[j].weights() - before

    @rule(
        node=nodes,
        codec=codecs,
        shard=shards,
        noise=st.binary(min_size=1, max_size=64),
        right_length=st.booleans(),
    )
    def lie(self, node: int, codec: str, shard: int, noise: bytes, right_length: bool) -> None:
        length = payload_bytes(codec, 65) if right_length else len(noise)
        payload = (noise * length)[:length]
        victim = self.learners[node]
        for job in (
            Respond(shard, codec, payload, np.inf),
            Finish(shard, codec, payload, np.inf),
            Adopt(shard, codec, payload),
        ):
            before, saved = victim.weights().astype(np.float64), victim.dump()
            if isinstance(victim.run(job), JobRefused | Rescued):
                assert victim.dump() == saved
            self.total += victim.weights() - before

    @rule(node=nodes)
    def restart(self, node: int) -> None:
        again = learner()
        again.load(self.learners[node].dump())
        assert again.dump() == self.learners[node].dump()
        self.learners[node] = again

    @invariant()
    def weights_are_finite(self) -> None:
        for one in self.learners:
            assert np.isfinite(one.weights()).all()
            assert np.isfinite(one.readout()).all()

    @invariant()
    def complete_exchanges_do_not_move_the_sum(self) -> None:
        weights = np.stack([one.weights() for one in self.learners]).astype(np.float64)
        # Two additions of float32 an exchange, each off by half a unit in the last place.
        bound = self.roundings * np.abs(weights).max() * 4 * 2.0**-24
        assert np.abs(weights.sum(axis=0) - self.total).max() <= bound


TestSwarm = Swarm.TestCase
TestSwarm.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
