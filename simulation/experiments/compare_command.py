"""`p2psim compare`: two experiments, side by side, with confidence intervals."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from simulation.scenario import Scenario, ScenarioError, describe, load
from simulation.seeds_option import SeedRange

if TYPE_CHECKING:
    from simulation.experiments.compare import Row, Selection, Side
    from simulation.experiments.sweep import Job


@click.command("compare", short_help="Which of two experiments is better, and how sure that is.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--seeds", type=SeedRange(), metavar="A:B", help="Of a file: only these. Of a scenario: to run with."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Processes for scenarios; as many as cores, if not given."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def compare_(a: str, b: str, seeds: range | None, jobs: int | None, as_json: bool) -> None:
    """Compare A and B: results files, or scenarios that are run with --seeds first.

    FILE.jsonl?network.loss=0.1&nodes=50 chooses runs of a file; SCENARIO?network.loss=0.1 changes a scenario. With
    equal seeds the runs are compared in pairs.
    """
    from simulation.experiments.compare import CompareError, Side, compare, selection, settings_that_differ
    from simulation.experiments.results import ResultsError
    from simulation.experiments.sweep import SweepError, check_stop_rules

    try:
        # Both are looked at before a run of either is made, which may take hours.
        ready = [_checked(selection(text), seeds) for text in (a, b)]
        processes = jobs or os.cpu_count() or 1
        wanted = [one for one in ready if isinstance(one, _Wanted)]
        check_stop_rules({one.jobs[0]: one.loaded for one in wanted}, processes=processes)
        sides = [one if isinstance(one, Side) else _made(one, processes) for one in ready]
        rows = compare(*sides)
        differ = settings_that_differ(*sides)
        for one in sides:
            if len(one.programs) > 1:
                click.echo(
                    f"p2psim: {one.text}: its runs were made by {len(one.programs)} programs; the same sweep "
                    "again makes those of older ones anew",
                    err=True,
                )
    except (CompareError, ResultsError, ScenarioError, SweepError) as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)
    if as_json:
        tree = {
            "confidence": 0.95,
            "a": {"named": a, "seeds": sides[0].seeds},
            "b": {"named": b, "seeds": sides[1].seeds},
            "differ": differ,
            "figures": rows,
        }
        click.echo(msgspec.json.encode(tree).decode())
    else:
        click.echo(_told(sides[0], sides[1], rows, differ))


class _Wanted(msgspec.Struct, frozen=True):
    """A side whose runs are still to be made."""

    text: str
    jobs: "list[Job]"
    loaded: Scenario  # as it was when it was checked

    @property
    def scenario(self) -> dict[str, Any]:
        return describe(self.loaded)


def _checked(chosen: "Selection", seeds: range | None) -> "Side | _Wanted":
    """The runs of a file; or of a scenario, once it is sure that they can be made."""
    from simulation.experiments.compare import CompareError, from_file

    if chosen.is_file:
        return from_file(chosen, seeds)
    if Path(chosen.source).is_file() and not chosen.source.endswith(".toml"):
        raise CompareError(
            f"{chosen.source}: expected results, a file ending in .jsonl, or a scenario, one ending in .toml"
        )
    if seeds is None:
        raise CompareError(f"{chosen.text}: a scenario is run with --seeds A:B; say which")
    if len(seeds) < 2:
        raise CompareError(f"{chosen.text}: one seed gives no interval; two at least, better eight")
    wanted = chosen.jobs(seeds)
    return _Wanted(chosen.text, wanted, load(wanted[0].scenario, wanted[0].changes))


def _made(wanted: _Wanted, processes: int) -> "Side":
    from simulation.experiments.compare import side
    from simulation.experiments.results import result
    from simulation.experiments.sweep import SweepError, make_all

    results = []
    total = len(wanted.jobs)
    with closing(make_all(wanted.jobs, processes=min(processes, total))) as made:
        for one in made:
            line = result(
                wanted.scenario, one.job.seed, one.job.command(), report=one.report, failed=one.failed
            )
            if one.key not in ("", line.key):
                raise SweepError(f"{one.job.scenario} changed while its runs were made; start again")
            results.append(line)
            click.echo(f"{wanted.text}: {len(results)} of {total} runs", err=True)
            if one.failed:
                click.echo(one.told(), err=True)
    return side(wanted.text, results)


def _told(a: "Side", b: "Side", rows: "list[Row]", differ: dict[str, list[object]]) -> str:
    """For people."""
    from simulation.experiments.figures import FIGURES
    from simulation.experiments.values import shown

    lines = [f"{name}  {one.text}: {len(one.seeds)} seeds" for name, one in (("A", a), ("B", b))]
    for key, values in differ.items():
        # Names of programs are no settings, and nobody pastes them back.
        plain = key in ("program", "version")
        lines.append(f"   {key}: {' | '.join(str(value) if plain else shown(value) for value in values)}")
    if not differ:
        lines.append("   no setting differs")
    cells = [["", "A", "B", "B - A", ""]]
    shows = {figure.key: figure.shown for figure in FIGURES}
    for row in rows:
        show = shows[row.key]
        cells.append([row.name, show(row.a), show(row.b), show(row.difference), row.verdict])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row_cells in cells:
        name, *numbers, verdict = row_cells
        line = [name.ljust(widths[0])]
        line += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join([*line, verdict]).rstrip())
    ways = sorted(
        {
            "in pairs of equal seeds" if row.paired else "not in pairs (Welch)"
            for row in rows
            if row.difference
        }
    )
    points = ", of accuracies in points" if any(row.key.startswith("accuracy.") for row in rows) else ""
    if ways:
        lines.append(f"± is half of the 95 % confidence interval{points}; B - A {' and '.join(ways)}")
    return "\n".join(lines)
