"""Whether a fleet fits into memory, asked before anything is allocated: some allocations that fail end the program.

Counted is what no fleet can do without: the slabs of weights, read-outs, and of strategy and optimiser states, what
else is known of a node, and the batches of one chunk. So whatever is refused would have failed; what is accepted may
still fail, when the rounds are compiled.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gossip.config import LearningConfig
from gossip.errors import LocalError
from gossip.learning.strategies import strategy
from simulation.fleet.data import batch_size, held_rows
from simulation.fleet.layout import shape
from simulation.fleet.settings import FleetSettings

# Fields of program._State beside the slabs: number, jobs, presence, two of the gate, two of the pace.
_NODE_BYTES = 25
# Rows of a device's slabs, and places on all devices, are counted in int32.
_ROWS_MAX = 2**31 - 1
# A limit on all processes of a container (cgroup v2): bytes, or "max".
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
# How XLA begins what it says where memory is out.
_EXHAUSTED = "RESOURCE_EXHAUSTED"


def check_room(task: Any, settings: FleetSettings, devices: Sequence[jax.Device]) -> None:
    """Compares what a fleet needs of each device, or of this machine, with what there is.

    Args:
        devices: All of the mesh, of all processes.

    Raises:
        LocalError: it cannot fit, or the model has several shards.
    """
    values, state_bytes = _sizes(task, settings)
    if values > LearningConfig().shard_values_max:
        raise LocalError(
            f"a model of {values} values has several shards; the fleet exchanges whole models, "
            f"of at most {LearningConfig().shard_values_max} values"
        )
    lanes, chunks, _ = shape(settings, len(devices), devices[0].platform)
    x, y = held_rows(task, settings)
    halves = 1 if chunks == 1 else 2
    if 2 * lanes * chunks * max(halves, len(devices)) > _ROWS_MAX:
        raise LocalError(
            f"{settings.nodes} nodes by {lanes} pairs need more than {_ROWS_MAX} places, which int32 cannot count"
        )
    # Of one device.
    kept = strategy(settings.strategy).init(np, np.zeros(1, np.float32))
    vectors, numbers = 2 + len(kept.kept), len(kept.noted)
    node_bytes = _NODE_BYTES + 4 * numbers
    slabs = 2 * lanes * chunks * (halves * (vectors * 4 * values + state_bytes) + node_bytes)
    rows = 2 * lanes * settings.local_steps * batch_size(task, settings)
    batches = rows * (x[:1].nbytes + y[:1].nbytes)
    needed = slabs + batches
    here = [device for device in devices if device.process_index == jax.process_index()]
    statistics = here[0].memory_stats() if here else None
    if statistics and "bytes_limit" in statistics:
        available, where = int(statistics["bytes_limit"]), "each device"
    else:
        # The processor's devices share what the machine has.
        needed *= len(here)
        available, where = machine_bytes(), "this machine"
    if needed > available > 0:
        raise LocalError(
            f"{settings.nodes} nodes with models of {values} values, {settings.local_steps} x "
            f"{batch_size(task, settings)} rows in a job, need at least {needed} bytes of memory, "
            f"{where} has {available}"
        )


def machine_bytes() -> int:
    """Memory that this process can have at most, in bytes; 0 where the system does not say."""
    limits = []
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if sys.platform != "win32":
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    try:
        limits.append(int(_CONTAINER_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # there is no such file, or no limit in it
    return min((limit for limit in limits if limit > 0), default=0)


@contextmanager
def within_memory() -> Iterator[None]:
    """What fails in here for want of memory fails with a sentence.

    Raises:
        LocalError: instead of MemoryError, or of what XLA raises.
    """
    try:
        yield
    except MemoryError as error:
        raise LocalError(
            f"there is too little memory for this fleet: {error or 'an allocation failed'}"
        ) from error
    except RuntimeError as error:
        what = " ".join(str(error).split())
        if _EXHAUSTED not in what:
            raise
        what = what.partition(_EXHAUSTED)[2].strip(": ").partition(". ")[0].rstrip(".")
        raise LocalError(f"there is too little memory for this fleet: {what[:200]}") from error


def _sizes(task: Any, settings: FleetSettings) -> tuple[int, int]:
    """Values of the shared weights, and bytes of the optimiser's state, of one node; nothing is computed."""
    key = jax.random.key(settings.genesis_seed)
    try:
        params = jax.eval_shape(task.init, key)
    except TypeError:
        params = task.init(key)  # it does with the key what can only be done with numbers
    floats = [leaf for leaf in jax.tree_util.tree_leaves(params) if _is_float(leaf)]
    values = sum(_count(leaf) for leaf in floats)
    if values > LearningConfig().shard_values_max or not hasattr(task, "optimizer"):
        return values, 0  # refused, or plain SGD
    state = jax.eval_shape(task.optimizer().init, floats)
    return values, sum(_count(leaf) * leaf.dtype.itemsize for leaf in jax.tree_util.tree_leaves(state))


def _is_float(leaf: Any) -> bool:
    return bool(jax.numpy.issubdtype(jax.numpy.result_type(leaf), jax.numpy.floating))


def _count(leaf: Any) -> int:
    count = 1
    for size in np.shape(leaf):  # Python's numbers have no end
        count *= size
    return count
