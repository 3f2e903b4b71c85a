"""What a fleet is told and what it tells: settings and report, without JAX, so that a command starts at once.

`settings_of` reads the same from a scenario of the world, as far as a fleet can follow it.
"""

from math import ceil
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from gossip.config import ExchangeConfig
from gossip.errors import LocalError
from simulation.fleet.waiting import waiting
from simulation.network import RETRANSMIT_S, Probability
from simulation.scenario import Scenario

Attack: TypeAlias = Literal["flip", "scale", "noise", "nan", "labels", "alie", "ipm", "shift"]
# Parts of a round, where nodes have a pace of their own: with four, the answers that a node gives in a round vary by
# three quarters of what they do in the world.
_TICKS = 4

# A device has each node in two rows of one array, places that stay empty besides, and rows are counted in int32.
NODES_MAX = 2**29
# Ticks are counted in int32, and a round has 64 at most.
ROUNDS_MAX = 2**25 - 1

Count: TypeAlias = Annotated[int, Meta(ge=1)]
Rounds: TypeAlias = Annotated[float, Meta(ge=0, le=1e6)]


class Pace(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pace of its own for every node (simulation/fleet/pace.py); the unit is the fleet's round."""

    # In how many parts a round is cut; each costs as much as a round in step.
    ticks: Annotated[int, Meta(ge=1, le=64)] = 4
    training: Rounds = 0.4  # one job, on the median machine
    sigma: Annotated[float, Meta(ge=0, le=3)] = 0.3  # of the log-normal speed of machines
    answers: tuple[Rounds, ...] = (0.0,)  # from an offer to the answer: equally likely ones
    patience: Rounds = 1.0  # how long one waits for an answer that does not come
    start: Rounds = 0.0  # nodes begin at random moments of the first so many
    leg: Rounds = 0.0  # a frame is on its way for so long
    # A newcomer begins alone when it has asked so many newcomers, or all that it knows.
    newcomers: Annotated[int, Meta(ge=0, le=100)] = 5


class FleetSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment of the fleet. Probabilities are per node and round, or per leg of an exchange."""

    nodes: Annotated[int, Meta(ge=2, le=NODES_MAX)] = 500
    rounds: Annotated[int, Meta(ge=1, le=ROUNDS_MAX)] = 500
    task: str = "digits"
    # Of the task's factory. `partition`, `alpha` and `seed` of it divide the rows, as in the world.
    args: dict[str, Any] = {}
    local_steps: Count = 1
    readout_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    codec: str = "f32"
    strategy: str = "shard-pair"  # how models meet: shard-pair or push
    # Rows in a batch. 0: as many as a node holds on average, and not more than the task takes.
    batch: Annotated[int, Meta(ge=0)] = 0
    # None: a gate stands wherever there are attackers. Among honest nodes it refuses nobody and seldom clips.
    gate: bool | None = None
    exchange: ExchangeConfig = ExchangeConfig()
    loss: Probability = 0.0  # of one leg
    # An offer is late: it tells the weights as they were one training (first wave) or one exchange (second) ago.
    late: Probability = 0.0
    churn: Probability = 0.0  # a node leaves
    away_rounds: Annotated[float, Meta(ge=1)] = 10.0  # how long on average
    stragglers: Probability = 0.0  # share of nodes that are slow
    slowness: Annotated[float, Meta(ge=1)] = 4.0  # how many rounds one of their rounds takes, on average
    rounds_max: Annotated[int, Meta(ge=0)] = (
        0  # training jobs of a node, which then only exchanges; 0: no limit
    )
    # None: all are in step. Else everybody has a pace of its own, and offers without an answer are repeated.
    pace: Pace | None = None
    attackers: Probability = 0.0  # share of nodes that lie about their weights
    attack: Attack = "flip"
    # Measure after so many rounds, and at the end.
    every: Count = 50
    sample: Count = 256  # nodes measured on the way
    seed: Annotated[int, Meta(ge=0)] = 0
    genesis_seed: Annotated[int, Meta(ge=0)] = 0
    lanes: Annotated[int, Meta(ge=0)] = 0  # pairs in a chunk; 0: as fits the device


class FleetAccuracy(Struct, frozen=True):
    """On the test rows, in [0, 1], of the read-outs of honest nodes that are up."""

    mean: float
    worst: float
    central: float  # one learner with all rows, as many rounds; nan if not measured


class Point(Struct, frozen=True):
    """What was measured on the way, on a sample of the nodes."""

    round: int
    mean: float
    worst: float
    quantiles: tuple[float, ...]  # 10 %, 50 %, 90 %
    consensus: float


class FleetReport(Struct, frozen=True):
    """What one run came to; `p2psim fleet --json` prints it."""

    task: str
    seed: int
    nodes: int
    rounds: int
    devices: int
    node_updates: int  # local training jobs, each with the exchange that its node initiates
    exchanges: int  # applied by both ends
    halves: int  # applied by one end only: the answer was lost or refused, or it was a rescue
    refused: int
    wall_s: float  # of the rounds and the measurements on the way; without compiling and those at the end
    compile_s: float
    accuracy: FleetAccuracy
    measured: int  # nodes behind `accuracy`
    consensus: float  # of all honest nodes that are up
    curve: list[Point]


def check(settings: FleetSettings) -> None:
    """Checks what no single field says.

    Raises:
        LocalError: too many nodes or rounds to be counted, or fewer than two honest nodes.
    """
    for name, least, most in (("nodes", 2, NODES_MAX), ("rounds", 1, ROUNDS_MAX)):
        if not least <= getattr(settings, name) <= most:
            raise LocalError(f"expected {name} from {least} to {most}, got {getattr(settings, name)}")
    bad = round(settings.attackers * settings.nodes)
    if bad and bad > settings.nodes - 2:
        raise LocalError(
            f"expected attackers to be a share that leaves at least two honest nodes, got {settings.attackers:g}"
        )


def settings_of(scenario: Scenario, *, seed: int, rounds: int = 0) -> FleetSettings:
    """Return what comes nearest to a scenario of the world; `simulation.fleet.scenario` says what is left out.

    Round r of the fleet is the date r * `round_interval_s`. Nodes have a pace of their own: they begin within
    `start_s`, adopt or begin from genesis, train as long as their machine takes, and wait for answers.

    Args:
        seed: Divides the rows as in the world.
        rounds: How many; 0: as many as fit into the scenario's time.
    """
    # Imported here: numpy comes with it, and `p2psim list` needs none.
    from gossip.run.session import NEWCOMERS_ASKED

    config, network, faults, compute = scenario.config, scenario.network, scenario.faults, scenario.compute
    round_s = config.learning.round_interval_s
    count = rounds or max(1, round(scenario.duration_s / round_s))
    wait = waiting(network, config.exchange, work_s=2 * compute.exchange_s)
    newcomers = ceil(min(NEWCOMERS_ASKED, config.exchange.join_patience_s / round_s))
    return FleetSettings(
        nodes=scenario.nodes,
        rounds=count,
        task=scenario.task.name,
        args=scenario.task.args,
        local_steps=config.learning.local_steps,
        readout_decay=config.learning.readout_decay,
        codec=config.exchange.codec,
        strategy=config.learning.strategy,
        batch=scenario.task.args.get("batch", 0),
        gate=True,
        exchange=config.exchange,
        loss=1 - wait.answered**0.5,
        churn=min(1.0, (faults.churn + faults.crash) / ceil(scenario.duration_s / round_s)),
        away_rounds=max(1.0, faults.away_s_mean / round_s),
        stragglers=compute.stragglers,
        slowness=compute.slowdown,
        rounds_max=config.learning.rounds_max,
        pace=Pace(
            ticks=_TICKS,
            training=compute.train_s / round_s,
            sigma=compute.spread_sigma,
            answers=tuple(answer_s / round_s for answer_s in wait.answers_s),
            patience=wait.patience_s / round_s,
            start=scenario.start_s / round_s,
            leg=(network.delay_s_mean + network.loss * RETRANSMIT_S) / round_s,
            newcomers=newcomers,
        ),
        every=max(1, count // 20),
        seed=seed,
        genesis_seed=config.learning.genesis_seed,
    )
