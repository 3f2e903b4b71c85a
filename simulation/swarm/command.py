"""`p2psim swarm` and `p2psim shrink`: many seeds on all cores, and the smallest failing version of one of them."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from time import perf_counter
from typing import Any

import click
import msgspec
from msgspec import Struct

from simulation.interrupt import INTERRUPTED
from simulation.processes import ctrl_c_held_back, processes
from simulation.progress import duration, progress
from simulation.seeds_option import SeedRange
from simulation.swarm.draw import KINDS, NODES_LIMIT, NODES_MAX, NODES_MIN, PACES

# Without a terminal progress is a line in so many seconds, of a command that runs for minutes to hours.
PROGRESS_S = 10.0


class SwarmTotals(Struct, kw_only=True):
    """What a range of seeds came to; `p2psim swarm --json` prints it."""

    seeds: int = 0  # that are done, well or not
    seeds_asked: int = 0
    interrupted: bool = False  # by Ctrl-C, or because a process died: all sums are those of the moment
    failed: list[str] = []  # messages, each with its commands
    node_hours: float = 0.0
    node_hours_by_pace: dict[str, float] = {}
    virtual_s: float = 0.0
    wall_s: float = 0.0
    events: int = 0
    exchanges: int = 0
    checks: int = 0
    healed_s_max: float = 0.0
    faults: dict[str, int] = {}
    refused: dict[str, int] = {}
    digests: dict[int, str] = {}
    unseen: list[str] = []  # kinds of faults that no seed met


def run_many(
    settings: Iterator[Any], *, jobs: int, told: Callable[[Any, Any, BaseException | None], bool]
) -> None:
    """Runs settings in processes. `told(settings, report, error)` says whether to go on.

    A process of its own for the runs even where there is one job: whatever a broken node raises arrives as a value.
    """
    from simulation.swarm.run import run_seed_apart

    with processes(jobs) as pool:
        waiting: dict[Future[Any], Any] = {}
        go_on = True
        while True:
            if go_on:
                for one in islice(settings, 2 * jobs - len(waiting)):
                    try:
                        waiting[pool.submit(run_seed_apart, one)] = one
                    except BrokenProcessPool as error:  # those that wait are going to say the same
                        go_on = told(one, None, error) and go_on
                        break
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: int(waiting[future].seed)):
                one = waiting.pop(future)
                found = future.exception()
                go_on = told(one, future.result() if found is None else None, found) and go_on


def options(command: Callable[..., None]) -> Callable[..., None]:
    """What changes a seed; common to both commands."""
    for option in (
        click.option(
            "--nodes-max",
            type=click.IntRange(NODES_MIN, NODES_LIMIT),
            default=NODES_MAX,
            show_default=True,
            help="At most so many honest nodes; each seed draws its own number.",
        ),
        click.option(
            "--nodes", type=click.IntRange(NODES_MIN, NODES_LIMIT), help="Exactly so many honest nodes."
        ),
        click.option(
            "--without",
            multiple=True,
            type=click.Choice(KINDS),
            metavar="KIND",
            help="Switch off one kind of fault.",
        ),
        click.option(
            "--shorten",
            type=click.FloatRange(min=0, max=1, min_open=True),
            default=1.0,
            show_default=True,
            help="Let faults strike for this share of the time only.",
        ),
        click.option(
            "--pace",
            type=click.Choice(PACES),
            help="Rounds of seconds, or a daemon's own settings for hours; drawn by default.",
        ),
    ):
        command = option(command)
    return command


@click.command("swarm")
@click.option("--seeds", type=SeedRange(), required=True, metavar="A:B", help="From A until before B.")
@options
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at the same time."
)
@click.option("--minutes", type=click.FloatRange(min=0), help="Start no more seeds after so long.")
@click.option("--first", is_flag=True, help="Start no more seeds after one that failed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def swarm(
    seeds: range,
    nodes_max: int,
    nodes: int | None,
    without: tuple[str, ...],
    shorten: float,
    pace: str | None,
    jobs: int,
    minutes: float | None,
    first: bool,
    as_json: bool,
) -> None:
    """Test: each seed is another small network with other faults.

    While faults strike, checkers watch for what must never happen; then the faults stop, and the network has to
    become whole. Exit status 1 where a seed failed, with the command that repeats it. Ctrl-C ends with the sums so far.
    """
    from simulation.swarm.run import SeedFailedError, SwarmReport, SwarmSettings

    def settings(seed: int) -> SwarmSettings:
        return SwarmSettings(
            seed=seed, nodes_max=nodes_max, nodes=nodes, without=without, shorten=shorten, pace=pace
        )

    click.echo(
        f"seeds {seeds.start}:{seeds.stop}, nodes-max {nodes_max}, {jobs} jobs; "
        f"first: {settings(seeds.start).command()}",
        err=as_json,
    )
    if len(seeds) == 1:
        drawn = settings(seeds.start).options()
        click.echo(f"options {msgspec.json.encode(drawn).decode()}", err=as_json)
    begun = perf_counter()
    totals = SwarmTotals(seeds_asked=len(seeds))
    cut: list[int] = []  # seeds that were under way when a process died

    def told(one: SwarmSettings, report: SwarmReport | None, error: BaseException | None) -> bool:
        if isinstance(error, BrokenProcessPool):
            cut.append(one.seed)
            return False
        commands = (one.command(), one.shrink_command())
        with ctrl_c_held_back():
            totals.seeds += 1
            if error is not None:
                totals.failed.append(
                    f"seed {one.seed}: {error}; replay with: {commands[0]}; shrink with: {commands[1]}"
                )
                report = error.so_far if isinstance(error, SeedFailedError) else None
            if report is not None:
                _add(totals, report, held=error is None)
            totals.wall_s = perf_counter() - begun
            if error is not None:
                # Where the sums are going to be, once; they only count it. JSON has it, too, for programs.
                with line.aside():
                    click.echo(
                        f"FAILED: seed {one.seed}: {error}\n"
                        f"  repeat with: {commands[0]}\n  shrink with: {commands[1]}",
                        err=as_json,
                    )
        line.tell(_so_far(totals, minutes))
        if first and totals.failed:
            return False
        return minutes is None or totals.wall_s < 60.0 * minutes

    try:
        with progress(f"0 of {len(seeds)} seeds", every_s=PROGRESS_S) as line:
            run_many((settings(seed) for seed in seeds), jobs=jobs, told=told)
    except KeyboardInterrupt:
        totals.interrupted = True
    totals.interrupted |= bool(cut)
    totals.wall_s = perf_counter() - begun
    totals.faults = dict(sorted(totals.faults.items()))
    totals.refused = dict(sorted(totals.refused.items()))
    totals.digests = dict(sorted(totals.digests.items()))
    totals.unseen = [kind for kind in KINDS if kind not in totals.faults]
    click.echo(msgspec.json.encode(totals).decode() if as_json else _told(totals))
    if cut:
        click.echo(
            "p2psim: a process for seeds died, most likely for lack of memory; fewer --jobs may help; not done "
            f"were the seeds {', '.join(map(str, sorted(cut)))}",
            err=True,
        )
        sys.exit(2)
    if totals.interrupted:
        click.echo(
            f"p2psim: interrupted after {totals.seeds} of {len(seeds)} seeds, {len(totals.failed)} failed",
            err=True,
        )
        sys.exit(INTERRUPTED)
    if totals.failed:
        sys.exit(1)


def _so_far(totals: SwarmTotals, minutes: float | None) -> str:
    """How far it is, and how long the rest may take."""
    spent = totals.wall_s
    left = spent / totals.seeds * (totals.seeds_asked - totals.seeds)
    if minutes is not None:
        left = min(left, max(0.0, 60.0 * minutes - spent))
    return (
        f"{totals.seeds} of {totals.seeds_asked} seeds, {len(totals.failed)} failed, "
        f"{totals.node_hours:.1f} node-hours, {totals.virtual_s / spent:.0f} virtual s/s, "
        f"{duration(spent)}, about {duration(left)} left"
    )


def _add(totals: SwarmTotals, report: Any, *, held: bool) -> None:
    """A report; of a seed that failed, what happened until then."""
    totals.node_hours += report.node_hours
    by_pace = totals.node_hours_by_pace
    by_pace[report.pace] = by_pace.get(report.pace, 0.0) + report.node_hours
    totals.virtual_s += report.virtual_s
    totals.events += report.events
    totals.exchanges += report.exchanges
    totals.checks += report.checks
    if held:
        totals.healed_s_max = max(totals.healed_s_max, report.healed_s)
    totals.digests[report.seed] = report.digest
    for counts, more in ((totals.faults, report.faults), (totals.refused, report.refused)):
        for name, count in more.items():
            counts[name] = counts.get(name, 0) + count


def _told(totals: SwarmTotals) -> str:
    """For people."""

    def counted(counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

    of = f" of {totals.seeds_asked}" if totals.seeds < totals.seeds_asked else ""
    held = totals.seeds - len(totals.failed)
    paces = ", ".join(
        f"{hours:.1f} at the pace of {pace}" for pace, hours in sorted(totals.node_hours_by_pace.items())
    )
    lines = [
        *((("INTERRUPTED", "all sums are those of the seeds that were done"),) if totals.interrupted else ()),
        ("seeds", f"{totals.seeds}{of}, {len(totals.failed)} failed"),
        ("node-hours", f"{totals.node_hours:.1f} in {totals.wall_s:.0f} s" + (f": {paces}" if paces else "")),
        ("virtual time", f"{totals.virtual_s:.0f} s"),
        ("events", f"{totals.events}, {totals.exchanges} exchanges, {totals.checks} checks"),
        ("whole again", f"after at most {totals.healed_s_max:.0f} virtual s" if held else "none of them"),
        ("faults", counted(totals.faults)),
        ("not seen", ", ".join(totals.unseen) or "none: every kind struck"),
        ("refused", counted(totals.refused)),
    ]
    return "\n".join(f"{name:<14}{text}" for name, text in lines)


@click.command("shrink")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="One that fails.")
@options
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True, help="Tries at most.")
def shrink(
    seed: int,
    nodes_max: int,
    nodes: int | None,
    without: tuple[str, ...],
    shorten: float,
    pace: str | None,
    runs: int,
) -> None:
    """Find the smallest options with which a seed still fails: fewer kinds of faults, fewer nodes, a shorter run."""
    from simulation.swarm.run import SwarmSettings
    from simulation.swarm.shrink import smallest

    settings = SwarmSettings(
        seed=seed, nodes_max=nodes_max, nodes=nodes, without=without, shorten=shorten, pace=pace
    )
    click.echo(f"shrinking {settings.command()}")

    def fails(one: SwarmSettings) -> str:
        seen: list[str] = []

        def told(_: SwarmSettings, report: object, error: BaseException | None) -> bool:
            if error is not None:
                died = isinstance(error, BrokenProcessPool)
                seen.append(f"its process died: {error}" if died else str(error))
            return True

        run_many(iter([one]), jobs=1, told=told)
        return seen[0] if seen else ""

    found = smallest(settings, fails, runs=runs, told=lambda line: click.echo(line, err=True))
    if found is None:
        click.echo("this seed does not fail")
        sys.exit(1)
    options = found.settings.options()
    click.echo(f"why      {found.why}")
    click.echo(
        f"left     {options.nodes} nodes, {options.safety_s:g} s with {', '.join(options.kinds) or 'no faults'}"
    )
    click.echo(f"repeat   {found.settings.command()}")
