"""`p2pnode run --record` with processes on loopback, and `p2psim replay` of what they wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crypto.identity import Identity
from p2pnode.errors import ExitCode

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
# A slow machine imports JAX in 5 s, and tests may share it.
PATIENCE_S = 90.0
FAST = ("--task", "digits", "--set", "learning.round_interval_s=0.1", "--set", "exchange.join_patience_s=0.5")

Start = Callable[..., "subprocess.Popen[str]"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """`-m p2pnode ...` or `-m simulation ...`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon in the home of this name, recorded beside it."""
    running: list[subprocess.Popen[str]] = []

    def started(name: str, *words: str) -> "subprocess.Popen[str]":
        home = ["--home", str(tmp_path / name), "--record", str(tmp_path / f"{name}.trace")]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "p2pnode", "run", "--listen", "127.0.0.1:0", *home, *FAST, *words],
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        return running[-1]

    yield started
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def address_of(daemon: "subprocess.Popen[str]") -> str:
    """From the command for the next machine, which is printed when the daemon listens."""
    assert daemon.stdout is not None
    for line in daemon.stdout:
        words = line.split()
        if "--join" in words:
            return words[words.index("--join") + 1]
    raise AssertionError(f"it ended with {daemon.wait()}")


def replayed(trace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command("simulation", "replay", str(trace), *words)


def until_exchanged(home: Path, count: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        status = json.loads(command("p2pnode", "status", "--home", str(home), "--json").stdout or "{}")
        if status.get("exchanges", 0) >= count:
            return
        assert time.monotonic() < end, f"the last status was {status}"
        time.sleep(0.1)


def told(trace: Path) -> Any:
    answer = replayed(trace, "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr[-2000:]
    return json.loads(answer.stdout)


def test_two_daemons_are_recorded_and_replayed(start: Start, tmp_path: Path) -> None:
    """They learn from each other; one is killed in the middle of it, the other stops in order."""
    first_trace, second_trace = tmp_path / "first.trace", tmp_path / "second.trace"
    first = start("first")
    second = start("second", "--join", address_of(first))
    address_of(second)
    until_exchanged(tmp_path / "second", 20)
    second.send_signal(signal.SIGKILL)
    second.wait()
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 0

    ended, killed = told(first_trace), told(second_trace)
    assert ended["end"] == "it was closed: the daemon stopped"
    assert "after a kill" in killed["end"]
    assert min(ended["events"], killed["events"]) >= 40  # of 20 exchanges, each two events at least
    assert ended["difference"] == killed["difference"] == ""
    assert ended["id"] != killed["id"]

    timeline = replayed(second_trace).stdout
    assert "Connected peer=" in timeline
    assert "StateChanged state=training" in timeline

    # What a kill in the middle of a write would have left.
    data = second_trace.read_bytes()
    second_trace.write_bytes(data[:-3])
    torn = told(second_trace)
    assert torn["events"] == killed["events"] - 1
    assert "torn" in torn["end"]

    for name in ("first", "second"):
        key = (tmp_path / name / "identity.key").read_bytes()
        seed = next(key[at : at + 32] for at in range(len(key) - 31) if _opens(key[at : at + 32], key))
        assert seed not in first_trace.read_bytes() + data


def _opens(seed: bytes, key: bytes) -> bool:
    """Whether these 32 bytes are the seed of the public key that stands in the file, too."""
    return bytes(Identity.from_seed(seed).public_key) in key


def test_a_trace_is_not_overwritten(tmp_path: Path) -> None:
    trace = tmp_path / "there.trace"
    trace.write_text("mine")
    answer = command(
        "p2pnode", "run", "--home", str(tmp_path / "home"), "--listen", "127.0.0.1:0", "--record", str(trace)
    )
    assert answer.returncode == ExitCode.USAGE
    assert "there is such a file" in answer.stderr
    assert trace.read_text() == "mine"
