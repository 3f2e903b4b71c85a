"""From a scenario and a seed to figures: puts real nodes into a world, runs it, and measures what they learned.

Whatever is in a `Report` except the wall-clock figures repeats with the seed.
"""

import gc
from collections.abc import Callable, Container, Sequence
from functools import partial
from math import inf, isfinite, nan
from statistics import fmean
from time import perf_counter
from typing import Any

from msgspec import Struct

from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.task import RunInfo, Task, run_info
from gossip.node import Node
from gossip.peer import make_node
from p2pnode.errors import ExitCode, UserError
from p2pnode.printable import printable
from simulation.adversaries import Adversaries
from simulation.checkers import consensus_distance
from simulation.experiments.curves import (
    Curve,
    Look,
    ObservedLearner,
    Recorder,
    Watched,
    accuracies,
    finite,
    looked,
    sample_of,
)
from simulation.machines import Host, store_of
from simulation.scenario import Scenario
from simulation.seeds import Seeds
from simulation.signatures import signatures_of
from simulation.stopping import StopRule
from simulation.windows import Windows
from simulation.world import World

# Somebody who watches is told so often, in seconds of this machine's time; an interrupt waits no longer than that.
GLANCE_S = 0.2


class Accuracy(Struct, frozen=True):
    """On the test rows, each in [0, 1], from the averaged read-out of every node that is up at the end."""

    mean: float  # nan where the task measures no accuracy
    worst: float
    central: float  # one learner with all rows, as many rounds as a node had on average; nan if not measured


class Loss(Struct, frozen=True):
    """On the test rows, from the same read-outs; nan where nobody was measured, inf where one is not finite."""

    mean: float
    worst: float  # the largest
    central: float  # of the learner that `Accuracy.central` is about


class Stretch(Struct, frozen=True):
    """What happened in a part of a run, for speeds."""

    virtual_s: float
    wall_s: float
    events: int
    node_updates: int


class Report(Struct, frozen=True):
    """What one run came to; `p2psim run --json` prints it."""

    scenario: str
    seed: int
    stopped: bool  # by the scenario's own rule, before its time was over
    stop_rule: str  # what that rule saw last, for people; empty where nothing is asked
    partial: bool  # it was interrupted: all figures are those of the moment, and none is comparable
    nodes: int
    hostile: int  # of the nodes; what is learned and refused is told of the others
    signatures: str  # real or modelled
    digest: str
    virtual_s: float
    wall_s: float  # of the world alone: without set-up, compiling and the measurements at the end
    events: int
    exchanges: int
    node_updates: int
    accuracy: Accuracy
    loss: Loss
    consensus: float
    # The second half of the run: everybody is in, most connections are open; the speed to compare with systems that
    # have no network to enter.
    settled: Stretch
    messages: int
    bytes_sent: int
    checks: int  # made by the checkers; none failed, or there would be no report
    faults: dict[str, int]
    refused: dict[str, int]
    curve: Curve | None  # where it was asked for


class RealParts:
    """Nodes, learners and a trainer as the daemon has them, for the hosts of a world.

    Args:
        scenario: Names the task and the settings.
        seeds: Of the run.
        remembers: The nodes whose last change is kept, to measure how they spread.
        helped: Whether another process checks signatures.
    """

    def __init__(
        self, scenario: Scenario, seeds: Seeds, *, remembers: Container[int] = (), helped: bool = True
    ) -> None:
        from gossip.learning.trainer import Trainer

        self._config = scenario.config
        self._remembers = remembers
        self._tasks = tasks_of(scenario, seeds)
        self.trainer = Trainer(
            self._tasks[0], lanes=scenario.compute.lanes, seed=self._config.learning.genesis_seed
        )
        self.run_info: RunInfo = run_info(
            network=self._config.network,
            task=self._tasks[0],
            schema=self.trainer.schema,
            genesis=self.trainer.genesis,
            learning=self._config.learning,
            run=self._config.run,
        )
        self.run_id = self.run_info.id
        self._seed = seeds.integer("batches") % 2**32
        self.signatures = signatures_of(
            scenario.compute.signatures, seeds.entropy("signatures"), helped=helped
        )

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Node:
        return make_node(
            host.identity,
            self._config,
            self.run_info,
            addresses=(host.address,),
            # Of each life its own, or a node that restarts would draw the nonces of its last life again.
            rng=seeds.random("node", host.index, host.life),
            entropy=seeds.entropy("node", host.index, host.life),
            store=store_of(host),
            has_model=host.saved is not None,
            now=now,
            verify=self.signatures.verify,
            isolate=False,
        )

    def worker(self, host: Host) -> Learner:
        task = self._tasks[host.index]
        learner = ObservedLearner(
            self.run_info,
            self.trainer.genesis,
            remembers=host.index in self._remembers,
            exchange=self._config.exchange,
            learning=self._config.learning,
            node=host.index,
            batches=lambda seed: task.batches("train", seed),
            seed=self._seed + host.index,
        )
        if host.saved is not None:
            learner.load(host.saved)
        return learner

    def train(self, inputs: Sequence[TrainInput]) -> list[TrainOutput]:
        return self.trainer.run(inputs)

    def metrics(self) -> list[str]:
        """Names of what the task measures on its test rows, besides its loss."""
        found = self.trainer.evaluate([self.trainer.genesis])[0]
        return sorted(name for name in found if name not in ("loss", "rows"))

    def warm_up(self) -> None:
        """Compiles what the run will call, so that the world's wall time is the world's."""
        steps = self._config.learning.local_steps
        if steps > 0:
            learner = Learner(
                self.run_info,
                self.trainer.genesis,
                exchange=self._config.exchange,
                learning=self._config.learning,
                batches=lambda seed: self._tasks[0].batches("train", seed),
            )
            self.trainer.run([learner.train_input(steps)])


def tasks_of(scenario: Scenario, seeds: Seeds) -> list[Task]:
    """One task per node, each with its own part of the data.

    The factory is given `part`, `parts` and `seed` besides the arguments in the scenario. Where these say `parts`, and
    nodes are more, several nodes hold the same part.
    """
    from p2pnode.tasks import load_task

    seed = seeds.integer("data") % 2**32
    arguments: dict[str, Any] = {"parts": scenario.nodes, "seed": seed, **scenario.task.args}
    parts = arguments["parts"]
    return [
        load_task(scenario.task.name, {**arguments, "part": index % parts}) for index in range(scenario.nodes)
    ]


def run(
    scenario: Scenario,
    seed: int,
    *,
    replay: str = "",
    check: bool = True,
    central: bool = True,
    progress: Callable[[Watched], None] | None = None,
    every_s: float = 5.0,
    measure_every_s: float = 0.0,
    glance: Callable[[Watched, Recorder | None], bool] | None = None,
    processes: int = 1,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Runs a scenario to its end and measures.

    Args:
        replay: The command that repeats the run, for the message of a violation.
        check: Whether the checkers watch.
        central: Whether to train the central reference, too.
        progress: Called every `every_s` virtual seconds.
        measure_every_s: Virtual seconds from one point of the curve to the next; 0: no curve.
        glance: Called several times a second of wall time; returns whether to go on. What is reported of a run that
            did not go on is marked as partial.
        processes: How many share the work; what comes out is the same. More than one need a scenario that
            `simulation.windows.why_not` has nothing against.
        say: Is told, before the run, what the report will lack.

    Raises:
        UserError: the task cannot be made, or the stop rule asks for what it does not measure.
        ViolationError: a checker saw what must never happen.
    """
    seeds = Seeds(seed)
    remembers = sample_of(scenario, seeds) if measure_every_s else ()
    parts = RealParts(scenario, seeds, remembers=remembers, helped=processes == 1)
    check_accuracy(scenario, parts.metrics(), say)
    whole = _whole(scenario, say) if central else None
    parts.warm_up()
    recorder = None
    if measure_every_s:
        recorder = Recorder(scenario, seeds, every_s=measure_every_s, evaluate=parts.trainer.evaluate)
    hostile = Adversaries(scenario.adversaries, scenario.nodes, seeds, parts.run_info)
    world: Watched
    if processes > 1:
        make = partial(_elsewhere, observed=recorder is not None)
        world = Windows(
            *(scenario, seed, parts),
            make=make,
            processes=processes,
            replay=replay,
            check=check,
            observer=recorder,
        )
    else:
        world = World(
            scenario,
            seeds,
            parts,
            replay=replay,
            check=check,
            signatures=parts.signatures,
            observer=recorder,
            adversaries=hostile,
        )
    if recorder is not None:
        recorder.begin(world)
    rule = _rule(scenario, seeds, parts, world)
    drive = _Drive(world, recorder, progress=progress, every_s=every_s, glance=glance, rule=rule)
    # Looking for cycles among the millions of objects of hundreds of nodes costs a tenth of the time and finds few
    # (lookups of the DHT that ended): between two stretches is soon enough, and only among the new objects.
    gc.collect()
    gc.disable()
    try:
        first = drive.to(scenario.duration_s / 2)
        settled = drive.to(scenario.duration_s)
        looks = looked(world, world.honest())
        digest = world.digest
    finally:
        gc.enable()
        world.close()
    ended_early = drive.stopped and not drive.satisfied
    accuracy, loss = _learned(scenario, parts, looks, whole=None if ended_early else whole)
    return Report(
        scenario=scenario.name,
        seed=seed,
        stopped=drive.satisfied,
        stop_rule=_told(rule, world.now, satisfied=drive.satisfied) if rule is not None else "",
        partial=ended_early,
        nodes=scenario.nodes,
        hostile=len(hostile.acts),
        signatures=scenario.compute.signatures,
        digest=digest,
        virtual_s=world.now,
        wall_s=first.wall_s + settled.wall_s,
        events=world.events,
        exchanges=world.exchanges,
        node_updates=world.node_updates,
        accuracy=accuracy,
        loss=loss,
        consensus=consensus_distance([look.weights for look in looks]) if looks else nan,
        settled=settled,
        messages=world.messages,
        bytes_sent=world.bytes_sent,
        checks=world.checks,
        faults=world.faults,
        refused=dict(sorted(world.refused.items())),
        curve=recorder.curve(world.now) if recorder is not None else None,
    )


def _elsewhere(scenario: Scenario, seeds: Seeds, *, observed: bool) -> RealParts:
    """What another process of the same run makes for its own machines."""
    remembers = sample_of(scenario, seeds) if observed else ()
    parts = RealParts(scenario, seeds, remembers=remembers, helped=False)
    parts.warm_up()
    return parts


class _Drive:
    """Runs a world, and pauses it for those who want to look; the pauses do not count.

    Where it is paused changes no event.
    """

    def __init__(
        self,
        world: Watched,
        recorder: Recorder | None,
        *,
        progress: Callable[[Watched], None] | None,
        every_s: float,
        glance: Callable[[Watched, Recorder | None], bool] | None,
        rule: StopRule[Host] | None,
    ) -> None:
        self.stopped = False
        self.satisfied = False  # stopped by the scenario's own rule
        self._rule = rule
        self._world = world
        self._recorder = recorder
        self._progress = progress
        self._every_s = every_s if progress is not None else inf
        self._glance = glance
        self._told = 0
        # Virtual seconds between glances; grows and shrinks until they take GLANCE_S.
        self._slice_s = world.scenario.duration_s / 1000 if glance is not None else inf

    def to(self, until: float) -> Stretch:
        """Goes on until a date, unless it was stopped."""
        world, recorder = self._world, self._recorder
        start, events, node_updates, wall_s = world.now, world.events, world.node_updates, 0.0
        measure_s = recorder.every_s if recorder is not None else inf
        while world.now < until and not self.stopped:
            # Products, not sums: the same dates in every run, however it was sliced.
            told_at = (self._told + 1) * self._every_s
            measured_at = (len(recorder.points) + 1) * measure_s if recorder is not None else inf
            judged_at = self._rule.next(world.now) if self._rule is not None else inf
            begun = perf_counter()
            world.run(min(until, told_at, measured_at, judged_at, world.now + self._slice_s))
            gc.collect(0)
            spent_s = perf_counter() - begun
            wall_s += spent_s
            # The last point is that of the end, which a sum of floats may miss by a hair.
            if recorder is not None and world.now >= min(measured_at, world.scenario.duration_s):
                recorder.look(world)
            if world.now >= min(told_at, world.scenario.duration_s) and self._progress is not None:
                self._told += 1
                self._progress(world)
            if (
                self._rule is not None
                and world.now == judged_at < world.scenario.duration_s
                and self._rule.holds(world.honest(), world.now)
            ):
                self.stopped = self.satisfied = True
                if recorder is not None and recorder.points[-1:] and recorder.points[-1].at_s < world.now:
                    recorder.look(world)  # the last point is that of the end here, too
                continue
            if self._glance is not None:
                self._slice_s *= 2.0 if spent_s < GLANCE_S / 2 else 0.5 if spent_s > GLANCE_S else 1.0
                self.stopped = not self._glance(world, recorder)
        begun = perf_counter()
        world.settle()
        wall_s += perf_counter() - begun
        return Stretch(
            virtual_s=world.now - start,
            wall_s=wall_s,
            events=world.events - events,
            node_updates=world.node_updates - node_updates,
        )


def _rule(scenario: Scenario, seeds: Seeds, parts: RealParts, world: Watched) -> StopRule[Host] | None:
    """When the scenario wants to end before its time."""
    if not scenario.stop.asked:
        return None

    return StopRule(
        scenario.stop,
        seeds.random("stop"),
        accuracies=lambda hosts: accuracies(
            parts.trainer.evaluate, [look.readout for look in looked(world, hosts)]
        ),
        consensus=lambda hosts: consensus_distance([look.weights for look in looked(world, hosts)]),
    )


def _told(rule: StopRule[Host], now: float, *, satisfied: bool) -> str:
    return f"at {now!r} virtual s: {rule.found}" if satisfied else f"not met: {rule.found}"


def check_accuracy(scenario: Scenario, metrics: Sequence[str], say: Callable[[str], None] | None) -> None:
    """What is to be known before the run of a task that measures no accuracy."""
    if "accuracy" in metrics:
        return
    stop = scenario.stop
    if stop.accuracy_mean or stop.accuracy_worst:
        key = "accuracy_mean" if stop.accuracy_mean else "accuracy_worst"
        raise UserError(
            ExitCode.USAGE,
            f"stop.{key}: expected a task that reports a metric called accuracy, found "
            f"{printable(scenario.task.name)}, which reports {printable(', '.join(metrics)) or 'its loss alone'}",
        )
    if say is not None:
        say("the task reports no metric called accuracy; accuracy is not measured")


def _learned(
    scenario: Scenario, parts: RealParts, looks: Sequence[Look], *, whole: Task | None
) -> tuple[Accuracy, Loss]:
    metrics = parts.trainer.evaluate([look.readout for look in looks]) if looks else []
    found = finite(metrics, "accuracy")
    # A loss that is not a number is as bad as any; it must not be lost in a mean of the others.
    losses = [entry["loss"] if isfinite(entry["loss"]) else inf for entry in metrics]
    alone = _central(scenario, whole, looks) if whole is not None and looks else {}
    return Accuracy(
        mean=fmean(found) if found else nan,
        worst=min(found) if found else nan,
        central=alone.get("accuracy", nan),
    ), Loss(
        mean=fmean(losses) if losses else nan,
        worst=max(losses) if losses else nan,
        central=alone.get("loss", nan),
    )


def _whole(scenario: Scenario, say: Callable[[str], None] | None) -> Task | None:
    """The task with all rows; None where it cannot be made, which is said before the run and not after it."""
    from p2pnode.tasks import load_task
    from p2pnode.tasks.partition import ARGUMENTS

    # How rows are divided does not concern who has them all.
    arguments = {
        key: value for key, value in scenario.task.args.items() if key not in ("part", "parts", *ARGUMENTS)
    }
    try:
        return load_task(scenario.task.name, arguments)
    except UserError as error:
        if say is not None:
            say(f"all data in one place is not measured, because without part and parts {error}")
        return None


def _central(scenario: Scenario, whole: Task, looks: Sequence[Look]) -> dict[str, float]:
    """Metrics of all rows in one place: same rules, as many rounds as the nodes made on average."""
    from gossip.learning.trainer import train_alone

    learning = scenario.config.learning
    if learning.local_steps == 0:
        return {}
    rounds = round(fmean(look.steps for look in looks) / learning.local_steps)
    return train_alone(whole, rounds=max(rounds, 1), learning=learning)
