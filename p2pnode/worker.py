"""The arithmetic beside the event loop: who carries out the jobs that the core orders, and in what order.

The learner owns the weights and is used by one piece of work at a time, exchanges first: a partner waits for us, our
own training can wait. Training itself touches no weights (it gets a copy and gives a change back), so it runs on a
thread of its own and exchanges go on meanwhile; so does writing a snapshot. JAX and numpy let go of the interpreter
lock while they compute, and the event loop stays awake.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
import trio

from gossip.events import Done, Job, JobResult, Offered, Save, Saved, Train, Trained
from gossip.learning.codec import FloatArray
from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.saved import SavedModel
from gossip.learning.task import Schema
from p2pnode.errors import ExitCode, UserError
from p2pnode.export import write_safetensors
from p2pnode.metrics import Counters
from p2pnode.store import Store
from p2pnode.tasks import TASK_FAULTS
from p2pnode.tasks.faults import TaskFaultError, TaskFaults, what_came

T = TypeVar("T")

# Pieces of work in the queue. The core orders at most one job for each shard and one training at a time; more than
# this is a bug of ours.
PIECES_MAX = 4096

log = structlog.get_logger(__name__)


class Trains(Protocol):
    """What trains and measures: `gossip.learning.trainer.Trainer` is one."""

    @property
    def schema(self) -> Schema: ...
    def run(self, inputs: Sequence[TrainInput]) -> list[TrainOutput]: ...
    def evaluate(self, vectors: Sequence[FloatArray]) -> list[dict[str, float]]: ...


@dataclass(frozen=True, slots=True)
class _Piece:
    """One use of the learner, and what to do with its result."""

    work: Callable[[], Any]
    then: Callable[[Any], Awaitable[None]]


class Worker:
    """Carries out jobs until cancelled.

    Args:
        learner: Nobody else may touch it while the worker runs.
        trainer: Called by one thread at a time.
        store: Where snapshots go.
        post: Puts `Done` into the inbox.
        counters: What is counted.
        threads: Whether to compute on threads. Under a mock clock there must be none: work is done in place, and takes
            no time.
        task: What `load_task` was given; faults in a person's own code are told with file and line then.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        trainer: Trains,
        store: Store,
        post: Callable[[Done], Awaitable[None]],
        counters: Counters,
        threads: bool = True,
        task: str = "",
    ) -> None:
        self._learner = learner
        self._trainer = trainer
        self._store = store
        self._post = post
        self._counters = counters
        self._threads = threads
        self._task = task
        self._urgent: deque[_Piece] = deque()  # exchanges
        self._patient: deque[_Piece] = deque()  # everything else
        self._changed = trio.lowlevel.ParkingLot()
        self._unfinished = 0  # jobs and requests whose result is not delivered
        self._unsaved = False  # whether the learner has changed since the last snapshot
        self._nursery: trio.Nursery | None = None
        # Made when first used: limits belong to a running event loop.
        self._limits: dict[str, trio.CapacityLimiter] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Use the learner, piece by piece. An exception of a job ends the worker: it is a bug of ours."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                while not self._urgent and not self._patient:
                    await self._changed.park()
                piece = (self._urgent or self._patient).popleft()
                await piece.then(await self._compute("learner", piece.work))

    def submit(self, ticket: int, job: Job) -> None:
        """Take a job; its `Done` comes later. Does not wait."""
        self._unfinished += 1
        started = time.perf_counter()
        report = partial(self._report, ticket, type(job).__name__.lower(), started)
        if isinstance(job, Save):
            self._queue(self._patient, self._dump, partial(self._then, self._write, report))
        elif isinstance(job, Train) and job.steps > 0:
            capture = partial(_of_the_task, self._task, partial(self._learner.train_input, job.steps))
            self._queue(self._patient, capture, partial(self._then, self._train, report))
        elif isinstance(job, Train):
            self._queue(self._patient, partial(self._learner.run, job), report)
        else:
            self._queue(self._urgent, partial(self._learner.run, job), report)

    # --- requests of people ------------------------------------------------------------------------------

    async def evaluate(self) -> dict[str, float]:
        """Measure the read-out on the test split of the task.

        Raises:
            UserError: TASK; the person's own code raised. What else the trainer raises comes as it is.
        """
        vector = await self._ask(lambda: self._learner.readout().copy())
        with TaskFaults(self._task, key="cannot be tested"):
            return (await self._compute("trainer", partial(self._trainer.evaluate, [vector])))[0]

    async def export(self, path: Path) -> int:
        """Write the read-out to a safetensors file; returns its size in bytes.

        Raises:
            OSError: it cannot be written.
        """
        vector = await self._ask(lambda: self._learner.readout().copy())
        return await self._compute("disk", partial(write_safetensors, path, self._trainer.schema, vector))

    async def save(self) -> int:
        """Write a snapshot now; returns its size in bytes, 0 if the disk did not take it."""
        return await self._write_model(await self._ask(self._dump))

    async def idle(self) -> None:
        """Wait until every job has reported and nobody waits for an answer."""
        while self._unfinished:
            await self._changed.park()

    @property
    def busy(self) -> bool:
        return self._unfinished > 0

    @property
    def unsaved(self) -> bool:
        """Whether a job has ended since the last snapshot."""
        return self._unsaved

    # --- how ---------------------------------------------------------------------------------------------

    def _queue(
        self, queue: deque[_Piece], work: Callable[[], Any], then: Callable[[Any], Awaitable[None]]
    ) -> None:
        assert len(queue) < PIECES_MAX, "the core orders more work than it may"
        queue.append(_Piece(work, then))
        self._changed.unpark_all()

    async def _compute(self, lane: str, work: Callable[[], T]) -> T:
        """Run `work` on the thread of a lane; one piece at a time in each lane."""
        if not self._threads:
            await trio.lowlevel.checkpoint()
            return work()
        limit = self._limits.setdefault(lane, trio.CapacityLimiter(1))
        # Abandoned when we are cancelled: whoever kills the daemon does not wait for a compilation.
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limit)

    async def _then(
        self,
        step: Callable[[Any, Callable[[Any], Awaitable[None]]], Awaitable[None]],
        report: Any,
        value: Any,
    ) -> None:
        """Go on with `step` in a task of its own, so that the learner is free meanwhile."""
        assert self._nursery is not None
        self._nursery.start_soon(step, value, report)

    async def _train(self, given: TrainInput, report: Callable[[Trained], Awaitable[None]]) -> None:
        train = partial(_of_the_task, self._task, partial(self._trainer.run, [given]))
        [output] = await self._compute("trainer", train)
        self._queue(self._patient, partial(self._learner.trained, output), report)

    async def _write(self, model: SavedModel, report: Callable[[Saved], Awaitable[None]]) -> None:
        await report(Saved(await self._write_model(model)))

    def _dump(self) -> SavedModel:
        self._unsaved = False
        return self._learner.dump()

    async def _write_model(self, model: SavedModel) -> int:
        run = self._learner.run_info
        try:
            await self._compute("disk", partial(self._store.write_model, run, model))
        except OSError as error:
            # A full disk must not end the learning; the model before is still whole.
            log.error("snapshot_failed", size_bytes=model.size_bytes, detail=str(error))
            return 0
        return model.size_bytes

    async def _report(self, ticket: int, kind: str, started: float, result: JobResult) -> None:
        self._counters.job(kind, time.perf_counter() - started)
        if not isinstance(result, Saved | Offered):  # these change nothing
            self._unsaved = True
        await self._post(Done(ticket, result))
        self._finished()

    async def _ask(self, work: Callable[[], T]) -> T:
        """Use the learner once, in turn. What `work` raises is the asker's and does not end the worker."""
        turn, over = trio.Event(), trio.Event()

        async def then(_: object) -> None:
            turn.set()
            await over.wait()

        self._unfinished += 1
        self._queue(self._patient, _nothing, then)
        try:
            await turn.wait()
            return await self._compute("learner", work)
        finally:
            over.set()
            self._finished()

    def _finished(self) -> None:
        self._unfinished -= 1
        self._changed.unpark_all()


def _nothing() -> None:
    """The work of a piece that only waits for its turn."""


def _of_the_task(task: str, work: Callable[[], T]) -> T:
    """Run what calls the person's own code, so that its faults are not taken for ours."""
    try:
        with TaskFaults(task, key="the task failed while training"):
            return work()
    except TaskFaultError as error:
        log.error("task_failed", exc_info=error.__cause__)
        raise UserError(ExitCode.TASK, f"{error}; the log has the traceback.") from error
    except TASK_FAULTS as error:
        log.error("task_failed", exc_info=error)
        raise UserError(
            ExitCode.TASK,
            f"the task failed while training ({what_came(error)}); "
            "`p2pnode check-task` tries it alone, and the log has the traceback.",
        ) from error
