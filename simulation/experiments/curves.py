"""What a run looks like on the way: what nodes could do, how far apart they were, who met whom, what struck.

Looking changes nothing: models are copied before they are brought up to date, the sample has a generator of its own,
and no event is made, so a run has the same digest and ends with the same numbers whether somebody looks or not.

The predicted consensus distance is the level at which exchanges take away what training adds. Steps of pair averages
with independent changes in between settle at Xi^2 = (n-1)/n * rho/(1-rho) * g^2. Nodes here keep their own pace, so a
step is one exchange: it leaves rho = 1 - 1/(S (n-1)) of Xi^2 (S shards, partners drawn uniformly), and meanwhile a
node's share of the changes has the variance g^2 = (training jobs for each exchange) / n * (variance of one change among
nodes, measured on the sample). It assumes that no change depends on the one before, which unequal data breaks (a node
is pulled the same way again and again), and that everybody reaches everybody.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, sqrt
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct

from gossip.dht.ids import NodeId
from gossip.events import Exchanged, News
from gossip.learning.codec import FloatArray
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.task import RunInfo
from simulation.checkers import consensus_distance
from simulation.machines import Host
from simulation.scenario import Scenario
from simulation.seeds import Seeds
from simulation.windows import Windows
from simulation.world import World

# Whatever can be looked at: a world in this process, or one in several.
Watched: TypeAlias = World | Windows

# Nodes that are measured on the way: the standard error of a mean is an eighth of the spread, and looking takes
# milliseconds. The report at the end measures all.
SAMPLE_MAX = 64
# Rows of the matrix of contacts: more cannot be told apart on a page. Nodes beyond it share rows, by index.
ROWS_MAX = 200
# What somebody who watches sees of what happened last.
LATEST_MAX = 32
# Incidents that are kept one by one; a run of days has more than anybody reads.
INCIDENTS_MAX = 2000


class Point(Struct, frozen=True):
    """One look. Counts are since the beginning; None: could not be measured."""

    at_s: float
    up: int
    measured: int  # nodes behind the next five, and the losses
    mean: float | None  # accuracies, in [0, 1]
    quartiles: tuple[float, float, float] | None
    worst: float | None
    consensus: float | None
    predicted: float | None  # consensus distance by the formula of this file
    events: int
    exchanges: int
    node_updates: int
    messages: int
    bytes_sent: int
    faults: dict[str, int]
    loss: float | None = None  # on the test rows: the mean
    loss_worst: float | None = None


class Incident(Struct, frozen=True):
    """Something that struck a machine, or the network as a whole."""

    kind: str
    at_s: float
    until_s: float | None  # None: it had not ended when the run did
    node: int | None  # None: the network


class Contacts(Struct, frozen=True):
    """Who exchanged with whom."""

    rows: int  # row i holds the nodes from i * nodes / rows on
    counts: list[
        tuple[int, int, int]
    ]  # (row of the initiator, row of its partner, exchanges applied), sorted


class Curve(Struct, frozen=True):
    """A run from beginning to end."""

    every_s: float
    points: list[Point]
    contacts: Contacts
    incidents: list[Incident]
    incidents_left_out: int


class ObservedLearner(Learner):
    """A learner that can be looked at without a trace.

    Args:
        remembers: Whether to keep a copy of the last change, for the variance among nodes.
        others: As for a `Learner`.
    """

    def __init__(self, run: RunInfo, genesis: FloatArray, *, remembers: bool, **others: Any) -> None:
        super().__init__(run, genesis, **others)
        self._remembers = remembers
        self.last_change: FloatArray | None = None

    def trained(self, output: TrainOutput) -> Any:
        if self._remembers:
            # A copy: the row would keep the results of the whole call in memory.
            self.last_change = output.change.copy()
        return super().trained(output)

    def look(self) -> FloatArray:
        """Return a copy of the read-out as it is now. The next rounding of the original stays where it was."""
        kept, taken_in = self._readout.copy(), list(self._taken_in)
        found = self.readout().copy()
        self._readout[:] = kept
        self._taken_in[:] = taken_in
        return found


class Look(Struct, frozen=True):
    """What one node has learned, as it is now."""

    index: int
    readout: FloatArray  # averaged: what is tested
    weights: FloatArray  # what is exchanged
    last_change: FloatArray | None  # of its last training job, where that is remembered
    steps: int
    shards: int


def look_at(host: Host) -> Look | None:
    """Of a machine that runs; None: of another one."""
    worker = host.worker
    if not isinstance(worker, ObservedLearner):
        return None
    return Look(
        index=host.index,
        readout=worker.look(),
        weights=worker.weights(),
        last_change=worker.last_change,
        steps=worker.steps,
        shards=len(worker.run_info.shard_sizes),
    )


def looked(world: Watched, hosts: Sequence[Host]) -> list[Look]:
    """At those of these machines that run."""
    return [look for look in world.ask(hosts, look_at) if look is not None]


class Recorder:
    """Looks at a world every so often; the world tells it news in between (an `Observer`).

    Args:
        every_s: Virtual seconds from one look to the next.
        evaluate: From read-outs to metrics, as `Trainer.evaluate`.
    """

    def __init__(
        self,
        scenario: Scenario,
        seeds: Seeds,
        *,
        every_s: float,
        evaluate: Callable[[Sequence[FloatArray]], list[dict[str, float]]],
    ) -> None:
        self.every_s = every_s
        self.sample = sample_of(scenario, seeds)
        self.points: list[Point] = []
        self.incidents: list[Incident] = []
        # (date, kind or "up", node) of programs that ended or came back, the last ones.
        self.latest: deque[tuple[float, str, int]] = deque(maxlen=LATEST_MAX)
        self._evaluate = evaluate
        self._nodes = scenario.nodes
        self._rows = min(scenario.nodes, ROWS_MAX)
        self._contacts: dict[tuple[int, int], int] = {}
        self._row_of: dict[NodeId, int] = {}
        self._left_out = 0
        self._away: dict[int, tuple[str, float]] = {}
        self._cuts = scenario.faults.partitions

    # --- what the world tells -------------------------------------------------------------------------

    def begin(self, world: Watched) -> None:
        """Learns who is who; before the first event."""
        self._row_of = {host.id: self._row(host.index) for host in world.hosts}

    def news(self, host: Host, news: News, now: float) -> None:
        if type(news) is Exchanged and news.role == "initiator":
            partner = self._row_of.get(news.peer)
            if partner is not None:
                pair = (self._row(host.index), partner)
                self._contacts[pair] = self._contacts.get(pair, 0) + 1

    def power(self, host: Host, kind: str, now: float) -> None:
        if kind != "up":
            self._away[host.index] = (kind, now)
            self.latest.append((now, kind, host.index))
        elif host.index in self._away:
            why, since = self._away.pop(host.index)
            self.latest.append((now, "up", host.index))
            self._keep(Incident(kind=why, at_s=since, until_s=now, node=host.index))

    # --- looking --------------------------------------------------------------------------------------

    def look(self, world: Watched) -> Point:
        """Measures now, and keeps what it found."""
        up = {host.index: host for host in world.honest()}
        looks = looked(world, [up[index] for index in self.sample if index in up])
        metrics = self._evaluate([look.readout for look in looks]) if looks else []
        found, losses = finite(metrics, "accuracy"), finite(metrics, "loss")
        models = [look.weights for look in looks]
        distance = None
        if len(models) > 1:
            # Of a sample, without bias; of everybody, the distance itself.
            every, some = len(up), len(models)
            distance = consensus_distance(models) * sqrt(((every - 1) / every) * (some / (some - 1)))
        point = Point(
            at_s=world.now,
            up=len(up),
            measured=len(looks),
            mean=fmean(found) if found else None,
            quartiles=_quartiles(found) if found else None,
            worst=min(found) if found else None,
            consensus=distance if distance is not None and isfinite(distance) else None,
            predicted=self._predicted(world, looks, len(up)),
            events=world.events,
            exchanges=world.exchanges,
            node_updates=world.node_updates,
            messages=world.messages,
            bytes_sent=world.bytes_sent,
            faults=world.faults,
            loss=fmean(losses) if losses else None,
            loss_worst=max(losses) if len(losses) == len(metrics) > 0 else None,
        )
        self.points.append(point)
        return point

    def accuracy_of(self, world: Watched, hosts: Sequence[Host]) -> dict[int, float]:
        """Index -> accuracy as it is now, of those of these machines that learn and have one."""
        looks = looked(world, hosts)
        if not looks:
            return {}
        found = [metrics.get("accuracy") for metrics in self._evaluate([look.readout for look in looks])]
        return {
            look.index: value
            for look, value in zip(looks, found, strict=True)
            if value is not None and isfinite(value)
        }

    def curve(self, now: float) -> Curve:
        """All that was seen until now."""
        incidents = [
            *self.incidents,
            *(Incident(kind, since, None, node) for node, (kind, since) in self._away.items()),
            *(
                Incident("partition", cut.start_s, cut.end_s if cut.end_s <= now else None, None)
                for cut in self._cuts
                if cut.start_s < now
            ),
        ]
        return Curve(
            every_s=self.every_s,
            points=list(self.points),
            contacts=Contacts(
                rows=self._rows,
                counts=sorted((first, second, count) for (first, second), count in self._contacts.items()),
            ),
            incidents=sorted(incidents, key=_when),
            incidents_left_out=self._left_out,
        )

    def _predicted(self, world: Watched, looks: Sequence[Look], up: int) -> float | None:
        before = self.points[-1] if self.points else None
        jobs = world.node_updates - (before.node_updates if before else 0)
        exchanges = world.exchanges - (before.exchanges if before else 0)
        changes = [look.last_change for look in looks if look.last_change is not None]
        if len(changes) < 2 or not jobs or not exchanges:
            return None
        return predicted_distance(
            up,
            spread=consensus_distance(changes) * sqrt(len(changes) / (len(changes) - 1)),
            jobs=jobs / exchanges,
            shards=looks[0].shards,
        )

    def _row(self, index: int) -> int:
        return index * self._rows // self._nodes

    def _keep(self, incident: Incident) -> None:
        if len(self.incidents) < INCIDENTS_MAX:
            self.incidents.append(incident)
        else:
            self._left_out += 1


def predicted_distance(nodes: int, *, spread: float, jobs: float, shards: int) -> float | None:
    """Consensus distance where training and exchanges are in balance; see the head of this file.

    Args:
        nodes: That are up.
        spread: Standard deviation of one training job's change among nodes.
        jobs: Training jobs for each exchange, of one shard, that was applied.
    """
    leaves = 1 - 1 / (shards * (nodes - 1))
    found = spread * sqrt((nodes - 1) / nodes * leaves / (1 - leaves) * jobs / nodes)
    return found if isfinite(found) else None


def sample_of(scenario: Scenario, seeds: Seeds) -> list[int]:
    """Indices of the nodes that are measured on the way, sorted: all, or as many drawn once."""
    if scenario.nodes <= SAMPLE_MAX:
        return list(range(scenario.nodes))
    return sorted(seeds.random("measure").sample(range(scenario.nodes), SAMPLE_MAX))


def accuracies(
    evaluate: Callable[[Sequence[FloatArray]], list[dict[str, float]]], readouts: Sequence[FloatArray]
) -> list[float]:
    """Of those that have one: tasks of others may measure something else."""
    return finite(evaluate(readouts), "accuracy") if readouts else []


def finite(metrics: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """The values of one metric, of those that have a finite one."""
    found = [entry.get(name) for entry in metrics]
    return [value for value in found if value is not None and isfinite(value)]


def _when(incident: Incident) -> tuple[float, str, int]:
    return incident.at_s, incident.kind, -1 if incident.node is None else incident.node


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high
