"""A scenario: everything about a run but its seed, as a TOML file, checked before anything starts.

`simulation/scenarios/*.toml` are data that ship with the package; a path to another file serves as well.
Wrong input is answered in one sentence: which file, which key, what was expected, and the nearest name that
exists.
"""

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gossip.config import Config
from simulation.network import PRESETS, LinkSettings, Probability, Seconds

Positive = Annotated[float, Meta(gt=0)]


class ScenarioError(Exception):
    """The scenario cannot be used; the message is one sentence for the person who wrote it."""


class TaskSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is learned: a built-in task or `module:factory`, and the keyword arguments of its factory."""

    name: str = "digits"
    args: dict[str, Any] = {}


class ComputeSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long work takes on the virtual machines, and how it is carried out on the real one."""

    # Virtual duration of one local training job on a machine of speed 1.
    train_s: Seconds = 0.2
    # Sigma of the log-normal speed of a machine: 0.3 makes the slowest of 200 take about twice as long.
    spread_sigma: Annotated[float, Meta(ge=0, le=3)] = 0.3
    # Virtual duration of encoding, answering or applying one exchange. 0: carried out at once.
    exchange_s: Seconds = 0.0
    # Training jobs in one call of the accelerator: the call always has this many lanes, full or not, because
    # the numbers must not depend on who else trains at the time.
    lanes: Annotated[int, Meta(ge=1, le=4096)] = 64


class PartitionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cuts off `share` of the nodes, drawn at random, from `start_s` until before `end_s`."""

    share: Probability = 0.5
    start_s: Seconds
    end_s: Positive


class FaultSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Faults of machines and of the network as a whole. Faults of single frames belong to [network]."""

    # Share of the nodes that leave once (a clean stop) and come back from their disk.
    churn: Probability = 0.0
    # Share of the nodes that are killed once, in the middle of carrying out an event, and come back from
    # their disk.
    crash: Probability = 0.0
    # How long they stay away: exponential, at least 0.5 s, cut so that everybody is back at `stop_s`.
    away_s_mean: Positive = 10.0
    # Leaves and kills fall between these dates; after `stop_s` (0: two thirds of the run) everybody is up.
    start_s: Seconds = 5.0
    stop_s: Seconds = 0.0
    # The other ends of a killed node's connections notice only after so long: three keepalives unanswered.
    silence_s: Seconds = 10.0
    partitions: list[PartitionSettings] = []


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment. Same scenario, same seed: the same run, event for event."""

    name: str = ""
    about: str = ""  # one sentence for `p2psim list`
    nodes: Annotated[int, Meta(ge=2, le=65536)] = 20
    duration_s: Positive = 30.0
    # Nodes start at random moments of the first so many seconds, node 0 at once.
    start_s: Seconds = 2.0
    # Whose address a node is given: that of node 0, or that of a random node that started before.
    join: typing.Literal["first", "random"] = "first"
    task: TaskSettings = TaskSettings()
    network: LinkSettings = PRESETS["wan"]
    compute: ComputeSettings = ComputeSettings()
    faults: FaultSettings = FaultSettings()
    config: Config = Config()


def shipped() -> list[str]:
    """Names of the scenarios that come with the package, sorted."""
    folder = resources.files("simulation") / "scenarios"
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(name: str, overrides: Iterable[str] = ()) -> Scenario:
    """Reads and checks a scenario.

    Args:
        name: A shipped scenario (`digits-200`), or a path that ends in `.toml`. overrides: `key=value` each,
        the key dotted as in the file (`network.loss=0.1`), the value as in TOML; what is
            not valid TOML is taken as text.

    Raises:
        ScenarioError: one sentence.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ScenarioError(f"{name}: cannot be read: {error.strerror}") from error
        source, stem = name, Path(name).stem
    else:
        if name not in (names := shipped()):
            raise ScenarioError(f"{name}: no such scenario{_nearest(name, names)}; `p2psim list` shows all")
        source, stem = f"{name}.toml", name
        text = (resources.files("simulation") / "scenarios" / source).read_text(encoding="utf-8")
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{source}: is not TOML: {error}") from error
    tree.setdefault("name", stem)
    for override in overrides:
        _set(tree, override)
    return parse(tree, source)


def parse(tree: dict[str, Any], source: str) -> Scenario:
    """Checks a tree as `tomllib` gives it. `source` is what errors name as the file."""
    network = tree.get("network", {})
    preset = "wan"
    if isinstance(network, dict):
        network = dict(network)
        preset = network.pop("preset", preset)
        if preset not in PRESETS:
            raise ScenarioError(
                f"{source}: network.preset: expected one of {', '.join(PRESETS)}, found {preset!r}"
                f"{_nearest(str(preset), PRESETS)}"
            )
        _check_names(network, LinkSettings, "network", source, extra=("preset",))
        tree = {**tree, "network": {**msgspec.structs.asdict(PRESETS[preset]), **network}}
    _check_names(tree, Scenario, "", source)
    try:
        scenario = msgspec.convert(tree, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{source}: {_sentence(error)}") from error
    _check_sense(scenario, source)
    return scenario


def describe(scenario: Scenario) -> dict[str, Any]:
    """The scenario as a plain tree, complete with defaults: what a run prints before it starts."""
    tree: dict[str, Any] = msgspec.to_builtins(scenario)
    return tree


def _check_sense(scenario: Scenario, source: str) -> None:
    """What no single key can say: how keys fit together."""
    network, faults = scenario.network, scenario.faults
    if network.delay_s_min > network.delay_s_mean:
        raise ScenarioError(
            f"{source}: network.delay_s_min: expected at most network.delay_s_mean ({network.delay_s_mean}), "
            f"found {network.delay_s_min}"
        )
    stop = faults.stop_s or scenario.duration_s * 2 / 3
    if (faults.churn or faults.crash) and not faults.start_s < stop <= scenario.duration_s:
        raise ScenarioError(
            f"{source}: faults.stop_s: expected a date after faults.start_s ({faults.start_s}) and not after "
            f"duration_s ({scenario.duration_s}), found {stop:g}"
        )
    for cut in faults.partitions:
        if not cut.start_s < cut.end_s:
            raise ScenarioError(
                f"{source}: faults.partitions: end_s: expected more than {cut.start_s}, found {cut.end_s}"
            )


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ScenarioError(f"--set {override}: expected key=value, for instance network.loss=0.1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.split(".")
    for name in path:
        branch = tree.setdefault(name, {})
        if not isinstance(branch, dict):
            raise ScenarioError(f"--set {override}: {name} is a value, not a section")
        tree = branch
    tree[last] = value


def _check_names(
    tree: Mapping[str, Any], kind: type, path: str, source: str, *, extra: tuple[str, ...] = ()
) -> None:
    """Refuses unknown keys with the nearest name; msgspec says less, and nothing for dataclasses."""
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    else:
        names = list(kind.__struct_fields__)  # type: ignore[attr-defined]
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        if key not in names and key not in extra:
            raise ScenarioError(
                f"{source}: {where}: expected one of {', '.join((*extra, *names))}{_nearest(key, names)}"
            )
        child = hints.get(key)
        if isinstance(value, dict) and isinstance(child, type) and _has_fields(child):
            _check_names(value, child, where, source)


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or issubclass(kind, Struct)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _sentence(error: msgspec.ValidationError) -> str:
    """Turns "Expected `int`, got `str` - at `$.nodes`" into "nodes: expected `int`, found `str`"."""
    what, _, where = str(error).partition(" - at `$.")
    what = what.replace(", got ", ", found ").replace("Expected", "expected").replace("Invalid", "invalid")
    return f"{where.rstrip('`')}: {what}" if where else what
