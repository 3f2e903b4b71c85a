"""The network of the fleet: who meets whom, what gets lost, who lies, as arithmetic over all pairs at once.

A round deals all nodes into pairs twice. In the first wave one half of the nodes ask the other half; in the second
the other half ask, each the partner that its neighbour had before. So every node initiates one exchange a round and
answers one; in the world it answers one on average, and 0 to 3 or 4 in fact. With a random deal each wave is a random
perfect matching (docs/learning.md): the first leaves (n-2) / (2(n-1)) of V, the second (n-4) / (2(n-2)), a
round 1/4. The world's regular rounds leave 1 / (2 sqrt(e)) = 0.30 (Jelasity, Montresor and Babaoglu 2005).

What one pair does is `gossip.learning.pair`, `codec` and `gate`, the very lines of the daemon, over jax.numpy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Struct

from gossip.config import ExchangeConfig
from gossip.learning import gate, pair
from gossip.learning.codec import value
from simulation.fleet_settings import Attack

# How many times too far from the reference the state is that a "scale" attacker shows. A guess; norm_factor refuses
# states 10 times as far as our own.
_SCALE = 20.0


class Rules(Struct, frozen=True, kw_only=True):
    """How a pair exchanges; compiled in, so that what is left out costs nothing."""

    codec: str
    config: ExchangeConfig | None  # factors of the gate; None: all is accepted, nothing is clipped


class End(NamedTuple):
    """One end of an exchange."""

    x: jax.Array  # (values,) float32: its weights
    shown: jax.Array  # (values,): what the other end is told they are; x unless late or a lie
    met: jax.Array  # () float32: history of its gate
    mean: jax.Array  # () float32


class Outcome(NamedTuple):
    """What an exchange leaves: the ends after it, without `shown`."""

    x: tuple[jax.Array, jax.Array]  # of initiator and responder
    met: tuple[jax.Array, jax.Array]
    mean: tuple[jax.Array, jax.Array]
    answered: jax.Array  # () bool: the responder applied its half
    finished: jax.Array  # () bool: the initiator, too
    refused: jax.Array  # () bool: a gate said no


def exchange(
    rules: Rules, reference: jax.Array, i: End, j: End, asks: jax.Array, replies: jax.Array
) -> Outcome:
    """One exchange of a whole model; `vmap` it over pairs.

    Args:
        rules: Of all pairs.
        reference: A, shape (values,).
        i, j: Initiator and responder.
        asks: () bool: there is an offer, and it arrives.
        replies: () bool: the answer would arrive.
    """
    coded = pair.offer(jnp, i.shown, reference, codec=rules.codec)
    seen = pair.compare(jnp, j.shown, reference, coded)
    size = reference.shape[0]
    if rules.config is None:
        c = pair.change(jnp, seen.difference, codec=rules.codec, limit=pair.INFINITY)
        answered, finished = asks, asks & replies
        return Outcome(
            x=(
                jnp.where(finished, pair.away(i.x, c.vector), i.x),
                jnp.where(answered, pair.towards(j.x, c.vector), j.x),
            ),
            met=(i.met, j.met),
            mean=(i.mean, j.mean),
            answered=answered,
            finished=finished,
            refused=jnp.zeros_like(asks),
        )
    config = rules.config
    declared = gate.clip_limit(jnp, config, count=i.met, mean=i.mean, own=pair.norm(jnp, value(coded)))
    accepted = (seen.offered <= gate.state_limit(config, size=size, own=seen.own)) & (
        seen.distance <= gate.distance_limit(jnp, config, count=j.met, mean=j.mean, own=seen.own)
    )
    limit = jnp.minimum(declared, gate.clip_limit(jnp, config, count=j.met, mean=j.mean, own=seen.own))
    c = pair.change(jnp, seen.difference, codec=rules.codec, limit=limit)
    own = pair.norm(jnp, i.x - reference)
    taken = c.norm <= gate.change_limit(jnp, config, size=size, own=own, declared=declared)
    answered = asks & accepted
    finished = answered & replies & taken
    i_count, i_mean = gate.remembered(jnp, count=i.met, mean=i.mean, distance=c.norm)
    j_count, j_mean = gate.remembered(jnp, count=j.met, mean=j.mean, distance=c.norm)
    return Outcome(
        x=(
            jnp.where(finished, pair.away(i.x, c.vector), i.x),
            jnp.where(answered, pair.towards(j.x, c.vector), j.x),
        ),
        met=(jnp.where(finished, i_count, i.met), jnp.where(answered, j_count, j.met)),
        mean=(jnp.where(finished, i_mean, i.mean), jnp.where(answered, j_mean, j.mean)),
        answered=answered,
        finished=finished,
        refused=asks & (~accepted | (replies & ~taken)),
    )


def lie(attack: Attack, x: jax.Array, reference: jax.Array) -> jax.Array:
    """What an attacker says its weights are, in offers and as the base of its answers; x has shape (values,)."""
    factor = {"flip": -1.0, "scale": _SCALE, "nan": np.nan}[attack]
    return reference + np.float32(factor) * (x - reference)


def shuffled(key: jax.Array, count: int) -> jax.Array:
    """A random order of `count` things, shape (count,), int32.

    One sort; jax.random.permutation sorts twice from 2,000 on, to break ties that touch one thing in 10^4.
    """
    return jnp.argsort(jax.random.bits(key, (count,))).astype(jnp.int32)


def in_runs(key: jax.Array, *, chunks: int, lanes: int, run: int) -> jax.Array:
    """Deal places into chunks: a random order of all, shape (chunks, 2 * lanes), int32.

    Runs of `run` places stay together, but not for long: each half of a chunk is turned like a ring by a random number
    of places, which cuts runs somewhere else in every round, and gives everybody a partner that is drawn from the whole
    other half.
    """
    count = chunks * 2 * lanes
    if run == 1:
        return shuffled(key, count).reshape(chunks, 2 * lanes)
    k_runs, k_turns = jax.random.split(key)
    first = shuffled(k_runs, count // run) * run
    places = (first[:, None] + jnp.arange(run, dtype=jnp.int32)[None]).reshape(chunks, 2, lanes)
    turns = jax.random.randint(k_turns, (chunks, 2, 1), 0, lanes, jnp.int32)
    turned = (jnp.arange(lanes, dtype=jnp.int32)[None, None] + turns) % lanes  # (chunks, 2, lanes)
    return jnp.take_along_axis(places, turned, axis=2).reshape(chunks, 2 * lanes)


def deal(key: jax.Array, tree: Any, *, axis: str) -> Any:
    """Shuffle rows over all devices of a mesh axis: every device gives each device as many, drawn at random.

    Args:
        tree: Arrays with equally many rows, a multiple of the number of devices; this device's share of each.
        axis: Name of the mesh axis; for use inside `shard_map`.
    """
    order = shuffled(key, jax.tree_util.tree_leaves(tree)[0].shape[0])

    def one(rows: jax.Array) -> jax.Array:
        sent: jax.Array = jax.lax.all_to_all(  # type: ignore[no-untyped-call]
            rows[order], axis, split_axis=0, concat_axis=0, tiled=True
        )
        return sent

    return jax.tree_util.tree_map(one, tree)
