"""Between what arrives and what is applied: how far is it, and how much of it counts. Goes with every strategy.

An offered state is measured against our own (`compare`), and their difference, coded as it will be sent, is shortened
to a limit (`change`): self-centred clipping (He, Karimireddy and Jaggi 2022). The gate says what the limit is.

Everything is written over an array namespace `xp` (numpy or jax.numpy): daemon, world and fleet run these lines.
"""

from types import ModuleType

import numpy as np
from msgspec import Struct

from gossip.learning.codec import Array, Coded, Scalar, code, scaled, value

# The limit of who does not clip at all.
INFINITY = float("inf")

# A dot product of so many float32 keeps a relative error near 1e-6, and OpenBLAS uses one thread for it (its
# limit is 10,000), so that the result does not depend on the number of cores; partial sums are added in
# double precision.
_DOT_VALUES = 8192


class Comparison(Struct, frozen=True):
    """What a node learns from an offered state before it decides: all norms Euclidean, over the shard."""

    difference: Array  # d = x̂_i - x_j, shape (size,), float32
    own: Scalar  # |x_j - A|
    offered: Scalar  # |x̂_i - A|
    distance: Scalar  # |d|


class Change(Struct, frozen=True):
    """c as it will be sent, and as both sides apply it."""

    coded: Coded
    vector: Array  # value(coded), shape (size,), float32
    norm: Scalar  # |c|


def norm(xp: ModuleType, vector: Array) -> Scalar:
    """Return the Euclidean norm; never overflows for finite float32 under numpy."""
    if xp is not np:
        return xp.sqrt(xp.vdot(vector, vector))
    if vector.size <= _DOT_VALUES:
        square = float(np.dot(vector, vector))
    else:
        square = 0.0
        for start in range(0, vector.size, _DOT_VALUES):
            part = vector[start : start + _DOT_VALUES]
            square += float(np.dot(part, part))
    if square == float("inf"):
        # Squares of large finite float32 overflow; rare, so only then in double precision.
        square = float(np.square(vector, dtype=np.float64).sum())
    return square**0.5


def compare(xp: ModuleType, x: Array, reference: Array, offered: Coded) -> Comparison:
    """Measure an offered state against our own weights, both of shape (size,)."""
    a = value(offered)
    own = x - reference
    difference = a - own  # (A + a) - x, with one rounding less
    return Comparison(difference, norm(xp, own), norm(xp, a), norm(xp, difference))


def change(xp: ModuleType, difference: Array, *, codec: str, limit: Scalar) -> Change:
    """Return c = C(d), clipped to norm `limit` (infinity: not at all).

    Clipping scales the scales and not the codes, so c is exactly what the payload says.
    """
    coded = code(xp, codec, difference)
    vector = value(coded)
    size = norm(xp, vector)
    # A limit that is infinite when XLA compiles costs nothing; one that only turns out to be costs a pass.
    if limit is INFINITY:
        return Change(coded, vector, size)
    if xp is np:
        if size <= limit:
            return Change(coded, vector, size)
        factor = np.float32(limit / size)
    else:
        factor = xp.minimum(np.float32(1), limit / xp.maximum(size, np.finfo(np.float32).tiny))
    coded = scaled(coded, factor)
    vector = value(coded)
    return Change(coded, vector, norm(xp, vector))
