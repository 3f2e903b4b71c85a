"""What an exchange rule is: how models meet, as pure functions on the arrays of one shard.

A strategy is a module with these functions. It sees no peers, messages or time: the node core decides who meets whom
and when, the gate decides whether and how far (`gossip.learning.meeting`). The arrays are numpy's or jax.numpy's, by
`xp`: daemon, world and fleet run the same lines.
"""

from types import ModuleType
from typing import NamedTuple, Protocol

from gossip.learning.codec import Array, Coded, Scalar


class State(NamedTuple):
    """One shard at one node. The fleet keeps a field of each for every node, so that their number never changes."""

    x: Array  # (size,) float32: the weights, which training changes
    kept: tuple[Array, ...] = ()  # further vectors of the strategy, each (size,) float32
    noted: tuple[Scalar, ...] = ()  # further numbers of the strategy


class Strategy(Protocol):
    """`reference` is the A of both sides, shape (size,); `c` what the other one differs by, decoded and clipped."""

    # Whether an offer is answered with c, which the initiator applies, too. Else it only learns that it was taken.
    answers: bool
    # Whether payloads are rounded at random, which is unbiased; else to nearest, which is nearer.
    dithered: bool

    def init(self, xp: ModuleType, x: Array) -> State:
        """Return the state of a node with these weights that has met no other one."""
        ...

    def local(self, xp: ModuleType, state: State) -> State:
        """A round's training ended, and state.x has its change, if there was one.

        Returns the very state where nothing changes.
        """
        ...

    def offer(
        self, xp: ModuleType, state: State, reference: Array, *, codec: str, noise: Array | None = None
    ) -> Coded:
        """Return what the initiator sends. `noise`: of a dithered strategy, (size,), uniform in ±1/2."""
        ...

    def respond(self, xp: ModuleType, state: State, c: Array) -> State:
        """Return the responder's state."""
        ...

    def finish(self, xp: ModuleType, state: State, c: Array) -> State:
        """Return the initiator's state once c is back. Only of a strategy that `answers`."""
        ...

    def adopt(self, xp: ModuleType, state: State, offered: Array) -> State:
        """Return the state of a newcomer that takes over these weights."""
        ...

    def readout(self, xp: ModuleType, state: State) -> Array:
        """Return the weights as one would use them now; the read-out is their running mean over rounds."""
        ...

    def metrics(self, state: State) -> dict[str, Scalar]:
        """Return what is worth showing of the strategy's own state, by name."""
        ...
