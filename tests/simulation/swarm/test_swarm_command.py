"""`p2psim swarm` as a person sees it: how far it is, what a failed seed met, and the sums at Ctrl-C."""

import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, get_type_hints

import pytest
from click.testing import CliRunner, Result

from gossip.run import exchange
from p2pnode.values import rule, words
from simulation.cli import main
from simulation.scenario import Scenario
from simulation.swarm import command
from simulation.swarm.draw import KINDS, NODES_LIMIT
from simulation.swarm.run import SeedFailedError, SwarmReport, SwarmSettings, run_seed, run_seed_apart

SMALL = ("--nodes-max", "4", "--pace", "seconds", "--shorten", "0.3")
# One that shows a signature that nobody checks.
FAILING = SwarmSettings(seed=10, nodes_max=6)


class AwkwardError(Exception):
    """Cannot be unpickled: an exception remembers what its base was given."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def as_from_a_process(one: SwarmSettings) -> tuple[SwarmReport | None, BaseException | None]:
    """What arrives from a process for runs, where no fault that a test plants would be."""
    try:
        return run_seed_apart(one), None
    except SeedFailedError as error:
        return None, pickle.loads(pickle.dumps(error))  # noqa: S301  # our own


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Runs seeds in this process; whoever calls it says after how many seeds somebody presses Ctrl-C."""
    pressed: list[int] = []

    def run_many(settings: Iterator[Any], *, jobs: int, told: Callable[..., bool]) -> None:
        for number, one in enumerate(settings):
            if number in pressed:
                raise KeyboardInterrupt
            if not told(one, *as_from_a_process(one)):
                return

    monkeypatch.setattr(command, "run_many", run_many)
    return pressed.append


def swarm(*words: str) -> Result:
    return CliRunner().invoke(main, ["swarm", *words])


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.Exchanges, "_check_signature", lambda *args: None)


def test_what_a_failed_seed_met_until_then_is_known(unchecked: None) -> None:
    report, error = as_from_a_process(FAILING)
    assert report is None
    assert isinstance(error, SeedFailedError)
    found = error.so_far
    assert found is not None
    assert found.seed == 10
    assert found.events > 0
    assert found.virtual_s > 0
    assert found.faults["forged"] > 0
    assert found.healed_s == 0


def test_a_failed_seed_counts_and_is_told_once(here: Callable[[int], None], unchecked: None) -> None:
    told = swarm("--seeds", "10:11", "--nodes-max", "6")
    assert told.exit_code == 1
    assert told.output.count("that no genuine frame brought") == 1
    failed, repeat, shrink = told.stdout.splitlines()[2:5]
    assert failed.startswith("FAILED: seed 10: node ")
    assert failed.endswith("that no genuine frame brought")
    assert repeat == "  repeat with: p2psim swarm --seeds 10:11 --nodes-max 6"
    assert shrink == "  shrink with: p2psim shrink --seed 10 --nodes-max 6"
    sums = dict(line.split(maxsplit=1) for line in told.stdout.splitlines()[5:])
    assert sums["seeds"] == "1, 1 failed"
    assert sums["node-hours"].endswith("at the pace of seconds")
    assert not sums["events"].startswith("0,")
    assert "forged" in sums["faults"]

    totals = json.loads(swarm("--seeds", "10:11", "--nodes-max", "6", "--json").stdout)
    assert totals["failed"] == [
        f"{failed.removeprefix('FAILED: ')}; replay with:{repeat[14:]}; shrink with:{shrink[14:]}"
    ]
    assert totals["faults"]["forged"] > 0
    assert "forged" not in totals["unseen"]
    assert list(totals["digests"]) == ["10"]


def test_a_node_that_breaks_is_named_by_its_error(
    here: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise AwkwardError("it", "broke")

    monkeypatch.setattr(exchange.Exchanges, "_check_signature", broken)
    told = swarm("--seeds", "10:11", "--nodes-max", "6")
    assert told.exit_code == 1
    assert "events        0," not in told.stdout
    assert "FAILED: seed 10: AwkwardError: it broke\n  repeat with: p2psim swarm " in told.stdout


@pytest.mark.parametrize("more", [("--json",), ()])
def test_ctrl_c_ends_with_the_sums_so_far(here: Callable[[int], None], more: tuple[str, ...]) -> None:
    here(2)
    told = swarm("--seeds", "0:9", *SMALL, *more)
    assert told.exit_code == 130
    assert told.stderr.splitlines()[-1] == "p2psim: interrupted after 2 of 9 seeds, 0 failed"
    if more:
        totals = json.loads(told.stdout)
        assert (totals["interrupted"], totals["seeds"], totals["seeds_asked"]) == (True, 2, 9)
        assert list(totals["digests"]) == ["0", "1"]
        assert totals["node_hours"] > 0
        assert set(totals["unseen"]) | set(totals["faults"]) >= set(KINDS)
    else:
        assert "\nINTERRUPTED   " in told.stdout
        assert "\nseeds         2 of 9, 0 failed\n" in told.stdout


def test_a_process_that_dies_takes_no_sums_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_many(settings: Iterator[Any], *, jobs: int, told: Callable[..., bool]) -> None:
        one = next(settings)
        assert told(one, run_seed(one), None)
        for one in (next(settings), next(settings)):
            assert not told(one, None, BrokenProcessPool("it died"))

    monkeypatch.setattr(command, "run_many", run_many)
    told = swarm("--seeds", "0:9", *SMALL, "--json")
    assert told.exit_code == 2
    assert told.stderr.splitlines()[-1].startswith("p2psim: a process for seeds died")
    assert told.stderr.endswith(" not done were the seeds 1, 2\n")
    totals = json.loads(told.stdout)
    assert (totals["interrupted"], totals["seeds"], totals["failed"]) == (True, 1, [])


def test_progress_tells_how_far_it_is(here: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PROGRESS_S", 1e9)
    quiet = swarm("--seeds", "0:3", *SMALL, "--json")
    assert "of 3 seeds" not in quiet.stderr
    assert json.loads(quiet.stdout)["interrupted"] is False
    monkeypatch.setattr(command, "PROGRESS_S", 0.0)
    lines = [line for line in swarm("--seeds", "0:3", *SMALL).stderr.splitlines() if "of 3 seeds" in line]
    assert [line[:22] for line in lines] == [f"{done} of 3 seeds, 0 failed" for done in (1, 2, 3)]
    assert " node-hours, " in lines[0]
    assert " virtual s/s, " in lines[0]
    assert lines[2].endswith("about 0 s left")


def test_as_many_nodes_as_a_scenario_may_have() -> None:
    nodes = get_type_hints(Scenario, include_extras=True)["nodes"]
    assert words(rule(nodes)) == f"a whole number between 2 and {NODES_LIMIT}"
