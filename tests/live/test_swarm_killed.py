"""`p2psim swarm` as a process with processes of its own, which must not outlive it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
def test_workers_end_with_a_command_that_is_killed() -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "simulation", "swarm", "--seeds", "0:100000", "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        mine = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        while len(workers := mine.read_text().split()) < 3:  # two, and the tracker of their resources
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
        for stream in (run.stdout, run.stderr):  # workers hold the other ends: nobody may wait for their end
            assert stream is not None
            stream.close()
    assert run.returncode == -signal.SIGKILL
    end = time.monotonic() + 60.0
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < end, "they wait for work that nobody sends"
        time.sleep(0.05)


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
