"""Hostile members of an ordinary run: which nodes, what they do, and how often it reached somebody.

They act through messages, with keys of their own on the real wire (`simulation.villain`); the swarm has the same ones.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from crypto.identity import PublicKey, Signature, verify
from crypto.signing import Purpose, network_id
from gossip.events import Event, Received
from p2pnode.values import CHOICES
from simulation.network import SECONDS_MAX, Probability
from simulation.seeds import Seeds
from simulation.signatures import ModelledSignatures, Signatures

if TYPE_CHECKING:
    from gossip.learning.task import RunInfo
    from simulation.machines import Core, Host

# What a villain of `simulation.villain` can do that needs nothing but its own node.
ACTS = (
    "poison_flip",
    "poison_huge",
    "poison_nan",
    "replayed",
    "junk",
    "flood",
    "forged",
    "impersonated",
    "reordered",
    "oversized",
    "equivocation",
    "other_run",
)
# Hostile frames that are still recognised when they arrive. Later than after so many others, they are late indeed.
MARKS_MAX = 16_384

Act = Annotated[str, Meta(extra={CHOICES: ACTS})]
Tap = Callable[[float, "Host", Event], None]


class AdversarySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes that are hostile from the start to the end. All figures are about the others."""

    # Share of the nodes, drawn at random; never node 0, through whom the others enter.
    share: Probability = 0.0
    # What they do; each does one thing, and the kinds take turns.
    kinds: list[Act] = msgspec.field(default_factory=lambda: ["poison_flip"])
    # Mean time between two attacks of one adversary. Poison is in everything that it says, at any time.
    every_s: Annotated[float, Meta(ge=0.01, le=SECONDS_MAX)] = 5.0


class Adversaries:
    """The hostile nodes of one run.

    Args:
        settings: How many, of which kinds.
        nodes: All nodes.
        seeds: Of the run.
        run: What the nodes learn together.

    Attributes:
        acts: Index of a hostile node -> what it does; in order of the index.
        counts: Kind -> hostile frames that reached an honest node.
    """

    def __init__(self, settings: AdversarySettings, nodes: int, seeds: Seeds, run: "RunInfo") -> None:
        rng = seeds.random("adversaries")
        count = min(round(settings.share * nodes), nodes - 1) if settings.kinds else 0
        chosen = rng.sample(range(1, nodes), count)
        acts = {node: settings.kinds[turn % len(settings.kinds)] for turn, node in enumerate(chosen)}
        self.acts: dict[int, str] = dict(sorted(acts.items()))
        self.counts: dict[str, int] = {}
        self._every_s = settings.every_s
        self._seeds = seeds
        self._run = run
        self._marks: dict[bytes, str] = {}

    def core(self, node: "Core", host: "Host", now: float) -> "Core":
        """The node itself where it is honest, and a villain around it where it is not."""
        act = self.acts.get(host.index)
        if act is None:
            return node
        from gossip.node import Node
        from simulation.villain import Villain

        assert isinstance(node, Node), "a villain is a real node that somebody has modified"
        return Villain(
            node, host, act, run=self._run, seeds=self._seeds, now=now, every_s=self._every_s, mark=self._mark
        )

    def watch(self, tap: Tap | None) -> Tap | None:
        """A tap that counts what arrives at honest nodes, and calls `tap`. The same `tap` where nobody is hostile."""
        if not self.acts:
            return tap

        def watching(now: float, host: "Host", event: Event) -> None:
            if type(event) is Received and host.index not in self.acts:
                kind = self._marks.get(event.frame)
                if kind is not None:
                    self.counts[kind] = self.counts.get(kind, 0) + 1
            if tap is not None:
                tap(now, host, event)

        return watching

    def _mark(self, frame: bytes, kind: str) -> None:
        self._marks[frame] = kind
        if len(self._marks) > MARKS_MAX:
            del self._marks[next(iter(self._marks))]


def verifier(
    network: str, signatures: Signatures | None
) -> Callable[[PublicKey, Purpose, bytes, Signature], None]:
    """`crypto.identity.verify` of a network, for a checker: real signatures are really checked, whoever made them."""
    judge = signatures.verify if isinstance(signatures, ModelledSignatures) else verify
    name = network_id(network)
    return lambda key, purpose, body, signature: judge(key, purpose, name, body, signature)
