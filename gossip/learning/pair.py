"""ShardPair: antisymmetric pairwise exchange of one shard, as pure functions.

Equations, and what they conserve: docs/learning.md.

    1. i -> j   a = Q(x_i - A)
    2. j        d = x̂_i - x_j;  c = C(d) · min(1, τ/|C(d)|);  x_j += c/2;  reply c
    3. i        x_i -= c/2

Both apply the same decoded c with opposite signs: x_i + x_j is conserved for every codec and clip, up to the
rounding of one addition. A is a state that both hold, so a lost or repeated message costs nothing lasting:
states correct themselves where summed operations drift.

Everything is written over an array namespace `xp` (numpy or jax.numpy): daemon, world and fleet run these
lines.
"""

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct

from gossip.learning.codec import Array, Coded, code, scaled, value

Scalar: TypeAlias = Any  # float under numpy, a float32 array of shape () under jax.numpy

# ω of the equations. Half is the average of the two, the fastest mixing: factor 1 - 4ω(1-ω)/(n-1).
WEIGHT = np.float32(0.5)

# The limit of who does not clip at all.
INFINITY = float("inf")

# A dot product of so many float32 keeps a relative error near 1e-6, and OpenBLAS uses one thread for it (its
# limit is 10,000), so that the result does not depend on the number of cores; partial sums are added in
# double precision.
_DOT_VALUES = 8192


class Comparison(Struct, frozen=True):
    """What the responder learns from an offer before it decides: all norms Euclidean, over the shard."""

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


def offer(xp: ModuleType, x: Array, reference: Array, *, codec: str) -> Coded:
    """Step 1: return a = Q(x - A). Both arguments have shape (size,), float32."""
    return code(xp, codec, x - reference)


def compare(xp: ModuleType, x: Array, reference: Array, offered: Coded) -> Comparison:
    """Step 2, first half: measure an offer against our own weights."""
    a = value(offered)
    own = x - reference
    difference = a - own  # (A + a) - x, with one rounding less
    return Comparison(difference, norm(xp, own), norm(xp, a), norm(xp, difference))


def change(xp: ModuleType, difference: Array, *, codec: str, limit: Scalar) -> Change:
    """Step 2, second half: return c = C(d), clipped to norm `limit` (infinity: not at all).

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


def towards(x: Array, c: Array) -> Array:
    """Return x + ωc: what the responder does."""
    return x + WEIGHT * c


def away(x: Array, c: Array) -> Array:
    """Return x - ωc: what the initiator does, on weights that may have been trained since the offer."""
    return x - WEIGHT * c


def respond(
    xp: ModuleType, x: Array, reference: Array, offered: Coded, *, limit: Scalar
) -> tuple[Array, Change, Comparison]:
    """Step 2 without a gate, in the codec of the offer: return (new x, c, what was seen)."""
    seen = compare(xp, x, reference, offered)
    c = change(xp, seen.difference, codec=offered.codec, limit=limit)
    return towards(x, c.vector), c, seen


def finish(x: Array, coded: Coded) -> Array:
    """Step 3: return the initiator's new x."""
    return away(x, value(coded))


def adopt(reference: Array, offered: Coded) -> Array:
    """Return x̂ = A + a, the state that a newcomer takes over; the other does not move."""
    return reference + value(offered)
