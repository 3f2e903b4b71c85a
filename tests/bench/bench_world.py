"""The simulator with everything real: 500 nodes, signatures, DHT, exchanges, training.

The checkers, which watch a run from outside, are off: they are no part of what is measured.

A node-update is one local training job of one node together with the exchange that it initiates. gossipy (500 nodes,
logistic regression, digits) models messages and learning, no network protocol, and needs one core; ours needs two,
because training and checking signatures are a thread and a process of their own. A bare JAX loop over all nodes at
once, and a heap that does nothing, are the physical limits in the same run.
"""

import heapq
import os
import subprocess
import sys
import time

from tests.bench.figures import Figure, seconds
from tests.bench.processes import BIN, answer
from tests.bench.reference import beside

SCENARIO = "digits-500-logistic"
NODES = 500
# Until everybody has found everybody, and a little longer.
BRIEF = ("--nodes", "20", "--set", "duration_s=12")

# 500 logistic regressions on their own three rows of digits (1,437 rows, 500 nodes), one step a round and a mean of
# pairs: what gossipy's nodes compute, without any message.
BARE = """
import sys, time, jax, jax.numpy as jnp
nodes, rounds = 500, int(sys.argv[1])
x = jax.random.normal(jax.random.key(0), (nodes, 3, 64))  # (nodes, rows, features)
y = jax.random.randint(jax.random.key(1), (nodes, 3), 0, 10)  # (nodes, rows)
def loss(w, x, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(x @ w), y[:, None], axis=1).mean()
@jax.jit
def run(w):
    def step(w, key):
        w = w - 0.1 * jax.vmap(jax.grad(loss))(w, x, y)
        return (w + w[jax.random.permutation(key, nodes)]) / 2, None
    return jax.lax.scan(step, w, jax.random.split(jax.random.key(2), rounds))[0]
w = jnp.zeros((nodes, 64, 10))
run(w).block_until_ready()
start = time.perf_counter()
run(w).block_until_ready()
print(nodes * rounds / (time.perf_counter() - start))
"""


def bare_updates(rounds: int) -> float:
    """Node-updates a second of the bare JAX loop."""
    result = subprocess.run(
        [sys.executable, "-c", BARE, str(rounds)], capture_output=True, text=True, timeout=300
    )
    if result.returncode != 0:
        raise RuntimeError(result.stderr[-500:])
    return float(result.stdout)


def bare_events(count: int) -> float:
    """Events a second of a heap whose events do nothing but schedule the next one."""
    heap = [(float(node), node, node) for node in range(NODES)]
    heapq.heapify(heap)

    def run() -> None:
        for sequence in range(NODES, NODES + count):
            date, _, node = heapq.heappop(heap)
            heapq.heappush(heap, (date + 1.0 + node * 1e-6, sequence, node))

    return count / seconds(run)


def world(brief: bool) -> list[Figure]:
    command = (
        BIN / "p2psim",
        "run",
        SCENARIO,
        "--seed",
        "1",
        "--no-checks",
        "--json",
        *(BRIEF if brief else ()),
    )
    start = time.perf_counter()
    found = answer(*command)
    whole = time.perf_counter() - start
    wall = found["wall_s"]
    nodes = found["nodes"]
    assert nodes == (20 if brief else NODES)
    assert 0 < wall <= whole
    updates, events = found["node_updates"] / wall, found["events"] / wall
    settled = found["settled"]["node_updates"] / found["settled"]["wall_s"]
    modelled = answer(*command, "--set", "compute.signatures=modelled")
    assert (found["signatures"], modelled["signatures"]) == ("real", "modelled")
    where = f"{nodes} nodes, {found['accuracy']['mean']:.3f} accurate at the end"
    return [
        *beside(f"world: node-updates, {where}", updates, "logistic"),
        *beside("world: node-updates, second half: everybody has found everybody", settled, "logistic"),
        *beside(
            "world: node-updates, signatures modelled",
            modelled["node_updates"] / modelled["wall_s"],
            "logistic",
        ),
        Figure(
            name="world: node-updates",
            value=updates,
            unit="1/s",
            reference=bare_updates(20 if brief else 2000),
            against="bare JAX loop without messages",
        ),
        Figure(
            name="world: events",
            value=events,
            unit="1/s",
            reference=bare_events(3_000 if brief else 300_000),
            against="heap whose events do nothing",
        ),
    ]


def windows(brief: bool) -> list[Figure]:
    """One run divided among all processors, beside the same run on one of them. Both find the same."""
    processes = os.cpu_count() or 1
    if processes == 1:
        return []
    figures = []
    for signatures in ("real",) if brief else ("real", "modelled"):
        speeds, digests = [], []
        for jobs in (1, processes):
            found = answer(
                *(BIN / "p2psim", "run", SCENARIO, "--seed", "1", "--no-checks", "--no-curve", "--json"),
                *("--set", "network.preset=wan", "--set", f"compute.signatures={signatures}"),
                *("--jobs", str(jobs), *(BRIEF if brief else ())),
            )
            speeds.append(found["settled"]["node_updates"] / found["settled"]["wall_s"])
            digests.append(found["digest"])
        assert len(set(digests)) == 1, digests
        figures.append(
            Figure(
                name=f"world: node-updates on wan, second half, {processes} processes, signatures {signatures}",
                value=speeds[1],
                unit="1/s",
                reference=speeds[0],
                against="one process",
            )
        )
    return figures


BENCHMARKS = (world, windows)
