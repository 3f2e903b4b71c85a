"""A command line that cannot be used, in one sentence: what was expected, what came, and which command tells more.

click has the facts and words them in three lines of its own. Our programs answer mistakes in command lines as they
answer those in files. Of a kind of mistake that click may invent later, its own words are taken.
"""

import re

import click
from click.exceptions import NoArgsIsHelpError

from p2pnode.printable import printable
from p2pnode.values import Rule, nearest, words

# What click writes between a value and what it should have been.
_IS_NOT = " is not "
_MORE = re.compile(r"Got unexpected extra arguments? \((.*)\)", re.DOTALL)
_NO_VALUE = "expected a value, found nothing"
_LENGTH_MAX = 1000


def usage_line(error: click.ClickException, program: str) -> str:
    """What to print: the name of the program and one sentence; a whole help where that is what click shows."""
    if isinstance(error, NoArgsIsHelpError) or not isinstance(error, click.UsageError):
        return error.format_message()
    sentence = printable(" ".join(_mistake(error).split()), _LENGTH_MAX).removesuffix("?")
    command = error.ctx.command_path if error.ctx is not None else program
    return f"{program}: {sentence}; `{command} --help` tells more"


def _mistake(error: click.UsageError) -> str:
    command = error.ctx.command if error.ctx is not None else None
    if isinstance(error, click.NoSuchOption):
        return f"expected an option that exists, found {error.option_name}{_or(error.possibilities or ())}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"expected {_named(error.param, error.ctx)}, found nothing"
    if isinstance(error, click.BadParameter) and error.param is not None:
        found, is_not, _ = error.message.partition(_IS_NOT)
        want = _expected(error.param.type) if is_not else ""
        what = f"expected {want}, found {found}" if want else _begun_small(error.message)
        if isinstance(error.param.type, click.Choice) and want:
            what += nearest(found.strip("'\""), [str(one) for one in error.param.type.choices])
        return f"{_name(error.param)}: {what}"
    if isinstance(error, click.BadOptionUsage):
        return (
            f"{error.option_name}: {_NO_VALUE if 'requires an argument' in error.message else error.message}"
        )
    name = getattr(error, "command_name", None)  # of NoSuchCommand, which click has since 8.4
    if name is not None and isinstance(command, click.Group):
        names = list(command.commands)
        return f"expected one of {', '.join(names)}, found {name}{nearest(name, names)}"
    more = _MORE.fullmatch(error.message)
    return f"expected nothing more, found {more[1]}" if more else _begun_small(error.format_message())


def _name(parameter: click.Parameter) -> str:
    """As the help calls it."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.human_readable_name


def _named(parameter: click.Parameter, context: click.Context | None) -> str:
    name = _name(parameter)
    if isinstance(parameter, click.Option) and context is not None:
        return f"{name} {parameter.make_metavar(context)}"
    return name


def _expected(kind: click.ParamType) -> str:  # type: ignore[type-arg]  # generic in the stubs only
    """What click's own types take, in our words; empty for others."""
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(str(one) for one in kind.choices)}"
    if isinstance(kind, click.IntRange | click.FloatRange):
        least = float("-inf") if kind.min is None else float(kind.min)
        largest = float("inf") if kind.max is None else float(kind.max)
        plain = int if isinstance(kind, click.IntRange) else float
        return words(Rule(kind=plain, least=least, largest=largest, above=kind.min_open))
    if kind in (click.INT, click.FLOAT):
        return words(Rule(kind=int if kind is click.INT else float))
    return ""


def _or(names: tuple[str, ...] | list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _begun_small(sentence: str) -> str:
    """As part of a sentence that goes on."""
    sentence = sentence.strip().removesuffix(".")
    return sentence[:1].lower() + sentence[1:]
