"""Whatever the checks of a scenario let through can be begun: every number at the ends of its range."""

import copy
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import inf, isfinite
from typing import Any

import pytest

from gossip.events import Dial, Done, Effect, Event, Join, PeerUp, Received, Send, Trained, Woken
from gossip.learning.saved import SavedModel
from p2pnode.values import rule
from simulation.machines import Host
from simulation.mistakes import ScenarioError, _has_fields
from simulation.scenario import Scenario, parse
from simulation.seeds import Seeds
from simulation.world import World


class Greeter:
    """Dials whom it is told of, greets everybody, answers once."""

    def __init__(self, now: float) -> None:
        self.deadline = now + 1.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Join():
                return [Dial(address, None) for address in event.addresses]
            case PeerUp():
                return [Send(event.peer, b"hello" * 100)]
            case Received() if len(event.frame) == 500:
                return [Send(event.peer, b"well")]
            case Woken():
                self.deadline = now + 1.0 if self.deadline < inf else inf
            case Done():
                pass
        return []


class Idle:
    def train_input(self, steps: int) -> int:
        return steps

    def trained(self, output: int) -> Trained:
        return Trained(output, 0.0)

    def dump(self) -> SavedModel:
        return SavedModel(bytes(32), 0, (), {})


class IdleParts:
    run_id = bytes(32)

    def core(self, host: Host, *, seeds: Seeds, now: float) -> Any:
        return Greeter(now)

    def worker(self, host: Host) -> Any:
        return Idle()

    def train(self, inputs: Sequence[int]) -> list[int]:
        return list(inputs)


def ends(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) for both ends of each range, and for each word of each choice."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if _has_fields(hint):
            yield from ends(hint, (*path, name))
            continue
        limits = rule(hint)
        yield from (((*path, name), word) for word in limits.choices)
        if limits.kind in (int, float) and name != "nodes":
            least = 5e-324 if limits.above else limits.least
            for value in (least, limits.largest):
                if isfinite(value):
                    yield (*path, name), limits.kind(value)


ENDS = [(path, value) for path, value in ends(Scenario) if path[0] != "config"]


def test_all_numbers_of_a_scenario_have_two_ends() -> None:
    assert len(ENDS) > 90
    counted: dict[tuple[str, ...], int] = {}
    for path, _ in ENDS:
        counted[path] = counted.get(path, 0) + 1
    assert [path for path, count in counted.items() if count < 2] == []


@pytest.mark.parametrize("section", sorted({path[0] for path, _ in ENDS}))
def test_a_world_begins_with_whatever_is_allowed(section: str) -> None:
    begun = 0
    for path, value in ENDS:
        if path[0] != section:
            continue
        tree: dict[str, Any] = {"nodes": 6, "duration_s": 4.0, "start_s": 1.0}
        if section == "churn":
            tree["churn"] = {"model": "diurnal"}
        if section == "faults":
            tree["faults"] = {"churn": 0.5, "start_s": 1.0}
        branch = copy.deepcopy(tree)
        section_of = branch
        for name in path[:-1]:
            section_of = section_of.setdefault(name, {})
        section_of[path[-1]] = value
        scenario = None
        with suppress(ScenarioError):  # it does not go with the others, which is said
            scenario = parse(branch, "x.toml")
        if scenario is None:
            continue
        world = World(scenario, Seeds(1), IdleParts(), check=False)
        try:
            world.run(min(scenario.duration_s, 4.0))
        finally:
            world.close()
        begun += 1
        assert world.hosts[0].core is not None or world.faults
    assert begun > 0
