"""`p2pnode check-task`: try a task before a swarm depends on it.

Runs what a daemon would run: init, one step, an exchange with a second learner in every codec, a dump and a
load.
"""

import time

import numpy as np
from msgspec import UNSET, Struct, UnsetType

from gossip.config import CODECS, ExchangeConfig, LearningConfig, RunConfig
from gossip.errors import LocalError
from gossip.events import JobRefused, Offer, Offered, Respond
from gossip.learning.codec import payload_bytes
from gossip.learning.learner import Learner
from gossip.learning.task import Task, run_info, task_name
from gossip.run import manifest
from p2pnode.errors import ExitCode, UserError
from p2pnode.interrupt import EndsAtOnce
from p2pnode.tasks.faults import TaskFaults, what_came

# Steps that are timed, after the compiling one.
_TIMED_STEPS = 20


class TaskFacts(Struct, frozen=True):
    """What check-task prints."""

    task: str  # name/version
    run: str  # hex; peers need the same
    manifest: dict[str, str]  # what makes the run, key by key, in words
    schema: str  # hex
    leaves: list[str]  # "hidden/w float32[64,64]"
    values: int  # shared float32
    shards: int
    payload_bytes: dict[str, int]  # of the whole model, one direction, per codec
    compile_s: float  # until the first step is done
    step_s: float  # one optimiser step after that
    loss: float  # after the timed steps
    dropped: int  # of all steps, those whose change was not finite
    test: dict[str, float]  # metrics of the test split, with "loss" and "rows"
    snapshot_bytes: int
    columns: list[str] | UnsetType = UNSET  # features of a table that names them, in the order that counts


def check_task(
    task: Task,
    learning: LearningConfig,
    *,
    network: str = "",
    agreed: RunConfig | None = None,
    spec: str = "",
) -> TaskFacts:
    """Run a task through everything that a daemon does with it. Imports JAX.

    Args:
        task: As `load_task` made it.
        learning: How it will be trained.
        network: Where, for the id of the run.
        agreed: What else the people of the run agree on.
        spec: What it was made from; faults in a person's own code are told with file and line then.

    Raises:
        UserError: status TASK, one sentence: which part of the contract does not hold.
    """
    # Imported here: this module also stands behind commands that need no JAX.
    with EndsAtOnce():
        from gossip.learning.trainer import Trainer

    started = time.perf_counter()
    words = f"the task {task_name(task)} breaks its contract"
    try:
        with TaskFaults(spec, key=words, first_uses=()):
            trainer = Trainer(task, seed=learning.genesis_seed)
            again = Trainer(task, seed=learning.genesis_seed)
            if not np.array_equal(trainer.genesis, again.genesis):
                raise LocalError(
                    "init(key) gave other parameters for the same key; peers would share no genesis"
                )
            if not np.isfinite(trainer.genesis).all():
                raise LocalError("init(key) gave parameters that are not finite")
            run = run_info(
                network=network,
                task=task,
                schema=trainer.schema,
                genesis=trainer.genesis,
                learning=learning,
                run=agreed,
            )

            def learner() -> Learner:
                return Learner(
                    run,
                    trainer.genesis,
                    exchange=ExchangeConfig(),
                    learning=learning,
                    batches=lambda seed: task.batches("train", seed),
                )

            ours = learner()
            trained = ours.trained(trainer.run([ours.train_input(1)])[0])
            dropped = int(trained.dropped)
            compiled = time.perf_counter()
            for _ in range(_TIMED_STEPS):
                trained = ours.trained(trainer.run([ours.train_input(1)])[0])
                dropped += trained.dropped
            stepped = time.perf_counter()
            if not np.isfinite(trained.loss):
                raise LocalError(
                    f"the loss is {trained.loss} after {ours.steps} steps; lower the learning rate?"
                )
            if dropped == ours.steps:
                raise LocalError(
                    f"the loss is {trained.loss:.4g}, but the change of the weights was not finite in any of"
                    f" {ours.steps} steps: a gradient or the optimiser divides by zero or overflows, as Adam does in"
                    " float16"
                )
            if np.array_equal(ours.weights(), trainer.genesis):
                raise LocalError(
                    f"{ours.steps} steps changed no weight; does the loss depend on the parameters?"
                )
            _exchange(ours, learner())
            saved = ours.dump()
            learner().load(saved)
            test = trainer.evaluate([ours.readout()])[0]
    except (LocalError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(ExitCode.TASK, f"{words}: {what_came(error)}") from error
    return TaskFacts(
        task=run.task,
        run=run.id.hex(),
        manifest=manifest.shown(manifest.decode(run.manifest)),
        schema=run.schema.hex(),
        leaves=[str(leaf) for leaf in trainer.schema.leaves],
        values=trainer.schema.values,
        shards=len(run.shard_sizes),
        payload_bytes={
            codec: sum(payload_bytes(codec, size) for size in run.shard_sizes) for codec in CODECS
        },
        compile_s=compiled - started,
        step_s=(stepped - compiled) / _TIMED_STEPS,
        loss=trained.loss,
        dropped=dropped,
        test=test,
        snapshot_bytes=saved.size_bytes,
        columns=list(getattr(task, "columns", ())) or UNSET,
    )


def _exchange(ours: Learner, other: Learner) -> None:
    for codec in CODECS:
        offered = ours.run(Offer(0, codec))
        assert isinstance(offered, Offered), "an offer carries nothing of a peer that could be refused"
        answer = other.run(Respond(0, codec, offered.payload, offered.clip))
        if isinstance(answer, JobRefused):
            raise LocalError(f"a peer at genesis would refuse this model: {answer.detail}")
