"""One float32 model of 40 MB between two daemons on loopback: offers there, changes back, shard after shard.

The same model as in hivemind's benchmark of averaging (10 M values, two peers: 0.41 s a step). Only one daemon
initiates, neither trains, so the seconds are those of encoding, signing, encryption, checks and application, at both
ends. The reference is a bare trio TCP connection between two processes that carries the same bytes there and back.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import trio

from gossip.config import CODECS, LearningConfig
from gossip.learning.codec import payload_bytes
from gossip.learning.shards import shard_sizes
from p2pnode.control import ControlClient
from p2pnode.home import Home
from tests.bench.figures import Figure
from tests.bench.processes import BIN, answer, running, status, wait_until_up

VALUES = 10_000_000
# Two shards: that all are exchanged is part of what is tried.
VALUES_BRIEF = 1_100_000
# Whole models to measure over; and a limit for a machine that is slow or a swarm that does not start.
MODELS = 5
MODELS_BRIEF = 1
# The least that the settings allow: rounds follow each other without a pause.
ROUND_INTERVAL_S = "0.001"
WAIT_S_MAX = 120.0
# hivemind 1.1.12, two peers, no compression, recorded.
HIVEMIND_S = 0.41

ECHO = """
import sys, trio
size = int(sys.argv[1])
async def serve(stream):
    answer = bytes(size)
    while True:
        missing = size
        while missing:
            data = await stream.receive_some(2**20)
            if not data:
                return
            missing -= len(data)
        await stream.send_all(answer)
async def main():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await serve(await listeners[0].accept())
trio.run(main)
"""


async def there_and_back(port: int, size: int, count: int) -> float:
    """Seconds for `count` messages of `size` bytes, each answered by as many."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    message = bytes(size)
    start = time.perf_counter()
    for _ in range(count):
        await stream.send_all(message)
        missing = size
        while missing:
            missing -= len(await stream.receive_some(2**20))
    elapsed = time.perf_counter() - start
    await stream.aclose()
    return elapsed


def bare_s(codec: str, shards: tuple[int, ...], models: int) -> float:
    """Seconds that bare TCP needs for the payloads of one whole model in both directions."""
    size = max(payload_bytes(codec, shard) for shard in shards)
    command = [sys.executable, "-c", ECHO, str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        elapsed = trio.run(there_and_back, port, size, models * len(shards))
        process.wait(10)
    return elapsed / models


def exchanged_s(codec: str, shards: tuple[int, ...], models: int) -> float:
    """Seconds that two daemons need for one exchange of every shard."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        homes = [Path(folder) / name for name in ("first", "second")]
        address = ""
        for home, interval in zip(homes, ("3600", ROUND_INTERVAL_S), strict=True):
            answer(BIN / "p2pnode", "init", "--home", home, "--json")
            options = {
                "learning.local_steps": "0",
                "learning.round_interval_s": interval,
                "exchange.codec": codec,
                # Identical models: nothing that the gate could find too far away.
                "exchange.offers_per_peer_s": "1000",
                "task.args.values": str(sum(shards)),
            }
            sets = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
            join = ["--join", address] if address else []
            log = home.with_suffix(".log")
            task = ("--task", "tests.bench.model:make")
            command: tuple[str | Path, ...] = (
                BIN / "p2pnode",
                "run",
                "--home",
                home,
                "--listen",
                "127.0.0.1:0",
                *join,
                *task,
                *sets,
            )
            process = stack.enter_context(running(*command, log=log))
            address = wait_until_up(home, process, log)["address"]
        return seconds_per_model(homes[1], len(shards), models)


def seconds_per_model(home: Path, shards: int, models: int) -> float:
    """Waits for the first whole model to be through, then measures the next ones."""
    begun, end = None, time.monotonic() + WAIT_S_MAX
    # Asked from here: a process for each question would take a core from the two that we measure.
    with ControlClient(Home(home)) as client:
        while time.monotonic() < end:
            count, now = int(client.call("status")["exchanges"]), time.perf_counter()
            if begun is None and count >= shards:
                begun = (count, now)
            elif begun is not None and count >= begun[0] + models * shards:
                return (now - begun[1]) / (count - begun[0]) * shards
            time.sleep(0.05)
    raise RuntimeError(f"no {models} models within {WAIT_S_MAX} s: {json.dumps(status(home))[:400]}")


def models(brief: bool) -> list[Figure]:
    shards = tuple(shard_sizes(VALUES_BRIEF if brief else VALUES, LearningConfig().shard_values_max))
    size_mb = sum(shards) * 4 / 1e6
    count = MODELS_BRIEF if brief else MODELS
    figures = []
    # Codecs differ in what they compute, which is tried elsewhere; daemons take long to start.
    for codec in CODECS[-1:] if brief else CODECS:
        ours, bare = exchanged_s(codec, shards, count), bare_s(codec, shards, count)
        name = f"model of {size_mb:.0f} MB exchanged as {codec}"
        against = "the same bytes over bare trio TCP"
        figures += [
            Figure(name=name, value=ours, unit="s", reference=bare, against=against),
            Figure(
                name=name,
                value=size_mb / ours,
                unit="MB/s",
                reference=size_mb / bare,
                against=against,
            ),
            Figure(
                name=name,
                value=ours,
                unit="s",
                reference=HIVEMIND_S,
                against="hivemind, two peers, float32",
                recorded=True,
            ),
        ]
    return figures


BENCHMARKS = (models,)
