"""A saved state goes back to the optimiser that made it, and to no other, however alike the two states look."""

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gossip.config import ExchangeConfig, LearningConfig
from gossip.learning.learner import Learner
from gossip.learning.task import run_info
from gossip.learning.trainer import Trainer

LEARNING = LearningConfig()

OPTIMISERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "adagrad": lambda: optax.adagrad(0.1),
    "adam": lambda: optax.adam(0.1),
    "adam, scheduled": lambda: optax.adam(optax.linear_schedule(0.1, 0.0, 10)),
    "adam, averaged over 2": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "adam, adjustable": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "lion": lambda: optax.lion(0.1),
    "radam": lambda: optax.radam(0.1),  # the types of its state are Adam's
    "yogi": lambda: optax.yogi(0.1),  # so are Yogi's
    "own": lambda: _own(_towards),
    "own, other rule": lambda: _own(_away),
    "own, compiled": lambda: _own(jax.jit(_fast)),
    "own, of parts": lambda: _own(partial(_scaled, factor=2.0)),
}


def _towards(updates: Any, state: Any, params: Any = None) -> Any:
    return jax.tree.map(lambda slope: -0.1 * slope, updates), state


def _away(updates: Any, state: Any, params: Any = None) -> Any:
    return jax.tree.map(lambda slope: 0.1 * slope, updates), state


def _scaled(updates: Any, state: Any, params: Any = None, *, factor: float) -> Any:
    return jax.tree.map(lambda slope: -0.1 * factor * slope, updates), state


def _fast(updates: Any, state: Any, params: Any = None) -> Any:
    return _towards(updates, state, params)


def _own(update: Any) -> optax.GradientTransformation:
    """A hand-made one, whose state is a dictionary, with a rule in a closure."""

    def rule(updates: Any, state: Any, params: Any = None, again: int = 0) -> Any:
        return rule(updates, state, params, again - 1) if again else update(updates, state, params)

    return optax.GradientTransformation(lambda params: {"mean": params}, rule)


class Line:
    """y = w x + b, with an optimiser of choice."""

    name, version = "line", "1"

    def __init__(self, optimiser: Callable[[], Any]) -> None:
        self.optimizer = optimiser

    def init(self, key: Any) -> Any:
        return {"w": jnp.zeros(3), "b": jnp.zeros(())}

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2), {}

    def batches(self, split: str, seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        while True:
            x = rng.standard_normal((4, 3)).astype(np.float32)
            yield {"x": x, "y": x.sum(axis=1)}
            if split == "test":
                return


def learner(task: Any, trainer: Trainer) -> Learner:
    return Learner(
        run_info(network="", task=task, schema=trainer.schema, genesis=trainer.genesis, learning=LEARNING),
        trainer.genesis,
        exchange=ExchangeConfig(),
        learning=LEARNING,
        batches=lambda seed: task.batches("train", seed),
        optimiser=trainer.optimiser,
    )


def trained(task: Any) -> Learner:
    trainer = Trainer(task)
    one = learner(task, trainer)
    one.trained(trainer.run([one.train_input(2)])[0])
    return one


def test_every_optimiser_has_a_name_of_its_own_which_is_the_same_each_time() -> None:
    first = {name: Trainer(Line(make)).optimiser for name, make in OPTIMISERS.items()}
    again = {name: Trainer(Line(make)).optimiser for name, make in OPTIMISERS.items()}
    assert first == again
    alike = [(a, b) for a, b in itertools.combinations(first, 2) if first[a] == first[b]]
    assert alike == []


def test_a_changed_learning_rate_keeps_the_moments() -> None:
    before, after = Line(lambda: optax.adam(0.1)), Line(lambda: optax.adam(0.01, b1=0.8))
    one = trained(before)
    other = learner(after, Trainer(after))
    assert other.load(one.dump())
    assert other.dump() == one.dump()


def test_a_name_does_not_depend_on_the_process() -> None:
    # Golden: a change of this value costs every node its moments at the next start.
    assert Trainer(Line(OPTIMISERS["adam"])).optimiser.hex()[:16] == "878190c94b421835"


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.permutations(["momentum", "rmsprop", "adam", "adamw"], 2))
)
def test_another_optimiser_begins_with_a_fresh_state_and_keeps_the_weights(before: str, after: str) -> None:
    one = trained(Line(OPTIMISERS[before]))
    task = Line(OPTIMISERS[after])
    trainer = Trainer(task)
    other = learner(task, trainer)
    assert not other.load(one.dump())
    assert np.array_equal(other.weights(), one.weights())
    assert np.array_equal(other.readout(), one.readout())
    given = other.train_input(2)
    assert (given.optimiser, given.step) == (None, one.steps)
    other.trained(trainer.run([given])[0])
    assert not np.array_equal(other.weights(), one.weights())
    # From here on the state is its own.
    assert learner(task, trainer).load(other.dump())


def test_an_optimiser_without_a_state_has_none_to_lose() -> None:
    one = trained(Line(OPTIMISERS["sgd"]))
    task = Line(OPTIMISERS["adam"])
    assert learner(task, Trainer(task)).load(one.dump())


def test_tasks_that_people_had_go_on_with_another_optimiser(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(shared / "inputs" / "models"))
    import samecount

    kinds = ("sgdm", "rms", "adamw", "adam_bigger")
    assert len({Trainer(samecount.make(kind)).optimiser for kind in kinds}) == len(kinds)
    for before, after in itertools.permutations(kinds, 2):
        task = samecount.make(after)
        trainer = Trainer(task)
        one = learner(task, trainer)
        with jax.numpy_rank_promotion("allow"):
            assert not one.load(trained(samecount.make(before)).dump())
        with jax.numpy_rank_promotion(
            "allow"
        ):  # as in a daemon; our own tests are stricter than people's tasks
            done = one.trained(trainer.run([one.train_input(2)])[0])
        assert np.isfinite(done.loss)
    for name in ("samecount", "optim", "common"):
        monkeypatch.delitem(sys.modules, name)
