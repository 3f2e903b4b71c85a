"""The command `p2pnode`: what people type, in one place; what it takes to do it is imported when it is typed.

A command that only asks the daemon must answer like `ls`, so nothing heavier than click stands at the top of
this file, and JAX is met only by what trains: `run`, `check-task`, `demo`. Every fault leaves as one sentence
on stderr and one of the exit codes of `errors`.
"""

from p2pnode.interrupt import EndsAtOnce

with EndsAtOnce():
    import json
    import os
    import sys
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from pathlib import Path
    from typing import TYPE_CHECKING, Any, TypeVar

    import click

    from p2pnode.errors import EXIT_CODE_TEXT, ExitCode, UserError
    from p2pnode.printable import is_text, printable

if TYPE_CHECKING:
    from p2pnode.home import Home
    from p2pnode.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

# `eval` runs the model over the whole test split; `export` and `save` write the whole model.
LONG_ANSWER_TIMEOUT_S = 600.0
# The daemon promises to be gone within 10 s.
STOP_TIMEOUT_S = 15.0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. The only place where errors become words."""
    try:
        _check_text(sys.argv[1:] if arguments is None else arguments)
        result = cli.main(args=arguments, prog_name="p2pnode", standalone_mode=False)
    except UserError as error:
        _complain(f"p2pnode: {error}")
        return error.code
    except click.ClickException as error:
        from p2pnode.usage import usage_line

        _complain(usage_line(error, "p2pnode"))
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    return result if isinstance(result, int) else ExitCode.OK


def _complain(sentence: str) -> None:
    try:
        click.echo(sentence, err=True)
    except OSError:
        # There is nowhere to say it; the exit status still tells, and Python must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODE_TEXT.items())


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Machines that may not share their data train one model together, with no server."""


def _home_option(command: F) -> F:
    return click.option(
        "--home", "home_text", metavar="DIR", help="Home directory (P2PNODE_HOME; default ~/.p2pnode)."
    )(command)


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")(command)


def _settings_options(command: F) -> F:
    """The flags that change settings, the same for all commands that have any."""
    for option in (
        click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting."),
        click.option("--data", metavar="PATH", help="Data of this machine, for tasks that read a file."),
        click.option("--task", metavar="NAME", help="digits, table, or module:factory of your own."),
        click.option(
            "--join", multiple=True, metavar="HOST:PORT", help="A node to enter through; repeatable."
        ),
        click.option("--advertise", multiple=True, metavar="HOST:PORT", help="Where others reach this node."),
        click.option("--listen", metavar="HOST:PORT", help="Where to accept connections; port 0: any."),
    ):
        command = option(command)
    return command


# --- a home and its daemon -----------------------------------------------------------------------------


@cli.command()
@_home_option
@click.option(
    "--encrypt", is_flag=True, help="Keep the key under a passphrase (asked, or P2PNODE_PASSPHRASE)."
)
@_settings_options
@_json_option
def init(home_text: str | None, encrypt: bool, as_json: bool, **flags: Any) -> None:
    """Make a home: key, commented config.toml."""
    from p2pnode import home as homes
    from p2pnode import settings
    from p2pnode.keyfile import make_identity, new_passphrase

    home = _home(home_text)
    values = {name: text for _, name, text in _flag_values(**flags)}
    text = settings.default_toml(values)
    homes.create(home)
    if home.config.exists() and values:
        raise UserError(ExitCode.USAGE, f"{home.config}: there is one already; change it there.")
    homes.check_no_key(home)
    passphrase = new_passphrase(home) if encrypt else None
    with ExitStack() as undo:
        # Before the key: a node that has its key and not its settings starts, and in another network.
        if not home.config.exists():
            homes.write_config(home, text)
            undo.callback(home.config.unlink)
        public_key, node = make_identity(home, passphrase=passphrase)
        undo.pop_all()
    if as_json:
        _print_json({"home": str(home.path), "id": node.hex(), "public_key": public_key.hex()})
    else:
        click.echo(
            f"home     {home.path}\nid       {node.hex()}\nsettings {home.config}\nnow      {home.command('run')}"
        )


@cli.command()
@_home_option
@_settings_options
@click.option("--json", "log_json", is_flag=True, help="Log lines as JSON.")
@click.option("--die-with-parent", is_flag=True, hidden=True, help="Stop when standard input ends.")
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write down all that the node is given, for `p2psim replay`: messages with weights, no key, no data.",
)
@click.option(
    "--record-mb",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Stop recording after so many MiB.",
)
def run(
    home_text: str | None,
    log_json: bool,
    die_with_parent: bool,
    record: Path | None,
    record_mb: int,
    **flags: Any,
) -> int:
    """Run the daemon until it is told to stop. Makes the home if there is none."""
    with EndsAtOnce():
        from p2pnode.launch import run_daemon

    home = _home(home_text)
    values = _flag_values(**flags) + ([("--json", "log.format", "json")] if log_json else [])
    return run_daemon(
        home,
        _settings(home, values),
        die_with_parent=die_with_parent,
        record=record,
        record_mb=record_mb,
    )


@cli.command()
@_home_option
@_json_option
@click.option("--no-wait", is_flag=True, help="Return at once, not when it has ended.")
def stop(home_text: str | None, as_json: bool, no_wait: bool) -> None:
    """Stop the daemon; returns when it is gone."""
    from p2pnode import control
    from p2pnode.home import wait_until_free

    home = _home(home_text)
    control.ask(home, "stop")
    if not no_wait and not wait_until_free(home, STOP_TIMEOUT_S):
        raise UserError(
            ExitCode.FAILED,
            f"the daemon of {home.path} was told to stop and still runs after {STOP_TIMEOUT_S:g} s.",
        )
    if as_json:
        _print_json({"stopped": not no_wait})  # with --no-wait it has been told, and may still run


@cli.command()
@_home_option
@_json_option
@click.argument("addresses", nargs=-1, required=True, metavar="HOST:PORT...")
def join(home_text: str | None, as_json: bool, addresses: tuple[str, ...]) -> None:
    """Tell the running daemon more addresses to enter through."""
    from p2pnode import control
    from p2pnode.address import AddressError, parse_address

    for address in addresses:
        try:
            parse_address(address)
        except AddressError as error:
            raise UserError(ExitCode.USAGE, f"{error}.") from error
    answer = control.ask(_home(home_text), "join", addresses=list(addresses))
    if as_json:
        _print_json(answer)


# --- reading ---------------------------------------------------------------------------------------


@cli.command()
@_home_option
@_json_option
def status(home_text: str | None, as_json: bool) -> int:
    """State, peers, round, loss. Exit status 1 when the node is isolated, diverged or stopping."""
    from p2pnode import control, tables

    answer = control.ask(_home(home_text), "status")
    if as_json:
        _print_json(answer)
    else:
        click.echo(tables.status_text(answer))
    return ExitCode.OK if answer.get("healthy", True) else ExitCode.FAILED


@cli.command()
@_home_option
@_json_option
def peers(home_text: str | None, as_json: bool) -> None:
    """Who is connected."""
    from p2pnode import control, tables

    answer = control.ask(_home(home_text), "peers")
    if as_json:
        _print_json(answer)
    else:
        click.echo(tables.peers_text(answer))


@cli.command()
@_home_option
@click.option("--once", is_flag=True, help="Print one table and exit; so it is when output is no terminal.")
@_json_option
def top(home_text: str | None, once: bool, as_json: bool) -> None:
    """Live view. q quits, ? shows the keys."""
    if as_json:
        from p2pnode import control

        home = _home(home_text)
        _print_json({"status": control.ask(home, "status"), "peers": control.ask(home, "peers")})
        return
    from rich.console import Console

    from p2pnode.dashboard import live

    console = Console()
    if once or not (sys.stdin.isatty() and console.is_terminal):
        live.print_once(_home(home_text), console)
    else:
        live.run_top(_home(home_text), console)


@cli.command("id")
@_home_option
@_json_option
def identity(home_text: str | None, as_json: bool) -> None:
    """The node's id and public key; works without a daemon."""
    from p2pnode.keyfile import claimed_identity

    home = _home(home_text)
    public_key, node = claimed_identity(home)
    if as_json:
        _print_json({"id": node.hex(), "public_key": public_key.hex(), "home": str(home.path)})
    else:
        click.echo(node.hex())


@cli.command("eval")
@_home_option
@_json_option
def evaluate(home_text: str | None, as_json: bool) -> None:
    """Have the daemon test its model on the test split."""
    from p2pnode import control, tables

    answer = control.ask(_home(home_text), "eval", timeout_s=LONG_ANSWER_TIMEOUT_S)
    if as_json:
        _print_json(answer)
    else:
        click.echo(tables.pairs(answer.items()))


@cli.command()
@_home_option
@_json_option
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def export(home_text: str | None, as_json: bool, force: bool, file: Path) -> None:
    """Write the model to FILE.safetensors."""
    from p2pnode import control

    if file.suffix != ".safetensors":
        raise UserError(ExitCode.USAGE, f"expected a file name that ends in .safetensors, got {str(file)!r}.")
    if file.exists() and not force:
        raise UserError(ExitCode.USAGE, f"{file}: there is one already; --force replaces it.")
    answer = control.ask(
        _home(home_text), "export", timeout_s=LONG_ANSWER_TIMEOUT_S, path=str(file.absolute())
    )
    if as_json:
        _print_json(answer)
    else:
        click.echo(f"{file}: {answer.get('size_bytes', file.stat().st_size)} bytes")


@cli.command()
@_json_option
def version(as_json: bool) -> None:
    """Version of p2pnode, its protocol and Python."""
    from p2pnode import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    if as_json:
        from gossip.net.lanes import CHANNEL_VERSION

        _print_json({"version": __version__, "protocol": CHANNEL_VERSION, "python": python})
    else:
        click.echo(f"p2pnode {__version__} (Python {python})")


@cli.group()
def config() -> None:
    """Settings."""


@config.command("show")
@_home_option
@_settings_options
@click.option("--origin", is_flag=True, help="Say who set it: default, file, environment variable or flag.")
@_json_option
def config_show(home_text: str | None, origin: bool, as_json: bool, **flags: Any) -> None:
    """The settings in force, as TOML."""
    from p2pnode import settings, tables

    home = _home(home_text)
    rows = settings.shown(_settings(home, _flag_values(**flags)))
    if as_json:
        _print_json({name: {"value": value, "origin": who} if origin else value for name, value, who in rows})
    else:
        click.echo(tables.settings_text(rows, origin=origin))


@cli.command()
@_home_option
@_json_option
def doctor(home_text: str | None, as_json: bool) -> int:
    """Check this installation, the home and the daemon; exit status 1 if something is wrong."""
    from p2pnode import doctor as examiner

    findings = examiner.examine(_home(home_text))
    if as_json:
        _print_json([{"check": f.check, "verdict": f.verdict, "detail": f.detail} for f in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.verdict:<5} {finding.check:<10} {finding.detail}")
    return ExitCode.FAILED if any(f.verdict == "wrong" for f in findings) else ExitCode.OK


# --- training ----------------------------------------------------------------------------------------


@cli.command("check-task")
@_home_option
@_settings_options
@_json_option
@click.argument("spec", required=False, metavar="[TASK]")
def check_task(home_text: str | None, as_json: bool, spec: str | None, **flags: Any) -> None:
    """Try a task: init, a step, save and load. Prints schema id, bytes per exchange, time of a step."""
    with EndsAtOnce():
        from p2pnode import tables
        from p2pnode.launch import examine_task

    if spec is not None:
        flags["task"] = spec
    answer = examine_task(_settings(_home(home_text), _flag_values(**flags)))
    if as_json:
        _print_json(answer)
    else:
        click.echo(tables.task_text(answer))


@cli.command()
@click.option("--nodes", default=5, show_default=True, type=click.IntRange(2, 16), help="Daemons to start.")
@click.option(
    "--seconds", default=90.0, show_default=True, type=click.FloatRange(5.0), help="At most so long."
)
@_json_option
def demo(nodes: int, seconds: float, as_json: bool) -> int:
    """Real daemons on this machine find each other and learn; ends with a table."""
    with EndsAtOnce():
        from p2pnode.demo import run_demo

    return run_demo(nodes=nodes, seconds_max=seconds, as_json=as_json)


# --- between ---------------------------------------------------------------------------------------


def _home(text: str | None) -> "Home":
    from p2pnode.home import locate

    return locate(text, os.environ)


def _check_text(words: Sequence[str]) -> None:
    """Refuse a command line that is not UTF-8 before a part of it is carried out."""
    for word in words:
        if not is_text(word):
            raise click.UsageError(f"expected words in UTF-8, found {printable(word)}")


def _settings(home: "Home", flags: list[tuple[str, str, str]]) -> "Settings":
    from p2pnode import settings

    return settings.load(file=home.config, environ=os.environ, flags=flags, remembered=home.run)


def _flag_values(
    *,
    listen: str | None,
    advertise: tuple[str, ...],
    join: tuple[str, ...],
    task: str | None,
    data: str | None,
    assignments: tuple[str, ...],
) -> list[tuple[str, str, str]]:
    """(flag, setting, text) in rising precedence: --set is the most explicit."""
    from p2pnode.settings import parse_assignment

    values = [
        ("--listen", "node.listen", listen),
        ("--advertise", "node.advertise", ",".join(advertise) or None),
        ("--join", "node.join", ",".join(join) or None),
        ("--task", "task.factory", task),
        # The daemon may be started from elsewhere later, so a relative path would mean something else then.
        ("--data", "task.args.path", str(Path(data).absolute()) if data is not None else None),
    ]
    given = [(flag, name, text) for flag, name, text in values if text is not None]
    return given + [("--set", *parse_assignment(text)) for text in assignments]


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=True, default=_plain))


def _plain(value: Any) -> Any:
    """Dates, which TOML has and JSON has not, as text; whatever else can be gone through as a list."""
    return value.isoformat() if hasattr(value, "isoformat") else list(value)
