"""The fleet: it mixes as the theory says, learns as the world does, and repeats itself."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gossip.errors import LocalError
from gossip.learning.learner import Learner
from simulation.checkers import consensus_distance
from simulation.cli import main
from simulation.experiments.run import RealParts
from simulation.fleet.program import Fleet, simulate
from simulation.fleet.settings import FleetReport, FleetSettings, settings_of
from simulation.scenario import Scenario, parse
from simulation.seeds import Seeds
from simulation.world import World

LOGISTIC = {"model": "logistic"}


def settings(**fields: Any) -> FleetSettings:
    return FleetSettings(**{"nodes": 40, "rounds": 60, "args": LOGISTIC, "every": 60, **fields})


def ready(**fields: Any) -> Fleet:
    fleet = Fleet(settings(**fields))
    fleet.compile()
    return fleet


# --- mixing, with training switched off (docs/learning.md) --------------------------------------

# Small enough to change no float32 weight.
FROZEN = {**LOGISTIC, "lr": 1e-30}


def factor(fleet: Fleet, rounds: int = 30) -> float:
    """The mean of V'/V over rounds that each begin with independent models."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(rounds):
        x = rng.normal(size=(fleet.settings.nodes, fleet.values)).astype(np.float32)
        fleet.place(x)
        fleet.advance(1)
        found.append((consensus_distance(fleet.weights()) / consensus_distance(x)) ** 2)
    return float(np.mean(found))


@pytest.mark.parametrize(("nodes", "lanes"), [(10, 0), (60, 5)])
def test_a_round_is_two_perfect_matchings(nodes: int, lanes: int) -> None:
    # (n-2) / (2(n-1)) for the first, (n-4) / (2(n-2)) for the second, which leaves out the partners of the first;
    # in one chunk as in six.
    expected = (nodes - 4) / (4 * (nodes - 1))
    assert factor(ready(args=FROZEN, nodes=nodes, lanes=lanes)) == pytest.approx(expected, rel=0.03)


def test_rows_that_move_in_runs_still_meet_everybody() -> None:
    # Four chunks to which runs of four rows are dealt. Were it always the same rows that travel together, or places
    # that meet, later rounds would mix less than the first: only what one node knows is spread here.
    nodes = 512
    fleet = ready(args=FROZEN, nodes=nodes, lanes=64)
    found = []
    for _ in range(20):
        x = np.zeros((nodes, fleet.values), np.float32)
        x[0] = np.random.default_rng(0).normal(size=fleet.values)
        fleet.place(x)
        fleet.advance(7)
        found.append((consensus_distance(fleet.weights()) / consensus_distance(x)) ** 2)
    assert np.mean(found) ** (1 / 7) == pytest.approx((nodes - 4) / (4 * (nodes - 1)), rel=0.05)


def test_loss_slows_mixing_as_the_formula_says() -> None:
    nodes, loss = 200, 0.3
    fleet = ready(args=FROZEN, nodes=nodes, loss=loss)
    # The factor of one pair, with loss p per leg, for n/2 disjoint pairs at once; twice.
    wave = 1 - nodes / 2 * (1 - loss) * (
        (1 - loss) / (nodes - 1) + loss * (nodes + 1) / (2 * nodes * (nodes - 1))
    )
    assert factor(fleet, 15) == pytest.approx(wave**2, rel=0.02)


def test_the_sum_is_kept_whatever_is_late_clipped_or_rounded() -> None:
    fleet = ready(args=FROZEN, codec="int4", gate=True, late=0.5, nodes=30)
    x = np.random.default_rng(1).normal(size=(30, fleet.values)).astype(np.float32)
    fleet.place(x)
    fleet.advance(10)
    after = fleet.weights()
    assert consensus_distance(after) < 0.2 * consensus_distance(x)
    assert np.abs(after.sum(axis=0) - x.sum(axis=0)).max() < 1e-4


# --- nodes ------------------------------------------------------------------------------------------------


def test_everybody_trains_and_asks_once_a_round() -> None:
    report = simulate(settings())
    assert report.node_updates == report.exchanges == 40 * 60
    assert report.halves == report.refused == 0
    assert report.measured == 40
    assert 0.85 < report.accuracy.worst <= report.accuracy.mean <= 1
    assert report.accuracy.mean == pytest.approx(report.accuracy.central, abs=0.04)
    assert report.curve[-1].round == 60


def test_an_odd_node_is_no_difficulty_and_many_nodes_share_few_rows() -> None:
    report = simulate(settings(nodes=2001, lanes=100, rounds=20, every=20), central=False)
    assert report.measured == 2001
    assert report.node_updates == 2001 * 20
    # Once in a while somebody is dealt an empty place as a partner.
    assert 0.98 < report.exchanges / report.node_updates < 1


def test_those_who_are_away_or_slow_make_fewer_jobs() -> None:
    report = simulate(
        settings(nodes=400, churn=0.05, away_rounds=20.0, stragglers=0.5, slowness=4.0, loss=0.1),
        central=False,
    )
    # Away: 0.05 in, 1/20 back: half of the time in the long run. Slow: half of the nodes at a quarter.
    jobs = report.node_updates / (400 * 60)
    assert 0.25 < jobs < 0.45
    # Half of the partners are away; both legs must arrive.
    assert 0.3 < report.exchanges / report.node_updates < 0.6
    assert 0.05 < report.halves / report.exchanges < 0.15
    assert 150 < report.measured < 300


def test_the_gate_keeps_broken_models_out() -> None:
    guarded = simulate(settings(attackers=0.2, attack="nan"), central=False)
    assert guarded.refused > 0
    assert guarded.measured == 32
    assert guarded.accuracy.mean > 0.8
    unguarded = simulate(settings(attackers=0.2, attack="nan", gate=False), central=False)
    assert not unguarded.accuracy.mean > 0.5


@pytest.mark.parametrize("attack", ["flip", "scale", "noise", "alie", "labels"])
def test_a_fifth_of_liars_costs_little(attack: str) -> None:
    # From round 0 on, when nobody has a history. With a clipped mean for the gate's yardstick, flip, scale and noise
    # left 8 to 17 %.
    fields: dict[str, Any] = {"args": {**LOGISTIC, "alpha": 0.5}, "rounds": 120, "nodes": 100, "every": 120}
    clean = simulate(settings(**fields, gate=True), central=False)
    attacked = simulate(settings(**fields, attackers=0.2, attack=attack), central=False)
    assert attacked.measured == 80
    assert attacked.accuracy.mean > clean.accuracy.mean - 0.03
    assert attacked.accuracy.worst > clean.accuracy.worst - 0.15
    # The liars do lie: without a gate, all but the mildest do harm.
    assert attacked.refused > 0 or attack in ("alie", "labels")


@pytest.mark.parametrize("attack", ["ipm", "shift"])
def test_liars_who_agree_on_a_direction_win_and_the_documents_say_so(attack: str) -> None:
    report = simulate(settings(attackers=0.2, attack=attack, rounds=120, nodes=100), central=False)
    assert report.accuracy.worst < 0.5


def test_an_optimiser_with_a_state_and_several_steps() -> None:
    report = simulate(settings(args={**LOGISTIC, "cooling_steps": 240}, local_steps=4), central=False)
    assert report.accuracy.mean > 0.9
    # Once the rate is zero only exchanges remain, and all agree.
    assert report.consensus < 1.0


# --- the world -----------------------------------------------------------------------------------------------

SCENE: dict[str, Any] = {
    "start_s": 1.0,
    "task": {"name": "digits", "args": {"model": "logistic", "alpha": 1.0, "batch": 8}},
    "network": {"preset": "lan"},
    "compute": {"train_s": 0.2, "lanes": 50},
    "config": {
        "learning": {"round_interval_s": 0.5, "local_steps": 2, "save_interval_s": 60.0},
        # The start, which the fleet does not have, should be over soon.
        "exchange": {"join_patience_s": 0.5},
    },
}


def world_curve(scenario: Scenario, seed: int, dates: list[float]) -> tuple[list[int], list[float]]:
    """Rounds that a node has made on average, and mean accuracy, at these dates of the world."""
    seeds = Seeds(seed)
    parts = RealParts(scenario, seeds)
    parts.warm_up()
    world = World(scenario, seeds, parts, check=False)
    rounds, found = [], []
    for date in dates:
        world.run(date)
        learners = [host.worker for host in world.up() if isinstance(host.worker, Learner)]
        rounds.append(round(world.node_updates / scenario.nodes))
        measured = parts.trainer.evaluate([learner.readout() for learner in learners])
        found.append(float(np.mean([metrics["accuracy"] for metrics in measured])))
    world.close()
    return rounds, found


def fleet_curve(scenario: Scenario, seed: int, rounds: list[int]) -> list[float]:
    given = settings_of(scenario, seed=seed, rounds=max(rounds))
    fleet = Fleet(given)
    fleet.compile()
    found = []
    for number in rounds:
        fleet.advance(number - fleet.round)
        found.append(fleet.measure()[0].mean)
    return found


def check_agreement(scenario: Scenario, seeds: range, dates: list[float]) -> None:
    """The two engines differ by less than seeds do; each seed divides the rows alike in both.

    Compared once everybody has begun: the fleet begins with all nodes at once, in the world they join one by one.
    """
    worlds, fleets = [], []
    for seed in seeds:
        rounds, accuracies = world_curve(scenario, seed, dates)
        worlds.append(accuracies)
        fleets.append(fleet_curve(scenario, seed, rounds))
    world, fleet = np.array(worlds), np.array(fleets)  # (seeds, dates)
    spread = world.std(axis=0, ddof=1)
    # One test row of 360 is 0.3 points: no spread counts as smaller than two.
    allowed = 2 * np.maximum(spread, 0.006)
    assert (np.abs(world.mean(axis=0) - fleet.mean(axis=0)) < allowed).all(), (worlds, fleets)


def test_fleet_and_world_learn_alike() -> None:
    scenario = parse({**SCENE, "nodes": 24, "duration_s": 22.0}, "scene.toml")
    check_agreement(scenario, range(2), [18.0, 22.0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_a_hundred_nodes_of_fleet_and_world_learn_alike(model: str) -> None:
    tree = {**SCENE, "nodes": 100, "duration_s": 36.0}
    tree["task"] = {"name": "digits", "args": {"model": model, "alpha": 0.5, "batch": 8}}
    check_agreement(parse(tree, "scene.toml"), range(4), [20.0, 28.0, 36.0])


# --- processes and devices ---------------------------------------------------------------------------------------

CALL = [
    "fleet",
    "--nodes",
    "64",
    "--rounds",
    "30",
    "--every",
    "10",
    "--model",
    "logistic",
    "--no-central",
    "--json",
]


def started(*more: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "simulation", *CALL, *more],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The report, without what the clock says."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return {name: value for name, value in found.items() if name not in ("wall_s", "compile_s", "devices")}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_same_seed_same_figures_in_every_process_and_on_devices_of_one_process_or_two() -> None:
    port = free_port()
    several = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    runs = [
        started(PYTHONHASHSEED="1"),
        started(PYTHONHASHSEED="2"),
        started("--devices", "2", XLA_FLAGS="--xla_force_host_platform_device_count=2"),
        started(*several, "--process", "0"),
        started(*several, "--process", "1"),
    ]
    second = runs.pop()
    try:
        one, again, sharded, distributed = [told(run) for run in runs]
    finally:
        for run in (*runs, second):
            run.kill()
            run.wait()
    assert one == again
    # Another number of devices deals otherwise, but learns as well.
    assert sharded["node_updates"] == sharded["exchanges"] == one["node_updates"]
    assert sharded["accuracy"]["mean"] == pytest.approx(one["accuracy"]["mean"], abs=0.03)
    # Two devices are two devices, in whosesoever process they are. Sums over devices are added in another order.
    assert distributed["accuracy"] == pytest.approx(sharded["accuracy"], nan_ok=True)
    assert distributed["consensus"] == pytest.approx(sharded["consensus"], rel=1e-4)


def test_mixing_over_two_devices() -> None:
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2)\n"
        "import numpy as np\n"
        "from simulation.checkers import consensus_distance as far\n"
        "from simulation.fleet.program import Fleet\n"
        "from simulation.fleet.settings import FleetSettings\n"
        "f = Fleet(FleetSettings(nodes=80, args={'model': 'logistic', 'lr': 1e-30}), devices=jax.devices())\n"
        "f.compile(); rng = np.random.default_rng(0); found = []\n"
        "for _ in range(20):\n"
        "    x = rng.normal(size=(80, f.values)).astype(np.float32); f.place(x); f.advance(1)\n"
        "    found.append((far(f.weights()) / far(x)) ** 2)\n"
        "print(np.mean(found), f.devices)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, devices = done.stdout.split()
    assert devices == "2"
    # Partners of the second wave share the device of the first: n/2 nodes average as well as n up to 1/n.
    assert float(found) == pytest.approx((80 - 4) / (4 * 79), rel=0.03)


# --- the command -----------------------------------------------------------------------------------------------


def test_a_mistake_is_one_sentence_and_status_2() -> None:
    for arguments, part in [
        (["--task", "nothing"], "no task is named 'nothing'"),
        (["--model", "logistic", "--alpha", "-1"], "expected alpha"),
        (["--devices", "900"], "expected 900 devices"),
        (["--processes", "2"], "--coordinator"),
        (["--codec", "int2"], "int4"),
    ]:
        result = CliRunner().invoke(main, ["fleet", "--nodes", "8", "--rounds", "2", *arguments])
        assert result.exit_code == 2, (arguments, result.output)
        assert part in result.stderr
        assert "Traceback" not in result.stderr


def test_a_task_without_rows_in_memory_is_refused() -> None:
    with pytest.raises(LocalError, match="needs all rows"):
        Fleet(FleetSettings(task="tests.bench.model:make", args={"values": 8}))


def test_the_promised_fields_and_a_line_that_repeats_the_run() -> None:
    result = CliRunner().invoke(main, [*CALL, "--seed", "3", "--codec", "int8", "--alpha", "0.5"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(FleetReport.__struct_fields__) == set(found)
    assert {"mean", "worst", "central"} == set(found["accuracy"])
    assert found["node_updates"] == 64 * 30
    repeat = result.stderr.splitlines()[0].partition("p2psim ")[2].split()
    again = CliRunner().invoke(main, [*repeat, "--no-central"])
    # People get a table, of the same figures.
    assert f"mean {found['accuracy']['mean']:.1%}, worst {found['accuracy']['worst']:.1%}" in again.stdout
    assert f"{found['consensus']:.4g}" in again.stdout
