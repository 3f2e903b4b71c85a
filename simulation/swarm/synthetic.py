"""Real nodes and learners with the smallest task there is, so that a run of the swarm costs a second and no JAX.

Each node's loss is the squared distance from a point of its own; a step of training goes a tenth of the way there. What
is exchanged, encoded, gated, signed and saved is what the daemon exchanges.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from gossip.dht.ids import Key, NodeId
from gossip.errors import LocalError
from gossip.events import Job, JobResult, Trained
from gossip.learning.codec import FloatArray
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.saved import SavedModel, SnapshotError
from gossip.learning.shards import shard_sizes
from gossip.learning.task import RunInfo, vector_hash
from gossip.node import Node
from gossip.outbox import Outbox
from gossip.peer import make_node
from gossip.protocol import ProviderFound
from simulation.machines import Core, Host
from simulation.seeds import Seeds
from simulation.swarm.clock import Clock, Clocked
from simulation.swarm.disk import PowerLoss, SimulatedDisk
from simulation.swarm.draw import SwarmOptions

RATE = np.float32(0.1)
# How far apart the nodes' data pull them, per value.
SPREAD = 0.3


class Witness(Protocol):
    """Told of every change of somebody's weights by a job."""

    def worked(self, host: Host, job: Job, result: JobResult, change: FloatArray, scale: float) -> None: ...


class SyntheticLearner(Learner):
    """A learner whose training is one line of numpy, and whose every exchange is witnessed."""

    def configure(
        self,
        host: Host,
        target: FloatArray,
        disk: SimulatedDisk,
        witness: Witness | None,
        trains: Callable[[], bool],
    ) -> None:
        self._host = host
        self._target = target
        self._disk = disk
        self._witness = witness
        self._trains = trains

    def run(self, job: Job) -> JobResult:
        before = self._x.copy()
        result = super().run(job)
        if self._witness is not None:
            scale = float(max(np.abs(before).max(), np.abs(self._x).max()))
            self._witness.worked(self._host, job, result, self._x - before, scale)
        return result

    def train_input(self, steps: int) -> TrainOutput:  # type: ignore[override]
        change = RATE * (self._target - self._x) if self._trains() else np.zeros_like(self._x)
        return TrainOutput(change=change, optimiser=(), loss=0.0, steps=steps)

    def trained(self, output: TrainOutput) -> Trained:
        return super().trained(output)

    def dump(self) -> SavedModel:
        """To the machine's disk. Empty where the disk did not take it, as the daemon reports it."""
        model = super().dump()
        nothing = SavedModel(model.run, model.steps, (), {})
        try:
            self._disk.write_model(self.run_info, model)
        except OSError:
            return nothing
        except PowerLoss:
            # The rest of the event belongs to a program that is dead; the world kills it at its next one.
            self._host.doomed = True
            return nothing
        return model


class SyntheticParts:
    """What `simulation.world.World` needs of nodes and learners.

    Attributes:
        witness: Set before the first boot; None: nobody watches.
        hostile: Index of a host -> makes its core from the real node.
        found: Told (owner, place) of provider records that lookups of honest nodes bring.
        training: Whether nodes go on training; switched off when agreement is demanded.
    """

    def __init__(self, options: SwarmOptions, seeds: Seeds) -> None:
        config = options.scenario.config
        self._config = config
        rng = np.random.default_rng(seeds.integer("swarm", "model"))
        self.genesis = rng.normal(0.0, 0.1, options.values).astype(np.float32)
        count = options.scenario.nodes
        self._targets = rng.normal(0.0, SPREAD, (count, options.values)).astype(np.float32)
        self.run_info = RunInfo(
            id=hashlib.sha256(b"swarm" + self.genesis.tobytes()).digest(),
            network=config.network,
            task="synthetic/1",
            schema=hashlib.sha256(b"synthetic").digest(),
            reference=vector_hash(self.genesis),
            shard_sizes=shard_sizes(options.values, config.learning.shard_values_max),
        )
        self.run_id = self.run_info.id
        self.disks = [SimulatedDisk() for _ in range(count)]
        self.clocks = [Clock() for _ in range(count)]
        self.witness: Witness | None = None
        self.hostile: dict[int, Callable[[Node, Host], Core]] = {}
        self.false_addresses: dict[int, tuple[str, ...]] = {}
        self.found: Callable[[NodeId, Key], None] | None = None
        self.training = True
        self._seed = seeds.integer("swarm", "learners") % 2**32

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Core:
        clock = self.clocks[host.index]
        disk = self.disks[host.index]
        host.saved = None  # the disk of this world is elsewhere
        node = make_node(
            host.identity,
            self._config,
            self.run_info,
            addresses=self.false_addresses.get(host.index, (host.address,)),
            rng=seeds.random("node", host.index, host.life),
            entropy=seeds.entropy("node", host.index, host.life),
            store=disk.load(),
            has_model=disk.read_model(self.run_info) is not None,
            now=clock.local(now),
            isolate=False,
        )
        self.listen(node)
        make = self.hostile.get(host.index)
        core = make(node, host) if make is not None else node
        return Clocked(core, clock)

    def listen(self, node: Node) -> None:
        """Has `found` told of the provider records that lookups of this node bring, besides the node itself."""
        exchange = node.protocol("exchange")
        tell = exchange.handlers[ProviderFound]

        def heard(fact: ProviderFound, now: float, out: Outbox) -> None:
            if self.found is not None:
                self.found(fact.contact.node, fact.key)
            tell(fact, now, out)

        exchange.handlers[ProviderFound] = heard

    def worker(self, host: Host) -> SyntheticLearner:
        learner = SyntheticLearner(
            self.run_info,
            self.genesis,
            exchange=self._config.exchange,
            learning=self._config.learning,
            node=host.index,
            seed=self._seed + host.index,
        )
        disk = self.disks[host.index]
        saved = disk.read_model(self.run_info)
        if saved is not None:
            try:
                learner.load(saved)
            except SnapshotError as error:
                raise LocalError(f"a snapshot that the disk calls whole cannot be loaded: {error}") from error
        witness = None if host.index in self.hostile else self.witness
        learner.configure(host, self._targets[host.index], disk, witness, lambda: self.training)
        return learner

    def train(self, inputs: Sequence[TrainOutput]) -> list[TrainOutput]:
        return list(inputs)
