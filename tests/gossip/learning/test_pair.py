"""The arithmetic of ShardPair against docs/learning.md: exact factors, by enumeration instead of
sampling.

E V'/V over uniformly random pairs is the mean over all pairs, so a handful of learners gives the expectation
exactly. Training is off; everything goes through real jobs of real learners.
"""

import itertools
import random
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from gossip.config import CODECS, ExchangeConfig, LearningConfig
from gossip.events import Finish, Finished, Offer, Offered, Respond, Responded
from gossip.learning import aggregate
from gossip.learning.codec import code, value
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.task import Leaf, Schema, Task, run_info

N = 6
VALUES = 240
PAIRS = list(itertools.permutations(range(N), 2))


class Named:
    name = "vectors"
    version = "1"


def learners(x: np.ndarray, *, shards: int = 1) -> list[Learner]:
    """Learners whose weights are the rows of x; the gates are as good as open."""
    values = x.shape[1]
    learning = LearningConfig(shard_values_max=-(-values // shards))
    genesis = np.zeros(values, np.float32)
    schema, task = Schema((Leaf("x", (values,), "float32"),)), cast(Task, Named())
    run = run_info(network="", task=task, schema=schema, genesis=genesis, learning=learning)
    exchange = ExchangeConfig(norm_factor=1e6, clip_factor=1e6, distance_factor=1e6)
    made = [Learner(run, genesis, exchange=exchange, learning=learning) for _ in x]
    for learner, row in zip(made, x, strict=True):
        learner.trained(TrainOutput(change=row, optimiser=(), loss=0.0, steps=1))
    return made


def exchange(
    i: Learner,
    j: Learner,
    *,
    codec: str = "f32",
    shard: int = 0,
    clip: float | None = None,
    reply: bool = True,
) -> Responded:
    offered = i.run(Offer(shard, codec))
    assert isinstance(offered, Offered)
    responded = j.run(Respond(shard, codec, offered.payload, offered.clip if clip is None else clip))
    assert isinstance(responded, Responded)
    if reply:
        assert isinstance(i.run(Finish(shard, codec, responded.payload, offered.clip)), Finished)
    return responded


def spread(swarm: list[Learner]) -> float:
    x = np.stack([learner.weights() for learner in swarm]).astype(np.float64)
    return float(((x - x.mean(axis=0)) ** 2).sum())


def mean_factor(x: np.ndarray, act: Callable[[list[Learner], int, int], None], *, shards: int = 1) -> float:
    """E V'/V when `act` works on a uniformly random ordered pair."""
    before = spread(learners(x, shards=shards))
    after = []
    for i, j in PAIRS:
        swarm = learners(x, shards=shards)
        act(swarm, i, j)
        after.append(spread(swarm))
    return float(np.mean(after)) / before


@pytest.fixture
def x() -> np.ndarray:
    # Nothing symmetric: the factors hold for any x.
    rng = np.random.default_rng(0)
    return (rng.standard_normal((N, VALUES)) * rng.random((N, 1)) + rng.random(VALUES)).astype(np.float32)


def test_a_random_pair_average_takes_one_part_in_n_minus_one(x: np.ndarray) -> None:
    def act(swarm: list[Learner], i: int, j: int) -> None:
        exchange(swarm[i], swarm[j])

    assert mean_factor(x, act) == pytest.approx(1 - 1 / (N - 1), rel=1e-5)


@pytest.mark.parametrize("weight", [0.1, 0.25, 0.4])
def test_a_clipped_exchange_is_an_average_of_smaller_weight(x: np.ndarray, weight: float) -> None:
    def act(swarm: list[Learner], i: int, j: int) -> None:
        # Clipped to 2w of the distance, both move by w of it.
        distance = float(np.linalg.norm(swarm[i].weights() - swarm[j].weights()))
        exchange(swarm[i], swarm[j], clip=2 * weight * distance)

    assert mean_factor(x, act) == pytest.approx(1 - 4 * weight * (1 - weight) / (N - 1), rel=1e-5)


@pytest.mark.parametrize("shards", [2, 4])
def test_one_of_s_shards_takes_one_s_th_of_it(x: np.ndarray, shards: int) -> None:
    factors = []
    for shard in range(shards):

        def act(swarm: list[Learner], i: int, j: int, shard: int = shard) -> None:
            exchange(swarm[i], swarm[j], shard=shard)

        factors.append(mean_factor(x, act, shards=shards))
    assert np.mean(factors) == pytest.approx(1 - 1 / (shards * (N - 1)), rel=1e-5)


@pytest.mark.parametrize("loss", [0.0, 0.2, 0.5])
def test_lost_messages_slow_mixing_by_the_known_factor(x: np.ndarray, loss: float) -> None:
    def whole(swarm: list[Learner], i: int, j: int) -> None:
        exchange(swarm[i], swarm[j])

    def half(swarm: list[Learner], i: int, j: int) -> None:
        exchange(swarm[i], swarm[j], reply=False)

    arrived = 1 - loss
    factor = (
        loss + arrived * loss * mean_factor(x, half) + arrived**2 * mean_factor(x, whole)
    )  # request lost, reply lost, neither
    expected = 1 - arrived * (arrived / (N - 1) + loss * (N + 1) / (2 * N * (N - 1)))
    assert factor == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("clip", [None, 0.7])
def test_the_sum_is_conserved_for_every_codec_and_clip(x: np.ndarray, codec: str, clip: float | None) -> None:
    swarm = learners(x)
    before = x.astype(np.float64).sum(axis=0)
    rng = random.Random(1)
    for _ in range(100):
        i, j = rng.sample(range(N), 2)
        exchange(swarm[i], swarm[j], codec=codec, clip=clip)
    after = np.stack([learner.weights() for learner in swarm]).astype(np.float64).sum(axis=0)
    # Rounding of two float32 additions per exchange, each half a unit in the last place of numbers below 8.
    assert np.abs(after - before).max() < 200 * 4 * 2.0**-24


@pytest.mark.parametrize(("codec", "floor"), [("int8", 4e-7), ("int4", 1.4e-4)])
def test_quantised_exchange_reaches_the_known_floor(codec: str, floor: float) -> None:
    # docs/learning.md: n = 32, d = 1000, 750 exchanges. An exact exchange reaches 5.6e-11.
    x = np.random.default_rng(5).standard_normal((32, 1000)).astype(np.float32)
    swarm = learners(x)
    before = spread(swarm)
    rng = random.Random(5)
    levels = []
    for number in range(750):
        i, j = rng.sample(range(32), 2)
        exchange(swarm[i], swarm[j], codec=codec)
        if number >= 600:
            levels.append(spread(swarm) / before)
    assert floor / 2 < np.mean(levels) < floor * 2


def test_an_exact_exchange_has_no_floor() -> None:
    x = np.random.default_rng(5).standard_normal((32, 1000)).astype(np.float32)
    swarm = learners(x)
    before = spread(swarm)
    rng = random.Random(5)
    for _ in range(750):
        i, j = rng.sample(range(32), 2)
        exchange(swarm[i], swarm[j])
    # Expected (1 - 1/31) ** 750 = 2.1e-11; single runs scatter by a factor of ten.
    assert spread(swarm) / before < 2.1e-10


def test_training_between_the_legs_is_kept(x: np.ndarray) -> None:
    i, j = learners(x[:2])
    offered = i.run(Offer(0, "f32"))
    assert isinstance(offered, Offered)
    responded = j.run(Respond(0, "f32", offered.payload, offered.clip))
    assert isinstance(responded, Responded)
    step = np.full(VALUES, 0.25, np.float32)
    i.trained(TrainOutput(change=step, optimiser=(), loss=0.0, steps=1))
    i.run(Finish(0, "f32", responded.payload, offered.clip))
    assert np.allclose(i.weights(), (x[0] + x[1]) / 2 + step, atol=1e-6)
    assert np.allclose(j.weights(), (x[0] + x[1]) / 2, atol=1e-6)


def test_norms_of_the_largest_weights_do_not_overflow() -> None:
    with np.errstate(over="ignore"):
        assert aggregate.norm(np, np.full(100, 1e30, np.float32)) == pytest.approx(1e31, rel=1e-5)
    long = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    assert aggregate.norm(np, long) == pytest.approx(float(np.linalg.norm(long.astype(np.float64))), rel=1e-6)


def test_a_clipped_change_has_the_norm_of_the_limit() -> None:
    d = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for codec in CODECS:
        c = aggregate.change(np, d, codec=codec, limit=2.5)
        assert c.norm == pytest.approx(2.5, rel=1e-5)
        whole = value(code(np, codec, d))
        assert np.allclose(c.vector / c.norm, whole / aggregate.norm(np, whole), atol=1e-6)
        assert aggregate.change(np, d, codec=codec, limit=0.0).norm == 0
