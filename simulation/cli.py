"""`p2psim`: run a scenario, or list those that come along.

Starts fast: what needs JAX is imported when a run begins. The seed and all options are printed before anything else, so
that a run that dies can be repeated. Exit status: 0 done, 1 a checker saw a violation, 2 the scenario cannot be used.
"""

import shlex
import sys
from time import perf_counter
from typing import TYPE_CHECKING

import click
import msgspec

from simulation.fleet_command import fleet
from simulation.scenario import ScenarioError, describe, load, shipped
from simulation.swarm_command import shrink, swarm

if TYPE_CHECKING:
    from simulation.run import Report
    from simulation.world import World


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Many p2pnode peers in one process, on a simulated network, repeatable from a seed."""


main.add_command(fleet)
main.add_command(swarm)
main.add_command(shrink)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of lines.")
def list_(as_json: bool) -> None:
    """List the scenarios that come with p2psim."""
    scenarios = [load(name) for name in shipped()]
    if as_json:
        found = [
            {"name": s.name, "nodes": s.nodes, "virtual_s": s.duration_s, "about": s.about} for s in scenarios
        ]
        click.echo(msgspec.json.encode(found).decode())
        return
    width = max(len(scenario.name) for scenario in scenarios)
    for scenario in scenarios:
        click.echo(f"{scenario.name:<{width}}  {scenario.about}")


@main.command("run")
@click.argument("scenario")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same run.")
@click.option(
    "--nodes", type=click.IntRange(min=2), help="How many nodes, instead of what the scenario says."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, e.g. network.loss=0.1.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--no-checks", is_flag=True, help="Run without the checkers, for speed.")
def run_(
    scenario: str, seed: int, nodes: int | None, overrides: tuple[str, ...], as_json: bool, no_checks: bool
) -> None:
    """Run SCENARIO: the name of a shipped one (`p2psim list`) or the path of a TOML file."""
    changes = [*overrides, *([f"nodes={nodes}"] if nodes is not None else [])]
    try:
        loaded = load(scenario, changes)
    except ScenarioError as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)
    replay = shlex.join(
        ["p2psim", "run", scenario, "--seed", str(seed), *(f"--set={change}" for change in changes)]
    )
    click.echo(f"seed {seed}; repeat with: {replay}", err=as_json)
    click.echo(f"options {msgspec.json.encode(describe(loaded)).decode()}", err=as_json)

    from p2pnode.errors import UserError
    from simulation.checkers import ViolationError
    from simulation.run import run

    begun = perf_counter()

    def progress(world: "World") -> None:
        spent = perf_counter() - begun
        click.echo(
            f"{world.now:7.1f} s of {loaded.duration_s:g} s  {len(world.up()):4d} up  {world.events:9d} events  "
            f"{world.exchanges:7d} exchanges  {spent:6.1f} s of wall time",
            err=True,
        )

    try:
        report = run(
            loaded,
            seed,
            replay=replay,
            check=not no_checks,
            progress=progress,
            every_s=max(loaded.duration_s / 20.0, 1.0),
        )
    except ViolationError as error:
        click.echo(f"p2psim: a checker saw what must never happen: {error}", err=True)
        sys.exit(1)
    except UserError as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        click.echo(_told(report))


def _told(report: "Report") -> str:
    """The report for people."""
    accuracy = report.accuracy
    speed = report.virtual_s / report.wall_s
    settled = report.settled
    rate = settled.node_updates / settled.wall_s

    def counted(counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    lines = [
        (
            "accuracy",
            f"mean {accuracy.mean:.1%}, worst {accuracy.worst:.1%}, all data in one place {accuracy.central:.1%}",
        ),
        ("consensus distance", f"{report.consensus:.4g}"),
        ("exchanges", f"{report.exchanges} applied, {report.node_updates} training jobs"),
        ("messages", f"{report.messages} ({report.bytes_sent / 1e6:.1f} MB)"),
        ("faults", counted(report.faults)),
        ("refused", counted(report.refused)),
        ("checks", f"{report.checks}, none failed" if report.checks else "not made"),
        ("time", f"{report.virtual_s:g} virtual s in {report.wall_s:.1f} s: {speed:.1f} times real time"),
        (
            "speed",
            f"{settled.events / settled.wall_s:.0f} events/s, {rate:.0f} node-updates/s in the second half",
        ),
        ("digest", report.digest),
    ]
    return "\n".join(f"{name:<20}{text}" for name, text in lines)


if __name__ == "__main__":
    main()
