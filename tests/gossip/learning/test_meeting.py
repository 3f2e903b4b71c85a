"""The one composition of strategy and gate: numpy and jax.numpy do the same, whatever is met."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gossip.config import CODECS, STRATEGIES, ExchangeConfig
from gossip.errors import LocalError
from gossip.learning import meeting
from gossip.learning.codec import value
from gossip.learning.meeting import Rules
from gossip.learning.strategies import VERSIONS, strategy

SIZE = 200
# Of the other one: as near as usual, too far to be followed, too large for anybody.
FACTORS = (1.1, -8.0, 1e6)


def met(xp: ModuleType, rules: Rules, codec: str, factor: float) -> dict[str, np.ndarray]:
    """A whole meeting of two nodes with some history; everything that it leaves."""
    rng = np.random.default_rng(4)
    learned, reference, noise = (rng.standard_normal(SIZE).astype(np.float32) for _ in range(3))
    noise = xp.asarray((noise - np.floor(noise)) - np.float32(0.5))
    number = float if xp is np else np.float32
    i, j = (
        meeting.new(xp, rules, xp.asarray(reference + np.float32(by) * learned))._replace(
            count=number(20), usual=number(usual)
        )
        for by, usual in ((factor, 3.0), (1.0, 0.8))
    )
    reference = xp.asarray(reference)
    coded, declared = meeting.offer(
        xp, rules, i, reference, codec=codec, noise=noise if rules.strategy.dithered else None
    )
    told = meeting.answer(xp, rules, j, reference, coded, declared=declared)
    yes: Any = True if xp is np else xp.asarray(True)
    j, applied = meeting.respond(xp, rules, j, told, asked=yes)
    found = {"offered": value(coded), "declared": declared, "distance": told.seen.distance}
    found |= {"sound": told.sound, "applied": applied}
    if rules.strategy.answers and bool(told.sound):
        assert told.c is not None
        i, taken, limit = meeting.finish(
            xp, rules, i, reference, told.c.vector, told.c.norm, declared=declared, came=yes
        )
        found |= {"taken": taken, "limit": limit}
    for name, end in (("i", i), ("j", j)):
        after = rules.strategy.local(xp, end.state._replace(x=end.state.x + np.float32(0.25)))
        found |= {f"{name} x": end.state.x, f"{name} used": rules.strategy.readout(xp, end.state)}
        found |= {f"{name} after": after.x, f"{name} count": end.count, f"{name} usual": end.usual}
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("gated", [True, False])
def test_numpy_and_jax_meet_alike(
    codec: str, name: str, factor: float, gated: bool, strict_dtypes: None
) -> None:
    import jax.numpy as jnp

    rules = Rules(strategy=strategy(name), gate=ExchangeConfig() if gated else None)
    ours, theirs = met(np, rules, codec, factor), met(jnp, rules, codec, factor)
    assert ours.keys() == theirs.keys()
    for what, array in ours.items():
        # Norms are summed in another order, and so is what they clip.
        assert np.allclose(array, theirs[what], rtol=1e-5, atol=1e-5 * max(1.0, abs(factor))), what
    assert bool(ours["applied"]) == (not gated or factor == FACTORS[0])


@pytest.mark.parametrize("name", STRATEGIES)
def test_who_is_met_by_nobody_keeps_its_weights(name: str) -> None:
    rules = Rules(strategy=strategy(name), gate=None)
    x = np.arange(5, dtype=np.float32)
    state = meeting.new(np, rules, x).state
    assert rules.strategy.local(np, state) is state
    assert rules.strategy.readout(np, state) is x


@pytest.mark.parametrize("name", STRATEGIES)
def test_who_adopts_leaves_behind_what_had_come(name: str) -> None:
    rules = Rules(strategy=strategy(name), gate=ExchangeConfig())
    reference = np.zeros(5, np.float32)
    told = meeting.new(np, rules, np.ones(5, np.float32))
    shard = meeting.new(np, rules, reference)
    coded, declared = meeting.offer(np, rules, told, reference, codec="f32")
    shard, applied = meeting.respond(
        np, rules, shard, meeting.answer(np, rules, shard, reference, coded, declared=declared)
    )
    assert applied
    adopted, seen, _ = meeting.adopt(np, rules, shard, reference, coded)
    assert adopted is not None
    assert seen.offered == pytest.approx(5**0.5)
    assert np.array_equal(rules.strategy.readout(np, adopted.state), np.ones(5))
    assert all(value == 0 for value in rules.strategy.metrics(adopted.state).values())


def test_every_strategy_has_a_version_and_others_are_unknown() -> None:
    assert set(VERSIONS) == set(STRATEGIES)
    assert len(set(VERSIONS.values())) == len(STRATEGIES)
    with pytest.raises(LocalError, match="shard-pair, push"):
        strategy("all-reduce")
