"""`p2pnode run`: from settings to a daemon at work. The one place where all parts are put together.

Home, lock, key, control socket and signals, store, task (here JAX is imported), learner, daemon; in this order,
because each needs what stands before it, and because what a person got wrong should be said before seconds
are spent on importing JAX.
"""

import os
import random
import resource
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import structlog
import trio

from crypto.identity import Identity
from gossip.dht.ids import node_id
from gossip.learning.learner import Learner
from gossip.learning.task import run_info
from p2pnode import control_server, doctor, heap, keyfile, log
from p2pnode import home as homes
from p2pnode.address import parse_address
from p2pnode.daemon import Daemon
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import PASSPHRASE_VARIABLE, Home
from p2pnode.interrupt import EndsAtOnce
from p2pnode.recording import TRACE_MB, Recorder
from p2pnode.remembered import remember
from p2pnode.settings import TABLE, Settings, default_toml, to_text
from p2pnode.starting import Starting
from p2pnode.store import SqliteStore, Store
from p2pnode.tasks import load_task, task_factory
from p2pnode.tasks.faults import TaskFaults
from p2pnode.tcp import TcpTransport, reachable_address

# Settings that peers must agree on: the command for the next machine names them where they are not the
# default.
SHARED_SETTINGS = (
    "network.name",
    "task.factory",
    "learning.genesis_seed",
    "learning.shard_values_max",
    "run.purpose",
    "run.licence",
)
# Keep every compiled program, also the small ones of small models: by default JAX keeps only what took a
# second.
JAX_CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

events = structlog.get_logger(__name__)


def run_daemon(
    home: Home,
    settings: Settings,
    *,
    die_with_parent: bool = False,
    record: Path | None = None,
    record_mb: int = TRACE_MB,
) -> int:
    """Run until told to stop; returns the exit status.

    Args:
        home: Made, with a key and a commented config.toml, if there is none.
        settings: Resolved.
        die_with_parent: Stop when standard input ends: whoever started us is gone.
        record: Write down there what the core is given; None: nowhere.
        record_mb: MiB after which recording ends.

    Raises:
        UserError: USAGE, HOME, RUNNING, TASK, ADDRESS, or FAILED.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    as_json = settings.log.format == "json" or (settings.log.format == "auto" and not on_terminal)
    _keep_standard_descriptors()
    log.configure(level=settings.log.level, json_lines=as_json)
    _check_packages()
    homes.create(home)
    lock = homes.take_lock(home)
    try:
        # A dump of this process would hold the key (docs/security.md, T7).
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        identity = _identity(home)
        listener = control_server.listen(home)  # before there are threads
        try:
            with Starting(home, listener) as starting:
                store = SqliteStore(home.state)
                try:
                    recorder = Recorder(record, mb_max=record_mb) if record is not None else None
                    _work(
                        home,
                        settings,
                        identity,
                        store,
                        starting,
                        recorder=recorder,
                        die_with_parent=die_with_parent,
                    )
                finally:
                    store.close()
        finally:
            listener.close()
            home.socket.unlink(missing_ok=True)
    finally:
        os.close(lock)
    return ExitCode.OK


def examine_task(settings: Settings) -> dict[str, Any]:
    """What `p2pnode check-task` prints. Imports JAX.

    Raises:
        UserError: TASK.
    """
    import msgspec

    from p2pnode.tasks.check import check_task

    spec = settings.task.factory
    with TaskFaults(spec, key=f"the task {spec!r} failed"):
        with EndsAtOnce():
            task_factory(spec)  # many a task imports JAX itself
        core = settings.core
        facts = check_task(
            load_task(spec, settings.task_args),
            core.learning,
            network=core.network,
            agreed=core.run,
            spec=spec,
        )
    answer: dict[str, Any] = msgspec.to_builtins(facts)
    return answer


def join_command(settings: Settings, address: str) -> str:
    """What to type on the next machine: how to reach us, and the settings that both must share.

    What differs from machine to machine stands there as a word in capitals: DATA, its file, and PART, its number. So
    does HOST, an address of ours, where we listen on all interfaces and none of them leads everywhere.

    Args:
        settings: Ours.
        address: Where we listen.
    """
    reachable = settings.node.advertise[0] if settings.node.advertise else reachable_address(address)
    reachable = reachable or f"HOST:{parse_address(address)[1]}"
    words = ["p2pnode", "run", "--join", reachable]
    for name in SHARED_SETTINGS:
        if settings.value(name) != TABLE[name].default:
            words += ["--set", f"{name}={to_text(name, settings.value(name))}"]
    for name, value in settings.task_args.items():
        if name == "path":
            words += ["--data", "DATA"]
        else:
            words += [
                "--set",
                f"task.args.{name}={'PART' if name == 'part' else to_text(f'task.args.{name}', value)}",
            ]
    return shlex.join(words)


# --- before there is a daemon --------------------------------------------------------------------------


def _keep_standard_descriptors() -> None:
    """Where we were started with one of them closed (`2>&-`), the next file opened would get its number, and libraries
    that write to stderr would write into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _check_packages() -> None:
    wrong = [finding for finding in doctor.intruders() if finding.verdict == "wrong"]
    if wrong:
        raise UserError(ExitCode.FAILED, f"the package {wrong[0].check} is not ours: {wrong[0].detail}.")


def _identity(home: Home) -> Identity:
    if not home.key.exists():
        _, node = keyfile.make_identity(home, passphrase=os.environ.get(PASSPHRASE_VARIABLE))
        if not home.config.exists():
            homes.write_config(home, default_toml())
        events.info("key_made", id=node.hex(), home=str(home.path))
    return keyfile.open_identity(home)


def _work(
    home: Home,
    settings: Settings,
    identity: Identity,
    store: Store,
    starting: Starting,
    *,
    recorder: Recorder | None,
    die_with_parent: bool,
) -> None:
    """Import JAX, build everything, and run it."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home.cache))
    for name, value in JAX_CACHE.items():
        os.environ.setdefault(name, value)
    core = settings.core
    spec = settings.task.factory
    # Differs from node to node and stays with the node: for its JAX keys and the order of its rows.
    number = int.from_bytes(node_id(identity.public_key)[:4], "big")
    with TaskFaults(spec, key=f"the task {spec!r} failed"):
        task = load_task(spec, settings.task_args)
        from gossip.learning.trainer import Trainer

        trainer = Trainer(task, seed=core.learning.genesis_seed)
        run = run_info(
            network=core.network,
            task=task,
            schema=trainer.schema,
            genesis=trainer.genesis,
            learning=core.learning,
            run=core.run,
        )
        heap.keep_freed(4 * max(run.shard_sizes))
        learner = Learner(
            run,
            trainer.genesis,
            exchange=core.exchange,
            learning=core.learning,
            node=number,
            batches=lambda seed: task.batches("train", seed),
            seed=number,
            optimiser=trainer.optimiser,
        )

    async def main() -> None:
        daemon = Daemon(
            identity=identity,
            config=core,
            run=run,
            learner=learner,
            trainer=trainer,
            store=store,
            transport=TcpTransport(),
            listen=settings.node.listen,
            advertise=settings.node.advertise,
            join=settings.node.join,
            entropy=os.urandom,
            rng=random.Random(os.urandom(32)),
            recorder=recorder,
            task=settings.task.factory,
        )
        await _serve(home, settings, daemon, starting, die_with_parent=die_with_parent)

    faults: list[UserError] = []
    try:
        trio.run(main, strict_exception_groups=True)
    except* UserError as group:
        faults += _leaves(group)
    if faults:
        raise faults[0]


def _leaves(group: BaseExceptionGroup[UserError]) -> list[UserError]:
    found: list[UserError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


# --- while it runs -------------------------------------------------------------------------------------


async def _serve(
    home: Home, settings: Settings, daemon: Daemon, starting: Starting, *, die_with_parent: bool
) -> None:
    """The daemon, its control socket, and what may end it."""
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, daemon)
        listener = starting.over()
        if die_with_parent:
            nursery.start_soon(_stop_at_end_of_input, daemon)

        async def live(*, task_status: trio.TaskStatus[str]) -> None:
            await daemon.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        address = await nursery.start(live)
        nursery.start_soon(control_server.ControlServer(daemon, listener).run)
        remember(home, settings, SHARED_SETTINGS)
        _announce(settings, address)


async def _stop_on_signal(
    daemon: Daemon, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """In order the first time, at once the second time. Reports "started" when signals are heard.

    SIGHUP, which comes when the terminal is closed, is no other; but `nohup` has it ignored.
    """
    endings = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        endings.append(signal.SIGHUP)
    with trio.open_signal_receiver(*endings) as received:
        task_status.started()
        async for number in received:
            events.info("stopping", signal=signal.Signals(number).name)
            daemon.stop()


async def _stop_at_end_of_input(daemon: Daemon) -> None:
    while await trio.to_thread.run_sync(os.read, 0, 1024, abandon_on_cancel=True):
        pass
    events.info("stopping", reason="standard input ended")
    daemon.stop()


def _announce(settings: Settings, address: str) -> None:
    command = join_command(settings, address)
    events.info("ready", address=address, join=command)
    log.say(f"listening on {address}; the next machine joins with:\n  {command}")
