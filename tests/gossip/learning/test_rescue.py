"""Who refuses for distance stays and answers: insisting moves no other node, and the odd one out comes in by itself."""

from typing import Any

import numpy as np
import pytest

from gossip.config import ExchangeConfig, LearningConfig
from gossip.events import Finish, Finished, JobRefused, JobResult, Offer, Offered, Rescued, Respond, Responded
from gossip.learning.codec import encode
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.task import Leaf, Schema, run_info

VALUES = 100
GENESIS = np.zeros(VALUES, np.float32)
LEARNING = LearningConfig()


class Named:
    name = "vectors"
    version = "1"


def learner(weights: np.ndarray) -> Learner:
    task: Any = Named()
    schema = Schema((Leaf("x", (VALUES,), "float32"),))
    run = run_info(network="", task=task, schema=schema, genesis=GENESIS, learning=LEARNING)
    made = Learner(run, GENESIS, exchange=ExchangeConfig(), learning=LEARNING)
    train(made, weights)
    return made


def train(one: Learner, change: np.ndarray) -> None:
    one.trained(TrainOutput(change=change.astype(np.float32), optimiser=(), loss=0.0, steps=1))


def exchange(i: Learner, j: Learner) -> JobResult:
    """A whole exchange; returns what j answered."""
    offered = i.run(Offer(0, "f32"))
    assert isinstance(offered, Offered)
    answer = j.run(Respond(0, "f32", offered.payload, offered.clip))
    if not isinstance(answer, JobRefused):
        assert isinstance(answer, Responded | Rescued)
        assert isinstance(i.run(Finish(0, "f32", answer.payload, offered.clip)), Finished)
    return answer


def swarm(rng: np.random.Generator, count: int = 5) -> list[Learner]:
    """Nodes that learned much the same and agree closely."""
    learned = rng.standard_normal(VALUES)
    nodes = [learner(learned + 0.01 * rng.standard_normal(VALUES)) for _ in range(count)]
    mix(nodes, rng, rounds=20)
    return nodes


def mix(nodes: list[Learner], rng: np.random.Generator, rounds: int) -> None:
    for _ in range(rounds):
        for i in range(len(nodes)):
            exchange(nodes[i], nodes[(i + rng.integers(1, len(nodes))) % len(nodes)])


def test_twelve_keys_that_insist_move_no_node() -> None:
    """Sixteen refusals in a row once voided the history, and what came next was taken as a newcomer takes it."""
    rng = np.random.default_rng(0)
    nodes = swarm(rng)
    before = [node.weights().copy() for node in nodes]
    learned = np.linalg.norm(before[0])
    wanted = encode("f32", (-2 * before[0]).astype(np.float32))
    for _ in range(20):
        for node in nodes:
            for _ in range(2 * 12):  # as often as one round lets twelve peers offer
                at = node.weights().copy()
                assert not isinstance(node.run(Respond(0, "f32", wanted, np.inf)), Responded)
                assert np.array_equal(node.weights(), at)
        mix(nodes, rng, rounds=1)
    for node, was in zip(nodes, before, strict=True):
        assert np.linalg.norm(node.weights() - was) < 0.01 * learned


def test_who_refuses_for_distance_answers_within_the_limit_of_the_other_and_stays() -> None:
    rng = np.random.default_rng(1)
    near = swarm(rng)[0]
    saved = near.dump()
    odd = learner(-2 * near.weights())
    offered = odd.run(Offer(0, "f32"))
    assert isinstance(offered, Offered)
    for limit in (offered.clip, 3.0):  # both far above what the near one allows itself
        answer = near.run(Respond(0, "f32", offered.payload, limit))
        assert isinstance(answer, Rescued)
        assert answer.norm == pytest.approx(min(limit, answer.distance), rel=1e-4)
        assert "exceeds" in answer.detail
        assert near.dump() == saved
    before = odd.weights().copy()
    assert isinstance(odd.run(Finish(0, "f32", answer.payload, 3.0)), Finished)
    moved = odd.weights() - before
    assert np.linalg.norm(moved) == pytest.approx(1.5, rel=1e-3)
    towards = near.weights() - before
    assert np.dot(moved, towards) == pytest.approx(np.linalg.norm(moved) * np.linalg.norm(towards), rel=1e-3)


def test_what_is_broken_is_still_refused_and_not_answered() -> None:
    near = swarm(np.random.default_rng(1))[0]
    for bad in (1e30, np.nan, np.inf):
        payload = np.full(VALUES, bad, "<f4").tobytes()
        assert isinstance(near.run(Respond(0, "f32", payload, 1.0)), JobRefused)


def test_the_odd_one_out_is_drawn_in_although_both_sides_refuse() -> None:
    """Swarm seed 864: three agreed to the last bit, and the fourth, who had trained alone, was shut out for ever."""
    rng = np.random.default_rng(2)
    agreed = rng.standard_normal(VALUES)
    three = [learner(agreed) for _ in range(3)]
    alone = [learner(agreed * np.linalg.norm(agreed) ** -1) for _ in range(2)]
    for nodes in (three, alone):
        for _ in range(40):
            train(nodes[0], 1e-6 * rng.standard_normal(VALUES))
            mix(nodes, rng, rounds=1)
    odd = alone[0]
    train(odd, -0.3 * agreed - odd.weights())
    first = exchange(odd, three[0]), exchange(three[0], odd)
    assert all(isinstance(answer, Rescued) for answer in first)
    mix([odd, *three], rng, rounds=300)
    weights = np.array([node.weights() for node in (odd, *three)])
    assert np.linalg.norm(weights - weights.mean(axis=0)) < 1e-3 * np.linalg.norm(weights[0])
    # They meet where four equals would have met, and not where one pulls three.
    assert np.linalg.norm(weights[1] - (3 - 0.3) / 4 * agreed) < 0.1 * np.linalg.norm(agreed)
