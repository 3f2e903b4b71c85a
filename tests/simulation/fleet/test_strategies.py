"""Strategies in the fleet: what daemons do when they meet, over a whole network."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gossip.config import ExchangeConfig
from gossip.learning.meeting import Rules, Shard
from gossip.learning.strategies import strategy
from gossip.learning.strategies.interface import State
from simulation.checkers import consensus_distance
from simulation.fleet.network import End, exchange
from simulation.fleet.program import Fleet
from simulation.fleet.settings import FleetSettings, Pace
from simulation.fleet.simulate import simulate

LOGISTIC = {"model": "logistic"}
# A rate so small that it changes no float32 weight.
FROZEN = {**LOGISTIC, "lr": 1e-30}


def settings(**fields: Any) -> FleetSettings:
    return FleetSettings(**{"nodes": 40, "rounds": 60, "args": LOGISTIC, "every": 60, **fields})


def ready(**fields: Any) -> Fleet:
    fleet = Fleet(settings(**fields))
    fleet.compile()
    return fleet


@pytest.mark.parametrize(
    ("lanes", "codec", "gate"), [(0, "f32", False), (5, "f32", False), (5, "int8", True)]
)
def test_a_round_of_pushes_contracts_by_the_known_factor(lanes: int, codec: str, gate: bool) -> None:
    # Everybody sends to one other and hears from one other, drawn uniformly, so that the mean of two halves what is
    # independent, and -1/(n-1) of the rest is common: (n-2) / (2(n-1)). It counts from the training after it on.
    nodes = 60
    fleet = ready(args=FROZEN, nodes=nodes, lanes=lanes, strategy="push", codec=codec, gate=gate)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(15):
        x = rng.normal(size=(nodes, fleet.values)).astype(np.float32)
        fleet.place(x)
        fleet.advance(1)
        assert np.array_equal(fleet.weights(), x)
        fleet.advance(1)
        after = fleet.weights()
        found.append((consensus_distance(after) / consensus_distance(x)) ** 2)
        if codec == "f32":
            # All of it was passed on, so the sum is kept: in the world it is only in the mean of many rounds.
            assert np.abs(after.mean(axis=0) - x.mean(axis=0)).max() < 1e-5
    assert np.mean(found) == pytest.approx((nodes - 2) / (2 * (nodes - 1)), rel=0.03)


def test_a_fleet_that_pushes_learns() -> None:
    report = simulate(settings(strategy="push", gate=True, codec="int8"), central=False)
    assert report.exchanges > 0.9 * report.node_updates
    assert 0.8 < report.accuracy.worst <= report.accuracy.mean
    pace = Pace(start=5.0, newcomers=2)
    assert simulate(settings(strategy="push", pace=pace), central=False).accuracy.mean > 0.8


@pytest.mark.parametrize("codec", ["f32", "int8"])
def test_who_is_too_far_to_be_followed_comes_alone_as_among_daemons(codec: str) -> None:
    rules = Rules(strategy=strategy("shard-pair"), gate=ExchangeConfig())
    reference = jnp.zeros(100)
    near, far = jnp.full(100, 1.0), jnp.full(100, -2.0)
    i, j = (
        End(Shard(State(x), jnp.float32(50), jnp.float32(usual)), x)
        for x, usual in ((far, 3.0), (near, 0.01))
    )
    yes = jnp.array(True)
    out = exchange(rules, codec, reference, i, j, yes, yes, None)
    # Twice what changes of the far one usually measure, and half of that.
    assert np.linalg.norm(out.ends[0].state.x - far) == pytest.approx(3.0, rel=1e-3)
    assert out.ends[0].state.x[0] > far[0]
    assert np.array_equal(out.ends[1].state.x, near)
    assert out.ends[1][1:] == j.shard[1:], "nothing is learned from who is not followed"
    assert out.refused
    assert out.finished
    assert not out.answered
    lost = exchange(rules, codec, reference, i, j, yes, ~yes, None)
    assert np.array_equal(lost.ends[0].state.x, far)
