"""What a node does when it meets another one: a strategy behind the gate, composed once.

Three steps, of which one node does the first and the last, and the other one that between:

    offer     what is told, and the largest change that may come back
    answer    judge what was told, and make c; `respond` applies it
    finish    judge what came back, and apply it

Daemon and world call them with numpy, one shard at a time; there the verdicts are plain, and what follows from a
refusal is not computed. The fleet maps them over pairs with jax.numpy; there all is computed, and flags choose.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from gossip.config import ExchangeConfig
from gossip.learning import gate
from gossip.learning.aggregate import INFINITY, Change, Comparison, change, compare, norm
from gossip.learning.codec import Array, Coded, Scalar, value
from gossip.learning.strategies.interface import State, Strategy


class Rules(Struct, frozen=True, kw_only=True):
    """How nodes meet; compiled in, so that what is left out costs nothing."""

    strategy: Strategy
    gate: ExchangeConfig | None  # its factors; None: everything is accepted, nothing is clipped


class Shard(NamedTuple):
    """One shard at one node: the strategy's state, and the history of its gate."""

    state: State
    count: Scalar  # accepted changes so far
    usual: Scalar  # what they measure


class Answer(Struct, frozen=True):
    """What a node makes of what it is told."""

    seen: Comparison
    sound: Scalar  # bool: it is no larger than `state_limit`; else there is no c
    near: Scalar  # bool: it is no further than `distance_limit`; else we do not follow it (a rescue)
    c: Change | None
    state_limit: Scalar
    distance_limit: Scalar


def new(xp: ModuleType, rules: Rules, x: Array) -> Shard:
    """Return a shard with these weights, (size,), that has met no other one."""
    zero = 0 if xp is np else np.float32(0)
    return Shard(rules.strategy.init(xp, x), zero, 0.0 if xp is np else zero)


def offer(
    xp: ModuleType,
    rules: Rules,
    shard: Shard,
    reference: Array,
    *,
    codec: str,
    noise: Array | None = None,
) -> tuple[Coded, Scalar]:
    """Return what the initiator tells, and the largest norm of a change that it accepts back."""
    coded = rules.strategy.offer(xp, shard.state, reference, codec=codec, noise=noise)
    if rules.gate is None:
        return coded, INFINITY
    # Of the decoded delta: within rounding of our own distance, and already at hand.
    own = norm(xp, value(coded))
    return coded, gate.clip_limit(gate.plain(xp), rules.gate, count=shard.count, usual=shard.usual, own=own)


def answer(
    xp: ModuleType, rules: Rules, shard: Shard, reference: Array, offered: Coded, *, declared: Scalar
) -> Answer:
    """Judge an offered state by our own, and make c.

    Args:
        declared: The initiator's limit. In a rescue it alone counts, and not ours: who agrees closely with others
            allows so little that the initiator would stay away.
    """
    # What does not travel need not be coded.
    codec = offered.codec if rules.strategy.answers else "f32"
    seen = compare(xp, shard.state.x, reference, offered)
    config = rules.gate
    if config is None:
        c = change(xp, seen.difference, codec=codec, limit=INFINITY)
        return Answer(seen, True, True, c, INFINITY, INFINITY)
    plain, own = gate.plain(xp), seen.own
    state_limit = gate.state_limit(plain, config, size=reference.shape[0], own=own)
    sound = seen.offered <= state_limit
    if xp is np and not sound:
        return Answer(seen, sound, False, None, state_limit, INFINITY)
    count, usual = shard.count, shard.usual
    distance_limit = gate.distance_limit(plain, config, count=count, usual=usual, own=own)
    near = seen.distance <= distance_limit
    limit = plain.minimum(declared, gate.clip_limit(plain, config, count=count, usual=usual, own=own))
    if rules.strategy.answers:
        limit = plain.where(near, limit, declared)
    elif xp is np and not near:
        return Answer(seen, sound, near, None, state_limit, distance_limit)
    c = change(xp, seen.difference, codec=codec, limit=limit)
    return Answer(seen, sound, near, c, state_limit, distance_limit)


def respond(
    xp: ModuleType, rules: Rules, shard: Shard, told: Answer, *, asked: Scalar = True
) -> tuple[Shard, Scalar]:
    """Apply an answer's c on our side; return the shard, and whether it was.

    Args:
        asked: bool: under jax.numpy, whether there was an offer at all.
    """
    applied = asked if rules.gate is None else asked & told.sound & told.near
    if xp is np and not applied:
        return shard, applied
    c = told.c
    assert c is not None
    return _after(
        xp, rules, shard, rules.strategy.respond(xp, shard.state, c.vector), c.norm, applied
    ), applied


def finish(
    xp: ModuleType,
    rules: Rules,
    shard: Shard,
    reference: Array,
    c: Array,
    c_norm: Scalar,
    *,
    declared: Scalar,
    came: Scalar = True,
) -> tuple[Shard, Scalar, Scalar]:
    """Apply the change that came back; return the shard, whether it was accepted, and what would have been.

    Args:
        c, c_norm: The change, decoded, and its norm.
        declared: What `offer` returned with the offer.
        came: bool: under jax.numpy, whether an answer came at all.
    """
    config = rules.gate
    if config is None:
        taken, limit = True, INFINITY
        applied = came
    else:
        # Our own distance costs a pass, and only matters while there is no limit.
        known = xp is np and declared != INFINITY
        own = 0.0 if known else norm(xp, shard.state.x - reference)
        limit = gate.change_limit(gate.plain(xp), config, size=reference.shape[0], own=own, declared=declared)
        taken = c_norm <= limit
        applied = came & taken
    if xp is np and not applied:
        return shard, taken, limit
    after = rules.strategy.finish(xp, shard.state, c)
    return _after(xp, rules, shard, after, c_norm, applied), taken, limit


def adopt(
    xp: ModuleType, rules: Rules, shard: Shard, reference: Array, offered: Coded
) -> tuple[Shard | None, Comparison, Scalar]:
    """Take an offered state over whole, as a newcomer does; numpy only.

    Returns:
        The shard, or None where the state is too large; what was seen, and the largest distance from the reference.
    """
    seen = compare(xp, shard.state.x, reference, offered)
    limit = INFINITY
    if rules.gate is not None:
        limit = gate.state_limit(gate.plain(xp), rules.gate, size=reference.shape[0], own=seen.own)
    if not seen.offered <= limit:
        return None, seen, limit
    state = rules.strategy.adopt(xp, shard.state, reference + value(offered))
    return shard._replace(state=state), seen, limit


def _after(
    xp: ModuleType, rules: Rules, shard: Shard, state: State, c_norm: Scalar, applied: Scalar
) -> Shard:
    old, count, usual = shard
    if rules.gate is not None:
        count, usual = gate.remembered(gate.plain(xp), count=count, usual=usual, norm=c_norm)
    if xp is np:
        return Shard(state, count, usual)

    def chosen(new: Any, old: Any) -> Any:
        return old if new is old else xp.where(applied, new, old)

    return Shard(
        State(
            chosen(state.x, old.x),
            tuple(chosen(*both) for both in zip(state.kept, old.kept, strict=True)),
            tuple(chosen(*both) for both in zip(state.noted, old.noted, strict=True)),
        ),
        chosen(count, shard.count),
        chosen(usual, shard.usual),
    )
