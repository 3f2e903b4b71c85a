"""`p2psim report`: the page of a run that was saved, and what `p2psim run --report` shares with it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from simulation.experiments.results import Result

# Where no --report says otherwise.
_PAGE = Path("report.html")


@click.command("report", short_help="The page of one run in a results file.")
@click.argument("file", metavar="FILE.jsonl")
@click.option("--seed", type=click.IntRange(min=0), help="The run with this seed, where there are several.")
@click.option(
    "--report",
    "page_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=_PAGE,
    show_default=True,
    metavar="FILE.html",
    help="Where to write the page.",
)
def report_(file: str, seed: int | None, page_file: Path) -> None:
    """Write the page of one run in a results file, chosen as in FILE.jsonl?network.loss=0.1 and by --seed."""
    from simulation.experiments.compare import CompareError, chosen_runs, selection
    from simulation.experiments.outputs import check_outputs
    from simulation.experiments.results import ResultsError

    try:
        check_outputs({"--report": page_file}, [Path(selection(file).source)])
        found = chosen_runs(selection(file), range(seed, seed + 1) if seed is not None else None, curves=True)
        good = [one for one in found if not one.failed]
        if len(good) != 1:
            seeds = ", ".join(dict.fromkeys(str(one.seed) for one in good[:8]))
            one_more = f"{file.removesuffix('?')}{'&' if '?' in file.removesuffix('?') else '?'}key=value"
            raise CompareError(
                f"{file}: expected one run, found {len(good)}"
                + (f" (seeds {seeds}); choose with --seed and '{one_more}'" if good else "")
            )
        write_page(page_file, good[0])
    except (CompareError, ResultsError) as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)


def check_can_draw() -> None:
    """Before a run that may take hours: ends the command where a page could not be drawn."""
    from simulation.experiments.drawings import DrawingsMissingError, check_library

    try:
        check_library()
    except DrawingsMissingError as error:
        click.echo(f"p2psim: {error}", err=True)
        sys.exit(2)


def write_page(path: Path, result: "Result") -> None:
    """Writes the page, whole or not at all; says where.

    Raises:
        ResultsError: it cannot be made or written.
    """
    check_can_draw()
    from simulation.experiments.outputs import write_whole
    from simulation.experiments.page import page
    from simulation.experiments.results import ResultsError

    try:
        write_whole(path, page(result))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
    click.echo(f"report in {path}", err=True)
