"""Whole daemons: several over memory in virtual time, and over TCP with threads.

The learner is the real one; what trains is a few lines of numpy, because these tests are about the daemon.
"""

import errno
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import structlog
import trio
import trio.testing
from safetensors.numpy import load_file

from crypto.identity import Identity
from gossip.config import Config, LearningConfig
from gossip.dht.ids import node_id
from gossip.errors import LocalError, Reason
from gossip.events import Connected, Exchanged, News, Persist, Refused, StateChanged, Trained
from gossip.learning import saved
from gossip.learning.codec import FloatArray
from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.saved import SavedModel
from gossip.learning.task import Leaf, RunInfo, Schema, run_info, vector_hash
from gossip.persisted import CEILING_KEY
from gossip.sequence import SKIP
from p2pnode import home as homes
from p2pnode import keyfile
from p2pnode.daemon import Daemon
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home
from p2pnode.metrics import Failure
from p2pnode.store import MemoryStore, SqliteStore, Store
from p2pnode.tcp import TcpTransport
from p2pnode.transport import Transport
from simulation.memory import MemoryNetwork
from simulation.network import PRESETS, LinkModel

Clock: TypeAlias = trio.testing.MockClock

VALUES = 100
SCHEMA = Schema((Leaf("layer/w", (9, 10), "float32"), Leaf("layer/b", (10,), "float32")))
LEARNING = LearningConfig(shard_values_max=60, save_interval_s=5.0, round_interval_s=0.5)
CONFIG = Config(learning=LEARNING)
GENESIS = np.linspace(-1.0, 1.0, VALUES, dtype=np.float32)
RUN = RunInfo(b"r" * 32, "main", "bowl/1", SCHEMA.id, vector_hash(GENESIS), (50, 50))


class Bowl:
    """Trains towards a target that differs from node to node: alone they part, together they meet in the mean."""

    def __init__(self, target: float) -> None:
        self.schema = SCHEMA
        self._target = np.float32(target)
        self.rate = 0.05
        self.state: tuple[np.ndarray, ...] = ()  # of the optimiser, after each job

    def run(self, inputs: Sequence[TrainInput]) -> list[TrainOutput]:
        return [
            TrainOutput(
                change=(self.rate * (self._target - given.params)).astype(np.float32),
                optimiser=self.state,
                loss=float(np.mean((given.params - self._target) ** 2)),
                steps=given.steps,
            )
            for given in inputs
        ]

    def evaluate(self, vectors: Sequence[FloatArray]) -> list[dict[str, float]]:
        return [{"mean": float(np.mean(vector)), "rows": 1.0} for vector in vectors]


def _batches(seed: int) -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield {"x": np.zeros((1, 1), np.float32)}


class Machine:
    """A host with a key and a disk, on which daemons live one after another."""

    def __init__(
        self,
        number: int,
        transport: Transport,
        listen: str,
        *,
        store: Store | None = None,
        threads: bool = False,
    ) -> None:
        self.identity = Identity.generate(random.Random(f"identity {number}").randbytes)
        self.id = node_id(self.identity.public_key)
        self.store = store or MemoryStore()
        self.transport = transport
        self.listen = listen
        self.threads = threads
        self.number = number
        self.news: list[News] = []
        self.bowl = Bowl(float(number))

    def daemon(
        self,
        *,
        join: tuple[str, ...] = (),
        config: Config = CONFIG,
        run: RunInfo = RUN,
        optimiser: bytes = b"",
    ) -> Daemon:
        self.learner = Learner(
            run,
            GENESIS,
            exchange=config.exchange,
            learning=config.learning,
            node=self.number,
            batches=_batches,
            optimiser=optimiser,
        )
        rng = random.Random(f"daemon {self.number}")
        return Daemon(
            identity=self.identity,
            config=config,
            run=run,
            learner=self.learner,
            trainer=self.bowl,
            store=self.store,
            transport=self.transport,
            listen=self.listen,
            join=join,
            entropy=rng.randbytes,
            rng=rng,
            on_news=self.news.append,
            threads=self.threads,
        )

    def told(self, kind: type) -> list[News]:
        return [news for news in self.news if isinstance(news, kind)]


def machines(count: int, link: LinkModel | None = None) -> list[Machine]:
    network = MemoryNetwork(link)
    return [
        Machine(number, network.host(f"10.0.{number}.1"), f"10.0.{number}.1:7400") for number in range(count)
    ]


@asynccontextmanager
async def living(*daemons: Daemon) -> AsyncIterator[list[str]]:
    """Runs daemons; yields their addresses; ends them abruptly."""
    async with trio.open_nursery() as nursery:
        yield [await nursery.start(daemon.run) for daemon in daemons]
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110  a condition over several daemons has no event
            await trio.sleep(0.02)


# --- in virtual time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["ideal", "wan"])
async def test_daemons_find_each_other_and_meet_in_the_mean(preset: str, autojump_clock: Clock) -> None:
    """Three daemons that know one address: all are connected, exchange, and their models come together."""
    link = LinkModel(PRESETS[preset], random.Random(1))
    first, *others = swarm = machines(3, link)
    daemons = [first.daemon(), *(machine.daemon(join=(first.listen,)) for machine in others)]
    async with living(*daemons):
        await until(lambda: all(len(daemon.peers()) == 2 for daemon in daemons))
        await until(lambda: all(daemon.status()["exchanges"] > 300 for daemon in daemons), timeout_s=600)
        answers = [await daemon.evaluate() for daemon in daemons]
    # Alone they would stand at 0, 1 and 2.
    assert [answer["mean"] for answer in answers] == pytest.approx([1.0] * 3, abs=0.35)
    for machine, daemon in zip(swarm, daemons, strict=True):
        status = daemon.status()
        assert (status["id"], status["state"]) == (machine.id.hex(), "training")
        assert status["loss"] > 0
        assert status["counters"]["frames"]["in"]["offer"] > 100
        assert status["bytes_in"] > status["counters"]["frame_bytes"]["in"]["offer"]
        assert {peer["id"] for peer in daemon.peers()} == {other.id.hex() for other in swarm} - {status["id"]}


async def test_a_node_that_trains_in_vain_is_not_healthy_and_says_how_often(autojump_clock: Clock) -> None:
    first, second = machines(2)
    second.bowl.rate = float("inf")
    sound, lost = first.daemon(), second.daemon(join=(first.listen,))
    async with living(sound, lost):
        await until(lambda: lost.status()["changes_dropped"] > 10)
        status = lost.status()
        assert (status["state"], status["healthy"]) == ("diverged", False)
        assert status["changes_dropped"] == status["round"]
        assert math.isfinite(status["loss"])
        assert (sound.status()["state"], sound.status()["healthy"]) == ("training", True)
        assert sound.status()["changes_dropped"] == 0
        # It takes part all the same: others' models do it good.
        before = status["exchanges"]
        await until(lambda: lost.status()["exchanges"] > before + 10)


async def test_another_optimiser_on_the_same_home_is_one_line_in_the_log(autojump_clock: Clock) -> None:
    (machine,) = machines(1)
    machine.bowl.state = (np.ones(3, np.float32),)

    async def live(optimiser: bytes) -> tuple[list[str], np.ndarray]:
        """What was logged, and the weights at the start."""
        with structlog.testing.capture_logs() as lines:
            daemon = machine.daemon(optimiser=optimiser)
            async with trio.open_nursery() as nursery:
                await nursery.start(daemon.run)
                begun = machine.learner.weights().copy()
                first = daemon.status()["round"]
                await until(lambda: daemon.status()["round"] > first + 3)
                daemon.stop()
        return [line["event"] for line in lines], begun

    await live(b"adam")
    before = machine.learner.weights().copy()
    logged, weights = await live(b"rmsprop")
    np.testing.assert_array_equal(weights, before)
    assert logged.count("optimiser_begins_anew") == 1
    logged, _ = await live(b"rmsprop")
    assert "optimiser_begins_anew" not in logged


async def test_a_restart_goes_on_with_identity_numbers_and_model(autojump_clock: Clock) -> None:
    first, second = machines(2)
    partner = first.daemon()
    async with living(partner):
        async with trio.open_nursery() as nursery:
            before = second.daemon(join=(first.listen,))
            await nursery.start(before.run)
            await until(lambda: before.status()["round"] > 20)
            before.stop()
        steps = before.status()["steps"]
        weights = second.learner.weights().copy()
        ceiling = second.store.load()[CEILING_KEY]

        after = second.daemon()  # knows no address: it remembers one
        second.news.clear()
        async with living(after):
            assert after.identity()["id"] == before.identity()["id"]
            assert after.status()["steps"] == steps
            np.testing.assert_array_equal(second.learner.weights(), weights)
            await until(lambda: len(second.told(Exchanged)) > 5)
            # No number below the old ceiling was signed again, or the partner would have refused it.
            assert "replayed" not in partner.status()["refused"]
            assert second.store.load()[CEILING_KEY] > ceiling


async def test_a_state_that_was_emptied_skips_the_numbers_that_may_have_been_signed(
    autojump_clock: Clock,
) -> None:
    machine, other = machines(2)
    async with living(machine.daemon(), other.daemon(join=(machine.listen,))):
        await until(lambda: CEILING_KEY in machine.store.load())
    assert int.from_bytes(machine.store.load()[CEILING_KEY], "big") >= SKIP


async def test_a_home_just_made_begins_at_number_one(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    homes.create(home)
    keyfile.make_identity(home, passphrase=None)
    store = SqliteStore(home.state)
    assert int.from_bytes(store.load()[CEILING_KEY], "big") == 1
    store.close()


async def test_a_crash_loses_at_most_a_snapshot_interval(autojump_clock: Clock) -> None:
    """Cancelled out of the blue, as by SIGKILL: nothing is said, nothing is saved."""
    [machine] = machines(1)
    daemon = machine.daemon()
    async with living(daemon):
        await until(lambda: daemon.status()["round"] >= 60)
    lost = daemon.status()["steps"]
    after = machine.daemon()
    async with living(after):
        kept = after.status()["steps"]
    per_round = LEARNING.local_steps
    rounds_between_saves = math.ceil(1.2 * LEARNING.save_interval_s / (0.9 * LEARNING.round_interval_s)) + 1
    assert 0 < kept <= lost
    assert lost - kept <= per_round * rounds_between_saves


async def test_stopping_says_goodbye_and_saves(autojump_clock: Clock) -> None:
    first, second = machines(2)
    staying, leaving = first.daemon(), second.daemon(join=(first.listen,))
    async with living(staying):
        async with trio.open_nursery() as nursery:
            await nursery.start(leaving.run)
            await until(lambda: leaving.status()["round"] > 3)
            start = trio.current_time()
            leaving.stop()
        assert trio.current_time() - start < 10.0
        kept = second.store.read_model(RUN)
        assert kept is not None
        assert saved.encode(kept) == saved.encode(second.learner.dump())
        await until(lambda: staying.peers() == [])
        assert staying.counters.frames["in"]["bye"] == 1
        with pytest.raises(OSError, match="nobody listens"):
            await first.transport.dial(second.listen)


async def test_the_second_stop_is_immediate(autojump_clock: Clock) -> None:
    first, second = machines(2)
    async with living(first.daemon()), trio.open_nursery() as nursery:
        leaving = second.daemon(join=(first.listen,))
        await nursery.start(leaving.run)
        await trio.sleep(3)
        start = trio.current_time()
        leaving.stop()
        leaving.stop()
        nursery.cancel_scope.deadline = start + 0.1
    assert not nursery.cancel_scope.cancelled_caught


async def test_what_is_persisted_is_on_the_disk_before_the_next_effect(autojump_clock: Clock) -> None:
    """The node's number is raised on the disk before the first frame that carries one leaves."""

    class Watched(MemoryStore):
        def put(self, entries: object, *, fsync: bool) -> None:
            pairs = tuple(entries)  # type: ignore[var-annotated, arg-type]
            sent = daemons[1].counters.frames["out"] if len(daemons) > 1 else {}
            written.append((Persist(pairs, fsync), dict(sent)))
            super().put(pairs, fsync=fsync)

    written: list[tuple[Persist, dict[str, int]]] = []
    first, second = machines(2)
    second.store = Watched()
    daemons = [first.daemon(), second.daemon(join=(first.listen,))]
    async with living(*daemons):
        await until(lambda: len(second.told(Exchanged)) > 2)
    order, sent = next(pair for pair in written if pair[0].entries[0][0] == CEILING_KEY)
    assert order.fsync
    assert sent == {}


async def test_a_disk_that_takes_nothing_ends_the_daemon_with_a_sentence(autojump_clock: Clock) -> None:
    class Full(MemoryStore):
        def put(self, entries: object, *, fsync: bool) -> None:
            raise UserError(ExitCode.FAILED, "the disk is full")

    first, second = machines(2)
    second.store = Full()
    async with living(first.daemon()):
        with pytest.raises(UserError, match="the disk is full"):
            await second.daemon(join=(first.listen,)).run()
    assert not second.told(Exchanged)


async def test_a_snapshot_that_cannot_be_written_does_not_end_the_learning(autojump_clock: Clock) -> None:
    class Full(MemoryStore):
        def write_model(self, run: RunInfo, model: SavedModel) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    [machine] = machines(1)
    machine.store = Full()
    daemon = machine.daemon()
    with structlog.testing.capture_logs() as lines:
        async with living(daemon):
            await until(lambda: daemon.status()["round"] > 50)
            with pytest.raises(UserError):
                await daemon.save()
    assert "snapshot_failed" in [line["event"] for line in lines]


@pytest.mark.parametrize("fault", [LocalError, ValueError, OSError])
async def test_a_test_split_without_rows_is_a_sentence_and_not_the_end(
    autojump_clock: Clock, fault: type[Exception]
) -> None:
    [machine] = machines(1)

    def nothing(vectors: Sequence[FloatArray]) -> list[dict[str, float]]:
        raise fault("the task has no test rows")

    machine.bowl.evaluate = nothing  # type: ignore[method-assign]
    daemon = machine.daemon()
    async with living(daemon):
        with pytest.raises(UserError, match="no test rows"):
            await daemon.evaluate()
        before = daemon.status()["round"]
        await until(lambda: daemon.status()["round"] > before + 5)


@pytest.mark.parametrize("fault", [LocalError, ZeroDivisionError, NameError])
async def test_a_task_that_fails_while_training_is_the_tasks_fault_not_ours(
    autojump_clock: Clock, fault: type[Exception]
) -> None:
    [machine] = machines(1)

    def broken(given: Sequence[TrainInput]) -> list[TrainOutput]:
        raise fault("no such column")

    machine.bowl.run = broken  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"the task failed while training \(\w+: no such column\)") as caught:
        await machine.daemon().run()
    assert caught.value.code is ExitCode.TASK


async def test_a_flood_of_refusals_is_not_a_flood_of_lines(autojump_clock: Clock) -> None:
    daemon = machines(1)[0].daemon()
    with structlog.testing.capture_logs() as lines:
        for _ in range(400):
            daemon._tell(Refused(None, Reason.OTHER_RUN, True, "of another run"))
            await trio.sleep(0.05)
    told = [line for line in lines if line["log_level"] == "info"]
    assert 200 <= len(told) <= 241


async def test_a_fault_of_our_own_is_logged_and_ends_the_daemon(autojump_clock: Clock) -> None:
    [machine] = machines(1)

    def broken(output: TrainOutput) -> Trained:
        raise ZeroDivisionError("a bug of ours")

    daemon = machine.daemon()
    machine.learner.trained = broken  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as lines, pytest.raises(UserError) as caught:
        await daemon.run()
    assert caught.value.code is ExitCode.FAILED
    assert "a bug of ours" in str(caught.value)
    [line] = [line for line in lines if line["log_level"] == "critical"]
    assert isinstance(line["exc_info"], ZeroDivisionError)


async def test_a_saved_model_of_another_run_is_not_overwritten(autojump_clock: Clock) -> None:
    [machine] = machines(1)
    async with trio.open_nursery() as nursery:
        daemon = machine.daemon()
        await nursery.start(daemon.run)
        await until(lambda: daemon.status()["round"] > 30)
        daemon.stop()
    other = RunInfo(b"o" * 32, "main", "bowl/2", SCHEMA.id, vector_hash(GENESIS), (50, 50))
    with pytest.raises(UserError) as caught:
        await machine.daemon(run=other).run()
    assert caught.value.code is ExitCode.HOME
    assert machine.store.read_model(RUN) is not None
    assert list(machine.store.manifests()) == [RUN.id]


async def test_a_home_of_another_run_says_which_setting_is_another_one(autojump_clock: Clock) -> None:
    [machine] = machines(1)
    ours, other = (
        run_info(
            network="main",
            task=machine.bowl,  # type: ignore[arg-type]  # its name is all that counts
            schema=SCHEMA,
            genesis=GENESIS,
            learning=replace(LEARNING, genesis_seed=seed),
        )
        for seed in (3, 4)
    )
    machine.store.write_model(
        ours, Learner(ours, GENESIS, exchange=CONFIG.exchange, learning=LEARNING).dump()
    )
    with pytest.raises(UserError) as caught:
        await machine.daemon(run=other).run()
    assert caught.value.code is ExitCode.HOME
    assert "the seed of the initial weights is 4 now and 3 in the saved run (learning.genesis_seed)" in str(
        caught.value
    )


async def test_an_address_in_use_is_refused_with_a_sentence(autojump_clock: Clock) -> None:
    [machine] = machines(1)
    async with living(machine.daemon()):
        with pytest.raises(UserError) as caught:
            await machine.daemon().run()
    assert caught.value.code is ExitCode.ADDRESS
    machine.listen = "nonsense"
    with pytest.raises(UserError) as caught:
        await machine.daemon().run()
    assert caught.value.code is ExitCode.ADDRESS


async def test_junk_on_the_port_does_not_disturb_the_learning(autojump_clock: Clock) -> None:
    first, second = machines(2)
    stranger = MemoryNetwork().host("10.0.9.1")
    stranger._network = first.transport._network  # type: ignore[attr-defined]  # the same network, one more host
    daemon = first.daemon()
    async with living(daemon, second.daemon(join=(first.listen,))):
        for _ in range(20):
            link = await stranger.dial(first.listen)
            await link.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert await link.receive_some(1) == b""
        await until(lambda: len(first.told(Exchanged)) > 5)
    assert daemon.counters.handshakes_failed == {Failure.CRYPTO: 20}


async def test_daemons_told_to_join_later_do(autojump_clock: Clock) -> None:
    first, second = machines(2)
    daemon = second.daemon()
    async with living(first.daemon(), daemon):
        await trio.sleep(5)
        assert daemon.peers() == []
        await daemon.join((first.listen,))
        await until(lambda: len(daemon.peers()) == 1)
        assert second.told(Connected)


async def test_the_model_is_exported_under_the_users_names(tmp_path: Path, autojump_clock: Clock) -> None:
    [machine] = machines(1)
    daemon = machine.daemon()
    async with living(daemon):
        await until(lambda: daemon.status()["round"] > 30)
        path = tmp_path / "model.safetensors"
        answer = await daemon.export(str(path))
        readout = machine.learner.readout().copy()
        with pytest.raises(UserError):
            await daemon.export(str(tmp_path / "absent" / "model.safetensors"))
    arrays = load_file(path)
    assert {name: array.shape for name, array in arrays.items()} == {"layer/w": (9, 10), "layer/b": (10,)}
    np.testing.assert_array_equal(np.concatenate([arrays["layer/w"].ravel(), arrays["layer/b"]]), readout)
    assert answer == {"path": str(path), "size_bytes": path.stat().st_size}
    assert os.listdir(tmp_path) == ["model.safetensors"]


# --- sockets, threads and a disk -------------------------------------------------------------------------


async def test_daemons_over_tcp_exchange_and_restart_from_the_disk(tmp_path: Path) -> None:
    learning = replace(LEARNING, round_interval_s=0.01)
    config = replace(CONFIG, learning=learning)
    transport = TcpTransport()

    def machine(number: int) -> Machine:
        store = SqliteStore(tmp_path / str(number))
        return Machine(number, transport, "127.0.0.1:0", store=store, threads=True)

    first, second = machine(0), machine(1)
    async with trio.open_nursery() as nursery:
        one = first.daemon(config=config)
        address = await nursery.start(one.run)
        other = second.daemon(config=config, join=(address,))
        await nursery.start(other.run)
        await until(lambda: len(first.told(Exchanged)) > 20 and len(second.told(Exchanged)) > 20)
        assert (await one.evaluate())["rows"] == 1.0
        assert one.status()["memory_bytes"] > 2**20
        with trio.fail_after(10):
            other.stop()
            one.stop()
            await until(lambda: len(second.told(StateChanged)) > 0)
    for stopped in (first, second):
        stopped.store.close()
    again = machine(1)
    daemon = again.daemon(config=config)
    async with living(daemon):
        assert daemon.status()["steps"] == second.learner.steps
        np.testing.assert_array_equal(again.learner.weights(), second.learner.weights())
    again.store.close()
