"""Push: everybody sends its weights to a random other node, and averages what has come with its own once a round.

Epidemic Learning (De Vos et al. 2023, EL-Local with s = 1), without its barrier: what has come by the end of a round's
training is averaged, and what comes later belongs to the next round.

    i -> j   a = Q(x_i - A)
    j        z = x_j + clip(x̂_i - x_j, τ);  Σ += z;  k += 1;  reply that it was taken, without a payload
    j        after its training: x_j ← (x_j + Σ) / (1 + k);  Σ, k ← 0

One leg carries weights instead of two, and a lost message costs nothing but itself. In return the mean of all is not
kept, and a node that is too far from all others is not rescued: it gets no answer. Which is why payloads are rounded at
random: what is lost by rounding must not always be lost on the same side.

A sum and a count instead of one place for each sender: a sender that comes twice within a round of ours counts twice,
and node cores let it come twice at most (`gossip.exchange.MOVES_MAX`).
"""

from types import ModuleType

import numpy as np

from gossip.learning.codec import Array, Coded, Scalar, code
from gossip.learning.strategies.interface import State

answers = False
dithered = True


def init(xp: ModuleType, x: Array) -> State:
    return State(x, (xp.zeros(x.shape, np.float32),), (xp.float32(0),))


def local(xp: ModuleType, state: State) -> State:
    (total,), (count,) = state.kept, state.noted
    if xp is np and count == 0:  # nothing has come
        return state
    return State(_mean(state.x, total, count), (xp.zeros_like(total),), (xp.zeros_like(count),))


def offer(xp: ModuleType, state: State, reference: Array, *, codec: str, noise: Array | None = None) -> Coded:
    return code(xp, codec, state.x - reference, noise)


def respond(xp: ModuleType, state: State, c: Array) -> State:
    (total,), (count,) = state.kept, state.noted
    return State(state.x, (total + (state.x + c),), (count + np.float32(1),))


def finish(xp: ModuleType, state: State, c: Array) -> State:
    raise AssertionError("a push brings no change back")


def adopt(xp: ModuleType, state: State, offered: Array) -> State:
    return init(xp, offered)


def readout(xp: ModuleType, state: State) -> Array:
    (total,), (count,) = state.kept, state.noted
    if xp is np and count == 0:
        return state.x
    return _mean(state.x, total, count)


def metrics(state: State) -> dict[str, Scalar]:
    return {"waiting": state.noted[0]}


def _mean(x: Array, total: Array, count: Scalar) -> Array:
    return (x + total) / (np.float32(1) + count)
