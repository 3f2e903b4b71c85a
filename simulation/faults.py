"""What goes wrong, when, and how often it really did.

The plan is drawn before the run from a generator of its own, so that the faults of a seed stay where they are
while the protocol changes. Faults of single frames (loss, delay, duplication, reorder) belong to the
`LinkModel`; here are those of whole machines and of the network: churn, crash, partition.
"""

import random
from enum import StrEnum

from msgspec import Struct

from simulation.churn import Attendance, attendance
from simulation.geography import Geography
from simulation.network import Partition
from simulation.scenario import Scenario


class Fault(StrEnum):
    """The closed vocabulary of `faults{kind: count}`."""

    LOSS = "loss"
    DELAY = "delay"
    DUPLICATION = "duplication"
    REORDER = "reorder"
    CRASH = "crash"
    CHURN = "churn"
    PARTITION = "partition"
    NAT = "nat"


# Nobody restarts a program faster.
AWAY_S_MIN = 0.5


class Absence(Struct, frozen=True):
    """Node `node` goes away at `start_s` and boots from its disk at `end_s`."""

    node: int
    start_s: float
    end_s: float
    kind: Fault  # CHURN: a clean stop; CRASH: killed in the middle of carrying out an event


class Plan(Struct, frozen=True):
    absences: tuple[Absence, ...]
    partitions: tuple[Partition, ...]
    starts: dict[int, float] = {}  # nodes that are not there at the beginning -> when they come; inf: never


def comings_and_goings(scenario: Scenario, rng: random.Random, geography: Geography | None) -> Attendance:
    """Draws, or reads, what [churn] says."""
    regions = scenario.geography.regions

    def longitude(node: int) -> float:
        return regions[geography.region(node)].longitude if geography is not None else 0.0

    return attendance(
        scenario.churn,
        scenario.nodes,
        begin_s=scenario.start_s,
        end_s=scenario.duration_s,
        rng=rng,
        longitude=longitude,
    )


def plan(scenario: Scenario, rng: random.Random, present: Attendance | None = None) -> Plan:
    """Draws who goes away when, and who is cut off from whom.

    Args:
        present: Who comes and goes besides.
    """
    faults = scenario.faults
    nodes = list(range(scenario.nodes))
    rng.shuffle(nodes)
    stop = faults.stop_s or scenario.duration_s * 2 / 3
    leaving = round(faults.churn * scenario.nodes)
    killed = min(round(faults.crash * scenario.nodes), scenario.nodes - leaving)
    absences = []
    for position, node in enumerate(nodes[: leaving + killed]):
        start = rng.uniform(max(faults.start_s, scenario.start_s), max(stop - AWAY_S_MIN, faults.start_s))
        end = min(stop, start + max(AWAY_S_MIN, rng.expovariate(1.0 / faults.away_s_mean)))
        kind = Fault.CHURN if position < leaving else Fault.CRASH
        absences.append(Absence(node=node, start_s=start, end_s=end, kind=kind))
    partitions = []
    for cut in faults.partitions:
        apart = rng.sample(range(scenario.nodes), round(cut.share * scenario.nodes))
        partitions.append(Partition([apart], start_s=cut.start_s, end_s=cut.end_s))
    starts: dict[int, float] = {}
    if present is not None:
        starts = present.starts
        for span in present.spans:
            kind = Fault.CRASH if span.killed else Fault.CHURN
            absences.append(Absence(node=span.node, start_s=span.start_s, end_s=span.end_s, kind=kind))
    return Plan(absences=tuple(absences), partitions=tuple(partitions), starts=starts)
