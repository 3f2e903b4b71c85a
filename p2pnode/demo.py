"""`p2pnode demo`: five real daemons on this machine find each other and learn what none of them could alone.

Nothing here is special to the demo: each daemon is the process that `p2pnode run` starts, with a home and a
key of its own, on a port that the system chose; all but the first know one address. What the table compares
with is trained beside it (`alone`). This process imports no JAX: it starts, watches and ends others, and it
ends all of them, whatever happens: each watches its standard input, which ends when this process does, even
by SIGKILL.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from p2pnode.alone import Comparison
from p2pnode.control import ControlClient, ControlError
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home
from p2pnode.import_path import python_path
from p2pnode.printable import printable
from p2pnode.scratch import scratch_folder
from p2pnode.tables import decimal, whole

TASK = "digits"
# 1,600 steps of 32 rows; "all data in one place" has stopped improving long before.
ROUNDS = 400
LOCAL_STEPS = 4
# Dirichlet 0.3 by label; with this seed every part lacks some digits, as clinics and factories do. The rate
# falls to zero with the last round: with a rate that stays, whoever trains last pulls all to its own rows
# (measured: 2 points).
TASK_ARGS: dict[str, Any] = {"alpha": 0.3, "seed": 1, "lr": 0.15, "cooling_steps": ROUNDS * LOCAL_STEPS}
# As fast as five nodes go on two cores with some room to spare.
ROUND_INTERVAL_S = 0.04
# After the last round, exchanges go on so long: the models contract to one within a second, this is generous.
SETTLE_S = 2.0
# A node may be so far from "all data in one place" (fraction of the test rows).
TOLERANCE = 0.02
POLL_S = 0.25
# Plain progress, where there is no terminal: a line every so often.
LINE_EVERY_S = 2.0
# A daemon that is not up by then is broken: importing JAX takes 5 s on a slow machine, and five start at
# once.
START_S_MAX = 60.0
# Daemons promise to be gone 10 s after SIGTERM.
STOP_S_MAX = 12.0
EVALUATION_S_MAX = 60.0
# Five processes on few cores: one thread of arithmetic each, or they spend their time waiting for each other.
ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}

# Called whenever there is something new to show, with what is being done; empty: the same as before.
Tell: TypeAlias = Callable[[str], None]


def run_demo(*, nodes: int, seconds_max: float, as_json: bool) -> int:
    """Run the demo; returns the exit status.

    Args:
        nodes: Daemons to start.
        seconds_max: Training is cut off after so long; what was learned by then is judged.
        as_json: One object on stdout and nothing else; progress goes to stderr.

    Raises:
        UserError: FAILED, when a daemon does not start or ends too early.
    """
    started = time.monotonic()
    # In JSON mode stdout belongs to the object; people may still watch on stderr.
    console = Console(stderr=as_json)
    with Interrupts() as interrupts, scratch_folder() as folder, Swarm(folder, nodes, interrupts) as swarm:
        show = _Progress(console, swarm)
        with show:
            swarm.start(show.update)
            swarm.train(started + seconds_max, show.update)
            swarm.settle(show.update)
            show.update("measuring")
            result = swarm.result()
        seconds = time.monotonic() - started
    sentence = verdict(result)
    if as_json:
        print(json.dumps({"nodes": nodes, "seconds": round(seconds, 2), **result.summary()}))
    else:
        console.print(table(result))
        console.print(f"{nodes} nodes, {result.exchanges} exchanges, {seconds:.0f} seconds")
    if sentence:
        click.echo(f"p2pnode demo: {sentence}", err=True)
    return ExitCode.FAILED if sentence else ExitCode.OK


# --- what came out -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Accuracies are fractions of the common test rows; one entry per node, in order."""

    central: float
    alone: Sequence[float]
    swarm: Sequence[float]
    rows: Sequence[int | None]
    rounds: Sequence[int]
    exchanges: int
    refused: Mapping[str, int]

    def summary(self) -> dict[str, Any]:
        return {
            "central": round(self.central, 4),
            "alone": [round(value, 4) for value in self.alone],
            "swarm": [round(value, 4) for value in self.swarm],
            "exchanges": self.exchanges,
            "refused": dict(self.refused),
        }


def verdict(result: Result) -> str:
    """Empty if every node is within TOLERANCE of all data in one place, else which are not, and why."""
    gaps = [result.central - value if math.isfinite(value) else math.inf for value in result.swarm]
    far = [node for node, gap in enumerate(gaps) if gap > TOLERANCE + 1e-9]
    if not far:
        return ""
    late = [node for node in far if result.rounds[node] < ROUNDS]
    reached = ", ".join(f"node {node} {100 * result.swarm[node]:.1f} %" for node in far)
    trained = ", ".join(f"node {node} trained {result.rounds[node]}" for node in late)
    why = (
        f"in the time given {trained} of {ROUNDS} rounds"
        if late
        else "their models were not averaged well enough with the others"
    )
    return (
        f"reached: {reached}; expected at least {100 * (result.central - TOLERANCE):.1f} % "
        f"(all data in one place: {100 * result.central:.1f} %); {why}."
    )


def table(result: Result) -> Table:
    """The table at the end."""
    view = Table(title="accuracy on the same test digits", title_justify="left")
    for name in ("node", "own digits", "alone", "in the swarm", "all data in one place"):
        view.add_column(name, justify="right")
    for node, (rows, alone, swarm) in enumerate(zip(result.rows, result.alone, result.swarm, strict=True)):
        view.add_row(
            str(node),
            whole(rows),
            f"{100 * alone:.1f} %",
            f"{100 * swarm:.1f} %",
            f"{100 * result.central:.1f} %",
        )
    return view


# --- the processes -----------------------------------------------------------------------------------


class Interrupts:
    """Ctrl-C and SIGTERM as KeyboardInterrupt, but not in the moment between a child's birth and our knowing
    of it."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = False

    def __enter__(self) -> "Interrupts":
        self._before = {
            number: signal.signal(number, self._received) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Interrupts that come inside are raised at the end. (Blocking the signals would block them in
        children.)"""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._waiting:
                self._waiting = False
                raise KeyboardInterrupt

    def _received(self, number: int, frame: FrameType | None) -> None:
        if not self._held:
            raise KeyboardInterrupt
        self._waiting = True


@dataclass(slots=True, kw_only=True)
class Daemon:
    """One process that `p2pnode run` became, and our connection to it."""

    number: int
    home: Home
    process: subprocess.Popen[bytes]
    client: ControlClient | None = None
    status: dict[str, Any] = field(default_factory=dict)


class Swarm:
    """Five daemons and the process that trains without them. A context manager: at its end all are gone."""

    def __init__(self, folder: Path, nodes: int, interrupts: Interrupts) -> None:
        self.nodes = nodes
        self.daemons: list[Daemon] = []
        self._folder = folder
        self._interrupts = interrupts
        self._rival: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Swarm":
        return self

    def __exit__(self, *_: object) -> None:
        processes = [daemon.process for daemon in self.daemons] + ([self._rival] if self._rival else [])
        try:
            for process in processes:
                process.terminate()
            end = time.monotonic() + STOP_S_MAX
            for process in processes:
                process.wait(max(end - time.monotonic(), 0.0))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass  # too slow, or a second Ctrl-C: no more patience
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for daemon in self.daemons:
                if daemon.client is not None:
                    daemon.client.close()

    def start(self, tell: Tell) -> None:
        """Start the first daemon, wait for its address, start the others with it. Returns when all answer."""
        tell("starting the first node")
        with self._interrupts.held():
            self._rival = self._begin(
                ["-m", "p2pnode.alone", self._comparison()], name="alone", out=subprocess.PIPE
            )
        self._add(0, ())
        self._await_answers(tell)
        seed = str(self.daemons[0].status["address"])
        tell(f"starting {self.nodes - 1} more nodes, which know {seed}")
        for number in range(1, self.nodes):
            self._add(number, ("--join", seed))
        self._await_answers(tell)

    def train(self, until: float, tell: Tell) -> None:
        """Watch until every node has made its rounds, or the time is up."""
        while time.monotonic() < until:
            self._poll()
            tell("learning")
            if all(int(daemon.status.get("round", 0)) >= ROUNDS for daemon in self.daemons):
                return
            time.sleep(POLL_S)

    def settle(self, tell: Tell) -> None:
        """Let exchanges go on for a while."""
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            self._poll()
            tell("settling")
            time.sleep(POLL_S)

    def result(self) -> Result:
        """Have every node test its model, and collect what the rival found.

        Raises:
            UserError: FAILED.
        """
        swarm = [float(self._call(daemon, "eval", EVALUATION_S_MAX)["accuracy"]) for daemon in self.daemons]
        self._poll()
        refused: dict[str, int] = {}
        for daemon in self.daemons:
            for reason, count in daemon.status["refused"].items():
                refused[reason] = refused.get(reason, 0) + int(count)
        rival = self._rival_answers()
        return Result(
            central=rival[-1]["accuracy"],
            alone=[rival[number]["accuracy"] for number in range(self.nodes)],
            swarm=swarm,
            rows=[rival[number]["rows"] for number in range(self.nodes)],
            rounds=[int(daemon.status["round"]) for daemon in self.daemons],
            exchanges=sum(int(daemon.status["initiated"]) for daemon in self.daemons),
            refused=dict(sorted(refused.items())),
        )

    def _comparison(self) -> str:
        what = Comparison(task=TASK, args=TASK_ARGS, parts=self.nodes, rounds=ROUNDS, local_steps=LOCAL_STEPS)
        return msgspec.json.encode(what).decode()

    def _add(self, number: int, more: Sequence[str]) -> None:
        home = Home(self._folder / f"node-{number}")
        settings = {
            **{f"task.args.{name}": value for name, value in TASK_ARGS.items()},
            "task.args.part": number,
            "task.args.parts": self.nodes,
            "learning.local_steps": LOCAL_STEPS,
            "learning.rounds_max": ROUNDS,
            "learning.round_interval_s": ROUND_INTERVAL_S,
            # Nodes that start together find each other in seconds, not after the first long walk.
            "membership.walk_interval_s": 4.0,
        }
        arguments = [
            "-m",
            "p2pnode",
            "run",
            "--home",
            str(home.path),
            "--listen",
            "127.0.0.1:0",
            "--task",
            TASK,
        ]
        arguments += ["--die-with-parent", "--json", *more]
        for name, value in settings.items():
            arguments += ["--set", f"{name}={value}"]
        with self._interrupts.held():
            process = self._begin(arguments, name=f"node-{number}", out=subprocess.DEVNULL)
            self.daemons.append(Daemon(number=number, home=home, process=process))

    def _begin(self, arguments: Sequence[str], *, name: str, out: int) -> subprocess.Popen[bytes]:
        environ = {
            # A person's own settings and home are not the demo's.
            **{key: value for key, value in os.environ.items() if not key.startswith("P2PNODE_")},
            **ONE_THREAD,
            "PYTHONPATH": python_path(),
            # All compile the same programs: whoever is first leaves them to the others.
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "jax-cache"),
        }
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", *arguments],  # nothing is to be found in the folder where we are
                stdin=subprocess.PIPE,  # never written to: its end tells the child that we are gone
                stdout=out,
                stderr=log,
                env=environ,
                start_new_session=True,  # Ctrl-C is for us; we tell them
            )

    def _await_answers(self, tell: Tell) -> None:
        until = time.monotonic() + START_S_MAX
        while not all(daemon.status for daemon in self.daemons):
            if time.monotonic() > until:
                silent = next(daemon for daemon in self.daemons if not daemon.status)
                raise UserError(
                    ExitCode.FAILED, f"node {silent.number} did not answer within {START_S_MAX:g} s."
                )
            self._poll()
            tell("")
            time.sleep(POLL_S / 2)

    def _poll(self) -> None:
        for daemon in self.daemons:
            if daemon.process.poll() is not None:
                raise UserError(
                    ExitCode.FAILED, f"node {daemon.number} ended by itself: {self._last_words(daemon)}"
                )
            if daemon.client is None:
                try:
                    client = ControlClient(daemon.home)
                    client.call("id")
                except UserError:
                    continue  # not yet up
                daemon.client = client
            daemon.status = self._call(daemon, "status", EVALUATION_S_MAX)

    def _call(self, daemon: Daemon, method: str, timeout_s: float) -> dict[str, Any]:
        assert daemon.client is not None, "only daemons that answered are asked"
        try:
            answer: dict[str, Any] = daemon.client.call(method, timeout_s=timeout_s)
        except (UserError, ControlError) as error:
            words = self._last_words(daemon)
            raise UserError(
                ExitCode.FAILED, f"node {daemon.number}: {error} Its last words: {words}"
            ) from error
        return answer

    def _last_words(self, daemon: Daemon) -> str:
        lines = (
            (self._folder / f"node-{daemon.number}.log")
            .read_text(encoding="utf-8", errors="replace")
            .strip()
            .splitlines()
        )
        return printable(lines[-1]) if lines else "none."

    def _rival_answers(self) -> dict[int, dict[str, Any]]:
        assert self._rival is not None, "start() was called"
        assert self._rival.stdout is not None, "it was started with a pipe"
        # Not communicate(): that closes its standard input, by which it would learn that we are gone. Its few lines fit
        # into the pipe.
        self._rival.wait(timeout=EVALUATION_S_MAX)
        out = self._rival.stdout.read()
        if self._rival.returncode != 0:
            words = (
                (self._folder / "alone.log")
                .read_text(encoding="utf-8", errors="replace")
                .strip()
                .splitlines()[-1:]
            )
            raise UserError(
                ExitCode.FAILED, f"training without the swarm failed: {printable(' '.join(words))}"
            )
        answers = [json.loads(line) for line in out.splitlines()]
        return {int(answer["part"]): answer for answer in answers}


# --- the view ----------------------------------------------------------------------------------------


class _Progress:
    """A live table on a terminal, else a line every LINE_EVERY_S."""

    def __init__(self, console: Console, swarm: Swarm) -> None:
        self._console = console
        self._swarm = swarm
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._phase = ""
        self._line_at = 0.0

    def __enter__(self) -> "_Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, phase: str) -> None:
        """Show how things stand; an empty phase: as before."""
        changed = phase not in ("", self._phase)
        self._phase = phase or self._phase
        statuses = [daemon.status for daemon in self._swarm.daemons]
        if self._live is not None:
            self._live.update(progress_view(self._phase, statuses), refresh=True)
        elif changed or time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE_EVERY_S
            self._console.print(
                progress_line(self._phase, statuses), soft_wrap=True, highlight=False, markup=False
            )


def progress_line(phase: str, statuses: Sequence[Mapping[str, Any]]) -> str:
    """One line: what is done, and of all nodes the round and the number of peers."""
    if not any(statuses):
        return phase
    rounds = " ".join(whole(status.get("round")) for status in statuses)
    peers = " ".join(whole(status.get("peers")) for status in statuses)
    exchanges = sum(int(status.get("initiated", 0)) for status in statuses)
    return f"{phase}: rounds {rounds}; peers {peers}; exchanges {exchanges}"


def progress_view(phase: str, statuses: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The table that is redrawn while the nodes learn."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("node", "id", "state"):
        view.add_column(name)
    for name in ("round", "loss", "peers", "exchanges", "refused"):
        view.add_column(name, justify="right")
    for number, status in enumerate(statuses):
        view.add_row(
            str(number),
            printable(str(status.get("id", "")), 64)[:12],
            printable(str(status.get("state", "starting"))),
            f"{whole(status.get('round'))}/{ROUNDS}",
            decimal(status.get("loss")),
            whole(status.get("peers")),
            whole(status.get("exchanges")),
            str(sum(int(count) for count in status.get("refused", {}).values())),
        )
    return Group(Text(phase, style="bold"), view)
