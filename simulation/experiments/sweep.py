"""Many runs of one scenario: every combination of the values that vary, every seed, on all cores.

Each run is made in a process that lasts, with one thread for arithmetic, so that its figures depend neither on the
number of jobs nor on what ran beside it. Whoever starts the processes is the only one who writes results.
"""

import itertools
import os
import re
import tempfile
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from decimal import Decimal
from types import TracebackType
from typing import Any

import msgspec
from msgspec import Struct

from p2pnode.errors import UserError
from p2pnode.tasks import own_module
from simulation.experiments.results import run_key
from simulation.experiments.run_command import POINTS, VIOLATION, replay_command
from simulation.processes import processes as started
from simulation.scenario import Scenario, describe, load

# a:b:step of numbers, half open.
_RANGE = re.compile(r"(-?[\d.]+(?:e-?\d+)?):(-?[\d.]+(?:e-?\d+)?):(-?[\d.]+(?:e-?\d+)?)", re.IGNORECASE)
# More combinations than this are a slip of the keyboard: at a second each they take a day.
COMBINATIONS_MAX = 100_000
# What numeric libraries read when they are loaded. One thread each: the processes fill the cores, and sums of floats
# must not depend on how many threads share them.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
# Compiling takes longer than many a run (2.5 s of 3): what one process compiled for a task the others load. In a folder
# that only we can read, because what is loaded from it is executed; or in the one that somebody has for it.
_COMPILED = "JAX_COMPILATION_CACHE_DIR"
_KEEP_COMPILED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


class SweepError(Exception):
    """What was asked for cannot be swept; one sentence."""


class BrokenRunError(Exception):
    """A run raised something: its kind and its words."""


class Job(Struct, frozen=True):
    """One run to make."""

    scenario: str
    changes: tuple[str, ...]  # as for --set
    seed: int
    curve: bool = True

    def command(self) -> str:
        return replay_command(self.scenario, self.seed, self.changes, curve=self.curve)


class Made(Struct, frozen=True):
    """What became of a job."""

    job: Job
    key: str  # of the run, from the scenario as the process read it; empty where it did not get so far
    report: Any = None  # a `simulation.experiments.run.Report`, without contacts
    failed: str = ""

    def told(self) -> str:
        """What a person is told of a run that failed, with the command that repeats it, once."""
        command = self.job.command()
        again = "" if command in self.failed else f"\n  repeat with: {command}"
        return f"FAILED: {self.failed}{again}"


def values_of(text: str) -> tuple[str, list[str]]:
    """Reads `key=v1,v2` or `key=a:b:step` (half open). Commas within brackets and quotes do not separate.

    Raises:
        SweepError: one sentence.
    """
    key, equals, rest = text.partition("=")
    if not equals or not key or not rest:
        raise SweepError(f"--vary {text}: expected key=v1,v2 or key=a:b:step, as in network.loss=0,0.05,0.1")
    found = _RANGE.fullmatch(rest)
    if found is None:
        return key, _split(rest)
    try:
        first, last, step = (Decimal(part) for part in found.groups())
    except ArithmeticError as error:
        raise SweepError(f"--vary {text}: expected three numbers a:b:step") from error
    if step <= 0 or first >= last:
        raise SweepError(f"--vary {text}: expected a:b:step with a below b and a step above 0")
    count = int((last - first) / step) + 1
    if count > COMBINATIONS_MAX:
        raise SweepError(f"--vary {text}: {count} values; at most {COMBINATIONS_MAX}")
    # Decimal, so that three times 0.1 is 0.3.
    values = [first + step * number for number in range(count)]
    return key, [f"{value}" for value in values if value < last]


def _split(text: str) -> list[str]:
    """Splits at the commas that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def jobs_of(
    scenario: str, changes: Sequence[str], vary: Sequence[str], seeds: range, *, curve: bool = True
) -> list[Job]:
    """Every combination with every seed, the seeds of one combination together.

    Raises:
        SweepError: `vary` cannot be read, varies a key twice or one that is set, or there are too many runs.
        ScenarioError: a combination is no scenario.
    """
    varied = [values_of(text) for text in vary]
    keys = [key for key, _ in varied]
    for key in keys:
        if keys.count(key) > 1:
            raise SweepError(f"--vary {key}: varied twice")
        if key in (change.partition("=")[0].strip() for change in changes):
            raise SweepError(f"--vary {key}: --set gives it one value; leave one of the two out")
    for key, values in varied:
        for value in values:
            if values.count(value) > 1:
                raise SweepError(f"--vary {key}: {value} is given twice")
    size = len(seeds)
    for _, values in varied:
        size *= len(values)
    if size > COMBINATIONS_MAX:
        raise SweepError(f"{size} runs; at most {COMBINATIONS_MAX}")
    jobs = []
    for chosen in itertools.product(*(values for _, values in varied)):
        combined = (
            *changes,
            *(f"{key}={value}" for key, value in zip(keys, chosen, strict=True)),
        )
        load(scenario, combined)
        jobs += [Job(scenario, combined, seed, curve) for seed in seeds]
    return jobs


# --- processes ----------------------------------------------------------------------------------------


class _InWords:
    """Whatever a run raises leaves as BrokenRunError, but for what is a sentence already.

    An exception of somebody's own may be one that cannot be made again from what is sent, which would end all processes
    and the sweep with them.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise BrokenRunError(f"{type(error).__name__}: {error}") from error


def check_stop_rules(jobs: Mapping[Job, Scenario], *, processes: int) -> None:
    """Before the first run, whether rules to stop ask for what tasks measure; once for each task and its arguments.

    Tasks of ours measure all that can be asked for. Another is asked in a process, as it is for a run.

    Args:
        jobs: What is to be made -> its scenario.

    Raises:
        SweepError: one never could stop.
    """
    asked: dict[bytes, Job] = {}
    for job, scenario in jobs.items():
        stop, task = scenario.stop, scenario.task
        if (stop.accuracy_mean or stop.accuracy_worst) and own_module(task.name):
            asked.setdefault(msgspec.json.encode(task, order="sorted"), job)
    if not asked:
        return
    with (
        suppress(BrokenProcessPool),  # the runs will tell
        _environment(ONE_THREAD),
        started(min(processes, len(asked)), prepare=_prepare_process) as pool,
    ):
        waiting = [(job, pool.submit(stop_rule_fault, job)) for job in asked.values()]
        for job, future in waiting:
            error = future.exception()
            if error is None and (why := future.result()):
                which = f" ({', '.join(job.changes)})" if len(asked) > 1 else ""
                raise SweepError(f"{why}{which}")


def stop_rule_fault(job: Job) -> str:
    """Why the rule to stop of a job could never hold; empty if it could. Called in a process for runs.

    What else is wrong with its task, its runs tell.
    """
    from p2pnode.tasks.faults import TaskFaultError, TaskFaults
    from simulation.experiments.run import RealParts, check_accuracy
    from simulation.seeds import Seeds

    loaded = load(job.scenario, job.changes)
    # Two nodes are enough for that; their rows are divided as among all.
    task = msgspec.structs.replace(loaded.task, args={"parts": loaded.nodes, **loaded.task.args})
    few = msgspec.structs.replace(loaded, nodes=2, task=task)
    try:
        with _InWords(), TaskFaults(loaded.task.name):
            check_accuracy(few, RealParts(few, Seeds(job.seed)).metrics(), None)
    except TaskFaultError:
        return ""
    except UserError as error:
        return str(error)
    return ""


def make(job: Job) -> Made:
    """Makes one run; called in a process for runs.

    Violations, and what is the fault of the task, are results.

    Raises:
        BrokenRunError: anything else; it arrives as the future's exception.
    """
    with _InWords():
        return _make(job)


def _make(job: Job) -> Made:
    import jax

    from p2pnode.tasks.faults import TaskFaults
    from simulation.checkers import ViolationError
    from simulation.experiments.run import run

    loaded = load(job.scenario, job.changes)
    key = run_key(describe(loaded), job.seed)
    try:
        with TaskFaults(loaded.task.name):
            report = run(
                loaded,
                job.seed,
                replay=job.command(),
                measure_every_s=loaded.duration_s / POINTS if job.curve else 0.0,
            )
    except ViolationError as error:
        return Made(job, key, failed=f"{VIOLATION}: {error}")
    except UserError as error:
        return Made(job, key, failed=str(error))
    finally:
        # Of every run its own functions are compiled: thousands of them would fill the memory.
        jax.clear_caches()  # type: ignore[no-untyped-call]  # of the library
    if report.curve is not None:
        # By far the largest part, and nobody compares it.
        bare = msgspec.structs.replace(report.curve.contacts, counts=[])
        report = msgspec.structs.replace(report, curve=msgspec.structs.replace(report.curve, contacts=bare))
    return Made(job, key, report=report)


def make_all(jobs: Sequence[Job], *, processes: int) -> Generator[Made, None, None]:
    """Makes runs in processes, and yields them as they end. Whoever stops iterating ends the processes.

    Raises:
        SweepError: a process died, most likely for lack of memory; what was yielded before is good.
    """
    waiting: dict[Future[Made], Job] = {}
    left = iter(jobs)
    with (
        tempfile.TemporaryDirectory(prefix="p2psim-") as compiled,
        _environment({_COMPILED: os.environ.get(_COMPILED, compiled), **ONE_THREAD, **_KEEP_COMPILED}),
        started(processes, prepare=_prepare_process) as pool,
    ):
        while True:
            for job in itertools.islice(left, processes + 1 - len(waiting)):
                waiting[pool.submit(make, job)] = job
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield _outcome(waiting.pop(future), future)


def _outcome(job: Job, future: Future[Made]) -> Made:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        raise SweepError(
            "a process for runs died, most likely for lack of memory; fewer --jobs may help, "
            "and the same command goes on where this one ended"
        ) from error
    words = isinstance(error, BrokenRunError)
    return Made(job, "", failed=str(error) if words else f"{type(error).__name__}: {error}")


def _prepare_process() -> None:
    """Once, before the first run."""
    # JAX reads an entry that a neighbour is just writing, compiles for itself, and warns; nothing is lost.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes started meanwhile have these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
