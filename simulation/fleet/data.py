"""Which rows a node of the fleet trains on: all rows lie on the device once, a node has indices into them.

The division is the world's (p2pnode.tasks.partition, same seed, same parts). A node goes through its rows in whole
epochs, each in another order, as the batches of the built-in tasks do; the orders are others, because they are made on
the device, from the node's number and the epoch alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gossip.errors import LocalError
from p2pnode.tasks.partition import ARGUMENTS
from p2pnode.tasks.partition import divided as divided_rows
from simulation.fleet.pace import mixed
from simulation.fleet.settings import FleetSettings
from simulation.seeds import Seeds

# A node has at least so many rows; where there are more nodes than that allows, several hold the same rows.
_ROWS_EACH_MIN = 2

# The order of a node's rows changes with every epoch: a random offset, and one of so many strides.
_STRIDES = 8


class Rows(NamedTuple):
    """The data set and who holds which rows; the same on all devices."""

    train: dict[str, jax.Array]  # each (rows, ...)
    test: tuple[dict[str, jax.Array], ...]
    table: jax.Array  # (parts, most rows) int32: rows of each part, then zeros
    sizes: jax.Array  # (parts,) uint32
    strides: jax.Array  # (parts, _STRIDES) uint32, coprime to the size


def divided(task: Any, settings: FleetSettings, seeds: Seeds) -> Rows:
    """Return the rows of a task that holds all of them in memory, and the division among the nodes.

    Raises:
        LocalError: the task holds no rows, or they cannot be divided so.
    """
    train = getattr(task, "train", None)
    if train is None or not hasattr(train, "x") or not hasattr(train, "y"):
        raise LocalError(
            f"the fleet needs all rows on the device: the task {settings.task!r} has no `train` with arrays x and y"
        )
    x, y = np.asarray(train.x), np.asarray(train.y)
    count = max(1, min(settings.nodes, len(y) // _ROWS_EACH_MIN))
    if "rows_file" in settings.args or settings.args.get("partition") == "file":
        raise LocalError("the fleet cannot divide rows by a file; p2psim run can")
    said = {name: settings.args[name] for name in ARGUMENTS if name in settings.args}
    # The seed that the world gives its tasks: the same seed divides alike in both.
    seed = settings.args.get("seed", seeds.integer("data") % 2**32)
    parts = divided_rows(y, count, seed=seed, **said)
    table = np.zeros((count, max(len(part) for part in parts)), np.int32)
    strides = np.ones((count, _STRIDES), np.uint32)
    rng = np.random.default_rng(seeds.integer("strides") % 2**32)
    for index, part in enumerate(parts):
        table[index, : len(part)] = part
        coprime = [s for s in range(1, len(part)) if np.gcd(s, len(part)) == 1] or [1]
        strides[index] = rng.choice(coprime, _STRIDES)
    return Rows(
        train={"x": x, "y": y},  # type: ignore[dict-item]
        test=tuple(dict(batch) for batch in task.batches("test", 0)),
        table=table,  # type: ignore[arg-type]
        sizes=np.array([len(part) for part in parts], np.uint32),  # type: ignore[arg-type]
        strides=strides,  # type: ignore[arg-type]
    )


def batches(
    rows: Rows, node: jax.Array, jobs: jax.Array, *, steps: int, size: int, seed: int
) -> dict[str, jax.Array]:
    """Return the rows for one job of each node: {name: (nodes, steps, size, ...)}.

    Args:
        node: (nodes,) int32.
        jobs: (nodes,) uint32: how many each has done before.
        steps, size: Batches in a job, rows in a batch.
        seed: 32 bits, of the orders.
    """
    part = node % rows.sizes.shape[0]
    held = rows.sizes[part][:, None]  # (nodes, 1)
    place = (jobs * jnp.uint32(steps * size))[:, None] + jnp.arange(steps * size, dtype=jnp.uint32)[None]
    epoch, place = place // held, place % held  # (nodes, steps * size)
    drawn = mixed(mixed(node.astype(jnp.uint32) ^ jnp.uint32(seed))[:, None] ^ epoch)
    stride = rows.strides[part[:, None], (drawn % _STRIDES).astype(jnp.int32)]
    place = (place * stride + (drawn >> 3) % held) % held
    row = rows.table[part[:, None], place.astype(jnp.int32)]  # (nodes, steps * size)
    return {
        name: array.at[row]
        .get(mode="promise_in_bounds")
        .reshape(node.shape[0], steps, size, *array.shape[1:])
        for name, array in rows.train.items()
    }
