"""The worked example does what its first lines promise: alone no machine knows the curve, together they do."""

from pathlib import Path

import numpy as np
import pytest

from gossip.config import ExchangeConfig, LearningConfig
from gossip.events import Finish, Finished, Offer, Offered, Respond, Responded
from gossip.learning.learner import Learner
from gossip.learning.task import run_info
from gossip.learning.trainer import Trainer, train_alone
from p2pnode.errors import UserError
from p2pnode.tasks import load_task
from p2pnode.tasks.check import check_task

LEARNING = LearningConfig()
STRETCHES = 4


@pytest.fixture(autouse=True)
def in_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def test_the_example_passes_the_check() -> None:
    facts = check_task(load_task("examples.sine:make", {"stretch": 1}), LEARNING)
    assert facts.task == "sine/1"
    assert facts.leaves == ["b1 float32[32]", "b2 float32[1]", "w1 float32[1,32]", "w2 float32[32,1]"]


def test_a_wrong_argument_is_said_in_one_sentence() -> None:
    with pytest.raises(UserError, match="stretch must be from 0 to 3, got 4"):
        load_task("examples.sine:make", {"stretch": 4})


def test_together_four_machines_learn_what_none_can_alone() -> None:
    tasks = [load_task("examples.sine:make", {"stretch": stretch}) for stretch in range(STRETCHES)]
    trainer = Trainer(tasks[0], lanes=STRETCHES)
    run = run_info(
        network="", task=tasks[0], schema=trainer.schema, genesis=trainer.genesis, learning=LEARNING
    )
    swarm = [
        Learner(
            run,
            trainer.genesis,
            exchange=ExchangeConfig(),
            learning=LEARNING,
            node=node,
            batches=lambda seed, task=task: task.batches("train", seed),
        )
        for node, task in enumerate(tasks)
    ]
    rng = np.random.default_rng(0)
    for _ in range(300):
        for one, output in zip(swarm, trainer.run([one.train_input(4) for one in swarm]), strict=True):
            one.trained(output)
        for i in rng.permutation(STRETCHES):
            one, other = swarm[i], swarm[(i + rng.integers(1, STRETCHES)) % STRETCHES]
            offered = one.run(Offer(0, "int8"))
            assert isinstance(offered, Offered)
            responded = other.run(Respond(0, "int8", offered.payload, offered.clip))
            assert isinstance(responded, Responded)
            assert isinstance(one.run(Finish(0, "int8", responded.payload, offered.clip)), Finished)
    together = [found["rms_error"] for found in trainer.evaluate([one.readout() for one in swarm])]
    alone = [train_alone(task, rounds=300, learning=LEARNING)["rms_error"] for task in tasks[:2]]
    assert max(together) < 0.25
    assert min(alone) > 2 * max(together)
