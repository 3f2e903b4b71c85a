"""A scenario: everything about a run but its seed, as a TOML file, checked before anything starts.

`simulation/scenarios/*.toml` are data that ship with the package; a path to another file serves as well.
Wrong input is answered in one sentence: which file, which key, what was expected, and the nearest name that
exists.
"""

import inspect
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gossip.config import Config
from p2pnode.values import expected
from simulation.adversaries import AdversarySettings
from simulation.churn import ChurnSettings
from simulation.geography import GeographySettings
from simulation.mistakes import ScenarioError as ScenarioError
from simulation.mistakes import check_tree, convert, nearest, shortened, unknown, wrong
from simulation.nat import NatSettings
from simulation.network import PRESETS, SECONDS_MAX, LinkSettings, Probability, Seconds
from simulation.sense import check_sense
from simulation.stopping import StopSettings

Positive = Annotated[float, Meta(gt=0, le=SECONDS_MAX)]

# A scenario is written by hand; a longer file is none.
FILE_BYTES_MAX = 2**20


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
    # Share of the machines, drawn at random, that take so many times longer than their speed says.
    stragglers: Probability = 0.0
    slowdown: Annotated[float, Meta(ge=1, le=1e6)] = 10.0
    # Ed25519, or a keyed hash in its place, for speed (simulation/signatures.py).
    signatures: Literal["real", "modelled"] = "real"
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
    join: Literal["first", "random"] = "first"
    task: TaskSettings = TaskSettings()
    network: LinkSettings = PRESETS["wan"]
    geography: GeographySettings = GeographySettings()
    nat: NatSettings = NatSettings()
    compute: ComputeSettings = ComputeSettings()
    churn: ChurnSettings = ChurnSettings()
    faults: FaultSettings = FaultSettings()
    adversaries: AdversarySettings = AdversarySettings()
    stop: StopSettings = StopSettings()
    config: Config = Config()


def shipped() -> list[str]:
    """Names of the scenarios that come with the package, sorted."""
    folder = resources.files("simulation") / "scenarios"
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(name: str, overrides: Iterable[str] = ()) -> Scenario:
    """Reads and checks a scenario, down to whether its task can be made.

    Args:
        name: A shipped scenario (`digits-200`), or a path that ends in `.toml`.
        overrides: `key=value` each, the key dotted as in the file (`network.loss=0.1`), the value as in TOML; what is
            not valid TOML is taken as text.

    Raises:
        ScenarioError: one sentence.
    """
    overrides = list(overrides)
    if name.endswith(".toml"):
        text, source, stem = _read(name), name, Path(name).stem
    else:
        if name not in (names := shipped()):
            hint = nearest(name, names).rstrip("?")
            if Path(name).is_file():
                hint = "; the name of a file must end in .toml"
            raise ScenarioError(
                f"{shortened(name) or repr(name)}: no such scenario{hint}; `p2psim list` shows all"
            )
        source, stem = f"{name}.toml", name
        text = (resources.files("simulation") / "scenarios" / source).read_text(encoding="utf-8")
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ScenarioError(f"{source}: expected a TOML file, found: {error}") from error
    tree.setdefault("name", stem)
    for override in overrides:
        set_key(tree, override)
    scenario = parse(tree, source)
    if overrides or source == name:  # tests make those that ship
        check_task(scenario, source)
    return scenario


def parse(tree: Mapping[str, Any], source: str) -> Scenario:
    """Checks a tree as `tomllib` gives it. `source` is what errors name as the file.

    Raises:
        ScenarioError: one sentence.
    """
    network = tree.get("network", {})
    if isinstance(network, dict):
        network = dict(network)
        preset = network.pop("preset", "wan")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise wrong(source, "network.preset", f"one of {', '.join(PRESETS)}", preset, PRESETS)
        for (
            key
        ) in network:  # before the defaults of the preset are put in, which has a name of its own to offer
            if key not in (names := LinkSettings.__struct_fields__):
                raise unknown(source, f"network.{shortened(key)}", key, names)
        if preset == "trace" and network.get("trace", "") == "":
            raise wrong(source, "network.trace", "the path of a CSV file for the preset trace", "")
        tree = {**tree, "network": {**msgspec.structs.asdict(PRESETS[preset]), **network}}
    _check_misplaced(tree, source)
    check_tree(tree, Scenario, source)
    _check_plain(tree.get("task", {}).get("args", {}), source, "task.args")
    scenario: Scenario = convert(tree, Scenario, source)
    check_sense(scenario, source)
    return scenario


def _check_misplaced(tree: Mapping[str, Any], source: str) -> None:
    """An argument of the task that stands beside [task.args] instead of in it, as `alpha` does soonest."""
    task = tree.get("task", {})
    name = task.get("name", TaskSettings().name) if isinstance(task, dict) else None
    for branch, kind, where in ((tree, Scenario, ""), (task, TaskSettings, "task.")):
        if not isinstance(branch, Mapping) or not isinstance(name, str):
            return
        for key in branch:
            if key not in (names := kind.__struct_fields__) and key in _arguments(name):
                raise unknown(source, f"{where}{shortened(key)}", key, names, [f"task.args.{key}"])


def _arguments(task: str) -> list[str]:
    """Of the factory of a built-in task; empty for others, whose code is not run for the sake of a hint."""
    from p2pnode.tasks import BUILT_IN, task_factory

    return list(inspect.signature(task_factory(task)).parameters) if task in BUILT_IN else []


def check_task(scenario: Scenario, source: str) -> None:
    """Whether the task of the scenario exists, takes these arguments, and can be made for the last of the nodes.

    Raises:
        ScenarioError: one sentence.
    """
    from p2pnode.errors import UserError
    from p2pnode.tasks import load_task, task_factory, task_names
    from p2pnode.tasks.faults import TaskFaultError, TaskFaults

    task = scenario.task
    names = task_names()
    if ":" not in task.name and task.name not in names:
        want = f"one of {', '.join(names)}, or module:factory of your own"
        raise wrong(source, "task.name", want, task.name, names)
    try:
        with TaskFaults(task.name, key=""):
            factory = task_factory(task.name)
    except UserError as error:
        raise ScenarioError(f"{source}: task.name: {error}") from error
    parameters: list[inspect.Parameter] = []
    with suppress(TypeError, ValueError):  # some callables written in C have no signature
        parameters = list(inspect.signature(factory).parameters.values())
    if parameters and all(entry.kind is not entry.VAR_KEYWORD for entry in parameters):
        taken = [entry.name for entry in parameters if entry.kind is not entry.POSITIONAL_ONLY]
        hints: dict[str, Any] = {}
        with suppress(NameError, TypeError, AttributeError):  # annotations that nobody can read judge nothing
            hints = typing.get_type_hints(factory)
        for key, value in task.args.items():
            if key not in taken:
                raise unknown(source, f"task.args.{shortened(key)}", key, taken)
            want = expected(hints[key], value) if _is_plain(hints.get(key)) else ""
            if want:
                raise wrong(source, f"task.args.{key}", want, value)
        for key in ("part", "parts", "seed"):
            if key not in taken:
                raise ScenarioError(
                    f"{source}: task.name: expected a factory that takes part, parts and seed, which tell each node "
                    f"its own rows, found {task.name} without {key}"
                )
        for entry in parameters:
            needed = entry.default is entry.empty and entry.kind in (
                entry.KEYWORD_ONLY,
                entry.POSITIONAL_OR_KEYWORD,
            )
            if needed and entry.name not in (*task.args, "part", "parts", "seed"):
                raise ScenarioError(
                    f"{source}: task.args.{entry.name}: expected a value, found none; it has no default"
                )
    if "part" in task.args:
        raise wrong(
            source, "task.args.part", "nothing, because each node is given its own part", task.args["part"]
        )
    try:
        parts = task.args.get("parts", scenario.nodes)
        # Where there are fewer parts than nodes, several hold the same rows.
        last = (scenario.nodes - 1) % parts if isinstance(parts, int) and parts > 0 else 0
        with TaskFaults(task.name, key=""):
            load_task(task.name, {"parts": parts, "seed": 0, **task.args, "part": last})
    except UserError as error:
        # Without the list of all arguments.
        reason = error if isinstance(error, TaskFaultError) else error.__cause__ or error
        if isinstance(reason, OSError) and reason.filename:
            reason = ScenarioError(f"{reason.filename}: cannot be read: {reason.strerror}")
        raise ScenarioError(f"{source}: task.args: {reason}") from error


def describe(scenario: Scenario) -> dict[str, Any]:
    """The scenario as a plain tree, complete with defaults: what a run prints before it starts."""
    tree: dict[str, Any] = msgspec.to_builtins(scenario)
    return tree


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ScenarioError(f"{path}: expected a scenario of at most {FILE_BYTES_MAX} bytes, found more")
    try:
        return data.decode("utf-8-sig")  # with or without the mark that some editors put first
    except UnicodeDecodeError as error:
        raise ScenarioError(
            f"{path}: expected text in UTF-8, found a byte at position {error.start} that is none"
        ) from error


def _is_plain(hint: Any) -> bool:
    """Whether an annotation is of a kind whose values can be judged: numbers, texts, truth values, or one of them."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return all(one is types.NoneType or _is_plain(one) for one in typing.get_args(hint))
    return hint in (bool, int, float, str)


def _check_plain(value: Any, source: str, where: str) -> None:
    """Arguments of a task are free, but they are printed, and numbers must be numbers."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(entry, source, f"{where}.{shortened(key)}")
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            _check_plain(entry, source, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise wrong(source, where, "a finite number", value)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise wrong(source, where, "a whole number of 64 bits", value)


def set_key(tree: dict[str, Any], override: str) -> None:
    """Carries out one `key=value`, as of `load`, on a tree as TOML gives it.

    Raises:
        ScenarioError: it is none, or it would make a section of a value.
    """
    shown = f"--set {shortened(override)}"
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError(f"{shown}: expected key=value, for instance network.loss=0.1")
    try:
        document = tomllib.loads(f"value = {text}")
        # A second line would smuggle in a second key.
        value = document["value"] if len(document) == 1 else text
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        value = text
    *path, last = key.split(".")
    for name in path:
        branch = tree.setdefault(name, {})
        if not isinstance(branch, dict):
            raise ScenarioError(f"{shown}: {name} is a value, not a section")
        tree = branch
    tree[last] = value
