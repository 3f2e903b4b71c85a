"""Deterministic simulation testing: each seed is another network with other faults; first safety, then liveness.

As TigerBeetle's VOPR: while faults strike, checkers watch for what must never happen (`simulation.swarm.checkers`).
Then the faults stop, and the network has to become whole within a stated time: every node knows every other, all agree
as well as their codec allows, and every record that was acknowledged is found. A failing seed is a bug that anybody can
repeat.
"""

import shlex
from collections.abc import Callable
from time import perf_counter
from types import TracebackType

import numpy as np
from msgspec import Struct

from gossip.dht.ids import Key, NodeId, node_id
from simulation.checkers import ViolationError, consensus_distance
from simulation.seeds import Seeds
from simulation.swarm.draw import NODES_MAX, SwarmOptions, draw
from simulation.swarm.synthetic import SyntheticLearner, SyntheticParts
from simulation.swarm.world import SwarmWorld

# How often bounds are looked at in the safety phase, and the goal in the other.
LOOKS = 20
# Consensus distance that counts as agreement, per unit of the models' distance from the reference: what is left is the
# rounding of the codec. Half a step of int8 is 1/254 of a block's largest value, of int4 1/14; the rest is slack.
AGREEMENT = {"f32": 1e-3, "int8": 0.03, "int4": 0.3}
# The models' distance from the reference is at least this, per value (root mean square), for the above.
SCALE_RMS = 0.1
# The attribute of an exception.
_SO_FAR = "_swarm_so_far"


class SwarmSettings(Struct, frozen=True, kw_only=True):
    """What a person chose for a seed."""

    seed: int
    nodes_max: int = NODES_MAX
    nodes: int | None = None
    without: tuple[str, ...] = ()
    shorten: float = 1.0
    pace: str | None = None

    def options(self) -> SwarmOptions:
        return draw(
            self.seed,
            nodes_max=self.nodes_max,
            nodes=self.nodes,
            without=self.without,
            shorten=self.shorten,
            pace=self.pace,
        )

    def command(self) -> str:
        """What repeats exactly this run."""
        return shlex.join(["p2psim", "swarm", "--seeds", f"{self.seed}:{self.seed + 1}", *self._changes()])

    def shrink_command(self) -> str:
        """What finds the smallest run that fails, if this one does."""
        return shlex.join(["p2psim", "shrink", "--seed", str(self.seed), *self._changes()])

    def _changes(self) -> list[str]:
        words = []
        if self.nodes_max != NODES_MAX:
            words += ["--nodes-max", str(self.nodes_max)]
        if self.nodes is not None:
            words += ["--nodes", str(self.nodes)]
        if self.shorten != 1.0:
            words += ["--shorten", repr(self.shorten)]
        if self.pace is not None:
            words += ["--pace", self.pace]
        for kind in self.without:
            words += ["--without", kind]
        return words


class SwarmReport(Struct, frozen=True):
    """What one seed came to, or one that failed until then."""

    seed: int
    pace: str
    nodes: int
    digest: str
    virtual_s: float
    healed_s: float  # of them, until everything was whole again
    node_hours: float  # of honest nodes
    wall_s: float
    events: int
    exchanges: int
    checks: int
    lost_halves: int
    rescued_halves: int
    faults: dict[str, int]
    refused: dict[str, int]


def patience_s(options: SwarmOptions) -> float:
    """Virtual seconds within which a network without faults must have become whole.

    Every shard is exchanged often enough to agree; dead connections are noticed; lookups and publications come round;
    and whoever rested from a peer that did not answer (at most 300 s, half as much again by jitter) tries again.
    """
    config = options.scenario.config
    shards = -(-options.values // config.learning.shard_values_max)
    exchanging = 40.0 * shards * max(config.learning.round_interval_s, config.exchange.timeout_s / 3.0)
    looking = 4.0 * config.membership.walk_interval_s + 3.0 * config.dht.publish_interval_s
    return 600.0 + exchanging + looking


def run_seed(settings: SwarmSettings) -> SwarmReport:
    """Raises ViolationError, or whatever a broken node raises."""
    options = settings.options()
    seeds = Seeds(settings.seed)
    parts = SyntheticParts(options, seeds)
    world = SwarmWorld(options, seeds, parts, replay=settings.command())
    begun = perf_counter()

    def report() -> SwarmReport:
        return _report(settings, options, world, wall_s=perf_counter() - begun)

    try:
        with _Remembered(report):
            _live(settings, options, world, parts)
    finally:
        world.close()
    return report()


class SeedFailedError(Exception):
    """A seed failed, told in a way that passes from one process to another, which not every exception does.

    Args:
        what: Went wrong, in words.
        so_far: What the seed came to until then; None where it did not even begin.
    """

    def __init__(self, what: str, so_far: SwarmReport | None) -> None:
        super().__init__(what, so_far)
        self.what = what
        self.so_far = so_far

    def __str__(self) -> str:
        return self.what


def run_seed_apart(settings: SwarmSettings) -> SwarmReport:
    """`run_seed` in a process for runs. Raises SeedFailedError, whatever went wrong."""
    with _Told(settings.command()):
        return run_seed(settings)


class _Told:
    """Makes whatever leaves it a SeedFailedError."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        text = str(error)
        if isinstance(error, ViolationError):
            what = text.removesuffix(f"; replay with: {self._command}")
        else:  # a node broke, and the checkers had nothing to say
            what = f"{type(error).__name__}: {text}"
        raise SeedFailedError(what, vars(error).get(_SO_FAR)) from None


class _Remembered:
    """Whatever ends a run takes along what happened until then."""

    def __init__(self, report: Callable[[], SwarmReport]) -> None:
        self._report = report

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            vars(error)[_SO_FAR] = self._report()


def _live(settings: SwarmSettings, options: SwarmOptions, world: SwarmWorld, parts: SyntheticParts) -> None:
    """First with faults, then until all is whole; raises where something must not be."""
    for look in range(1, LOOKS + 1):
        world.run(options.safety_s * look / LOOKS)
        world.inspect()
    world.heal()
    found: dict[tuple[NodeId, Key], None] = {}
    parts.found = lambda owner, place: found.setdefault((owner, place))
    limit = patience_s(options)
    step = limit / 100.0
    missing = "nothing was looked at"
    while world.now < options.safety_s + limit:
        world.run(world.now + step)
        world.inspect()
        missing = _missing(world, found)
        if not missing:
            break
    if missing:
        raise ViolationError(f"{limit:g} s after the last fault {missing}; replay with: {settings.command()}")


def _report(
    settings: SwarmSettings, options: SwarmOptions, world: SwarmWorld, *, wall_s: float
) -> SwarmReport:
    return SwarmReport(
        seed=settings.seed,
        pace=options.pace,
        nodes=options.nodes,
        digest=world.digest,
        virtual_s=world.now,
        healed_s=max(0.0, world.now - options.safety_s),
        node_hours=options.nodes * world.now / 3600.0,
        wall_s=wall_s,
        events=world.events,
        exchanges=world.exchanges,
        checks=world.checks,
        lost_halves=world.checker.lost_halves,
        rescued_halves=world.checker.rescued_halves,
        faults=world.faults,
        refused=dict(sorted(world.refused.items())),
    )


def _missing(world: SwarmWorld, found: dict[tuple[NodeId, Key], None]) -> str:
    """What is not whole yet, in words; empty: nothing."""
    ids = {host.id: host.index for host in world.honest_hosts}
    for host in world.honest_hosts:
        if host.core is None:
            return f"node {host.index} is not running"
        node = world.node(host)
        if node.state not in ("training", "exchanging"):
            return f"node {host.index} is still {node.state}"
        known = {contact.node for contact in node.context.contacts()}
        unknown = [index for other, index in ids.items() if other != host.id and other not in known]
        if unknown:
            return f"node {host.index} does not know the nodes {unknown[:5]}"
    learners = [host.worker for host in world.honest_hosts]
    models = [learner.weights() for learner in learners if isinstance(learner, SyntheticLearner)]
    genesis = world.parts.genesis
    distance = consensus_distance(models)
    mean = np.mean(np.asarray(models, dtype=np.float64), axis=0)
    scale = max(float(np.linalg.norm(mean - genesis)), SCALE_RMS * len(genesis) ** 0.5)
    level = AGREEMENT[world.scenario.config.exchange.codec]
    if distance > level * scale:
        return f"the models are {distance / scale:.3g} apart (relative), expected at most {level:g}"
    for owner, place in world.checker.acknowledged:
        name = node_id(owner)  # type: ignore[arg-type]
        if name in ids and (name, place) not in found:
            return f"no lookup finds the acknowledged record of node {ids[name]}"
    return ""
