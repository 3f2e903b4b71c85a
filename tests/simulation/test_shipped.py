"""Every scenario that ships runs: shorter, with fewer nodes, and otherwise as it stands."""

from math import isfinite

import pytest

from simulation.experiments.run import run
from simulation.scenario import Scenario, load, shipped

# Some of each kind of node: hostile, behind a NAT, in each region.
NODES = 10
# Enough for everybody to come in and to exchange some times.
ROUNDS = 12


def shortened(name: str) -> Scenario:
    whole = load(name)
    round_s = max(whole.config.learning.round_interval_s, whole.compute.train_s, 0.5)
    return load(
        name,
        [
            f"nodes={NODES}",
            f"duration_s={whole.start_s + 5.0 + ROUNDS * round_s}",
            "faults.churn=0",
            "faults.crash=0",
            "faults.partitions=[]",
            "compute.lanes=4",
            "task.args.model=logistic",
        ],
    )


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_scenario_runs(name: str) -> None:
    report = run(shortened(name), 1, central=False)
    assert report.exchanges > NODES
    assert report.checks > 0
    assert isfinite(report.consensus)
    assert 0.1 < report.accuracy.worst <= report.accuracy.mean <= 1


def test_clinics_and_hostile_nodes_are_what_they_promise() -> None:
    clinics = load("clinics-30")
    assert len(clinics.geography.regions) == 3
    assert clinics.churn.model == "diurnal"
    assert clinics.nat.restricted + clinics.nat.symmetric == pytest.approx(0.5)
    hostile = load("hostile-50")
    assert round(hostile.adversaries.share * hostile.nodes) == 10
    assert hostile.stop.asked
