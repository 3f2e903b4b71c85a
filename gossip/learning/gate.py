"""Whether to accept a peer's weights, and how far to let them move us.

Self-centred: all yardsticks are our own. Checked in this order (finiteness before, in `codec.unpack`):

- norm: |x̂ - A| against our own distance from the reference;
- distance: |x̂ - x| against the running mean of the distances accepted so far;
- clip: the change is shortened to a small multiple of the same mean (ClippedGossip, He, Karimireddy and Jaggi
  2022; the running mean instead of their sort over neighbours, because our partners change at every contact).

Clipping bounds magnitude only: a slow poisoner still moves us by half the limit at each contact.
"""

from gossip.config import ExchangeConfig
from gossip.errors import Reason
from gossip.events import JobRefused

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

_INFINITY = float("inf")


class Gate:
    """The history of one shard at one node. All arguments are Euclidean norms over the shard, not negative.

    `own` is always our distance from the reference, |x - A|.
    """

    __slots__ = ("_clip_factor", "_distance_factor", "_norm_factor", "_norm_floor", "count", "mean")

    def __init__(self, config: ExchangeConfig, size: int) -> None:
        self._clip_factor = config.clip_factor
        self._distance_factor = config.distance_factor
        self._norm_factor = config.norm_factor
        self._norm_floor = _NORM_FLOOR_RMS * size**0.5
        self.count = 0  # accepted distances so far
        self.mean = 0.0  # of them

    def clip_limit(self, own: float) -> float:
        """Return the largest norm of a change that we accept; infinity while there is no history."""
        if self.count < _HISTORY_MIN:
            return _INFINITY
        return self._clip_factor * max(self.mean, _MEAN_FLOOR * own)

    def state(self, own: float, offered: float) -> JobRefused | None:
        """Judge an offered state by its distance from the reference; None: accepted."""
        limit = self._norm_factor * (own + self._norm_floor)
        if offered <= limit:
            return None
        return JobRefused(Reason.TOO_LARGE_NORM, f"norm {offered:.3g} of the delta exceeds {limit:.3g}")

    def distance(self, own: float, distance: float) -> JobRefused | None:
        """Judge an offered state by its distance from our own; None: accepted."""
        if self.count < _HISTORY_MIN:
            return None
        limit = self._distance_factor * max(self.mean, _MEAN_FLOOR * own)
        if distance <= limit:
            return None
        return JobRefused(Reason.TOO_DISTANT, f"distance {distance:.3g} exceeds {limit:.3g}")

    def change(self, own: float, norm: float, declared: float) -> JobRefused | None:
        """Judge the change that a responder sent back against the limit that we declared; None: accepted."""
        if declared == _INFINITY:
            # |c| = |x̂ - x_j| is at most the sum of two distances from the reference, ours and an acceptable
            # one.
            declared = own + self._norm_factor * (own + self._norm_floor)
        if norm <= declared * (1 + _CLIP_SLACK_RELATIVE) + _CLIP_SLACK:
            return None
        return JobRefused(
            Reason.TOO_LARGE_NORM, f"change of norm {norm:.3g} exceeds our limit {declared:.3g}"
        )

    def accepted(self, distance: float) -> None:
        """Remember the norm of an accepted change: what was clipped away must not widen the limits."""
        self.count += 1
        self.mean += max(_RATE, 1 / self.count) * (distance - self.mean)
