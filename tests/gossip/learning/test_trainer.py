"""The compiled side: what is shared, that lanes do not see each other, that state survives, that it learns."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gossip.config import ExchangeConfig, LearningConfig
from gossip.errors import LocalError
from gossip.events import Adopt, Adopted, Finish, Finished, Offer, Offered, Respond, Responded, Train
from gossip.learning.learner import Learner
from gossip.learning.task import run_info
from gossip.learning.trainer import Trainer, train_alone
from p2pnode.tasks import load_task
from p2pnode.tasks.classifier import Classifier

LEARNING = LearningConfig()


class Mixed:
    """A task with everything a tree may hold: several float types, integers, nesting, momentum, a random loss."""

    name = "mixed"
    version = "1"

    def init(self, key: Any) -> Any:
        return {
            "layers": [{"w": jax.random.uniform(key, (3, 2)), "count": jnp.array(5, jnp.int32)}],
            "half": jnp.ones(2, jnp.float16),
        }

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        out = batch["x"] @ params["layers"][0]["w"] * params["half"].astype(jnp.float32)[None, :]
        noise = 0.1 * jax.random.uniform(key, out.shape)
        return jnp.mean((out - batch["y"] + noise) ** 2), {"count": params["layers"][0]["count"] * 1.0}

    def batches(self, split: str, seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        while True:
            x = rng.standard_normal((4, 3)).astype(np.float32)
            yield {"x": x, "y": x[:, :2] * 2}
            if split == "test":
                return

    def optimizer(self) -> Any:
        return optax.sgd(0.05, momentum=0.9)


def learners(task: Any, trainer: Trainer, count: int, tasks: list[Any] | None = None) -> list[Learner]:
    run = run_info(network="", task=task, schema=trainer.schema, genesis=trainer.genesis, learning=LEARNING)
    given = tasks or [task] * count
    return [
        Learner(
            run,
            trainer.genesis,
            exchange=ExchangeConfig(),
            learning=LEARNING,
            node=node,
            seed=1000 * node,
            batches=lambda seed, one=one: one.batches("train", seed),
        )
        for node, one in enumerate(given)
    ]


@pytest.fixture(scope="module")
def mixed() -> Trainer:
    return Trainer(Mixed(), lanes=4)


def test_only_float_leaves_are_shared_under_their_own_names(mixed: Trainer) -> None:
    assert [str(leaf) for leaf in mixed.schema.leaves] == ["half float16[2]", "layers/0/w float32[3,2]"]
    assert mixed.genesis.shape == (8,)
    assert mixed.genesis.dtype == np.float32
    params = mixed.params(np.arange(8, dtype=np.float32))
    assert params["half"].dtype == jnp.float16
    assert params["half"].tolist() == [0, 1]
    assert params["layers"][0]["w"].tolist() == [[2, 3], [4, 5], [6, 7]]
    assert params["layers"][0]["count"] == 5


def test_the_genesis_depends_on_the_seed_alone(mixed: Trainer) -> None:
    assert np.array_equal(Trainer(Mixed()).genesis, mixed.genesis)
    assert not np.array_equal(Trainer(Mixed(), seed=1).genesis, mixed.genesis)


def test_a_model_without_floats_has_nothing_to_share() -> None:
    class Whole(Mixed):
        def init(self, key: Any) -> Any:
            return {"count": jnp.array(5, jnp.int32)}

    with pytest.raises(LocalError, match="nothing to share"):
        Trainer(Whole())


def test_a_job_does_not_depend_on_the_jobs_beside_it(mixed: Trainer) -> None:
    inputs = [one.train_input(3) for one in learners(Mixed(), mixed, 6)]
    together = mixed.run(inputs)  # two calls, the second padded
    for order in ([5, 4, 3, 2, 1, 0], [2], [0, 3]):
        for at, output in zip(order, mixed.run([inputs[at] for at in order]), strict=True):
            assert np.array_equal(output.change, together[at].change)
            assert output.loss == together[at].loss
            assert np.array_equal(output.optimiser[0], together[at].optimiser[0])


def test_randomness_comes_from_node_and_step(mixed: Trainer) -> None:
    first, second = (one.train_input(2) for one in learners(Mixed(), mixed, 2))
    import msgspec

    same_batches = msgspec.structs.replace(second, batches=first.batches)
    other_step = msgspec.structs.replace(first, step=7)
    changes = [output.change.tobytes() for output in mixed.run([first, same_batches, other_step])]
    assert len(set(changes)) == 3


def test_steps_in_one_job_or_in_several_are_the_same_steps(mixed: Trainer) -> None:
    # Momentum and the step counter travel with the learner.
    (one,), (other,) = learners(Mixed(), mixed, 1), learners(Mixed(), mixed, 1)
    one.trained(mixed.run([one.train_input(4)])[0])
    for _ in range(4):
        other.trained(mixed.run([other.train_input(1)])[0])
    assert other.steps == one.steps == 4
    assert np.allclose(one.weights(), other.weights(), atol=1e-6)
    # And through a snapshot.
    again = learners(Mixed(), mixed, 1)[0]
    again.load(one.dump())
    captured, expected = again.train_input(2), one.train_input(2)
    captured.batches.update(expected.batches)
    a, b = mixed.run([captured, expected])
    assert np.array_equal(a.change, b.change)


def test_a_first_step_is_plain_gradient_descent(mixed: Trainer) -> None:
    (one,) = learners(Mixed(), mixed, 1)
    given = one.train_input(1)
    batch = {name: values[0] for name, values in given.batches.items()}
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)

    def loss(w: Any) -> Any:
        params = mixed.params(mixed.genesis)
        params["layers"][0]["w"] = w
        return Mixed().loss(params, batch, key)[0]

    gradient = jax.grad(loss)(jnp.asarray(mixed.genesis[2:].reshape(3, 2)))
    change = mixed.run([given])[0].change
    assert np.allclose(change[2:], -0.05 * np.asarray(gradient).reshape(-1), atol=1e-6)


def test_jobs_of_one_call_have_equally_many_steps(mixed: Trainer) -> None:
    one, other = learners(Mixed(), mixed, 2)
    with pytest.raises(LocalError, match="equally many"):
        mixed.run([one.train_input(1), other.train_input(2)])


def test_evaluation_is_the_mean_over_the_test_rows() -> None:
    task = load_task("digits", {})
    trainer = Trainer(task, lanes=2)
    vectors = [trainer.genesis, trainer.genesis + np.float32(0.1), np.zeros_like(trainer.genesis)]
    found = trainer.evaluate(vectors)
    assert [sorted(one) for one in found] == [["accuracy", "loss", "rows"]] * 3
    assert found[2]["rows"] == 360
    # All-zero parameters say nothing: log 10.
    assert found[2]["loss"] == pytest.approx(np.log(10), rel=1e-5)
    (batch,) = task.batches("test", 0)
    loss, metrics = task.loss(trainer.params(vectors[1]), batch, jax.random.key(0))
    assert found[1]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found[1]["accuracy"] == pytest.approx(float(metrics["accuracy"]))


def test_the_digits_lose_no_type_to_promotion(strict_dtypes: None) -> None:
    task = load_task("digits", {"model": "logistic"})
    trainer = Trainer(task)
    (one,) = learners(task, trainer, 1)
    assert trainer.run([one.train_input(2)])[0].loss == pytest.approx(np.log(10), abs=0.2)


def swarm_round(swarm: list[Learner], rng: np.random.Generator, codec: str) -> None:
    for i in rng.permutation(len(swarm)):
        j = (i + rng.integers(1, len(swarm))) % len(swarm)
        offered = swarm[i].run(Offer(0, codec))
        assert isinstance(offered, Offered)
        responded = swarm[j].run(Respond(0, codec, offered.payload, offered.clip))
        assert isinstance(responded, Responded), responded
        assert isinstance(swarm[i].run(Finish(0, codec, responded.payload, offered.clip)), Finished)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_sixteen_unequal_learners_come_close_to_all_data_in_one_place(codec: str) -> None:
    # Dirichlet 0.1: most learners have two or three of the ten labels, and alone know no more.
    rounds = 150
    tasks = [load_task("digits", {"part": part, "parts": 16, "alpha": 0.1}) for part in range(16)]
    trainer = Trainer(tasks[0], lanes=16)
    swarm = learners(tasks[0], trainer, 16, tasks)
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        outputs = trainer.run([one.train_input(4) for one in swarm])
        for one, output in zip(swarm, outputs, strict=True):
            one.trained(output)
        swarm_round(swarm, rng, codec)
    # Then only exchange: what separates them now is their own last steps.
    for _ in range(15):
        for one in swarm:
            one.run(Train(0))
        swarm_round(swarm, rng, codec)
    accuracy = [found["accuracy"] for found in trainer.evaluate([one.readout() for one in swarm])]
    central = train_alone(load_task("digits", {}), rounds=rounds, learning=LEARNING)["accuracy"]
    alone = train_alone(tasks[0], rounds=rounds, learning=LEARNING)["accuracy"]
    assert alone < 0.6
    assert central > 0.96
    assert min(accuracy) > central - 0.03
    # A newcomer that adopts is as good at once.
    newcomer = learners(tasks[0], trainer, 1)[0]
    offered = swarm[3].run(Offer(0, "f32"))
    assert isinstance(offered, Offered)
    assert isinstance(newcomer.run(Adopt(0, "f32", offered.payload)), Adopted)
    assert trainer.evaluate([newcomer.readout()])[0]["accuracy"] > central - 0.03


PROGRAM = """
import hashlib
from gossip.config import LearningConfig, ExchangeConfig
from gossip.learning.learner import Learner
from gossip.learning.saved import encode
from gossip.learning.task import run_info
from gossip.learning.trainer import Trainer
from p2pnode.tasks import load_task

task = load_task("digits", {"parts": 5, "alpha": 0.3})
trainer = Trainer(task, lanes=3)
learning = LearningConfig()
run = run_info(network="", task=task, schema=trainer.schema, genesis=trainer.genesis, learning=learning)
one = Learner(
    run, trainer.genesis, exchange=ExchangeConfig(), learning=learning,
    batches=lambda seed: task.batches("train", seed),
)
for _ in range(10):
    one.trained(trainer.run([one.train_input(4)])[0])
print(hashlib.sha256(encode(one.dump())[0]).hexdigest())
"""


def test_two_processes_train_the_same_bits(root: Path) -> None:
    said = []
    for seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert answer.returncode == 0, answer.stderr
        said.append(answer.stdout)
    assert said[0] == said[1]
    assert len(said[0].strip()) == 64


def test_a_digits_task_is_a_task() -> None:
    task = load_task("digits", {"part": 2, "parts": 5, "alpha": 0.3})
    assert isinstance(task, Classifier)
    assert Trainer(task).schema.values == 64 * 64 + 64 + 64 * 10 + 10
