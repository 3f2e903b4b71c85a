"""Whether to accept a peer's weights, and how far to let them move us.

Self-centred: all yardsticks are our own. Checked in this order (finiteness before, in `codec.unpack`):

- norm: |x̂ - A| against our own distance from the reference;
- distance: |x̂ - x| against the running mean of the distances accepted so far;
- clip: the change is shortened to a small multiple of the same mean (ClippedGossip, He, Karimireddy and Jaggi
  2022; the running mean instead of their sort over neighbours, because our partners change at every contact).

Clipping bounds magnitude only: a slow poisoner still moves us by half the limit at each contact.
"""

from typing import Any, TypeAlias

from gossip.config import ExchangeConfig
from gossip.errors import Reason
from gossip.events import JobRefused

Scalar: TypeAlias = Any  # a float, or float32 arrays of any one shape

# With so few accepted distances there is no history: the first contacts of a young node say little about the
# next. A guess; more would leave a node longer without limits.
_HISTORY_MIN = 4

# Weight of a new distance in the running mean once there are 10: the memory of a few rounds. A guess.
_RATE = 0.1

# The yardstick is at least this share of our own distance from the reference. Agreement is exponential once
# training stops: without a floor, a node that was away for ten rounds would be refused by all for ever. With
# distance_factor = 16 it says: a model nearer to ours than the reference is never too distant.
_MEAN_FLOOR = 1 / 16

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


class _Floats:
    """What the limits need of an array namespace, for one node's plain floats; numpy costs ten times as much."""

    maximum = staticmethod(max)

    @staticmethod
    def where(condition: bool, yes: float, no: float) -> float:
        return yes if condition else no


# --- limits: pure, over floats or over jax.numpy, so that a whole network on an accelerator judges alike ------


def clip_limit(xp: Any, config: ExchangeConfig, *, count: Scalar, mean: Scalar, own: Scalar) -> Scalar:
    """Return the largest norm of a change that we accept; infinity while there is no history.

    Args:
        xp: jax.numpy; Gate gives plain floats and their own namespace.
        config: Its factors.
        count, mean: The history: accepted distances so far, and their running mean.
        own: Our distance from the reference, |x - A|.
    """
    limit = config.clip_factor * xp.maximum(mean, _MEAN_FLOOR * own)
    return xp.where(count < _HISTORY_MIN, _INFINITY, limit)


def state_limit(config: ExchangeConfig, *, size: int, own: Scalar) -> Scalar:
    """Return the largest distance from the reference that an offered state of `size` values may have."""
    return config.norm_factor * (own + _NORM_FLOOR_RMS * size**0.5)


def distance_limit(xp: Any, config: ExchangeConfig, *, count: Scalar, mean: Scalar, own: Scalar) -> Scalar:
    """Return the largest distance from our own state that an offered one may have; arguments as clip_limit."""
    limit = config.distance_factor * xp.maximum(mean, _MEAN_FLOOR * own)
    return xp.where(count < _HISTORY_MIN, _INFINITY, limit)


def change_limit(xp: Any, config: ExchangeConfig, *, size: int, own: Scalar, declared: Scalar) -> Scalar:
    """Return the largest norm of a change that may answer an offer for which we declared a clip limit."""
    # |c| = |x̂ - x_j| is at most the sum of two distances from the reference, ours and an acceptable one.
    unlimited = own + state_limit(config, size=size, own=own)
    return xp.where(declared == _INFINITY, unlimited, declared) * (1 + _CLIP_SLACK_RELATIVE) + _CLIP_SLACK


def remembered(xp: Any, *, count: Scalar, mean: Scalar, distance: Scalar) -> tuple[Scalar, Scalar]:
    """Return count and mean after the norm of one more accepted change."""
    count = count + 1
    return count, mean + xp.maximum(_RATE, 1 / count) * (distance - mean)


class Gate:
    """The history of one shard at one node. All arguments are Euclidean norms over the shard, not negative.

    `own` is always our distance from the reference, |x - A|.
    """

    __slots__ = ("_config", "_size", "count", "mean")

    def __init__(self, config: ExchangeConfig, size: int) -> None:
        self._config = config
        self._size = size
        self.count = 0  # accepted distances so far
        self.mean = 0.0  # of them

    def clip_limit(self, own: float) -> float:
        """Return the largest norm of a change that we accept; infinity while there is no history."""
        limit: float = clip_limit(_Floats, self._config, count=self.count, mean=self.mean, own=own)
        return limit

    def state(self, own: float, offered: float) -> JobRefused | None:
        """Judge an offered state by its distance from the reference; None: accepted."""
        limit = min(_NORM_MAX, state_limit(self._config, size=self._size, own=own))
        if offered <= limit:
            return None
        return JobRefused(Reason.TOO_LARGE_NORM, f"norm {offered:.3g} of the delta exceeds {limit:.3g}")

    def distance(self, own: float, distance: float) -> JobRefused | None:
        """Judge an offered state by its distance from our own; None: accepted."""
        limit = distance_limit(_Floats, self._config, count=self.count, mean=self.mean, own=own)
        if distance <= limit:
            return None
        return JobRefused(Reason.TOO_DISTANT, f"distance {distance:.3g} exceeds {limit:.3g}")

    def change(self, own: float, norm: float, declared: float) -> JobRefused | None:
        """Judge the change that a responder sent back against the limit that we declared; None: accepted."""
        limit = min(
            _NORM_MAX, change_limit(_Floats, self._config, size=self._size, own=own, declared=declared)
        )
        if norm <= limit:
            return None
        return JobRefused(Reason.TOO_LARGE_NORM, f"change of norm {norm:.3g} exceeds our limit {limit:.3g}")

    def accepted(self, distance: float) -> None:
        """Remember the norm of an accepted change: what was clipped away must not widen the limits."""
        # `remembered`, by hand: the calls would cost more than the arithmetic, at each half of each exchange.
        self.count += 1
        self.mean += max(_RATE, 1 / self.count) * (distance - self.mean)
