"""Memory of an idle daemon, before it imports JAX and after, beside interpreters that import the same libraries."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.processes import BIN, answer, has_loaded, resident_mb, running, wait_until_up

LIGHT = "import trio, msgspec, msgpack, numpy, nacl.bindings, structlog, click"
HEAVY = f"{LIGHT}, jax, optax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()"
# Long enough for caches to be filled and the first allocations to be over.
SETTLE_S = 3.0


def bare(program: str) -> float:
    """Resident MB of an interpreter after `program`."""
    waits = f"{program}\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        size = resident_mb(process.pid)
        process.communicate("\n")
    return size


def daemon(settle_s: float) -> tuple[float, float]:
    """(largest resident MB seen before jaxlib was mapped, resident MB when idle)."""
    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder) / "node", Path(folder) / "log"
        answer(BIN / "p2pnode", "init", "--home", home, "--json")
        # An idle daemon: nobody to exchange with, and it trains once in an hour.
        options = ("--listen", "127.0.0.1:0", "--set", "learning.round_interval_s=3600")
        with running(BIN / "p2pnode", "run", "--home", home, *options, log=log) as process:
            before = 0.0
            while process.poll() is None and not has_loaded(process.pid, "jaxlib"):
                before = max(before, resident_mb(process.pid))
                time.sleep(0.002)
            wait_until_up(home, process, log)
            time.sleep(settle_s)
            return before, resident_mb(process.pid)


def memory(brief: bool) -> list[Figure]:
    before, after = daemon(0.0 if brief else SETTLE_S)
    rows = (("before JAX", before, LIGHT, "the libraries alone"), ("with JAX", after, HEAVY, "JAX alone"))
    return [
        Figure(name=f"idle daemon {when}", value=value, unit="MB", reference=bare(program), against=against)
        for when, value, program, against in rows
    ]


BENCHMARKS = (memory,)
