"""The arithmetic of push against docs/learning.md: exact factors, by enumeration instead of sampling."""

import itertools
from typing import Any

import numpy as np
import pytest

from gossip.config import ExchangeConfig, LearningConfig
from gossip.errors import Reason
from gossip.events import Finish, JobRefused, JobResult, Offer, Offered, Respond, Taken, Train
from gossip.learning.codec import decode
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.task import Leaf, Schema, run_info

N = 4
VALUES = 60
LEARNING = LearningConfig(strategy="push")
OPEN = ExchangeConfig(norm_factor=1e6, clip_factor=1e6, distance_factor=1e6)
# What each of N nodes may do: send to one of the N - 1 others.
TARGETS = list(itertools.product(*([other for other in range(N) if other != node] for node in range(N))))


class Named:
    name = "vectors"
    version = "1"


def learner(weights: np.ndarray, exchange: ExchangeConfig = OPEN, node: int = 0) -> Learner:
    task: Any = Named()
    genesis = np.zeros(weights.size, np.float32)
    schema = Schema((Leaf("x", weights.shape, "float32"),))
    run = run_info(network="", task=task, schema=schema, genesis=genesis, learning=LEARNING)
    made = Learner(run, genesis, exchange=exchange, learning=LEARNING, node=node)
    train(made, weights)
    return made


def train(one: Learner, change: np.ndarray) -> None:
    one.trained(TrainOutput(change=change.astype(np.float32), optimiser=(), loss=0.0, steps=1))


def offer(one: Learner, codec: str = "f32") -> Offered:
    offered = one.run(Offer(0, codec))
    assert isinstance(offered, Offered)
    return offered


def push(i: Learner, j: Learner) -> JobResult:
    offered = offer(i)
    return j.run(Respond(0, "f32", offered.payload, offered.clip))


def weights(swarm: list[Learner]) -> np.ndarray:
    for node in swarm:
        node.run(Train(0))  # a round without training averages what has come
    return np.stack([node.weights() for node in swarm]).astype(np.float64)


@pytest.fixture
def x() -> np.ndarray:
    # Nothing symmetric: the factors hold for any x.
    rng = np.random.default_rng(0)
    return (rng.standard_normal((N, VALUES)) * rng.random((N, 1)) + rng.random(VALUES)).astype(np.float32)


def spread(x: np.ndarray, centre: np.ndarray) -> float:
    return float(((x - centre) ** 2).sum())


def test_a_round_of_epidemic_learning_contracts_by_the_known_factor(x: np.ndarray) -> None:
    """EL-Local, s = 1: all send, then all average. Distances to the mean of before, which a push does not keep."""
    centre = x.astype(np.float64).mean(axis=0)
    after = []
    for targets in TARGETS:
        swarm = [learner(row) for row in x]
        sent = [offer(node) for node in swarm]
        for node, target in enumerate(targets):
            taken = swarm[target].run(Respond(0, "f32", sent[node].payload, sent[node].clip))
            assert isinstance(taken, Taken)
        after.append(spread(weights(swarm), centre))
    # (1/s)[1 - (1 - s/(n-1))^n] - 1/(n-1)
    expected = 1 - (1 - 1 / (N - 1)) ** N - 1 / (N - 1)
    assert np.mean(after) / spread(x.astype(np.float64), centre) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_one_push_contracts_by_the_known_factor(x: np.ndarray, loss: float) -> None:
    before = spread(x.astype(np.float64), x.astype(np.float64).mean(axis=0))
    after = []
    for i, j in itertools.permutations(range(N), 2):
        swarm = [learner(row) for row in x]
        assert isinstance(push(swarm[i], swarm[j]), Taken)
        found = weights(swarm)
        assert np.allclose(found[j], (x[i] + x[j]) / 2, atol=1e-6)
        assert np.array_equal(found[i], x[i])
        after.append(spread(found, found.mean(axis=0)))
    factor = loss + (1 - loss) * np.mean(after) / before
    assert factor == pytest.approx(1 - (1 - loss) * (N + 1) / (2 * N * (N - 1)), rel=1e-5)


def test_what_has_come_is_averaged_after_the_training_of_the_round(x: np.ndarray) -> None:
    swarm = [learner(row) for row in x[:3]]
    before = swarm[0].weights().copy()
    for other in swarm[1:]:
        push(other, swarm[0])
    assert np.array_equal(swarm[0].weights(), before)
    change = np.full(VALUES, 0.5)
    train(swarm[0], change)
    assert np.allclose(swarm[0].weights(), (x[0] + change + x[1] + x[2]) / 3, atol=1e-6)
    train(swarm[0], change)
    assert np.allclose(swarm[0].weights(), (x[0] + change + x[1] + x[2]) / 3 + change, atol=1e-6)


def test_the_read_out_averages_what_has_come(x: np.ndarray) -> None:
    one, other = learner(x[0]), learner(x[1])
    for _ in range(200):
        one.run(Train(0))
    assert np.allclose(one.readout(), x[0], atol=1e-6)
    push(other, one)
    one.run(Train(0))
    middle = (x[0] + x[1]) / 2
    assert np.allclose(one.readout(), 0.9 * x[0] + 0.1 * middle, atol=1e-6)
    assert np.allclose(one.weights(), middle, atol=1e-6)


def test_a_push_counts_as_far_as_the_clip_allows_and_not_at_all_if_it_is_too_distant() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(VALUES)
    one = learner(x, ExchangeConfig())
    for _ in range(20):
        push(learner(x + 0.1 * rng.standard_normal(VALUES)), one)
        one.run(Train(0))
    usual = one._shards[0].usual
    before = one.weights().copy()
    clipped = push(learner(before + 0.15 * usual * np.ones(VALUES) * 4), one)
    assert isinstance(clipped, Taken)
    assert clipped.norm == pytest.approx(2 * usual, rel=1e-3)
    assert clipped.distance > clipped.norm
    one.run(Train(0))
    assert np.linalg.norm(one.weights() - before) == pytest.approx(clipped.norm / 2, rel=1e-3)
    saved = one.dump()
    refused = push(learner(-8 * before), one)
    assert isinstance(refused, JobRefused)
    assert refused.reason is Reason.TOO_DISTANT
    assert one.dump() == saved


def test_a_change_that_was_not_asked_for_is_refused(x: np.ndarray) -> None:
    one = learner(x[0])
    refused = one.run(Finish(0, "f32", bytes(4 * VALUES), np.inf))
    assert isinstance(refused, JobRefused)
    assert refused.reason is Reason.UNEXPECTED


@pytest.mark.parametrize(("codec", "levels"), [("int8", 127), ("int4", 7)])
def test_a_push_is_rounded_at_random_so_that_nothing_is_lost_on_average(codec: str, levels: int) -> None:
    x = np.random.default_rng(3).standard_normal(64).astype(np.float32)
    step = np.abs(x).max() / levels
    one = learner(x, node=5)
    told = np.stack([decode(codec, offer(one, codec).payload, 64) for _ in range(4000)]).astype(np.float64)
    assert np.abs(told - x).max() <= 1.001 * step
    assert (
        np.abs(told.mean(axis=0) - x).max() < 0.05 * step
    )  # five deviations; to nearest it would be up to half
    again = learner(x, node=5)
    assert np.array_equal(decode(codec, offer(again, codec).payload, 64), told[0].astype(np.float32))


def test_another_strategy_is_another_run() -> None:
    task: Any = Named()
    schema, genesis = Schema((Leaf("x", (4,), "float32"),)), np.zeros(4, np.float32)
    ids = {
        run_info(network="", task=task, schema=schema, genesis=genesis, learning=learning).id
        for learning in (LEARNING, LearningConfig())
    }
    assert len(ids) == 2
