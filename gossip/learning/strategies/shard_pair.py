"""ShardPair: antisymmetric pairwise exchange of one shard. Equations, and what they conserve: docs/learning.md.

    1. i -> j   a = Q(x_i - A)
    2. j        d = x̂_i - x_j;  c = C(d) · min(1, τ/|C(d)|);  x_j += c/2;  reply c
    3. i        x_i -= c/2

Both apply the same decoded c with opposite signs: x_i + x_j is conserved for every codec and clip, up to the
rounding of one addition. A is a state that both hold, so a lost or repeated message costs nothing lasting:
states correct themselves where summed operations drift. There is no state besides the weights.
"""

from types import ModuleType

import numpy as np

from gossip.learning.codec import Array, Coded, Scalar, code
from gossip.learning.strategies.interface import State

# ω of the equations. Half is the average of the two, the fastest mixing: factor 1 - 4ω(1-ω)/(n-1).
WEIGHT = np.float32(0.5)

answers = True
# What is lost by rounding is not lost to the sum, so the nearest value is the best one.
dithered = False


def init(xp: ModuleType, x: Array) -> State:
    return State(x)


def local(xp: ModuleType, state: State) -> State:
    return state


def offer(xp: ModuleType, state: State, reference: Array, *, codec: str, noise: Array | None = None) -> Coded:
    return code(xp, codec, state.x - reference)


def respond(xp: ModuleType, state: State, c: Array) -> State:
    return State(state.x + WEIGHT * c)


def finish(xp: ModuleType, state: State, c: Array) -> State:
    # On weights that may have been trained since the offer.
    return State(state.x - WEIGHT * c)


def adopt(xp: ModuleType, state: State, offered: Array) -> State:
    return State(offered)


def readout(xp: ModuleType, state: State) -> Array:
    return state.x


def metrics(state: State) -> dict[str, Scalar]:
    return {}
