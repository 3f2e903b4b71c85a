"""Who can be dialled: nodes behind routers that translate addresses.

A small model of what matters to a node that dials over TCP. Connections that exist carry frames both ways, whoever
opened them; what differs is which dials come through. Nobody punches holes, because p2pnode does not.
Words: RFC 3489 (kinds) and RFC 5382 (TCP through a NAT).
"""

import random
from typing import Annotated

from msgspec import Meta, Struct

from simulation.network import SECONDS_MAX, Endpoint, Probability

KINDS = ("full_cone", "restricted", "symmetric")


class NatSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of the nodes, drawn at random. The others, and node 0 always, can be dialled by everybody."""

    # Everybody can dial the node once it has dialled somebody itself: its router keeps the port open.
    full_cone: Probability = 0.0
    # Only those can dial the node whom it has dialled itself not longer than `mapping_s` ago.
    restricted: Probability = 0.0
    # Nobody can: each of its connections has a port of its own, which no other peer can know.
    symmetric: Probability = 0.0
    # How long a router remembers a dial that came to nothing: 4 minutes at least, RFC 5382 (REQ-5).
    mapping_s: Annotated[float, Meta(gt=0, le=SECONDS_MAX)] = 240.0

    @property
    def used(self) -> bool:
        return self.full_cone + self.restricted + self.symmetric > 0


class Nat:
    """Which dials come through.

    Args:
        nodes: Endpoints; the first one is never behind a NAT.
        rng: Draws who is behind which kind.
    """

    def __init__(self, settings: NatSettings, nodes: list[Endpoint], rng: random.Random) -> None:
        others = nodes[1:]
        rng.shuffle(others)
        self._mapping_s = settings.mapping_s
        self._kinds: dict[Endpoint, str] = {}
        start = 0
        for kind in KINDS:
            count = round(getattr(settings, kind) * len(nodes))
            self._kinds |= dict.fromkeys(others[start : start + count], kind)
            start += count
        # Behind a NAT -> whom it dialled -> when, the last time.
        self._dialled: dict[Endpoint, dict[Endpoint, float]] = {}

    def kind(self, node: Endpoint) -> str:
        """One of KINDS, or empty: it can be dialled by everybody."""
        return self._kinds.get(node, "")

    def dials(self, source: Endpoint, target: Endpoint, now: float) -> None:
        """The router of `source`, where it has one, remembers that it dialled `target`."""
        if source in self._kinds:
            dialled = self._dialled.setdefault(source, {})
            dialled.pop(target, None)  # so that they stand in the order of their dates
            dialled[target] = now
            while now - dialled[oldest := next(iter(dialled))] > self._mapping_s and len(dialled) > 1:
                del dialled[oldest]

    def admits(self, source: Endpoint, target: Endpoint, now: float) -> bool:
        """Whether a dial of `source` that reaches the router of `target` now comes through."""
        kind = self._kinds.get(target)
        if kind is None:
            return True
        dialled = self._dialled.get(target, {})
        if kind == "full_cone":
            return bool(dialled)
        return kind == "restricted" and now - dialled.get(source, -self._mapping_s) < self._mapping_s
