"""When, and to whom, the faults of a swarm's machines and links happen: drawn before the run, each kind by itself."""

import random

from msgspec import Struct

from simulation.network import Partition
from simulation.seeds import Seeds
from simulation.swarm.draw import MACHINE_KINDS, SwarmOptions
from simulation.swarm.network import Clog, OneWay

# Incidents of one kind in one run, per node: at most, at least one. More, and nothing else happens any more.
PER_NODE = 0.4
# In a day more happens than in a minute: in runs of hours, one more such number for every so long.
AGAIN_S = 4 * 3600.0
# Within this part of the safety phase; what is before belongs to joining, what is after to the next phase.
WINDOW = (0.1, 0.85)
# What a crowd or a mass is, as a share of the honest nodes.
CROWD = (0.3, 0.6)
# Nobody restarts a program faster.
AWAY_S_MIN = 0.5


class Incident(Struct, frozen=True):
    """`kind` strikes `nodes` at `start_s`; it is over, and they are back, at `end_s`."""

    kind: str
    nodes: tuple[int, ...]
    start_s: float
    end_s: float


class Incidents(Struct, frozen=True):
    machines: tuple[Incident, ...]
    partitions: tuple[Partition, ...]
    one_way: tuple[OneWay, ...]
    clogs: tuple[Clog, ...]


def plan_incidents(options: SwarmOptions, seeds: Seeds) -> Incidents:
    """Draws what strikes whom, and when; only kinds that are in the options."""
    machines: list[Incident] = []
    # Applies from the start, and for good; clocks do not heal.
    machines += [
        Incident(kind="clock_drift", nodes=(node,), start_s=0.0, end_s=0.0)
        for node in range(options.nodes)
        if "clock_drift" in options.kinds
    ]
    for kind in MACHINE_KINDS:
        if kind in options.kinds and kind != "clock_drift":
            machines += _machines(kind, options, seeds.random("swarm", "incidents", kind))
    partitions, one_way, clogs = [], [], []
    everybody = range(options.scenario.nodes)
    if "partition" in options.kinds:
        rng = seeds.random("swarm", "incidents", "partition")
        for _ in range(rng.randint(1, 3)):
            start, end = _span(options, rng)
            groups = rng.randint(1, 2)  # besides those who are in none
            shuffled = rng.sample(everybody, len(everybody))
            size = max(1, len(shuffled) // (groups + 1))
            cut = [shuffled[part * size : (part + 1) * size] for part in range(groups)]
            partitions.append(Partition(cut, start_s=start, end_s=end))
    if "one_way" in options.kinds:
        rng = seeds.random("swarm", "incidents", "one_way")
        for _ in range(rng.randint(1, 3)):
            start, end = _span(options, rng)
            senders = rng.sample(everybody, rng.randint(1, max(1, len(everybody) // 2)))
            one_way.append(OneWay(senders=tuple(senders), start_s=start, end_s=end))
    if "clog" in options.kinds:
        # Swizzle-clogging, after FoundationDB: one after the other, and opened again in another order.
        rng = seeds.random("swarm", "incidents", "clog")
        nodes = rng.sample(everybody, max(1, round(len(everybody) * rng.uniform(*CROWD))))
        start, end = _span(options, rng)
        middle = (start + end) / 2
        starts = sorted(rng.uniform(start, middle) for _ in nodes)
        ends = [rng.uniform(middle, end) for _ in nodes]
        clogs = [
            Clog(node=node, start_s=first, end_s=last)
            for node, first, last in zip(nodes, starts, ends, strict=True)
        ]
    return Incidents(tuple(machines), tuple(partitions), tuple(one_way), tuple(clogs))


def _machines(kind: str, options: SwarmOptions, rng: random.Random) -> list[Incident]:
    if kind in ("flash_crowd", "mass_leave"):
        share = rng.uniform(*CROWD)
        nodes = rng.sample(range(1, options.nodes), max(1, round(share * (options.nodes - 1))))
        start, end = _span(options, rng)
        return [Incident(kind=kind, nodes=tuple(sorted(nodes)), start_s=start, end_s=end)]
    found = []
    often = PER_NODE * options.nodes * max(1.0, options.safety_s / AGAIN_S)
    for _ in range(rng.randint(1, max(1, round(often)))):
        start, end = _span(options, rng)
        # Node 0 keeps its address: it is the one that everybody was told.
        node = rng.randrange(1 if kind in ("address_change", "outer_address") else 0, options.nodes)
        found.append(Incident(kind=kind, nodes=(node,), start_s=start, end_s=end))
    return found


def _span(options: SwarmOptions, rng: random.Random) -> tuple[float, float]:
    start = rng.uniform(WINDOW[0], WINDOW[1]) * options.safety_s
    length = max(AWAY_S_MIN, rng.expovariate(10.0 / options.safety_s))
    return start, max(start, min(start + length, options.safety_s))
