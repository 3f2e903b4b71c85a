"""The smallest failing version of a failing seed: faults switched off one kind at a time, fewer nodes, a shorter run.

Greedy, as delta debugging with one element at a time (Zeller and Hildebrandt 2002): kinds draw from generators of
their own, so that what is left strikes as before. Any failure counts, also another than the first: a smaller run that
fails is worth more than a larger one.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from simulation.swarm.draw import NODES_MIN
from simulation.swarm.run import SwarmSettings


class Smallest(Struct, frozen=True):
    settings: SwarmSettings
    why: str  # the message of its failure


def smallest(
    settings: SwarmSettings,
    fails: Callable[[SwarmSettings], str],
    *,
    runs: int,
    told: Callable[[str], None] = lambda line: None,
) -> Smallest | None:
    """Find the smallest failing settings.

    Args:
        settings: What fails.
        fails: Runs settings; the message of the failure, or an empty string.
        runs: At most so many tries.
        told: Hears of each step that helped.

    Returns:
        None if `settings` itself does not fail.
    """
    why = fails(settings)
    if not why:
        return None
    best = Smallest(settings, why)
    left = runs - 1
    improved = True
    while improved:
        improved = False
        for step in _STEPS:
            # What a step proposes is taken from the best so far, so that a pass goes on where it was.
            for number in range(len(step(best.settings))):
                candidates = step(best.settings)
                if number >= len(candidates) or left == 0:
                    break
                left -= 1
                why = fails(candidates[number])
                if why:
                    best = Smallest(candidates[number], why)
                    told(f"still fails: {best.settings.command()}")
                    improved = True
    return best


def _fewer_kinds(settings: SwarmSettings) -> list[SwarmSettings]:
    """First without any: a bug that needs no fault at all is found in one step."""
    kinds = settings.options().kinds
    off = [kinds] if len(kinds) > 1 else []
    return [
        msgspec.structs.replace(settings, without=(*settings.without, *more))
        for more in (*off, *((kind,) for kind in reversed(kinds)))
    ]


def _fewer_nodes(settings: SwarmSettings) -> list[SwarmSettings]:
    nodes = settings.options().nodes
    counts = dict.fromkeys((NODES_MIN, nodes // 2, nodes - 1))
    return [msgspec.structs.replace(settings, nodes=count) for count in counts if NODES_MIN <= count < nodes]


def _shorter(settings: SwarmSettings) -> list[SwarmSettings]:
    if settings.shorten <= 0.1:
        return []
    return [
        msgspec.structs.replace(settings, shorten=round(settings.shorten * factor, 3))
        for factor in (0.3, 0.7)
    ]


_STEPS = (_fewer_kinds, _fewer_nodes, _shorter)
