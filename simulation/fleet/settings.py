"""What a fleet is told and what it tells: settings and report, without JAX, so that a command starts at once.

`settings_of` reads the same from a scenario of the world, as far as a fleet can follow it.
"""

from math import ceil
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from gossip.config import ExchangeConfig
from simulation.network import Probability
from simulation.scenario import Scenario

Attack: TypeAlias = Literal["flip", "scale", "noise", "nan", "labels", "alie", "ipm", "shift"]
Count: TypeAlias = Annotated[int, Meta(ge=1)]


class FleetSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment of the fleet. Probabilities are per node and round, or per leg of an exchange."""

    nodes: Annotated[int, Meta(ge=2, le=2**30)] = 500
    rounds: Count = 500
    task: str = "digits"
    # Of the task's factory. `partition`, `alpha` and `seed` of it divide the rows, as in the world.
    args: dict[str, Any] = {}
    local_steps: Count = 1
    readout_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    codec: str = "f32"
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
    halves: int  # applied by the responder only: the answer was lost or refused
    refused: int
    wall_s: float  # of the rounds and the measurements on the way; without compiling and those at the end
    compile_s: float
    accuracy: FleetAccuracy
    measured: int  # nodes behind `accuracy`
    consensus: float  # of all honest nodes that are up
    curve: list[Point]


def settings_of(scenario: Scenario, *, seed: int, rounds: int = 0) -> FleetSettings:
    """Return what comes nearest to a scenario of the world.

    A round lasts as long as the world's: the interval, or training and an exchange where these take longer. A leg is
    lost as a frame is: the world repeats an offer without an answer once, but loses handshakes as well (100 nodes, wan
    with 5 % loss: 0.86 exchanges a job there, 0.90 here). An offer is late in that share of a round which it takes to
    get an answer. Partitions, duplication, reordering, bandwidth and the spread of speeds have no counterpart here, and
    who leaves comes back after a time that is drawn, not planned.

    Args:
        seed: Divides the rows as in the world.
        rounds: How many; 0: as many as a node of the world makes in the scenario's time.
    """
    config, network, faults = scenario.config, scenario.network, scenario.faults
    answer_s = 2 * network.delay_s_mean
    round_s = max(config.learning.round_interval_s, scenario.compute.train_s + answer_s)
    count = rounds or max(1, round((scenario.duration_s - scenario.start_s / 2) / round_s))
    return FleetSettings(
        nodes=scenario.nodes,
        rounds=count,
        task=scenario.task.name,
        args=scenario.task.args,
        local_steps=config.learning.local_steps,
        readout_decay=config.learning.readout_decay,
        codec=config.exchange.codec,
        batch=scenario.task.args.get("batch", 0),
        gate=True,
        exchange=config.exchange,
        loss=network.loss,
        late=min(1.0, answer_s / round_s),
        churn=min(1.0, (faults.churn + faults.crash) / ceil(scenario.duration_s / round_s)),
        away_rounds=max(1.0, faults.away_s_mean / round_s),
        every=max(1, count // 10),
        seed=seed,
        genesis_seed=config.learning.genesis_seed,
    )
