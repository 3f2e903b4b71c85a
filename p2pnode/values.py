"""One value against its annotated type, in words that a person understands: what was expected, and what came.

Settings of the daemon (`config.toml`) and scenarios of the simulator are the same kind of thing: fields with a type, a
range and perhaps a list of words, all of which stand beside the field, as `Annotated[int, Meta(ge=1, le=64)]`. Both ask
here, so that a range is written down once.
"""

import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

# Key in `Meta(extra=...)` under which a text field names the words it takes.
CHOICES = "choices"

_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
}
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}
_FOUND: dict[type, str] = {bool: "a truth value"}
# What of a value is shown in a message: it may be a book.
_SHOWN = 60


class Rule(Struct, frozen=True):
    """What a field takes."""

    kind: Any  # the bare type
    least: float = -math.inf
    largest: float = math.inf
    above: bool = False  # whether `least` itself is too small
    choices: tuple[str, ...] = ()
    longest: float = math.inf  # characters of a text


def rule(hint: Any) -> Rule:
    """Reads the rule from an annotation (`typing.get_type_hints(..., include_extras=True)`)."""
    kind, least, largest, above = hint, -math.inf, math.inf, False
    choices: tuple[str, ...] = ()
    longest = math.inf
    if typing.get_origin(hint) is Annotated:
        kind, *notes = typing.get_args(hint)
        for meta in (note for note in notes if isinstance(note, Meta)):
            if meta.gt is not None:
                least, above = meta.gt, True
            least = meta.ge if meta.ge is not None else least
            largest = meta.le if meta.le is not None else largest
            choices = (meta.extra or {}).get(CHOICES, choices)
            longest = meta.max_length if meta.max_length is not None else longest
    if typing.get_origin(kind) is Literal:
        kind, choices = str, typing.get_args(kind)
    return Rule(kind=kind, least=least, largest=largest, above=above, choices=choices, longest=longest)


def expected(hint: Any, value: Any, *, finite: bool = True) -> str:
    """What should have come instead of `value`, in words; empty where it fits.

    Args:
        hint: An annotation of bool, int, float, str, Literal, or a list, tuple or dict of these.
        finite: Whether infinity is refused where the range does not already.
    """
    if typing.get_origin(hint) in (
        types.UnionType,
        typing.Union,
    ):  # None is what a person says by leaving it out
        wants = [
            expected(one, value, finite=finite) for one in typing.get_args(hint) if one is not types.NoneType
        ]
        return "" if "" in wants else " or ".join(wants)
    wanted = rule(hint)
    origin = typing.get_origin(wanted.kind) or wanted.kind
    if origin in (list, tuple):
        inner = typing.get_args(wanted.kind)[0]
        wrong = not isinstance(value, list | tuple) or any(
            expected(inner, one, finite=finite) for one in value
        )
        plain = _PLURALS.get(inner)  # of a bare type
        each = expected(inner, None, finite=finite)
        return "" if not wrong else f"a list of {plain}" if plain else f"a list, each entry {each}"
    if origin is dict:
        return "" if isinstance(value, dict) else _NAMES[dict]
    if _fits(wanted, value, finite=finite):
        return ""
    if finite and wanted.kind is float and isinstance(value, float) and not math.isfinite(value):
        return "a finite number" + _limits(wanted)
    return words(wanted)


def described(value: Any) -> str:
    """What came, in words."""
    kind = _FOUND.get(type(value)) or _NAMES.get(type(value), type(value).__name__)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"{kind} of {value.bit_length()} bits"  # Python refuses to write very large ones
    return f"{kind} ({' '.join(ascii(value)[: _SHOWN + 1].split())[:_SHOWN]})"


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _fits(wanted: Rule, value: Any, *, finite: bool) -> bool:
    if isinstance(value, bool) or wanted.kind is bool:
        return wanted.kind is bool and isinstance(value, bool)
    if wanted.kind is str:
        if not isinstance(value, str) or len(value) > wanted.longest:
            return False
        return not wanted.choices or value in wanted.choices
    if wanted.kind is float and isinstance(value, int | float):
        try:
            value = float(value)
        except OverflowError:
            return False
        if finite and math.isinf(value):
            return False
    elif not (wanted.kind is int and isinstance(value, int)):
        return False
    # Written so that NaN fails.
    return bool((wanted.least < value if wanted.above else wanted.least <= value) and value <= wanted.largest)


def words(wanted: Rule) -> str:
    """What a field takes, as part of a sentence that begins with "expected"."""
    if wanted.choices:
        return "one of " + ", ".join(wanted.choices)
    if wanted.longest < math.inf:
        return f"{_NAMES[str]} of at most {wanted.longest:g} characters"
    return _NAMES.get(wanted.kind, "a table") + _limits(wanted)


def _limits(wanted: Rule) -> str:
    if not math.isfinite(wanted.least):
        return ""
    if math.isfinite(wanted.largest):
        start = (
            f" above {_number(wanted.least)} and at most"
            if wanted.above
            else f" between {_number(wanted.least)} and"
        )
        return f"{start} {_number(wanted.largest)}"
    return f" {'above' if wanted.above else 'at least'} {_number(wanted.least)}"


def _number(limit: float) -> str:
    return str(int(limit)) if float(limit).is_integer() and abs(limit) < 1e15 else f"{limit:g}"
