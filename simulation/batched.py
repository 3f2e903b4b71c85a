"""Training, carried out late and together: hundreds of nodes, one call of the accelerator.

The inputs of a training job are captured when the node submits it, the result is due at a later virtual date,
and nothing can observe it before. So a job may really run at any moment in between. Jobs wait until a call's
worth of them is there, or until the first result of a waiting job falls due. A call always has the same
number of lanes, so the numbers of a job do not depend on which others happened to run beside it: batching is
exact.

Full calls run on one worker thread while the heap goes on; the results, and the order in which the world sees
them, are the same as without the thread.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class _Call(Generic[Output]):
    """One call under way, or done."""

    __slots__ = ("future", "outputs")

    def __init__(self, future: Future[list[Output]]) -> None:
        self.future = future
        self.outputs: list[Output] | None = None  # of the future, once somebody has waited for it


class TrainingJob(Generic[Input, Output]):
    """One submitted job; owned by the `Batches` that returned it."""

    __slots__ = ("call", "input", "lane")

    def __init__(self, given: Input) -> None:
        self.input: Input | None = given
        self.call: _Call[Output] | None = None  # set when it was handed to the worker
        self.lane = 0


class Batches(Generic[Input, Output]):
    """Collects jobs and runs them in calls of at most `lanes`.

    Args:
        run: Carries out up to `lanes` jobs, outputs in the order of the inputs. Called from one other thread.
        lanes: Jobs in one call.
    """

    def __init__(self, run: Callable[[Sequence[Input]], list[Output]], *, lanes: int) -> None:
        self._run = run
        self._lanes = lanes
        self._waiting: list[TrainingJob[Input, Output]] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self.calls = 0
        self.jobs = 0

    def submit(self, given: Input) -> TrainingJob[Input, Output]:
        """Takes a job whose input is complete and will not change any more."""
        job: TrainingJob[Input, Output] = TrainingJob(given)
        self._waiting.append(job)
        if len(self._waiting) == self._lanes:
            self._start()
        return job

    def result(self, job: TrainingJob[Input, Output]) -> Output:
        """The output of `job`; everything that waits is run first if the job waits still."""
        if job.call is None:
            self._start()
        assert job.call is not None, "a job that waits is started with all others that wait"
        call = job.call
        if call.outputs is None:
            call.outputs = call.future.result()
        return call.outputs[job.lane]

    def close(self) -> None:
        """Ends the worker thread; jobs that wait are forgotten."""
        self._waiting.clear()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        jobs, self._waiting = self._waiting, []
        inputs: list[Input] = []
        for lane, job in enumerate(jobs):
            assert job.input is not None, "a job runs once"
            inputs.append(job.input)
            job.input, job.lane = None, lane
        call = _Call(self._worker.submit(self._run, inputs))
        for job in jobs:
            job.call = call
        self.calls += 1
        self.jobs += len(jobs)
