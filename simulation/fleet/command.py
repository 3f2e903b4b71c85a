"""`p2psim fleet`: learning only, the whole network as one XLA program. Imports JAX when the run begins.

With --coordinator, --processes and --process the same command, started once for each process, makes one fleet of them
by way of jax.distributed; the first process tells the result.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
import msgspec
from click.core import ParameterSource

from gossip.config import CODECS, STRATEGIES
from simulation.fleet.settings import NODES_MAX, ROUNDS_MAX, Attack, FleetReport, FleetSettings, Point, check

if TYPE_CHECKING:
    import jax

Command = TypeVar("Command", bound=Callable[..., Any])


class _Number(click.FloatRange):
    """A range that NaN is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{number} is not in the range {self._describe_range()}.", param, ctx)
        return number


_SHARE = _Number(0, 1)
_COUNT = click.IntRange(min=1)
_DEFAULTS = FleetSettings()
_TASK_ARGS = "task.args."
# A guess: more than any machine has; of the processor, JAX makes as many as one asks for.
_DEVICES_MAX = 1024


def _setting(name: str, kind: Any, text: str) -> Callable[[Command], Command]:
    """An option that is a field of FleetSettings, with its default."""
    default = getattr(_DEFAULTS, name)
    option = "--" + name.replace("_", "-")
    return click.option(option, name, type=kind, default=default, show_default=True, help=text)


@click.command("fleet")
@click.option("--scenario", metavar="NAME", help="Settings from a scenario of p2psim run, shipped or a file.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the scenario; without one, give the task an argument: task.args.path=rows.csv.",
)
@_setting("nodes", click.IntRange(2, NODES_MAX), "How many nodes.")
@_setting("rounds", click.IntRange(1, ROUNDS_MAX), "In each, every node trains and initiates one exchange.")
@_setting("task", str, "A built-in task, or module:factory; it must hold its rows in memory.")
@click.option("--model", type=click.Choice(["logistic", "mlp"]), help="Of the built-in tasks.")
@click.option("--hidden", type=_COUNT, help="Width of the mlp's hidden layer.")
@click.option("--lr", type=float, help="Learning rate of the built-in tasks.")
@click.option(
    "--partition",
    help="How rows are divided: iid; dirichlet; shards, of task.args.labels_each labels, 2 if not set; or quantity, "
    "of sizes by --alpha or task.args.sigma.",
)
@click.option(
    "--alpha",
    type=float,
    help="Of dirichlet and quantity: 0.1 makes very unequal parts. [default there: 0.5]",
)
@_setting(
    "batch", click.IntRange(min=0), "Rows in a batch; 0: as many as a node holds, or as the task takes."
)
@_setting("local_steps", _COUNT, "Optimiser steps of one training job.")
@_setting("codec", click.Choice(CODECS), "Of both legs.")
@_setting("strategy", click.Choice(STRATEGIES), "How models meet.")
@click.option("--gate/--no-gate", default=None, help="Default: a gate where there are attackers.")
@_setting("loss", _SHARE, "Of one leg of an exchange.")
@_setting("late", _SHARE, "Offers that are stale when they arrive.")
@_setting("churn", _SHARE, "Nodes that leave, per round.")
@_setting("away_rounds", _Number(1, 1e9), "How long they stay away, on average.")
@_setting("stragglers", _SHARE, "Nodes that are slow.")
@_setting("slowness", _Number(1, 1e9), "Rounds that one of theirs takes, on average.")
@_setting("attackers", _SHARE, "Nodes that lie about their weights.")
@_setting("attack", click.Choice(get_args(Attack)), "How they lie.")
@_setting("every", _COUNT, "Measure a sample after so many rounds.")
@_setting("sample", _COUNT, "Nodes in it.")
@_setting("seed", click.IntRange(min=0), "Same seed and number of devices, same run.")
@_setting("lanes", click.IntRange(min=0), "Pairs worked on at once; 0: as fits the device.")
@click.option(
    "--devices",
    type=click.IntRange(1, _DEVICES_MAX),
    default=1,
    show_default=True,
    help="To shard over, in each process.",
)
@click.option("--coordinator", metavar="HOST:PORT", help="Of several processes: where the first listens.")
@click.option("--processes", type=_COUNT, default=1, show_default=True, help="How many there are.")
@click.option("--process", type=click.IntRange(min=0), default=0, help="Which of them this is, from 0.")
@click.option("--no-central", is_flag=True, help="Leave out the run with all data in one place.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def fleet(
    scenario: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    hidden: int | None,
    lr: float | None,
    partition: str | None,
    alpha: float | None,
    devices: int,
    coordinator: str | None,
    processes: int,
    process: int,
    no_central: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Learning only, for very many nodes: no messages, no protocol, the same arithmetic."""
    if (processes > 1) != (coordinator is not None) or process >= processes:
        raise click.UsageError(
            "several processes need --coordinator, --processes, and --process below that number"
        )
    chosen = {"model": model, "hidden": hidden, "lr": lr, "partition": partition, "alpha": alpha}
    args = {name: value for name, value in chosen.items() if value is not None}
    if scenario is not None:
        settings, words = _from_scenario(scenario, overrides, fields)
    else:
        settings = FleetSettings(args={**args, **_task_args(overrides, args)}, **fields)
        words = _words(settings, args, overrides)
    if devices * processes > 1:
        words += ["--devices", str(devices * processes)]
    if no_central:
        words.append("--no-central")

    from gossip.errors import LocalError
    from p2pnode.errors import UserError
    from p2pnode.tasks.faults import FIRST_USES, TaskFaults

    # The fleet's own places where what a task returned is used for the first time.
    faults = TaskFaults(
        settings.task, first_uses=(*FIRST_USES, "simulation.fleet.data.", "simulation.fleet.room._")
    )
    told = process == 0
    try:
        check(settings)
        click.echo(f"seed {settings.seed}; repeat with: {shlex.join(words)}", err=True)
        with _quiet(coordinator is not None), faults:
            meshed = _devices(devices, coordinator, processes, process)

            from simulation.fleet.simulate import simulate

            report = simulate(
                settings, devices=meshed, central=told and not no_central, progress=_tell if told else None
            )
    except (LocalError, UserError) as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)
    if told:
        click.echo(msgspec.json.encode(report).decode() if as_json else _told(report))


@contextmanager
def _quiet(several: bool) -> Iterator[None]:
    """Send what libraries print on standard output to standard error: gloo greets its peers there."""
    if not several:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _devices(count: int, coordinator: str | None, processes: int, process: int) -> "list[jax.Device]":
    """The devices of all processes: `count` of each."""
    import jax

    from gossip.errors import LocalError

    if count > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            # Concerns the processor only, which else counts as one device.
            jax.config.update("jax_num_cpu_devices", count)  # type: ignore[no-untyped-call]
        except RuntimeError:
            pass  # JAX runs already in this process: it has the devices that it has
    if coordinator is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # type: ignore[no-untyped-call]
        jax.distributed.initialize(coordinator, processes, process)
        return list(jax.devices())
    found = jax.devices()
    if len(found) < count:
        raise LocalError(f"expected {count} devices, there are {len(found)}")
    return list(found[:count])


def _task_args(overrides: tuple[str, ...], args: dict[str, Any]) -> dict[str, Any]:
    """What `--set task.args.NAME=VALUE` says without a scenario; ends with a sentence where it says something else."""
    from simulation.scenario import ScenarioError, set_key

    tree: dict[str, Any] = {"task": {"args": {}}}
    for override in overrides:
        name = override.partition("=")[0].strip().removeprefix(_TASK_ARGS)
        if not override.strip().startswith(_TASK_ARGS) or not name.isidentifier():
            raise click.UsageError(
                f"without --scenario --set gives arguments of the task: expected {_TASK_ARGS}NAME=VALUE, "
                f"found {override}"
            )
        if name in args:
            raise click.UsageError(f"expected --{name} or --set {_TASK_ARGS}{name}, found both")
        try:
            set_key(tree, override)
        except ScenarioError as error:
            click.echo(f"p2psim: {error}", err=True)
            sys.exit(2)
    given: dict[str, Any] = tree["task"]["args"]
    return given


def _words(settings: FleetSettings, args: dict[str, Any], overrides: tuple[str, ...]) -> list[str]:
    """The command that gives these settings.

    Args:
        args: Arguments of the task that are options.
        overrides: The others.
    """
    words = ["p2psim", "fleet"]
    for name, value in msgspec.structs.asdict(settings).items():
        if value == getattr(_DEFAULTS, name) or name in ("args", "gate"):
            continue
        words += ["--" + name.replace("_", "-"), str(value)]
    for name, value in args.items():
        words += [f"--{name}", str(value)]
    words += [f"--set={one}" for one in overrides]
    if settings.gate is not None:
        words.append("--gate" if settings.gate else "--no-gate")
    return words


def _from_scenario(
    name: str, overrides: tuple[str, ...], fields: dict[str, Any]
) -> tuple[FleetSettings, list[str]]:
    """Settings, and the command that gives them; what is left out is told. Ends with a sentence where it cannot be."""
    from simulation.fleet.scenario import from_scenario
    from simulation.notes import notes
    from simulation.scenario import ScenarioError, load

    context = click.get_current_context()
    # What no scenario says.
    free = ("seed", "every", "sample", "lanes")
    setup = (
        "scenario",
        "overrides",
        "devices",
        "coordinator",
        "processes",
        "process",
        "no_central",
        "as_json",
    )
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name is not None
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    for parameter in given:
        if parameter.name not in (*free, *setup, "nodes"):
            raise click.UsageError(f"{parameter.opts[0]} is what the scenario says; change it with --set")
    chosen = {str(one.name): fields[str(one.name)] for one in given if one.name in free}
    if any(one.name == "nodes" for one in given):
        if any(one.partition("=")[0].strip() == "nodes" for one in overrides):
            raise click.UsageError("--nodes: expected either it or --set nodes=, found both")
        overrides = (*overrides, f"nodes={fields['nodes']}")
    try:
        loaded = load(name, overrides)
        source = name if name.endswith(".toml") else f"{name}.toml"
        settings, left_out = from_scenario(loaded, seed=fields["seed"], source=source)
    except ScenarioError as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)
    for note in notes(loaded):
        click.echo(f"note: {note}", err=True)
    if left_out:
        click.echo(f"p2psim: the fleet leaves out what the scenario says of {', '.join(left_out)}", err=True)
    words = ["p2psim", "fleet", "--scenario", name, *(f"--set={one}" for one in overrides)]
    for key, value in chosen.items():
        words += [f"--{key}", str(value)]
    return msgspec.structs.replace(settings, **chosen), words


def _tell(point: Point) -> None:
    click.echo(
        f"round {point.round:6d}  accuracy mean {_percent(point.mean)}, worst {_percent(point.worst)}  "
        f"consensus distance {point.consensus:.4g}",
        err=True,
    )


def _told(report: FleetReport) -> str:
    """The report for people."""
    accuracy = report.accuracy
    lines = [
        (
            "accuracy",
            f"mean {_percent(accuracy.mean)}, worst {_percent(accuracy.worst)} of "
            f"{_counted(report.measured, 'node')}, all data in one place {_percent(accuracy.central)}",
        ),
        ("consensus distance", f"{report.consensus:.4g}"),
        ("node-updates", f"{report.node_updates}, {report.node_updates / report.wall_s:,.0f}/s"),
        ("exchanges", f"{report.exchanges} by both ends, {report.halves} by one, {report.refused} refused"),
        (
            "time",
            f"{report.wall_s:.2f} s, and {report.compile_s:.1f} s to compile; {_counted(report.devices, 'device')}",
        ),
    ]
    return "\n".join(f"{name:<20}{text}" for name, text in lines)


def _percent(share: float) -> str:
    return f"{share:.1%}" if isfinite(share) else "not measured"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
