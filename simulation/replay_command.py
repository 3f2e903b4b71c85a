"""`p2psim replay`: what it prints, and its exit status; the core is imported when it is typed."""

import sys
from pathlib import Path

import click
import msgspec


@click.command("replay")
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--events", is_flag=True, help="Tell each event and what was ordered, not only what matters to people."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output; the timeline goes elsewhere."
)
def replay_(trace: Path, events: bool, as_json: bool) -> None:
    """Feed what `p2pnode run --record` wrote to the core at hand, and demand the same orders.

    Exit status 1 where the two part, with the first difference; 2 where the file is no trace, or damaged.
    """
    from p2pnode.printable import printable
    from p2pnode.recording import TraceError
    from simulation.replay import replay

    try:
        found = replay(trace, told=lambda line: click.echo(line, err=as_json), every_event=events)
    except (TraceError, OSError) as error:
        click.echo(f"p2psim: {trace}: {printable(str(error))}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    elif found.difference:
        then = ", then " if found.events else ": "
        click.echo(f"replayed  {found.events} events alike{then}{found.difference}")
    else:
        click.echo(f"replayed  {found.events} events over {found.duration_s:.3f} s, all alike")
        click.echo(f"end       {found.end}")
    sys.exit(1 if found.difference else 0)
