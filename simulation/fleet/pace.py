"""The pace of the nodes: who begins a round of its own when, in a fleet whose nodes are not in step.

A round of the fleet, the least time between two rounds of a node, is cut into ticks. Whoever is due in a tick trains
and asks the one that it is dealt; all answer whom they are dealt, so that a node answers none, one or several in a
round, as in the world. How long a round takes is gossip/node.py's rule: the interval, give or take a tenth, or training
and an exchange, where these take longer; and whoever gets no answer waits for it in vain.

A newcomer asks until somebody who has begun lets it adopt, or until it has asked so many newcomers that it begins
alone.
"""

import jax
import jax.numpy as jnp

from simulation.fleet.settings import Pace

# Rounds of a node vary by so much, as those of gossip/node.py.
_JITTER = 0.1


def first_wait(pace: Pace, key: jax.Array, node: jax.Array) -> jax.Array:
    """Return rounds until each node begins; node 0 at once. All (nodes,)."""
    return jnp.where(node == 0, 0.0, jax.random.uniform(key, node.shape, maxval=max(pace.start, 1e-6)))


def duration(
    pace: Pace, key: jax.Array, node: jax.Array, *, slower: jax.Array, trains: jax.Array, answered: jax.Array
) -> jax.Array:
    """Return how many rounds a round of each node takes; all (nodes,).

    Args:
        slower: Factor of its training beyond its share of `sigma`.
        trains: Whether there was a job to do.
        answered: Whether an answer came.
    """
    # Of each node its own, the same in every round: the number, well mixed, as a normal variable.
    even = ((mixed(node.astype(jnp.uint32)) >> 8).astype(jnp.float32) + 0.5) / 2**24
    training = pace.training * slower * jnp.exp(pace.sigma * jax.scipy.special.ndtri(even))
    k_answer, k_interval = jax.random.split(key)
    answer = jax.random.choice(k_answer, jnp.array(pace.answers, jnp.float32), node.shape)
    exchange = jnp.where(answered, answer, pace.patience)
    interval = jax.random.uniform(k_interval, node.shape, minval=1 - _JITTER, maxval=1 + _JITTER)
    return jnp.maximum(interval, jnp.where(trains, training, 0.0) + exchange)


def mixed(bits: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: every bit of the input changes half of the output's. uint32."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
