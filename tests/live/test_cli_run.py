"""`p2pnode run` and the commands that talk to it, as processes on loopback."""

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pnode import control
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
# A slow machine imports JAX in 5 s, and tests may share it.
PATIENCE_S = 90.0
STOP_S_MAX = 10.0
FAST = ("--task", "digits", "--set", "learning.round_interval_s=0.1", "--set", "exchange.join_patience_s=0.5")


def environ(**more: str) -> dict[str, str]:
    return (
        {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
        | {"JAX_PLATFORMS": "cpu"}
        | more
    )


def p2pnode(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pnode", *words],
        cwd=ROOT,
        env=environ(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )


def asked(home: Path, *words: str) -> Any:
    answer = p2pnode(*words, "--home", str(home), "--json")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


class Running:
    """One `p2pnode run`, and its log."""

    def __init__(self, home: Path, *words: str) -> None:
        self.home = home
        self.log = home.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "p2pnode",
                    "run",
                    "--home",
                    str(home),
                    "--listen",
                    "127.0.0.1:0",
                    *words,
                ],
                cwd=ROOT,
                env=environ(JAX_COMPILATION_CACHE_DIR=str(home.parent / "jax-cache")),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ready(self) -> list[str]:
        """The command for the next machine, which is printed when the daemon listens."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "p2pnode run --join" in line:
                return shlex.split(line[line.index("p2pnode run") :])
        raise AssertionError(f"it ended with {self.process.wait()}: {self.log.read_text()[-2000:]}")

    def until(self, holds: Callable[[dict[str, Any]], bool], wanted: str) -> dict[str, Any]:
        asked(self.home, "status")  # it answers by now
        return until_answered(self.home, holds, wanted)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def until_answered(home: Path, holds: Callable[[dict[str, Any]], bool], wanted: str) -> dict[str, Any]:
    """Ask until the daemon of `home` is up and its status is as wanted."""
    end = time.monotonic() + PATIENCE_S
    while True:
        answer = p2pnode("status", "--home", str(home), "--json")
        status: dict[str, Any] = json.loads(answer.stdout) if answer.stdout else {}
        if status and holds(status):
            return status
        assert time.monotonic() < end, f"never {wanted}; the last answer was {answer}"
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def started(name: str, *words: str) -> Running:
        running.append(Running(tmp_path / name, *(words or FAST)))
        return running[-1]

    yield started
    for one in running:
        one.end()


def test_the_line_that_is_printed_on_ipv6_joins(start: Callable[..., Running]) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"NOT TESTED: this machine has no IPv6 loopback ({error.strerror}).")
    first = start("a", *FAST, "--listen", "[::1]:0")
    words = first.ready()[2:]
    assert words[1].startswith("[::1]:")
    start("b", *FAST, "--listen", "[::1]:0", *words)
    assert first.until(lambda status: status["peers"] == 1, "joined")["peers"] == 1


def test_a_daemon_is_started_asked_and_stopped(start: Callable[..., Running], tmp_path: Path) -> None:
    """The life of one node alone, through every command that talks to it."""
    daemon = start("a")
    join = daemon.ready()
    home = daemon.home
    assert stat.S_IMODE((home / "control.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "identity.key").stat().st_mode) == 0o600

    status = daemon.until(lambda status: status["round"] >= 3, "trained")
    assert status["id"] == asked(home, "id")["id"]
    assert status["state"] == "training"
    assert status["address"] in join
    assert status["refused"] == {}
    assert asked(home, "peers") == []
    assert 0.0 <= asked(home, "eval")["accuracy"] <= 1.0
    assert "state" in p2pnode("status", "--home", str(home)).stdout
    findings = {finding["check"]: finding["verdict"] for finding in asked(home, "doctor")}
    assert findings["daemon"] == "good"

    file = tmp_path / "model.safetensors"
    asked(home, "export", str(file))
    from safetensors.numpy import load_file

    leaves = load_file(file)
    assert sum(leaf.size for leaf in leaves.values()) == 4810

    # What no command of ours would ask, and what no disk takes.
    for path in ("/", "/proc/model", str(tmp_path), "/\x01" * 2000, "/" + "x" * 300):
        with pytest.raises(UserError, match=r"expected path|cannot be written"):
            control.ask(Home(home), "export", path=path)
    assert control.ask(Home(home), "subscribe", interval_s=10**400) == {"interval_s": 60.0}

    second = p2pnode("run", "--home", str(home), "--listen", "127.0.0.1:0")
    assert second.returncode == ExitCode.RUNNING
    assert "p2pnode stop" in second.stderr

    begun = time.monotonic()
    assert asked(home, "stop") == {"stopped": True}
    assert daemon.process.wait(STOP_S_MAX) == 0
    assert time.monotonic() - begun < STOP_S_MAX
    assert p2pnode("status", "--home", str(home)).returncode == ExitCode.NO_DAEMON
    assert not (home / "control.sock").exists()


def test_the_printed_command_brings_the_next_node_in(start: Callable[..., Running]) -> None:
    first = start("a")
    words = first.ready()
    assert words[:3] == ["p2pnode", "run", "--join"]
    second = start("b", *words[2:], *FAST)
    second.ready()
    first.until(lambda status: status["peers"] == 1, "met the other")
    status = second.until(lambda status: status["exchanges"] >= 3, "exchanged")
    assert status["peers"] == 1
    (peer,) = asked(second.home, "peers")
    assert peer["id"] == asked(first.home, "id")["id"]
    assert peer["same_run"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_time_and_in_order(start: Callable[..., Running], how: signal.Signals) -> None:
    daemon = start("a")
    daemon.ready()
    daemon.until(lambda status: status["round"] >= 3, "trained")
    daemon.process.send_signal(how)
    assert daemon.process.wait(STOP_S_MAX) == 0
    assert not (daemon.home / "control.sock").exists()
    assert list((daemon.home / "state" / "runs").glob("*/current"))
    assert '"stopped"' in daemon.log.read_text()


# What a shell does with the log: how, and whether the log's first lines are read.
LOGS = {
    "read for two lines": "{run} 2>&1 | head -2",
    "on a full disk": "{run} >/dev/full 2>/dev/full",
    "closed": "{run} <&- >&- 2>&-",
    "gone when it ends": "{run} 2>&1 | true",
}


@pytest.mark.parametrize("how", LOGS)
def test_a_log_that_fails_ends_no_daemon_and_the_lines_are_counted(tmp_path: Path, how: str) -> None:
    home = tmp_path / "home"
    words = [sys.executable, "-m", "p2pnode", "run", "--home", str(home), "--listen", "127.0.0.1:0", *FAST]
    shell = subprocess.Popen(
        # Learnt from its own file, since the last of a pipe tells its own status.
        ["sh", "-c", LOGS[how].format(run=f"{{ {shlex.join(words)}; echo $? >{home}.status; }}")],
        cwd=ROOT,
        env=environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until_answered(home, lambda status: status["round"] >= 3, "trained")
        p2pnode("join", "--home", str(home), "127.0.0.1:1")  # nobody is there, which is logged
        until_answered(home, lambda status: status["log_lines_dropped"] >= 1, "counted what it could not log")
        assert "lines could not be written" in p2pnode("status", "--home", str(home)).stdout
        asked(home, "stop")
        shell.wait(STOP_S_MAX)
        assert Path(f"{home}.status").read_text() == "0\n"
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def test_it_ends_when_whoever_started_it_is_gone(start: Callable[..., Running]) -> None:
    daemon = start("a", *FAST, "--die-with-parent")
    daemon.ready()
    assert daemon.process.stdin is not None
    daemon.process.stdin.close()
    assert daemon.process.wait(STOP_S_MAX) == 0


def test_a_killed_daemon_comes_back_as_the_same_node_where_it_was(start: Callable[..., Running]) -> None:
    words = (*FAST, "--set", "learning.save_interval_s=0.5")
    daemon = start("a", *words)
    daemon.ready()
    before = daemon.until(lambda status: min(status["ages"]) >= 40, "trained")
    saved = daemon.home / "state"
    assert saved.exists()
    daemon.process.kill()
    daemon.process.wait()
    assert (daemon.home / "control.sock").exists()  # left behind, and no obstacle

    again = start("a", *words)
    again.ready()
    after = asked(again.home, "status")
    assert after["id"] == before["id"]
    assert min(after["ages"]) >= 4


def test_a_plain_run_goes_on_with_what_the_first_one_began(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """README's first command, and then the one that everybody types next."""
    rows = tmp_path / "clinic-a.csv"
    rows.write_text("age,pressure,diagnosis\n" + "40,10,no\n60,20,yes\n" * 20)
    words = ("--task", "table", "--data", str(rows), "--set", "task.args.label=diagnosis")
    first = start("a", *FAST, *words, "--set", 'task.args.classes=["no","yes"]')
    first.ready()
    before = first.until(lambda status: status["round"] >= 3, "trained")
    asked(first.home, "stop")
    assert first.process.wait(STOP_S_MAX) == 0
    again = start("a", "--set", "log.level=info")
    again.ready()
    after = asked(again.home, "status")
    assert [after[key] for key in ("id", "task", "run")] == [before[key] for key in ("id", "task", "run")]
    shown = asked(first.home, "config", "show", "--origin")
    assert shown["task.args.label"] == {
        "value": "diagnosis",
        "origin": str(first.home / "state" / "run.toml"),
    }
    asked(again.home, "stop")
    other = p2pnode("run", "--home", str(first.home), "--listen", "127.0.0.1:0", "--task", "digits")
    assert other.returncode == ExitCode.HOME
    assert "the task is 'digits/1' now and 'table/1 2 classes a5203e023f40' in the saved run" in other.stderr
    assert "Give the task and its arguments with which it was made" in other.stderr


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--task", "no-such-task"), ExitCode.TASK, "no-such-task"),
        (("--task", "no.such.module:make"), ExitCode.TASK, "no.such.module"),
        (("--task", "digits", "--set", "task.args.part=9"), ExitCode.TASK, "part"),
        (("--task", "digits", "--listen", "nonsense"), ExitCode.USAGE, "node.listen"),
        (("--task", "digits", "--listen", "192.0.2.1:7400"), ExitCode.ADDRESS, "192.0.2.1:7400"),
        (("--task", "digits", "--join", "nonsense"), ExitCode.USAGE, "node.join"),
    ],
)
def test_what_cannot_run_says_why(tmp_path: Path, words: tuple[str, ...], code: ExitCode, part: str) -> None:
    answer = p2pnode("run", "--home", str(tmp_path / "home"), *words)
    assert answer.returncode == code, answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("p2pnode: ")
    assert part in last
    assert "Traceback" not in answer.stderr


def test_a_port_that_is_taken_is_an_address_problem(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = p2pnode("run", "--home", str(tmp_path / "home"), "--listen", address)
    assert answer.returncode == ExitCode.ADDRESS
    assert address in answer.stderr.splitlines()[-1]


MINE = """
import numpy as np
class Strange(Exception): pass

class Mine:
    name, version = "mine", "1"
    def __init__(self, where):
        self.where = where
    def init(self, key):
        if self.where == "init":
            raise Strange("no such layer\\nand a second line")
        return {"w": np.zeros(1, "float32")}
    def loss(self, params, batch, key):
        import jax.numpy as jnp
        return params["w"] @ jnp.ones(7 if self.where == "loss" else 1), {}
    def batches(self, split, seed):
        while True:
            if split == "test":
                raise Strange("no rows to test with\\nand a second line")
            yield {"x": [1.0]}

def make(where):
    if where == "make":
        raise Strange("no such place")
    return Mine(where)
"""


@pytest.mark.parametrize("command", ["run", "check-task"])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("make", "mine.py, line 24, in make: Strange: no such place"),
        ("init", "mine.py, line 11, in init: Strange: no such layer"),
        ("loss", "mine.py, line 15, in loss: TypeError: "),
    ],
)
def test_what_a_persons_own_task_raises_is_a_sentence_with_its_line(
    tmp_path: Path, command: str, where: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    words = ["--home", str(tmp_path / "home"), "--task", "mine:make", "--set", f"task.args.where={where}"]
    ended = subprocess.run(
        [sys.executable, "-m", "p2pnode", command, "--listen", "127.0.0.1:0", *words],
        cwd=ROOT,
        env=environ(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == ExitCode.TASK, ended.stderr
    # What is logged, as JSON since nobody looks on, may hold a traceback; what people read may not.
    *logged, last = ended.stderr.splitlines()
    assert [line for line in logged if not line.startswith("{")] == []
    assert last.startswith("p2pnode: the task ")
    assert said in last


def test_a_question_that_a_persons_own_task_cannot_answer_does_not_end_the_daemon(
    start: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    daemon = start("a", "--task", "mine:make", "--set", "task.args.where=test")
    daemon.ready()
    answer = p2pnode("eval", "--home", str(daemon.home))
    assert answer.returncode == ExitCode.FAILED
    said = "p2pnode: cannot be tested: mine.py, line 19, in batches: Strange: no rows to test with\n"
    assert answer.stderr == said
    assert asked(daemon.home, "status")["id"]


# A task that is slow to load, and takes no exception for an answer.
SLOW = """
import time
def make():
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass
"""


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("stop", ExitCode.OK),
        (signal.SIGTERM, ExitCode.OK),
        (signal.SIGHUP, ExitCode.OK),
        (signal.SIGINT, ExitCode.INTERRUPTED),
    ],
)
def test_a_daemon_that_starts_says_so_and_can_be_stopped(
    tmp_path: Path, how: str | signal.Signals, status: ExitCode
) -> None:
    home = tmp_path / "home"
    (tmp_path / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pnode", "run", "--home", str(home), "--task", "slow:make"],
        cwd=ROOT,
        env=environ(PYTHONPATH=str(tmp_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_ctrl_c,
    )
    try:
        end = time.monotonic() + PATIENCE_S
        while "is starting" not in (said := p2pnode("status", "--home", str(home))).stderr:
            assert said.returncode == ExitCode.NO_DAEMON
            assert time.monotonic() < end
        assert (said.returncode, said.stdout) == (ExitCode.NO_DAEMON, "")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(home / "control.sock"))  # and says nothing: others are served all the same
            assert "is starting" in p2pnode("eval", "--home", str(home)).stderr
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(home / "control.sock"))
            rude.sendall(b"no request\n")
            assert b"malformed" in rude.recv(2**16)
        findings = {finding["check"]: finding for finding in asked(home, "doctor")}
        assert findings["daemon"]["verdict"] == "note"
        assert "is starting" in findings["daemon"]["detail"]
        if isinstance(how, signal.Signals):
            process.send_signal(how)
        else:
            assert asked(home, how) == {"stopped": True}
        assert process.wait(STOP_S_MAX) == status
        assert not (home / "control.sock").exists()
        assert "no daemon runs" in p2pnode("status", "--home", str(home)).stderr
    finally:
        process.kill()
        process.wait()


# In the place of a library: Ctrl-C comes while it is imported, and it drops the KeyboardInterrupt, as C code does.
DEAF = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    pass
print("the interrupt was lost", flush=True)
os._exit(7)
"""


def heed_ctrl_c() -> None:
    """It is ignored, and that inherited, where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("command", "library"),
    [("version", "click"), ("run", "trio"), ("run", "jax"), ("check-task", "jax"), ("demo", "rich")],
)
def test_ctrl_c_during_an_import_ends_the_process_at_once_and_quietly(
    tmp_path: Path, command: str, library: str
) -> None:
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text(DEAF)
    ended = subprocess.run(
        [sys.executable, "-m", "p2pnode", command],
        cwd=ROOT,
        env=environ(PYTHONPATH=str(tmp_path), P2PNODE_HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        preexec_fn=heed_ctrl_c,
    )
    assert (ended.returncode, ended.stdout) == (ExitCode.INTERRUPTED, ""), ended.stderr
    assert [line for line in ended.stderr.splitlines() if not line.startswith("{")] == []  # the log is JSON
