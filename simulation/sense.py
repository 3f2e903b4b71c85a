"""Whether the keys of a scenario fit together: what no single key can say. Files that it names are read here, too."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from simulation.churn import read_sessions
from simulation.mistakes import ScenarioError, wrong
from simulation.trace import read_trace
from simulation.varied import EVERY_LINK

if TYPE_CHECKING:
    from simulation.scenario import Scenario

Read = TypeVar("Read")

# Drawn before the run: 100 bytes each. More is a mistake in the means.
SESSIONS_MAX = 2_000_000


def check_sense(scenario: "Scenario", source: str) -> None:
    """Raises ScenarioError for the first thing that makes no sense."""
    for key, text in (("name", scenario.name), ("about", scenario.about)):
        if not text.isprintable():  # they are shown on terminals
            raise wrong(source, key, "text that can be printed on one line", text)
    _network(scenario, source)
    _geography(scenario, source)
    _faults(scenario, source)
    _churn(scenario, source)
    nat = scenario.nat
    if nat.full_cone + nat.restricted + nat.symmetric > 1:
        raise wrong(
            source, "nat", "shares that add up to 1 at most", nat.full_cone + nat.restricted + nat.symmetric
        )
    if scenario.stop.consensus and scenario.stop.from_s <= scenario.start_s:
        want = f"a date after start_s ({scenario.start_s:g}), because nodes that have learned nothing agree as well"
        raise wrong(source, "stop.from_s", want, scenario.stop.from_s)
    if scenario.adversaries.share and not scenario.adversaries.kinds:
        raise wrong(source, "adversaries.kinds", "at least one kind", scenario.adversaries.kinds)
    if scenario.adversaries.share and round(scenario.adversaries.share * scenario.nodes) > scenario.nodes - 2:
        raise wrong(
            source,
            "adversaries.share",
            "a share that leaves at least two honest nodes",
            scenario.adversaries.share,
        )


def _network(scenario: "Scenario", source: str) -> None:
    network = scenario.network
    if network.delay_s_min > network.delay_s_mean:
        want = f"at most network.delay_s_mean ({network.delay_s_mean})"
        raise wrong(source, "network.delay_s_min", want, network.delay_s_min)
    if network.trace:
        names = [region.name for region in scenario.geography.regions]
        for pair in _within(source, "network.trace", lambda: read_trace(network.trace)):
            for name in pair if pair != EVERY_LINK else ():
                if name not in names:
                    where = "network.trace"
                    want = f"names of geography.regions ({', '.join(names) or 'there are none'})"
                    raise wrong(source, where, want, name, names)


def _geography(scenario: "Scenario", source: str) -> None:
    geography = scenario.geography
    names = [region.name for region in geography.regions]
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            raise wrong(source, f"geography.regions[{number}].name", "a name of its own", name)
    table = geography.delay_s
    count = len(names)
    if table and (len(table) != count or any(len(row) != count for row in table)):
        sizes = ", ".join(str(len(row)) for row in table)
        rows = "one row" if len(table) == 1 else f"{len(table)} rows"
        raise ScenarioError(
            f"{source}: geography.delay_s: expected {count} rows of {count} numbers, one for each region, found "
            f"{rows} of {sizes}"
        )


def _faults(scenario: "Scenario", source: str) -> None:
    faults = scenario.faults
    stop = faults.stop_s or scenario.duration_s * 2 / 3
    if (faults.churn or faults.crash) and not faults.start_s < stop <= scenario.duration_s:
        raise ScenarioError(
            f"{source}: faults.stop_s: expected a date after faults.start_s ({faults.start_s}) and not after "
            f"duration_s ({scenario.duration_s}), found {stop:g}"
        )
    if faults.churn + faults.crash > 1:
        raise wrong(source, "faults.crash", f"at most 1 - faults.churn ({1 - faults.churn:g})", faults.crash)
    for number, cut in enumerate(faults.partitions):
        if not cut.start_s < cut.end_s:
            where = f"faults.partitions[{number}].end_s"
            raise wrong(source, where, f"more than its start_s ({cut.start_s})", cut.end_s)


def _churn(scenario: "Scenario", source: str) -> None:
    churn, faults = scenario.churn, scenario.faults
    if churn.model == "none":
        return
    if faults.churn or faults.crash:
        where = "faults.churn" if faults.churn else "faults.crash"
        want = f"0, because churn.model ({churn.model}) says who comes and goes"
        raise wrong(source, where, want, faults.churn or faults.crash)
    if churn.model == "trace":
        if not churn.file:
            raise wrong(source, "churn.file", "the path of a CSV file for churn.model trace", churn.file)
        _within(source, "churn.file", lambda: read_sessions(churn.file, scenario.nodes))
        return
    sessions = scenario.nodes * scenario.duration_s / (churn.session_s_mean + churn.absence_s_mean)
    if sessions > SESSIONS_MAX:
        want = f"means that make at most {SESSIONS_MAX} sessions in the run"
        raise wrong(source, "churn.session_s_mean", want, churn.session_s_mean)


def _within(source: str, where: str, read: Callable[[], Read]) -> Read:
    """Reads a file that the scenario names; its mistakes are told as those of the key."""
    try:
        return read()
    except ScenarioError as error:
        raise ScenarioError(f"{source}: {where}: {error}") from error
