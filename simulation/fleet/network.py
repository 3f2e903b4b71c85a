"""The network of the fleet: who meets whom, what gets lost, who lies, as arithmetic over all pairs at once.

A round deals all nodes into pairs twice. In the first wave one half of the nodes ask the other half; in the second
the other half ask, each the partner that its neighbour had before. So every node initiates one exchange a round and
answers one; in the world it answers one on average, and 0 to 3 or 4 in fact. With a random deal each wave is a random
perfect matching (docs/learning.md): the first leaves (n-2) / (2(n-1)) of V, the second (n-4) / (2(n-2)), a
round 1/4. The world's regular rounds leave 1 / (2 sqrt(e)) = 0.30 (Jelasity, Montresor and Babaoglu 2005).

What one pair does is `gossip.learning.meeting`, the very lines of the daemon, over jax.numpy.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gossip.config import ExchangeConfig
from gossip.learning import gate, meeting
from gossip.learning.meeting import Rules, Shard
from simulation.fleet.settings import Attack

# How a state is told wrongly: so many times the distance from the reference. As `flip` and `nan` it is the lie of one
# who knows only itself. 20 passes the limit on norms in the first rounds, when little was learned; 100 would not.
_FACTORS = {"flip": -1.0, "scale": 20.0, "nan": np.nan}

# What attackers tell who know the honest ones and act in concert. alie, "a little is enough" (Baruch, Baruch and
# Goldberg 2019): the mean less so many standard deviations in every value. ipm, inner-product manipulation (Xie,
# Koyejo and Gupta 2019): the mean of what was learned times so much. shift: the mean, moved back by so many
# times the root mean square distance of honest nodes from it; with 3 a change is only just clipped.
_ALIE_DEVIATIONS = 1.5
_IPM_FACTOR = -0.5
_SHIFT = 3.0

Key: TypeAlias = jax.Array
Leaves: TypeAlias = tuple[jax.Array, ...]


class End(NamedTuple):
    """One end of an exchange."""

    shard: Shard
    shown: jax.Array  # (values,): what the other end is told its weights are; its own unless late or a lie


class Outcome(NamedTuple):
    """What an exchange leaves."""

    ends: tuple[Shard, Shard]  # initiator and responder
    answered: jax.Array  # () bool: the responder applied its half
    finished: jax.Array  # () bool: the initiator; in a rescue it alone. Of a push: it knows that it was taken
    refused: jax.Array  # () bool: a gate said no


def exchange(
    rules: Rules,
    codec: str,
    reference: jax.Array,
    i: End,
    j: End,
    asks: jax.Array,
    replies: jax.Array,
    key: Key | None,
) -> Outcome:
    """One exchange of a whole model; `vmap` it over pairs.

    Args:
        rules, codec: Of all pairs.
        reference: A, shape (values,).
        i, j: Initiator and responder.
        asks: () bool: there is an offer, and it arrives.
        replies: () bool: the answer would arrive.
        key: Of the rounding, where the strategy rounds at random.
    """
    noise = None
    if rules.strategy.dithered and codec != "f32":
        assert key is not None
        noise = jax.random.uniform(key, reference.shape, minval=-0.5, maxval=0.5)
    coded, declared = meeting.offer(jnp, rules, _showing(i), reference, codec=codec, noise=noise)
    told = meeting.answer(jnp, rules, _showing(j), reference, coded, declared=declared)
    assert told.c is not None
    j_after, answered = meeting.respond(jnp, rules, j.shard, told, asked=asks)
    came = replies & asks & told.sound
    if rules.strategy.answers:
        i_after, taken, _ = meeting.finish(
            jnp, rules, i.shard, reference, told.c.vector, told.c.norm, declared=declared, came=came
        )
        finished = came & taken
    else:
        i_after, taken, finished = i.shard, True, answered & replies
    refused = jnp.zeros_like(asks)
    if rules.gate is not None:
        refused = asks & (~(told.sound & told.near) | (replies & ~jnp.asarray(taken)))
    return Outcome((i_after, j_after), answered, finished, refused)


def _showing(end: End) -> Shard:
    return end.shard._replace(state=end.shard.state._replace(x=end.shown))


def adoptable(x: Leaves, *, genesis: Leaves, config: ExchangeConfig) -> jax.Array:
    """Which of these states, leaves of (lanes, size), a newcomer takes over: it stands at genesis, and has a gate."""
    squares = (jnp.sum(jnp.square(leaf - base[None]), axis=1) for leaf, base in zip(x, genesis, strict=True))
    limit = gate.state_limit(jnp, config, size=sum(base.shape[0] for base in genesis), own=0.0)
    within: jax.Array = jnp.sqrt(sum(squares, jnp.float32(0))) <= limit
    return within


class Crowd(NamedTuple):
    """What attackers know of honest nodes; leaves of shape (size,)."""

    mean: Leaves
    deviation: Leaves


def crowd(x: Leaves, honest: jax.Array) -> Crowd:
    """Mean and standard deviation over the rows of x, leaves of shape (rows, size), where `honest`, (rows,) bool."""
    weights = honest.astype(jnp.float32) / jnp.maximum(jnp.sum(honest), 1)
    mean = tuple(jnp.tensordot(weights, leaf, axes=1) for leaf in x)
    squares = (jnp.square(leaf - middle[None]) for leaf, middle in zip(x, mean, strict=True))
    return Crowd(mean, tuple(jnp.sqrt(jnp.tensordot(weights, square, axes=1)) for square in squares))


def lies(key: jax.Array, attack: Attack, x: Leaves, reference: Leaves, honest: Crowd) -> Leaves:
    """What attackers say their weights are, in offers and as the base of their answers.

    Args:
        x: Their own, leaves of shape (rows, size).
        reference: Leaves of shape (size,).
    """
    if attack in _FACTORS:
        factor = np.float32(_FACTORS[attack])
        return tuple(
            base[None] + factor * (leaf - base[None]) for leaf, base in zip(x, reference, strict=True)
        )
    if attack == "noise":  # as far from the reference as the truth, in a direction that nobody can use
        norm = jnp.sqrt(
            sum(
                jnp.sum(jnp.square(leaf - base[None]), axis=1)
                for leaf, base in zip(x, reference, strict=True)
            )
        )
        rms = norm / np.sqrt(sum(base.shape[0] for base in reference))
        keys = jax.random.split(key, len(x))
        return tuple(
            base[None] + rms[:, None] * jax.random.normal(one, leaf.shape)
            for one, leaf, base in zip(keys, x, reference, strict=True)
        )
    if attack == "alie":
        told = [mean - _ALIE_DEVIATIONS * some for mean, some in zip(*honest, strict=True)]
    elif attack == "ipm":
        told = [base + _IPM_FACTOR * (mean - base) for mean, base in zip(honest.mean, reference, strict=True)]
    else:
        assert attack == "shift", "labels tells no lies"
        learned = [mean - base for mean, base in zip(honest.mean, reference, strict=True)]
        far, spread = (
            jnp.sqrt(sum((jnp.sum(jnp.square(part)) for part in parts), jnp.float32(0)))
            for parts in (learned, honest.deviation)
        )
        step = _SHIFT * spread / jnp.maximum(far, np.finfo(np.float32).tiny)
        told = [mean - step * part for mean, part in zip(honest.mean, learned, strict=True)]
    return tuple(jnp.broadcast_to(row[None], leaf.shape) for row, leaf in zip(told, x, strict=True))


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


def present_first(order: jax.Array, there: jax.Array, *, run: int) -> jax.Array:
    """Deal again within chunks, so that those who are there lie first in both halves and meet each other.

    Args:
        order: As `in_runs` returns it.
        there: Of each place, bool.
        run: As for `in_runs`. Where rows come one by one no two are left over; in runs, neighbours stay together.
    """
    chunks, width = order.shape

    def first(places: jax.Array) -> jax.Array:
        return jnp.take_along_axis(places, jnp.argsort(~there[places], axis=-1, stable=True), axis=-1)

    def again() -> jax.Array:
        if run > 1:
            return first(order.reshape(chunks, 2, width // 2)).reshape(chunks, width)
        pairs = first(order).reshape(chunks, width // 2, 2)
        return pairs.swapaxes(1, 2).reshape(chunks, width)

    dealt: jax.Array = jax.lax.cond(jnp.all(there), lambda: order, again)
    return dealt


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
