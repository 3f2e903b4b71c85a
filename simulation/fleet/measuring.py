"""What is told of a fleet: how good its read-outs are, and how well its models agree; on one device of the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simulation.fleet.network import Leaves

# Of the mesh, over which nodes are shared out.
AXIS = "nodes"
_QUANTILES = (0.1, 0.5, 0.9)


class Measured(NamedTuple):
    accuracy: jax.Array  # () mean
    worst: jax.Array
    quantiles: jax.Array
    consensus: jax.Array
    nodes: jax.Array  # () int32: how many


def measured(found: jax.Array, taken: jax.Array, distance: jax.Array) -> Measured:
    """Sum up over all devices.

    Args:
        found: Accuracy of each node of the sample, (sample,).
        taken: Which of them count, (sample,) bool.
        distance: The consensus distance.
    """
    found = jnp.where(taken, found, jnp.inf)
    ranked = jnp.sort(jax.lax.all_gather(found, AXIS, tiled=True))
    count = total(jnp.sum(taken)).astype(jnp.int32)
    mean = jnp.sum(jnp.where(jnp.isfinite(ranked), ranked, 0)) / count
    places = jnp.round(jnp.array(_QUANTILES) * (count - 1)).astype(jnp.int32)
    return Measured(mean, ranked[0], ranked[places], distance, count)


def consensus(slabs: Leaves, source: jax.Array, honest: jax.Array, *, chunks: int, width: int) -> jax.Array:
    """Root of the mean squared distance from the mean. docs/learning.md.

    Args:
        slabs: Leaves of the weights.
        source: Where in them the nodes lie now.
        honest: Which of them count, (chunks * width,) bool.
    """
    weights = honest.astype(jnp.float32).reshape(chunks, width)

    def summed(of: Callable[[jax.Array, jax.Array], jax.Array], centre: Leaves) -> Leaves:
        def add(sums: Leaves, item: tuple[jax.Array, jax.Array]) -> tuple[Leaves, None]:
            k, weight = item
            # Chunk by chunk: a slice of a whole half would be a copy of it.
            rows = [jax.lax.dynamic_slice_in_dim(slab, source + k * width, width) for slab in slabs]
            more = [
                jnp.tensordot(weight, of(leaf, middle[None]), axes=1)
                for leaf, middle in zip(rows, centre, strict=True)
            ]
            return tuple(one + other for one, other in zip(sums, more, strict=True)), None

        begin = tuple(jnp.zeros(slab.shape[1:], jnp.float32) for slab in slabs)
        items = (jnp.arange(chunks, dtype=jnp.int32), weights)
        everywhere: Leaves = total(jax.lax.scan(add, begin, items)[0])
        return everywhere

    count = total(jnp.sum(weights))
    nowhere = tuple(jnp.zeros(slab.shape[1:], jnp.float32) for slab in slabs)
    centre = tuple(leaf / count for leaf in summed(lambda x, _: x, nowhere))
    squares = summed(lambda x, middle: jnp.square(x - middle), centre)
    distance: jax.Array = jnp.sqrt(sum((jnp.sum(leaf) for leaf in squares), jnp.float32(0)) / count)
    return distance


def total(tree: Any) -> Any:
    """The sum over all devices."""
    return jax.lax.psum(tree, AXIS)  # type: ignore[no-untyped-call]
