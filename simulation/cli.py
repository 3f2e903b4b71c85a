"""`p2psim`: run scenarios, alone or by the hundreds, compare what they came to, and test with seeds.

Starts fast: what needs JAX is imported when a run begins. Exit status: 0 done, 1 something happened that must not,
2 what was given cannot be used, 130 interrupted from the keyboard, 141 whoever read the output (`| head`) had enough.
"""

from p2pnode.interrupt import EndsAtOnce

with EndsAtOnce():
    import errno
    import os
    import sys
    from collections.abc import Iterator
    from contextlib import contextmanager
    from typing import Any

    import click
    import msgspec

    from p2pnode.printable import is_text, printable
    from simulation.experiments.compare_command import compare_
    from simulation.experiments.report_command import report_
    from simulation.experiments.run_command import run_
    from simulation.experiments.sweep_command import sweep
    from simulation.fleet.command import fleet
    from simulation.interrupt import INTERRUPTED
    from simulation.replay_command import replay_
    from simulation.scenario import load, shipped
    from simulation.swarm.command import shrink, swarm

# What writing to a standard output can fail with: its disk is full, its device is broken, it is not open.
_OUTPUT_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
# What shells report of a program that SIGPIPE ended (128 + 13), as `yes | head` does. click's own 1 would say here that
# a checker saw what must never happen, to whoever has `set -o pipefail`.
_PIPE_CLOSED = 141


class _Program(click.Group):
    """The one place where the fate of the terminal, and a wrong command line, become words and an exit status."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _fates():
            for word in args:
                if not is_text(word):
                    raise click.UsageError(f"expected words in UTF-8, found {printable(word)}")
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        if sys.stdout is None:
            click.echo("p2psim: the output cannot be written: it is closed", err=True)
            sys.exit(1)
        with _fates():
            answer = super().invoke(ctx)
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            return answer


@contextmanager
def _fates() -> Iterator[None]:
    try:
        with _usage():
            yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has enough.
        _forget_outputs()
        sys.exit(_PIPE_CLOSED)
    except OSError as error:
        if error.filename is not None or error.errno not in _OUTPUT_FAULTS:
            raise
        _forget_outputs()
        click.echo(f"p2psim: the output cannot be written: {error.strerror}", err=True)
        sys.exit(1)


@contextmanager
def _usage() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        from p2pnode.usage import usage_line

        click.echo(usage_line(error, "p2psim"), err=True)
        sys.exit(2)


def _forget_outputs() -> None:
    """Python would complain once more when it closes those that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Many p2pnode peers in one process, on a simulated network, repeatable from a seed."""


main.add_command(run_)
main.add_command(sweep)
main.add_command(compare_)
main.add_command(report_)
main.add_command(fleet)
main.add_command(swarm)
main.add_command(shrink)
main.add_command(replay_)


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


if __name__ == "__main__":
    main()
