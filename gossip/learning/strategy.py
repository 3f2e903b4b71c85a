"""The interface that exchange rules share, so that daemon, world and fleet can run any of them.

A strategy is a namespace of pure functions on one shard (a module will do: `pair` is one). It never sees
peers, messages or time; the node core decides who and when, the gate decides whether.
"""

from types import ModuleType
from typing import Protocol

from gossip.learning.codec import Array, Coded
from gossip.learning.pair import Change, Comparison, Scalar


class Strategy(Protocol):
    """Arrays are float32 of shape (size,), numpy's or jax.numpy's by `xp`; `reference` is the A both hold."""

    def offer(self, xp: ModuleType, x: Array, reference: Array, *, codec: str) -> Coded:
        """Return what the initiator sends."""
        ...

    def respond(
        self, xp: ModuleType, x: Array, reference: Array, offered: Coded, *, limit: Scalar
    ) -> tuple[Array, Change, Comparison]:
        """Return the responder's new x, what it sends back, and what it saw."""
        ...

    def finish(self, x: Array, coded: Coded) -> Array:
        """Return the initiator's new x from what came back."""
        ...

    def adopt(self, reference: Array, offered: Coded) -> Array:
        """Return the state of a newcomer that takes over what was offered."""
        ...
