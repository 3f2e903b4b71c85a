"""Rows of arrays, in the ways that XLA compiles to one pass."""

import jax
import jax.numpy as jnp


def take(array: jax.Array, rows: jax.Array) -> jax.Array:
    """These rows of an array."""
    taken: jax.Array = array.at[rows].get(mode="promise_in_bounds")
    return taken


def turned(count: int, by: int | jax.Array, *, among: int | jax.Array) -> jax.Array:
    """The order of `count` things of which the first `among` lie on a ring that was turned, and the others stay.

    jnp.roll joins two slices, which costs a pass.
    """
    place = jnp.arange(count, dtype=jnp.int32)
    return jnp.where(place < among, (place + by) % jnp.maximum(among, 1), place)


def write(array: jax.Array, rows: jax.Array, start: jax.Array | int) -> jax.Array:
    """The array with these rows from `start` on."""
    return jax.lax.dynamic_update_slice_in_dim(array, rows, start, axis=0)


def chosen(flags: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Row by row; flags (rows,), the others (rows, ...)."""
    return jnp.where(flags.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)
