"""Real programs for benchmarks: started, watched from outside, and ended again whatever happens."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# A set-up puts the commands beside the interpreter.
BIN = Path(sys.executable).parent
# A daemon that is not up by then is broken: importing JAX takes 5 s on a slow machine, and five may start at once.
START_S_MAX = 90.0


@contextmanager
def running(*command: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log`, which is terminated at the end; killed if it does not go in 15 s."""
    # A benchmark measures the program that people run: not with the strictness of tests, on the processor.
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answer(*command: str | Path) -> Any:
    """The JSON that a command prints.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if result.returncode != 0:
        raise RuntimeError(
            f"{' '.join(map(str, command))}: {(result.stderr or result.stdout).strip()[-500:]}"
        )
    return json.loads(result.stdout)


def status(home: Path) -> dict[str, Any]:
    """What the daemon in `home` says of itself."""
    found: dict[str, Any] = answer(BIN / "p2pnode", "status", "--home", home, "--json")
    return found


def wait_until_up(home: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """The first status of a daemon that was just started."""
    end = time.monotonic() + START_S_MAX
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the daemon ended at once: {log.read_text()[-500:]}")
        try:
            return status(home)
        except RuntimeError:
            time.sleep(0.2)
    raise RuntimeError(f"the daemon did not answer within {START_S_MAX} s: {log.read_text()[-500:]}")


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes); Linux."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def has_loaded(pid: int, library: str) -> bool:
    """Whether a process has mapped a file with `library` in its path; Linux."""
    return library in Path(f"/proc/{pid}/maps").read_text()
