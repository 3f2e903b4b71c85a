"""`p2psim compare`: two experiments, side by side, with confidence intervals."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from simulation.scenario import ScenarioError, load
from simulation.seeds_option import SeedRange

if TYPE_CHECKING:
    from simulation.experiments.compare import Row, Selection, Side


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
    from simulation.experiments.compare import CompareError, compare, selection, settings_that_differ
    from simulation.experiments.results import ResultsError
    from simulation.experiments.sweep import SweepError

    try:
        sides = [_side(selection(text), seeds, jobs or os.cpu_count() or 1) for text in (a, b)]
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


def _side(chosen: "Selection", seeds: range | None, processes: int) -> "Side":
    from simulation.experiments.compare import CompareError, from_file, side
    from simulation.experiments.results import result
    from simulation.experiments.sweep import described, make_all

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
    load(wanted[0].scenario, wanted[0].changes)
    tree = described(wanted[0])
    results = []
    with closing(make_all(wanted, processes=min(processes, len(wanted)))) as made:
        for one in made:
            results.append(
                result(tree, one.job.seed, one.job.command(), report=one.report, failed=one.failed)
            )
            click.echo(f"{chosen.text}: {len(results)} of {len(wanted)} runs", err=True)
            if one.failed:
                click.echo(f"FAILED: {one.failed}\n  repeat with: {one.job.command()}", err=True)
    return side(chosen.text, results)


def _told(a: "Side", b: "Side", rows: "list[Row]", differ: dict[str, list[object]]) -> str:
    """For people."""
    from simulation.experiments.figures import FIGURES

    lines = [f"{name}  {one.text}: {len(one.seeds)} seeds" for name, one in (("A", a), ("B", b))]
    for key, values in differ.items():
        lines.append(f"   {key}: {' | '.join(str(value) for value in values)}")
    if not differ:
        lines.append("   no setting differs")
    cells = [["", "A", "B", "B - A", ""]]
    shown = {figure.key: figure.shown for figure in FIGURES}
    for row in rows:
        show = shown[row.key]
        cells.append([row.name, show(row.a), show(row.b), show(row.difference), row.verdict])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row_cells in cells:
        name, *numbers, verdict = row_cells
        line = [name.ljust(widths[0])]
        line += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join([*line, verdict]).rstrip())
    ways = {
        "in pairs of equal seeds" if row.paired else "not in pairs (Welch)" for row in rows if row.difference
    }
    lines.append(
        f"± is half of the 95 % confidence interval, of accuracies in points; B - A {' and '.join(sorted(ways))}"
    )
    return "\n".join(lines)
