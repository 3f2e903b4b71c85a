"""`p2psim sweep`: every combination of values and seeds, on all cores, into one file that it can go on with."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from simulation.interrupt import INTERRUPTED
from simulation.notes import shared_notes
from simulation.progress import Progress, duration, progress
from simulation.scenario import Scenario, ScenarioError, describe, load
from simulation.seeds_option import SeedRange

if TYPE_CHECKING:
    from simulation.experiments.results import Result
    from simulation.experiments.sweep import Job, Made


@click.command("sweep", short_help="Many runs: every combination of values, every seed.")
@click.argument("scenario")
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=V1,V2 or KEY=A:B:STEP",
    help="Values of one setting, from A until before B; several: every combination.",
)
@click.option("--seeds", type=SeedRange(), required=True, metavar="A:B", help="From A until before B.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Processes at the same time; as many as cores, if not given."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE.jsonl",
    help="One line for each run; runs that it has already are not made again.",
)
@click.option(
    "--nodes", type=click.IntRange(min=2), help="How many nodes, instead of what the scenario says."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="The same for all runs.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.csv",
    help="At the end, write a table with a row for each run.",
)
@click.option("--no-curve", is_flag=True, help="Measure at the end only.")
def sweep(
    scenario: str,
    vary: tuple[str, ...],
    seeds: range,
    jobs: int | None,
    out: Path,
    nodes: int | None,
    overrides: tuple[str, ...],
    csv_file: Path | None,
    no_curve: bool,
) -> None:
    """Run SCENARIO with every combination of the values that vary, and every seed.

    The same command goes on where it was interrupted. Exit status 1 where a run failed; what failed is in the file,
    with the command that repeats it, and is tried again the next time.
    """
    from simulation.experiments.results import ResultsError, write_csv
    from simulation.experiments.sweep import SweepError, jobs_of

    processes = jobs or os.cpu_count() or 1
    try:
        changes = (*overrides, *_nodes(nodes, vary=vary, overrides=overrides))
        wanted = jobs_of(scenario, changes, vary, seeds, curve=not no_curve)
        scenarios: dict[tuple[str, ...], Scenario] = {}
        for job in wanted:
            if job.changes not in scenarios:
                scenarios[job.changes] = load(scenario, job.changes)
        results = _sweep(wanted, scenarios, processes, out, csv_file, varied=len(vary))
        if csv_file is not None:
            write_csv(csv_file, results)
    except (ScenarioError, SweepError, ResultsError) as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(f"p2psim: interrupted; what is done is in {out}, and the same command goes on", err=True)
        sys.exit(INTERRUPTED)
    click.echo(table(wanted, results, [text.partition("=")[0] for text in vary]))
    if any(one.failed for one in results):
        sys.exit(1)


def _nodes(nodes: int | None, *, vary: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """--nodes as a change, unless another option speaks of the same key."""
    from simulation.experiments.sweep import SweepError

    if nodes is None:
        return []
    for option, texts in (("--vary", vary), ("--set", overrides)):
        for text in texts:
            if text.partition("=")[0].strip() == "nodes":
                raise SweepError(
                    f"--nodes {nodes}: {option} {text} says how many, too; leave one of the two out"
                )
    return [f"nodes={nodes}"]


def _sweep(
    wanted: Sequence["Job"],
    scenarios: Mapping[tuple[str, ...], Scenario],
    processes: int,
    out: Path,
    csv_file: Path | None,
    *,
    varied: int,
) -> list["Result"]:
    """Makes what is missing in the file; returns the results of all jobs, in their order.

    Args:
        scenarios: Changes of a job -> what it runs.
        varied: How many of these changes, the last ones, are values that vary.
    """
    from simulation.experiments.outputs import check_outputs, files_of
    from simulation.experiments.results import appending, read, result, run_key
    from simulation.experiments.sources import program
    from simulation.experiments.sweep import SweepError, check_stop_rules, make_all

    trees = {changes: describe(loaded) for changes, loaded in scenarios.items()}
    inputs = {path for tree in trees.values() for path in files_of(wanted[0].scenario, tree)}
    check_outputs({"--out": out, "--csv": csv_file}, sorted(inputs))
    named = {", ".join(changes[len(changes) - varied :]): loaded for changes, loaded in scenarios.items()}
    for note in shared_notes(named):
        click.echo(f"note: {note}", err=True)
    keys = {job: run_key(trees[job.changes], job.seed) for job in wanted}
    with appending(out) as file:
        if file.dropped_bytes:
            click.echo(f"p2psim: {out}: dropped a torn last line of {file.dropped_bytes} bytes", err=True)
        there = {one.key: one for one in read(out, curves=False)}
        others = {
            keys[job]
            for job in wanted
            if (made_before := there.get(keys[job])) is not None
            and not made_before.failed
            and made_before.program != program(scenarios[job.changes].task.name)
        }
        missing = [
            job for job in wanted if keys[job] not in there or there[keys[job]].failed or keys[job] in others
        ]
        check_stop_rules({job: scenarios[job.changes] for job in missing}, processes=processes)
        click.echo(
            f"{_counted(len(wanted), 'run')}, {len(wanted) - len(missing)} of them in {out} already, "
            f"{_counted(processes, 'job')}",
            err=True,
        )
        again = len(others)
        if again:
            one_run, many = (
                "run was made by another program and is",
                "runs were made by another program and are",
            )
            click.echo(f"p2psim: {again} {one_run if again == 1 else many} made again", err=True)
        failed = 0
        with (
            progress(f"0 of {_counted(len(missing), 'run')}; the first are being compiled") as line,
            closing(make_all(missing, processes=processes)) as made,
        ):
            left = _Left(len(missing), line)
            for one in made:
                if one.key not in ("", keys[one.job]):
                    raise SweepError(f"{one.job.scenario} changed while its runs were made; start again")
                added = result(
                    trees[one.job.changes],
                    one.job.seed,
                    one.job.command(),
                    report=one.report,
                    failed=one.failed,
                )
                file.append(added)
                added.report.pop("curve", None)  # it is in the file; here it would only fill the memory
                there[added.key] = added
                failed += bool(one.failed)
                left.told(one, failed)
    return [there[keys[job]] for job in wanted]


class _Left:
    """What is done, and how long the rest may take."""

    def __init__(self, total: int, line: Progress) -> None:
        self._begun = perf_counter()
        self._total = total
        self._line = line
        self._done = 0

    def told(self, one: "Made", failed: int) -> None:
        self._done += 1
        if one.failed:
            click.echo(one.told(), err=True)
        spent = perf_counter() - self._begun
        left = spent / self._done * (self._total - self._done)
        self._line.tell(
            f"{self._done} of {_counted(self._total, 'run')}, {failed} failed, {duration(spent)}, "
            f"about {duration(left)} left"
        )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def table(jobs: Sequence["Job"], results: Sequence["Result"], varied: Sequence[str]) -> str:
    """A row for each combination: mean and half-width of the 95 % interval over seeds.

    Args:
        jobs: Each with its result, in the same order; the last of a job's changes are the values that vary.
        varied: Their keys.
    """
    from simulation.experiments.figures import figures_of

    groups: dict[tuple[str, ...], list[Result]] = {}
    for job, one in zip(jobs, results, strict=True):
        # As they were typed: what became of them (a preset, a table with its defaults) is long, and nobody's words.
        chosen = job.changes[len(job.changes) - len(varied) :]
        groups.setdefault(tuple(change.partition("=")[2] for change in chosen), []).append(one)
    figures = figures_of(results)
    rows = [[*varied, "seeds", *(figure.name for figure in figures), "failed"]]
    for values, group in groups.items():
        good = [one for one in group if not one.failed]
        rows.append(
            [
                *values,
                str(len(good)),
                *(figure.shown(figure.interval(good)) for figure in figures),
                str(len(group) - len(good)),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if any("±" in line for line in lines):  # one seed has no interval
        lines.append("± is half of the 95 % confidence interval over seeds (Student's t)")
    return "\n".join(lines)
