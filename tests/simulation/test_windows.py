"""A world over several processes is the same world: same events, same figures, same digest."""

import os
import signal
from functools import partial
from typing import Any

import msgspec
import pytest

from gossip.errors import LocalError
from gossip.node import Node
from p2pnode.errors import UserError
from simulation.checkers import ViolationError
from simulation.experiments.curves import look_at
from simulation.experiments.run import RealParts, _elsewhere, run
from simulation.machines import Host
from simulation.scenario import Scenario, TaskSettings, load
from simulation.seeds import Seeds
from simulation.windows import Windows, why_not

# All that strikes in the shipped scenario, at the smallest size that shows it.
SMALL = (
    "nodes=9",
    "duration_s=14.0",
    "task.args.model='logistic'",
    "faults.crash=0.25",
    "faults.away_s_mean=1.0",
    "faults.silence_s=1.0",
    "faults.start_s=5.0",
    "faults.stop_s=10.0",
)


def scenario(*changes: str) -> Scenario:
    return load("smoke-20", (*SMALL, *changes))


def found(tree: Scenario, processes: int, seed: int = 7) -> dict[str, Any]:
    """All of a report that is not time of this machine."""
    report = msgspec.to_builtins(
        run(tree, seed, processes=processes, measure_every_s=2.0, central=False, replay="p2psim run")
    )
    del report["wall_s"], report["settled"]["wall_s"]
    assert isinstance(report, dict)
    return report


@pytest.mark.parametrize(
    ("changes", "processes"),
    [
        # Every fault of frames and machines, checkers, a curve; a process may have one machine more than another.
        ((), (2, 4)),
        # Frames that take equally long, machines that are equally fast: many things happen at one and the same date.
        (
            (
                "network.jitter='none'",
                "network.reorder=0.0",
                "network.bandwidth_bytes_s=0.0",
                "compute.spread_sigma=0.0",
            ),
            (3,),
        ),
        # Links that differ, routers, people who come and go, work that takes time, and an end before the end.
        (
            (
                "faults={}",
                "geography.regions=[{name='a'}, {name='b', latitude=40.0}]",
                "nat={restricted=0.3, symmetric=0.2}",
                "churn={model='sessions', session_s_mean=8.0, absence_s_mean=3.0}",
                "compute={lanes=4, exchange_s=0.01, stragglers=0.3, signatures='modelled'}",
                "stop={accuracy_mean=0.6, every_s=0.7, from_s=3.0}",
            ),
            (2,),
        ),
    ],
    ids=["faults", "ties", "varied"],
)
def test_any_number_of_processes_finds_the_same(changes: tuple[str, ...], processes: tuple[int, ...]) -> None:
    alone = found(scenario(*changes), 1)
    assert alone["exchanges"] > 20
    assert alone["checks"] > 100
    assert len(alone["curve"]["points"]) >= 2
    assert alone["curve"]["incidents"], "somebody went away"
    for count in processes:
        assert found(scenario(*changes), count) == alone


def windows(tree: Scenario, *, elsewhere: Scenario | None = None) -> Windows:
    """Over two processes; the other one makes its parts of another scenario, if one is given."""
    parts = RealParts(tree, Seeds(1), helped=False)
    make = (
        partial(_other_scenario, elsewhere) if elsewhere is not None else partial(_elsewhere, observed=False)
    )
    return Windows(tree, 1, parts, make=make, processes=2)


def _other_scenario(other: Scenario, tree: Scenario, seeds: Seeds) -> RealParts:
    return _elsewhere(other, seeds, observed=False)


@pytest.mark.parametrize("surely", [True, False])
def test_a_process_that_is_killed_ends_the_run_with_a_word(surely: bool) -> None:
    world = windows(scenario())
    try:
        world.run(2.0)
        ((child, _),) = world._children
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        if surely:
            child.join()
        with pytest.raises(LocalError, match=r"ended before its time \(exit codes \[-9\]\)"):
            world.run(14.0)
        with pytest.raises(LocalError, match=r"ended before its time"):
            world.ask(world.hosts, look_at)
    finally:
        world.close()


class Broken(RealParts):
    """In which a checker sees what must never happen as soon as a program starts."""

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Node:
        raise ViolationError(f"machine {host.index}; replay with: p2psim")


def _broken(tree: Scenario, seeds: Seeds) -> RealParts:
    return Broken(tree, seeds, helped=False)


def test_what_a_checker_sees_elsewhere_is_raised_here() -> None:
    world = Windows(scenario(), 1, RealParts(scenario(), Seeds(1), helped=False), make=_broken, processes=3)
    try:
        with pytest.raises(ViolationError, match=r"machine \d; replay with: p2psim"):
            world.run(14.0)
    finally:
        world.close()


def test_a_process_that_cannot_make_its_parts_says_why() -> None:
    elsewhere = msgspec.structs.replace(scenario(), task=TaskSettings(name="no_such_file.py"))
    with pytest.raises(UserError, match=r"no_such_file\.py"):
        windows(scenario(), elsewhere=elsewhere)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("network={preset='ideal'}", "least delay"),
        ("network={preset='mobile'}", "downlink_bytes_s"),
        ("faults.silence_s=0.0", "silence_s"),
        ("network.delay_s_min=1e-17", "least delay"),
        ("adversaries.share=0.2", "adversaries"),
        ("network.loss=0.1", ""),
    ],
)
def test_what_cannot_be_divided_is_told(change: str, why: str) -> None:
    told = why_not(scenario(change))
    assert why in told
    assert bool(why) == bool(told)
