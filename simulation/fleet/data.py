"""Which rows a node of the fleet trains on: all rows lie on the device once, a node has indices into them.

The division is the world's (p2pnode.tasks.partition, same seed, same parts). A node goes through its rows in whole
epochs, each in another order, as the batches of the built-in tasks do; the orders are others, because they are made on
the device, from the node's number and the epoch alone.
"""

import inspect
import typing
from contextlib import suppress
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gossip.errors import LocalError
from gossip.learning.task import Task
from p2pnode.tasks import load_task, task_factory
from p2pnode.tasks.classifier import check_batch
from p2pnode.tasks.partition import ARGUMENTS
from p2pnode.tasks.partition import divided as divided_rows
from p2pnode.values import described, expected, nearest
from simulation.fleet.pace import mixed
from simulation.fleet.settings import FleetSettings
from simulation.seeds import Seeds

# A node has at least so many rows; where there are more nodes than that allows, several hold the same rows.
_ROWS_EACH_MIN = 2

# The order of a node's rows changes with every epoch: a random offset, and one of so many strides.
_STRIDES = 8

# Annotations of arguments that a value can be held against.
_PLAIN = (bool, int, float, str, int | None, float | None)


class Rows(NamedTuple):
    """The data set and who holds which rows; the same on all devices."""

    train: dict[str, jax.Array]  # each (rows, ...)
    test: tuple[dict[str, jax.Array], ...]
    table: jax.Array  # (parts, most rows) int32: rows of each part, then zeros
    sizes: jax.Array  # (parts,) uint32
    strides: jax.Array  # (parts, _STRIDES) uint32, coprime to the size


def made_task(settings: FleetSettings) -> Task:
    """Make the task of all rows: what divides them is left out.

    Raises:
        LocalError, UserError: there is no such task, or an argument is unknown, missing or out of range.
    """
    factory = task_factory(settings.task)
    whole = {"part": 0, "parts": 1, "seed": 0}  # which the world gives, and some factories insist on
    if "part" in settings.args:
        raise LocalError("expected no task.args.part, because every node has its own part; found one")
    args = {name: given for name, given in settings.args.items() if name not in (*ARGUMENTS, "parts")}
    parameters: list[inspect.Parameter] = []
    with suppress(TypeError, ValueError):  # some callables written in C have no signature
        parameters = list(inspect.signature(factory).parameters.values())
    names = [entry.name for entry in parameters if entry.kind is not entry.POSITIONAL_ONLY]
    if parameters and all(entry.kind is not entry.VAR_KEYWORD for entry in parameters):
        for name in args:
            if name not in (*names, "seed"):
                raise LocalError(
                    f"the task {settings.task!r} has no argument {name}, but {', '.join(names)}{nearest(name, names)}"
                )
    hints: dict[str, Any] = typing.get_type_hints(divided_rows)
    with suppress(NameError, TypeError, AttributeError):  # annotations that nobody can read judge nothing
        hints |= typing.get_type_hints(factory)
    for name, value in settings.args.items():
        want = expected(hints[name], value, finite=False) if hints.get(name) in _PLAIN else ""
        if want:
            raise LocalError(f"task.args.{name}: expected {want}, found {described(value)}")
    # Of the division, which is not the task's business here.
    if "seed" not in names:
        args.pop("seed", None)
    for entry in parameters:
        needed = entry.default is entry.empty and entry.kind in (
            entry.KEYWORD_ONLY,
            entry.POSITIONAL_OR_KEYWORD,
        )
        if needed and entry.name in whole:
            args.setdefault(entry.name, whole[entry.name])
        elif needed and entry.name not in args:
            raise LocalError(
                f"the task {settings.task!r} needs {entry.name}, which has no default; "
                f"give it with --set task.args.{entry.name}=VALUE"
            )
    return load_task(settings.task, args)


def held_rows(task: Any, settings: FleetSettings) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return features and labels of all training rows.

    Raises:
        LocalError: the task holds none in memory.
    """
    train = getattr(task, "train", None)
    if train is None or not hasattr(train, "x") or not hasattr(train, "y"):
        raise LocalError(
            f"the fleet needs all rows on the device: the task {settings.task!r} has no `train` with arrays x and y"
        )
    return np.asarray(train.x), np.asarray(train.y)


def batch_size(task: Any, settings: FleetSettings) -> int:
    """Return the rows in a batch; as many as a node holds on average, and the task takes, if nobody says.

    Raises:
        LocalError: more than there are rows.
    """
    rows = len(held_rows(task, settings)[1])
    check_batch(settings.batch, rows)
    own = len(next(iter(next(task.batches("train", 0)).values())))
    return settings.batch or min(own, ceil(rows / _parts(settings, rows)))


def _parts(settings: FleetSettings, rows: int) -> int:
    """Into how many parts the rows are divided; where that is fewer than nodes, several hold the same."""
    wanted = settings.args.get("parts", settings.nodes)
    if not isinstance(wanted, int) or wanted < 1:
        raise LocalError(f"expected task.args.parts to be a whole number from 1 up, got {wanted!r}")
    return max(1, min(wanted, settings.nodes, rows // _ROWS_EACH_MIN))


def divided(task: Any, settings: FleetSettings, seeds: Seeds) -> Rows:
    """Return the rows of a task that holds all of them in memory, and the division among the nodes.

    Raises:
        LocalError: the task holds no rows, or they cannot be divided so.
    """
    x, y = held_rows(task, settings)
    count = _parts(settings, len(y))
    if "rows_file" in settings.args or settings.args.get("partition") == "file":
        raise LocalError("the fleet cannot divide rows by a file; p2psim run can")
    said = {name: settings.args[name] for name in ARGUMENTS if name in settings.args}
    # The seed that the world gives its tasks: the same seed divides alike in both.
    seed = settings.args.get("seed", seeds.integer("data") % 2**32)
    try:
        parts = divided_rows(y, count, seed=seed, **said)
    except (TypeError, ValueError) as error:  # a negative seed, for one
        raise LocalError(f"the rows cannot be divided by seed {seed} and {said}: {error}") from error
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
