"""`p2pnode demo`: real daemons learn together, and whatever happens nothing of them is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.errors import ExitCode

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
# Ten seconds for a daemon that was told to stop, and some for a busy machine.
GONE_S_MAX = 20.0


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A demo whose temporary homes lie in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "p2pnode", "demo", *words],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that belong to the demo in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder).encode() in environ and "demo" not in command.split() and "p2pnode" in command:
                found.append(command)
    return found


def until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_the_swarm_learns_what_no_node_could_alone(tmp_path: Path) -> None:
    demo = begin(tmp_path, "--json", "--nodes", "3")
    out, err = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 0, err
    found = json.loads(out)
    assert set(found) == {"nodes", "seconds", "central", "alone", "swarm", "exchanges", "refused"}
    assert found["nodes"] == len(found["alone"]) == len(found["swarm"]) == 3
    assert min(found["swarm"]) >= found["central"] - 0.02
    assert min(found["swarm"]) > max(found["alone"])
    assert found["exchanges"] > 100
    assert left_over(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_one_ctrl_c_ends_everything(tmp_path: Path) -> None:
    demo = begin(tmp_path)
    assert until(lambda: len(left_over(tmp_path)) >= 4, PATIENCE_S)
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=GONE_S_MAX)
    assert demo.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in err
    assert left_over(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_daemons_end_when_the_demo_is_killed(tmp_path: Path) -> None:
    demo = begin(tmp_path)
    assert until(lambda: len(left_over(tmp_path)) >= 4, PATIENCE_S)
    demo.kill()
    demo.communicate(timeout=GONE_S_MAX)
    assert until(lambda: left_over(tmp_path) == [], GONE_S_MAX), left_over(tmp_path)
