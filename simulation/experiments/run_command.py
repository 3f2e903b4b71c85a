"""`p2psim run`: one scenario, one seed.

The seed and all options are printed before anything else, so that a run that dies can be repeated. Ctrl-C ends it with
a report of what was until then, marked as partial.
"""

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import isfinite, nan
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click
import msgspec

from simulation.experiments.report_command import check_can_draw, write_page
from simulation.interrupt import INTERRUPTED, Interrupt, asking
from simulation.network import SECONDS_MAX
from simulation.notes import notes
from simulation.scenario import Scenario, ScenarioError, describe, load

if TYPE_CHECKING:
    from simulation.experiments.curves import Recorder, Watched
    from simulation.experiments.results import Result
    from simulation.experiments.run import Report
    from simulation.experiments.watching import Watching

# Points of a curve, where nobody says how far apart.
POINTS = 20
# How a failure begins, here and in results files.
VIOLATION = "a checker saw what must never happen"
# More points than a plot can show, and each costs a test of up to 64 nodes.
POINTS_MAX = 100_000


def replay_command(
    scenario: str,
    seed: int,
    changes: tuple[str, ...],
    *,
    every_s: float | None = None,
    curve: bool = True,
    check: bool = True,
) -> str:
    """The command that repeats a run: the same events, figures and curve.

    Args:
        every_s: Between points of the curve, where somebody said so.
        curve: Whether there is one.
        check: Whether the checkers watch; the report says how often they did.
    """
    words = ["p2psim", "run", "--seed", str(seed), *(f"--set={one}" for one in changes)]
    if not scenario.startswith("-"):
        words.insert(2, scenario)
    if every_s is not None and curve:
        words.append(f"--every={every_s!r}".removesuffix(".0"))
    words += [] if curve else ["--no-curve"]
    words += [] if check else ["--no-checks"]
    if scenario.startswith("-"):  # a file that would be read as an option
        words += ["--", scenario]
    return shlex.join(words)


def load_or_exit(name: str, changes: tuple[str, ...]) -> Scenario:
    """The scenario, or one sentence and status 2."""
    try:
        return load(name, changes)
    except ScenarioError as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)


@click.command("run", short_help="Run one scenario with one seed.")
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
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that share the work of this one run; what comes out is the same.",
)
@click.option("--no-checks", is_flag=True, help="Run without the checkers, for speed.")
@click.option(
    "--every",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Virtual seconds between points of the curve; a 20th of the run if not given; 0: no curve.",
)
@click.option("--no-curve", is_flag=True, help="The same as --every 0.")
@click.option("--watch", is_flag=True, help="Draw the run while it goes on: one sign for each node.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.jsonl",
    help="Append the result as one line.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.csv",
    help="Write the figures as a table of one row.",
)
@click.option(
    "--report",
    "page_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write a page with plots, for a browser.",
)
def run_(
    scenario: str,
    seed: int,
    nodes: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
    jobs: int,
    no_checks: bool,
    every: float | None,
    no_curve: bool,
    watch: bool,
    out: Path | None,
    csv_file: Path | None,
    page_file: Path | None,
) -> None:
    """Run SCENARIO: the name of a shipped one (`p2psim list`) or the path of a TOML file."""
    if nodes is not None and any(one.partition("=")[0].strip() == "nodes" for one in overrides):
        click.echo(
            f"p2psim: --nodes: expected either it or --set nodes=, found both (--nodes {nodes})", err=True
        )
        sys.exit(2)
    changes = (*overrides, *([f"nodes={nodes}"] if nodes is not None else []))
    loaded = load_or_exit(scenario, changes)
    every_s = 0.0 if no_curve else loaded.duration_s / POINTS if every is None else every
    if not (every_s == 0 or loaded.duration_s / POINTS_MAX <= every_s <= SECONDS_MAX):
        click.echo(
            f"p2psim: --every: expected 0, or a number from {loaded.duration_s / POINTS_MAX:g} "
            f"({POINTS_MAX} points) to {SECONDS_MAX:g}, found {every_s:g}",
            err=True,
        )
        sys.exit(2)
    replay = replay_command(scenario, seed, changes, every_s=every, curve=not no_curve, check=not no_checks)
    click.echo(f"seed {seed}; repeat with: {replay}", err=as_json)
    click.echo(f"options {msgspec.json.encode(describe(loaded)).decode()}", err=as_json)
    from simulation.experiments.outputs import files_of

    _check_files(
        files_of(scenario, describe(loaded)), {"--out": out, "--csv": csv_file, "--report": page_file}
    )
    for note in notes(loaded):
        click.echo(f"note: {note}", err=True)
    if jobs > 1 and (sentence := _why_not(loaded, jobs)):
        click.echo(f"p2psim: --jobs: {sentence}", err=True)
        sys.exit(2)
    if jobs > 1:
        _say_worth(loaded)
    if watch and not every_s:
        click.echo("p2psim: --watch shows the curve as it grows, so it goes without --no-curve", err=True)
        sys.exit(2)
    from simulation.checkers import ViolationError
    from simulation.experiments.results import result

    try:
        report = _run(
            loaded, seed, replay=replay, check=not no_checks, every_s=every_s, watch=watch, jobs=jobs
        )
    except ViolationError as error:
        failed = f"{VIOLATION}: {error}"
        click.echo(f"p2psim: {failed}", err=True)
        _save(result(describe(loaded), seed, replay, failed=failed), out=out, csv_file=csv_file)
        sys.exit(1)
    one = result(describe(loaded), seed, replay, report=report)
    saved = _save(one, out=out, csv_file=csv_file, page_file=page_file)
    click.echo(msgspec.json.encode(report).decode() if as_json else told(report))
    if not saved:
        sys.exit(2)
    if report.partial:
        sys.exit(INTERRUPTED)


def _say_worth(loaded: Scenario) -> None:
    from simulation.windows import WORTH_S, width_s

    if (width := width_s(loaded)) < WORTH_S:
        click.echo(
            f"note: --jobs: what is sent may arrive after {1e3 * width:.3g} ms; below {1e3 * WORTH_S:g} ms several "
            "processes wait for each other more than they work",
            err=True,
        )


def _why_not(loaded: Scenario, jobs: int) -> str:
    """Why a run cannot be shared by so many processes; empty: it can."""
    from simulation.windows import why_not

    if reason := why_not(loaded):
        return f"expected 1, found {jobs}: {reason}"
    return (
        f"expected at most one for each of {loaded.nodes} nodes, found {jobs}" if jobs > loaded.nodes else ""
    )


def _run(
    loaded: Scenario, seed: int, *, replay: str, check: bool, every_s: float, watch: bool, jobs: int
) -> "Report":
    """Runs with progress on standard error; ends the command with a sentence where there can be no run.

    Raises:
        ViolationError: a checker saw what must never happen.
    """
    from p2pnode.errors import UserError
    from p2pnode.tasks.faults import TaskFaults
    from simulation.experiments.run import run

    begun = perf_counter()

    def progress(world: "Watched") -> None:
        spent = perf_counter() - begun
        click.echo(
            f"{world.now:7.1f} s of {loaded.duration_s:g} s  {len(world.up()):4d} up  {world.events:9d} events  "
            f"{world.exchanges:7d} exchanges  {spent:6.1f} s of wall time",
            err=True,
        )

    # What is to be said is told when the screen has been given back, what goes wrong as well.
    said: list[str] = []

    def say(sentence: str) -> None:
        if watch:
            said.append(sentence)
        else:
            click.echo(f"p2psim: {sentence}", err=True)

    try:
        with (
            _screen(loaded, seed) if watch else nullcontext() as screen,
            _interrupts(screen) as interrupt,
            TaskFaults(loaded.task.name),
        ):

            def glance(world: "Watched", recorder: "Recorder | None") -> bool:
                if screen is not None and recorder is not None:
                    screen.look(world, recorder)
                return not interrupt.asked

            report = run(
                loaded,
                seed,
                replay=replay,
                check=check,
                progress=progress if screen is None else None,
                every_s=max(loaded.duration_s / 20.0, 1.0),
                measure_every_s=every_s,
                glance=glance,
                processes=jobs,
                say=say,
            )
    except UserError as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)
    for sentence in said:
        click.echo(f"p2psim: {sentence}", err=True)
    return report


def _screen(loaded: Scenario, seed: int) -> "AbstractContextManager[Watching | None]":
    from simulation.experiments.watching import watching

    return watching(loaded, seed)


def _interrupts(screen: "Watching | None") -> "AbstractContextManager[Interrupt]":
    return asking(then="ending with a partial report" if screen is None else "")


def _check_files(inputs: list[Path], outputs: dict[str, Path | None]) -> None:
    """Before a run that may take hours, not after."""
    from simulation.experiments.outputs import check_outputs
    from simulation.experiments.results import ResultsError, appending

    if outputs["--report"] is not None:
        check_can_draw()
    out = outputs["--out"]
    try:
        check_outputs(outputs, inputs)
        if out is None:
            return
        with appending(out) as file:
            if file.dropped_bytes:
                click.echo(f"p2psim: {out}: dropped a torn last line of {file.dropped_bytes} bytes", err=True)
    except ResultsError as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)


def _save(
    one: "Result", *, out: Path | None = None, csv_file: Path | None = None, page_file: Path | None = None
) -> bool:
    """Writes the files that were asked for; False where one could not be written, which is told.

    A partial run is nobody's result: it goes to no results file. One that failed does, as in a sweep.
    """
    from simulation.experiments.results import ResultsError, appending, write_csv

    try:
        if out is not None and one.report.get("partial"):
            click.echo(f"p2psim: a partial run is not added to {out}", err=True)
        elif out is not None:
            with appending(out, wait=True) as file:
                file.append(one)
        if csv_file is not None:
            write_csv(csv_file, [one])
        if page_file is not None:
            write_page(page_file, one)
    except ResultsError as error:
        click.echo(f"p2psim: {error}", err=True)
        return False
    return True


def told(report: "Report") -> str:
    """The report for people."""
    accuracy, loss, settled = report.accuracy, report.loss, report.settled

    def counted(counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    def rate(count: float, seconds: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    def share(value: float) -> str:
        return f"{value:.1%}" if isfinite(value) else "not measured"

    def number(value: float) -> str:
        return f"{value:.4g}" if value == value else "not measured"

    def three(show: Callable[[float], str], mean: float, worst: float, central: float) -> str:
        shown = show(mean), show(worst), show(central)
        if len(set(shown)) == 1 and shown[0] == show(nan):
            return shown[0]
        return f"mean {shown[0]}, worst {shown[1]}, all data in one place {shown[2]}"

    speed = rate(report.virtual_s, report.wall_s)
    lines = [
        ("accuracy", three(share, accuracy.mean, accuracy.worst, accuracy.central)),
        ("test loss", three(number, loss.mean, loss.worst, loss.central)),
        ("consensus distance", f"{report.consensus:.4g}"),
        ("exchanges", f"{report.exchanges} applied, {report.node_updates} training jobs"),
        ("messages", f"{report.messages} ({report.bytes_sent / 1e6:.1f} MB)"),
        ("faults", counted(report.faults)),
        ("refused", counted(report.refused)),
        ("checks", f"{report.checks}, none failed" if report.checks else "not made"),
        ("time", f"{report.virtual_s:g} virtual s in {report.wall_s:.1f} s: {speed:.1f} times real time"),
        (
            "speed",
            "not measured, there was no second half"
            if not settled.events
            else f"{rate(settled.events, settled.wall_s):.0f} events/s, "
            f"{rate(settled.node_updates, settled.wall_s):.0f} node-updates/s in the second half",
        ),
        *([("signatures", "modelled, not real")] if report.signatures != "real" else []),
        *([("stopped" if report.stopped else "stop rule", report.stop_rule)] if report.stop_rule else []),
        *(
            [("adversaries", f"{report.hostile}, whose own models and refusals do not count")]
            if report.hostile
            else []
        ),
        ("digest", report.digest),
    ]
    if report.partial:
        lines.insert(0, ("PARTIAL", "the run was interrupted; these are the figures of the moment"))
    return "\n".join(f"{name:<20}{text}" for name, text in lines)
