"""The pace of the nodes: who begins a round of its own when, in a fleet whose nodes are not in step.

A round of the fleet, the least time between two rounds of a node, is cut into ticks. Whoever is due in a tick trains
and asks the one that it is dealt; all answer whom they are dealt, so that a node answers none, one or several in a
round, as in the world. How long a round takes is gossip/node.py's rule: the interval, give or take a tenth, or training
and an exchange, where these take longer; and whoever gets no answer waits for it in vain.

A newcomer asks until somebody who has begun lets it adopt, or until it has asked so many newcomers that it begins
alone: all that it knows, or `Pace.newcomers`. At first it knows the one that it was started with, and asks nobody
before the two have met; then it hears of the others.
"""

import jax
import jax.numpy as jnp

from simulation.fleet.settings import Pace

# Rounds of a node vary by so much, as those of gossip/node.py.
_JITTER = 0.1


# From its start until a node has met the first one, in legs of its links: the handshake, and a hello.
_MET_LEGS = 4
# Until it has met others, of whom that one has told: a request, the answer, and the same again.
_HEARD_LEGS = 10


def starts(pace: Pace, salt: int, node: jax.Array) -> jax.Array:
    """Return the date at which each node starts, in rounds; node 0 at once. All (nodes,)."""
    return jnp.where(node == 0, 0.0, pace.start * _even(node, salt))


def first_wait(pace: Pace, salt: int, node: jax.Array) -> jax.Array:
    """Return the date at which each node asks somebody for the first time, in rounds; all (nodes,)."""
    # Its rounds begin at any time after its start, but those in which it knows nobody are lost.
    phase = _even(node, salt ^ 1)
    return starts(pace, salt, node) + phase + jnp.ceil(jnp.maximum(_MET_LEGS * pace.leg - phase, 0.0))


def enough(pace: Pace, salt: int, node: jax.Array, *, now: jax.Array, others: jax.Array) -> jax.Array:
    """Return how many newcomers each newcomer has to ask before it begins alone; (nodes,).

    Args:
        now: (), rounds since the first node started.
        others: (), how many there are beside it.
    """
    known = jnp.where(now - starts(pace, salt, node) < _HEARD_LEGS * pace.leg, 1, pace.newcomers)
    return jnp.minimum(known, jnp.maximum(others, 1))


def duration(
    pace: Pace, key: jax.Array, node: jax.Array, *, slower: jax.Array, trains: jax.Array, answered: jax.Array
) -> jax.Array:
    """Return how many rounds a round of each node takes; all (nodes,).

    Args:
        slower: Factor of its training beyond its share of `sigma`.
        trains: Whether there was a job to do.
        answered: Whether an answer came.
    """
    # Of each node its own, the same in every round.
    training = pace.training * slower * jnp.exp(pace.sigma * jax.scipy.special.ndtri(_even(node, 0)))
    k_answer, k_interval = jax.random.split(key)
    answer = jax.random.choice(k_answer, jnp.array(pace.answers, jnp.float32), node.shape)
    exchange = jnp.where(answered, answer, pace.patience)
    interval = jax.random.uniform(k_interval, node.shape, minval=1 - _JITTER, maxval=1 + _JITTER)
    return jnp.maximum(interval, jnp.where(trains, training, 0.0) + exchange)


def _even(node: jax.Array, salt: int) -> jax.Array:
    """Evenly distributed in (0, 1), of each node its own: the number, well mixed."""
    bits = mixed(node.astype(jnp.uint32) ^ mixed(jnp.uint32(salt % 2**32)))
    return ((bits >> 8).astype(jnp.float32) + 0.5) / 2**24


def mixed(bits: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: every bit of the input changes half of the output's. uint32."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
