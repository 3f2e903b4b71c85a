"""Looking on the way: what is seen, and that nobody in the world notices."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from gossip.learning.learner import TrainOutput
from simulation.experiments.curves import (
    SAMPLE_MAX,
    Curve,
    ObservedLearner,
    Recorder,
    predicted_distance,
    sample_of,
)
from simulation.experiments.run import RealParts, Report, run
from simulation.scenario import Scenario, parse
from simulation.seeds import Seeds
from simulation.world import World

SMALL: dict[str, Any] = {
    "nodes": 8,
    "duration_s": 14.0,
    "start_s": 1.0,
    "task": {"name": "digits", "args": {"model": "logistic", "alpha": 1.0}},
    "network": {"preset": "wan", "loss": 0.02},
    "compute": {"lanes": 4},
    "faults": {
        "churn": 0.15,
        "crash": 0.25,
        "away_s_mean": 1.0,
        "start_s": 5.0,
        "stop_s": 10.0,
        "silence_s": 1.0,
        "partitions": [{"share": 0.5, "start_s": 6.0, "end_s": 7.0}],
    },
    "config": {"learning": {"round_interval_s": 0.4, "save_interval_s": 2.0, "rounds_max": 20}},
}


def scenario(**tree: Any) -> Scenario:
    return parse({**SMALL, **tree}, "small.toml")


@pytest.fixture(scope="module")
def looked() -> Report:
    return run(scenario(), 7, central=False, measure_every_s=2.0)


def curve_of(report: Report) -> Curve:
    assert report.curve is not None
    return report.curve


def test_looking_changes_neither_the_digest_nor_a_bit_of_the_end(looked: Report) -> None:
    """Also with `rounds_max`, where read-outs are brought up to date late, and with a glance at odd moments."""
    glances = []

    def glance(world: World, recorder: object) -> bool:
        glances.append(world.now)
        return True

    alone = run(scenario(), 7, central=False, glance=glance)
    assert alone.curve is None
    assert len(glances) > 5
    for field in ("digest", "accuracy", "consensus", "events", "exchanges", "faults", "refused"):
        if field == "accuracy":
            assert (alone.accuracy.mean, alone.accuracy.worst) == (
                looked.accuracy.mean,
                looked.accuracy.worst,
            )
        else:
            assert getattr(alone, field) == getattr(looked, field), field


def test_a_curve_repeats_with_the_seed_and_whoever_watches(looked: Report) -> None:
    def glance(world: World, recorder: Recorder | None) -> bool:
        assert recorder is not None
        found = recorder.accuracy_of(world, world.up()[:3])
        assert all(0 <= value <= 1 for value in found.values())
        return True

    again = run(scenario(), 7, central=False, measure_every_s=2.0, glance=glance)
    assert again.curve == looked.curve
    assert (again.digest, again.accuracy.mean) == (looked.digest, looked.accuracy.mean)


def test_the_curve_goes_from_the_first_look_to_the_end(looked: Report) -> None:
    points = curve_of(looked).points
    assert [point.at_s for point in points] == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    last = points[-1]
    assert (last.events, last.exchanges, last.bytes_sent) == (
        looked.events,
        looked.exchanges,
        looked.bytes_sent,
    )
    # Everybody is measured here, so the last point is the report's own figure.
    assert last.measured == last.up == 8
    assert last.mean == pytest.approx(looked.accuracy.mean)
    assert last.worst == pytest.approx(looked.accuracy.worst)
    assert last.consensus == pytest.approx(looked.consensus, rel=1e-5)
    for point in points:
        assert point.quartiles is not None
        assert point.worst is not None
        assert point.worst <= point.quartiles[0] <= point.quartiles[1] <= point.quartiles[2]
        assert point.mean is not None
    assert points[0].mean < points[-1].mean  # type: ignore[operator]
    assert [p.events for p in points] == sorted(p.events for p in points)


def test_every_exchange_is_in_the_contacts(looked: Report) -> None:
    contacts = curve_of(looked).contacts
    assert contacts.rows == 8
    assert sum(count for _, _, count in contacts.counts) == looked.exchanges
    assert all(0 <= one < 8 and 0 <= other < 8 and one != other for one, other, _ in contacts.counts)


def test_every_fault_of_a_machine_is_in_the_timeline(looked: Report) -> None:
    incidents = curve_of(looked).incidents
    kinds = [incident.kind for incident in incidents]
    assert kinds.count("churn") == looked.faults["churn"]
    assert kinds.count("crash") == looked.faults["crash"]
    cut = next(incident for incident in incidents if incident.kind == "partition")
    assert (cut.at_s, cut.until_s, cut.node) == (6.0, 7.0, None)
    for incident in incidents:
        assert incident.until_s is not None
        assert incident.at_s < incident.until_s
        assert incident.kind == "partition" or incident.node in range(8)
    assert curve_of(looked).incidents_left_out == 0


def test_an_interrupted_run_is_reported_as_partial() -> None:
    def glance(world: World, recorder: object) -> bool:
        return world.now < 5.0

    report = run(scenario(), 7, measure_every_s=2.0, glance=glance)
    assert report.partial
    assert 5.0 <= report.virtual_s < 14.0
    assert math.isnan(report.accuracy.central)
    assert len(curve_of(report).points) == report.virtual_s // 2.0
    at_once = run(scenario(), 7, measure_every_s=2.0, glance=lambda world, recorder: False)
    assert at_once.partial
    assert at_once.settled.node_updates == 0
    assert msgspec.json.decode(msgspec.json.encode(at_once))["partial"] is True


def test_a_look_leaves_no_trace_in_a_learner() -> None:
    settings = scenario()
    seeds = Seeds(1)
    parts = RealParts(settings, seeds, remembers=[0])
    world = World(settings, seeds, parts)
    try:
        learner = parts.worker(world.hosts[0])
        assert isinstance(learner, ObservedLearner)
        output = parts.train([learner.train_input(settings.config.learning.local_steps)])[0]
        learner.trained(output)
        assert learner.last_change is not None
        np.testing.assert_array_equal(learner.last_change, output.change)
        learner.trained(TrainOutput(output.change, output.optimiser, output.loss, 0))
        learner._rounds += 3  # rounds without training are taken in when somebody asks
        before = learner._readout.copy()
        seen = learner.look()
        assert not np.array_equal(seen, before)
        np.testing.assert_array_equal(learner._readout, before)
        np.testing.assert_array_equal(learner.readout(), seen)
    finally:
        world.close()


def test_a_large_world_is_measured_by_a_sample_that_stays() -> None:
    small, large = scenario(), scenario(nodes=300)
    assert sample_of(small, Seeds(1)) == list(range(8))
    sample = sample_of(large, Seeds(1))
    assert len(sample) == SAMPLE_MAX
    assert sample == sorted(set(sample)) == sample_of(large, Seeds(1)) != sample_of(large, Seeds(2))


@pytest.mark.parametrize("shards", [1, 4])
def test_the_predicted_distance_is_where_pair_averages_and_changes_settle(shards: int) -> None:
    """Against the dumb version: numbers that take independent changes and meet in random pairs."""
    rng = np.random.default_rng(3)
    nodes, values, jobs, spread = 16, 16, 0.8, 0.5
    x = np.zeros((nodes, values))
    seen = []
    for step in range(6000):
        if rng.random() < jobs / max(jobs, 1):
            x[rng.integers(nodes)] += rng.normal(0, spread / math.sqrt(values), values)
        one, other = rng.choice(nodes, 2, replace=False)
        part = slice(None) if shards == 1 else slice(s := int(rng.integers(shards)) * 4, s + 4)
        x[one, part] = x[other, part] = (x[one, part] + x[other, part]) / 2
        if step > 1000:
            seen.append(float(np.square(x - x.mean(axis=0)).sum() / nodes))
    # Measured among jobs of different nodes, as the recorder does it.
    predicted = predicted_distance(nodes, spread=spread, jobs=jobs, shards=shards)
    assert predicted == pytest.approx(math.sqrt(np.mean(seen)), rel=0.05)


def test_the_prediction_fits_equal_data_and_a_calm_network() -> None:
    calm = scenario(
        nodes=16,
        duration_s=30.0,
        task={"name": "digits", "args": {"model": "logistic", "alpha": 1000.0}},
        network={"preset": "lan"},
        faults={},
        config={"learning": {"round_interval_s": 0.5}},
    )
    curve = curve_of(run(calm, 1, central=False, measure_every_s=1.0, check=False))
    ratios = [p.consensus / p.predicted for p in curve.points if p.at_s > 10 and p.consensus and p.predicted]
    assert len(ratios) == 20
    # Regular rounds mix up to a fifth faster than the random order of the formula.
    assert 0.8 < float(np.median(ratios)) < 1.1
