"""The swarm: simulated hours of honest nodes in an hour of this machine, every checker on, all kinds of faults.

The reference is what the project asks of `make swarm`: 10,000 in an hour on two cores. Most hours come from the seeds
that have a daemon's own settings; those of the other pace are told beside them, because more happens in them.
"""

import os

from tests.bench.figures import Figure
from tests.bench.processes import BIN, answer

# Another range than the tests', so that neither knows the other's seeds; five of them are of hours.
SEEDS = "2000:2040"
SEEDS_BRIEF = "2001:2003"  # short ones
ASKED = 10_000.0 / 3600.0


def swarm(brief: bool) -> list[Figure]:
    jobs = min(2, os.cpu_count() or 1)
    found = answer(
        BIN / "p2psim", "swarm", "--seeds", SEEDS_BRIEF if brief else SEEDS, "--jobs", str(jobs), "--json"
    )
    assert not found["failed"], found["failed"]
    where = f"{found['seeds']} seeds, {jobs} processes, {found['events']:,} events"
    by_pace = found["node_hours_by_pace"]
    return [
        Figure(
            name=f"swarm: node-hours a second, {where}",
            value=found["node_hours"] / found["wall_s"],
            unit="node-hours/s",
            reference=ASKED,
            against="what make swarm promises",
            recorded=True,
        ),
        Figure(
            name="swarm: of these at the pace of seconds",
            value=by_pace["seconds"] / found["wall_s"],
            unit="node-hours/s",
            reference=found["node_hours"] / found["wall_s"],
            against="both paces",
        ),
    ]


BENCHMARKS = (swarm,)
