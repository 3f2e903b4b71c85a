"""Whether to accept a peer's weights, and how far to let them move us.

Self-centred: all yardsticks are our own: the history of one shard at one node, and `own`, our distance |x - A| from the
reference. All arguments are Euclidean norms over the shard, not negative. Checked in this order (finiteness before, in
`codec.unpack`):

- norm: |x̂ - A| against our own distance from the reference;
- distance: |x̂ - x| against what changes usually measure;
  who is further is not followed, and answered all the same, so that it may come to us (`gossip.learning.meeting`);
- clip: the change is shortened to a small multiple of the same (ClippedGossip, He, Karimireddy and Jaggi 2022;
  instead of their sort over neighbours a running median, because our partners change at every contact).

The usual measure is a median, followed step by step (stochastic approximation: up a step where a change was larger,
down where it was smaller), and not a mean: liars make changes as large as the clip allows, and with a share b of them
among our partners a mean that is clipped at k times itself grows without end from b = 1/k on. Of a median they can only
choose which honest distance it is.

Clipping bounds magnitude only: a slow poisoner still moves us by half the limit at each contact, and many of them who
agree on a direction get there (docs/security.md).
"""

from typing import Any, TypeAlias

import numpy as np

from gossip.config import ExchangeConfig

Scalar: TypeAlias = Any  # a float, or float32 arrays of any one shape

# With so few accepted distances there is no history: the first contacts of a young node say little about the
# next. A guess; more would leave a node longer without limits.
_HISTORY_MIN = 4

# By so much the median moves at a contact, up or down; in the first ten by more. Two contacts a round follow a change
# of a fifth. A guess.
_RATE = 0.1

# The yardstick of distances is at least this share of our own distance from the reference. Agreement is exponential
# once training stops: without a floor, a node that was away for ten rounds would be refused by all for ever. With
# distance_factor = 16 it says: a model nearer to ours than the reference is never too distant.
_DISTANCE_FLOOR = 1 / 16

# That of the clip: for the same reason, but this is what a liar moves us by when all others agree. Who comes back to a
# swarm that has stopped training, or has trained alone and is too distant for all, is drawn in by such steps, within a
# few hundred contacts. A guess.
_CLIP_FLOOR = 1 / 256

# Part of the norm limit that does not depend on how far we are from the reference: so much root mean square
# per value. A newcomer stands at the reference itself and must be able to adopt a trained model. A guess:
# times norm_factor it allows 3 per weight, where initial weights of usual layers are below 1 and training
# moves them by less than that.
_NORM_FLOOR_RMS = 0.3

# Slack for the rounding of scales and norms in float32, and of the declared limit to millionths.
_CLIP_SLACK_RELATIVE = 1e-3
_CLIP_SLACK = 2e-6

# No model has weights of this norm. Whoever pushes within the other limits at each contact widens them, and at the end
# of float32 (3e38) a sum would overflow, which is a fault of our own and ends the daemon.
_NORM_MAX = 1e18

_INFINITY = float("inf")


class Floats:
    """What the limits need of an array namespace, for one node's plain floats; numpy costs ten times as much."""

    maximum = staticmethod(max)
    minimum = staticmethod(min)

    @staticmethod
    def where(condition: bool, yes: float, no: float) -> float:
        return yes if condition else no


def plain(xp: Any) -> Any:
    """Return what the limits take for an array namespace: numbers that come with numpy are plain floats."""
    return Floats if xp is np else xp


def clip_limit(xp: Any, config: ExchangeConfig, *, count: Scalar, usual: Scalar, own: Scalar) -> Scalar:
    """Return the largest norm of a change that we accept.

    Args:
        xp: jax.numpy, or Floats; as `plain` has it. So that a whole network on an accelerator judges alike.
        config: Its factors.
        count, usual: The history: accepted changes so far, and what they usually measure.
        own: Our distance from the reference, |x - A|; without a history it is the yardstick: those who began where we
            did, and trained as long, have come about as far. Who stands at the reference itself has learned nothing
            that could be lost, and takes what comes: with a limit of zero it would stand there for ever.
    """
    young = xp.where(own > 0, own, _INFINITY)
    return config.clip_factor * xp.where(count < _HISTORY_MIN, young, xp.maximum(usual, _CLIP_FLOOR * own))


def state_limit(xp: Any, config: ExchangeConfig, *, size: int, own: Scalar) -> Scalar:
    """Return the largest distance from the reference that an offered state of `size` values may have."""
    return xp.minimum(_NORM_MAX, config.norm_factor * (own + _NORM_FLOOR_RMS * size**0.5))


def distance_limit(xp: Any, config: ExchangeConfig, *, count: Scalar, usual: Scalar, own: Scalar) -> Scalar:
    """Return the largest distance from our own state that an offered one may have; arguments as clip_limit.

    Infinity while there is no history: what we are told then is clipped, and the first distances say what is usual.
    """
    limit = config.distance_factor * xp.maximum(usual, _DISTANCE_FLOOR * own)
    return xp.where(count < _HISTORY_MIN, _INFINITY, limit)


def change_limit(xp: Any, config: ExchangeConfig, *, size: int, own: Scalar, declared: Scalar) -> Scalar:
    """Return the largest norm of a change that may answer an offer for which we declared a clip limit."""
    # |c| = |x̂ - x_j| is at most the sum of two distances from the reference, ours and an acceptable one.
    unlimited = own + state_limit(xp, config, size=size, own=own)
    limit = xp.where(declared == _INFINITY, unlimited, declared) * (1 + _CLIP_SLACK_RELATIVE) + _CLIP_SLACK
    return xp.minimum(_NORM_MAX, limit)


def remembered(xp: Any, *, count: Scalar, usual: Scalar, norm: Scalar) -> tuple[Scalar, Scalar]:
    """Return count and usual measure after one more accepted change of this norm."""
    if xp is Floats:  # by hand: the calls would cost more than the arithmetic, at each half of each exchange
        if norm <= 0:
            return count, usual
        count += 1
        step = 1 + max(_RATE, 1 / count)
        if usual <= 0:
            return count, norm
        return count, usual * step if norm > usual else usual / step
    # A change of nothing says nothing; it is what a node without a history and at the reference accepts.
    count = count + xp.where(norm > 0, 1.0, 0.0)
    step = 1 + xp.maximum(_RATE, 1 / xp.maximum(count, 1.0))
    followed = xp.where(norm > usual, usual * step, usual / step)
    return count, xp.where(norm > 0, xp.where(usual > 0, followed, norm), usual)
