"""Who computes when: exchanges before training, training beside exchanges, one use of the learner at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import trio
import trio.testing

from gossip.config import ExchangeConfig, LearningConfig
from gossip.events import Done, Job, Offer, Offered, Save, Saved, Train, Trained
from gossip.learning.codec import FloatArray
from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.task import Leaf, RunInfo, Schema, vector_hash
from p2pnode.export import write_safetensors
from p2pnode.metrics import Counters
from p2pnode.store import MemoryStore
from p2pnode.worker import Worker

Clock: TypeAlias = trio.testing.MockClock

SCHEMA = Schema((Leaf("w", (64,), "float32"),))
GENESIS = np.zeros(64, np.float32)
RUN = RunInfo(b"r" * 32, "main", "step/1", SCHEMA.id, vector_hash(GENESIS), (64,))
OFFER = Offer(0, "f32")


class Steps:
    """Every training job moves the weights by one; may be held in the middle."""

    schema = SCHEMA

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Event()

    def run(self, inputs: Sequence[TrainInput]) -> list[TrainOutput]:
        self.begun.set()
        self.may_go_on.wait()
        return [TrainOutput(np.ones(64, np.float32), (), 0.5, given.steps) for given in inputs]

    def evaluate(self, vectors: Sequence[FloatArray]) -> list[dict[str, float]]:
        return [{"mean": float(vector.mean())} for vector in vectors]


class Bench:
    """A worker, and what it reported."""

    def __init__(self, *, threads: bool) -> None:
        self.trainer = Steps()
        self.store = MemoryStore()
        self.counters = Counters()
        self.done: dict[int, object] = {}
        self.order: list[int] = []
        self.learner = Learner(
            RUN, GENESIS, exchange=ExchangeConfig(), learning=LearningConfig(), batches=_batches
        )
        self.worker = Worker(
            learner=self.learner,
            trainer=self.trainer,
            store=self.store,
            post=self._post,
            counters=self.counters,
            threads=threads,
        )

    async def _post(self, done: Done) -> None:
        await trio.lowlevel.checkpoint()
        self.done[done.ticket] = done.result
        self.order.append(done.ticket)

    def submit(self, *jobs: Job) -> None:
        for ticket, job in enumerate(jobs, len(self.done) + 1):
            self.worker.submit(ticket, job)


def _batches(seed: int) -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield {"x": np.zeros((1, 1), np.float32)}


async def _working(bench: Bench, story: Callable[[], object]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.worker.run)
        await story()  # type: ignore[misc]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("threads", [False, True])
async def test_every_job_is_answered_under_its_ticket(threads: bool) -> None:
    bench = Bench(threads=threads)

    async def story() -> None:
        bench.submit(Train(4), OFFER, Save(), Train(0))
        assert bench.worker.busy
        await bench.worker.idle()

    await _working(bench, story)
    assert bench.done[1] == Trained(4, 0.5)
    assert isinstance(bench.done[2], Offered)
    assert isinstance(bench.done[3], Saved)
    assert isinstance(bench.done[4], Trained)
    assert bench.counters.jobs == {"train": 2, "offer": 1, "save": 1}
    assert bench.learner.steps == 4
    model = bench.store.read_model(RUN)
    assert model is not None
    assert model.size_bytes == bench.done[3].size_bytes > 0


async def test_exchanges_go_before_what_can_wait() -> None:
    bench = Bench(threads=False)

    async def story() -> None:
        bench.submit(Train(0), Save(), OFFER, OFFER)
        await bench.worker.idle()

    await _working(bench, story)
    assert bench.order[:2] == [3, 4]


async def test_an_exchange_is_answered_while_training_goes_on() -> None:
    """A partner does not wait for our gradient; and our change is added to the weights as they are by then."""
    bench = Bench(threads=True)
    bench.trainer.may_go_on.clear()

    async def story() -> None:
        bench.submit(Train(1))
        await trio.to_thread.run_sync(bench.trainer.begun.wait)
        bench.worker.submit(2, OFFER)
        with trio.fail_after(5):
            while 2 not in bench.done:  # noqa: ASYNC110  seen from outside
                await trio.sleep(0.001)
        assert 1 not in bench.done
        bench.trainer.may_go_on.set()
        await bench.worker.idle()

    await _working(bench, story)
    assert bench.order == [2, 1]
    np.testing.assert_array_equal(bench.learner.weights(), np.ones(64))


async def test_cancelling_does_not_wait_for_a_thread() -> None:
    bench = Bench(threads=True)
    bench.trainer.may_go_on.clear()

    async def story() -> None:
        bench.submit(Train(1))
        await trio.to_thread.run_sync(bench.trainer.begun.wait)

    with trio.fail_after(5):
        await _working(bench, story)
    bench.trainer.may_go_on.set()


async def test_people_are_answered_between_jobs(tmp_path: Path) -> None:
    bench = Bench(threads=True)

    async def story() -> None:
        bench.submit(*[Train(1)] * 3)
        await bench.worker.idle()
        assert await bench.worker.evaluate() == {"mean": pytest.approx(float(bench.learner.readout().mean()))}
        assert await bench.worker.export(tmp_path / "m.safetensors") > 256
        assert await bench.worker.save() == bench.learner.dump().size_bytes

    await _working(bench, story)


@pytest.mark.parametrize("threads", [False, True])
async def test_a_question_that_fails_is_the_askers_fault_and_the_work_goes_on(
    threads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that does not fit into memory a second time costs its export, not the daemon."""
    bench = Bench(threads=threads)

    def too_large() -> FloatArray:
        raise MemoryError

    async def story() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bench.learner, "readout", too_large)
            patch.setattr(bench.learner, "dump", too_large)
            for asked in (
                bench.worker.evaluate,
                partial(bench.worker.export, tmp_path / "m"),
                bench.worker.save,
            ):
                with pytest.raises(MemoryError):
                    await asked()
        bench.submit(Train(2))
        await bench.worker.idle()

    await _working(bench, story)
    assert bench.learner.steps == 2


def test_types_that_numpy_does_not_know_are_written_as_float32(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    schema = Schema((Leaf("a", (2, 2), "bfloat16"), Leaf("b", (3,), "float16"), Leaf("c", (), "float32")))
    write_safetensors(tmp_path / "m.safetensors", schema, np.arange(8, dtype=np.float32))
    arrays = load_file(tmp_path / "m.safetensors")
    assert {name: (str(array.dtype), array.tolist()) for name, array in arrays.items()} == {
        "a": ("float32", [[0.0, 1.0], [2.0, 3.0]]),
        "b": ("float16", [4.0, 5.0, 6.0]),
        "c": ("float32", 7.0),
    }
