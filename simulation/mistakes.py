"""Mistakes in a scenario, each answered in one sentence: file, dotted key, what was expected, what came, nearest name.

A tree as TOML gives it is walked beside the types that it should fill. The ranges are those that stand beside the
fields (`Meta`), in the scenario's own sections and in the settings of the nodes (`gossip.config`) alike.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from p2pnode.values import described, expected
from p2pnode.values import nearest as nearest

# A key that somebody mistyped is shown, but not a whole page of it.
_SHOWN = 60


class ScenarioError(Exception):
    """The scenario cannot be used; the message is one sentence for the person who wrote it."""

    def __init__(self, sentence: str) -> None:
        # Of paths that a file names, and of what operating systems say about them, anything may be part.
        shown = (one if one.isprintable() else ascii(one)[1:-1] for one in " ".join(sentence.split()))
        super().__init__("".join(shown))


def check_tree(tree: Mapping[str, Any], kind: type, source: str, path: str = "") -> None:
    """Compares a tree with the fields of a Struct or dataclass, and what is in it with theirs.

    Args:
        tree: What came.
        kind: The Struct or dataclass that it is to become.
        source: What the message calls the file.
        path: Dotted, of the section that `tree` is; empty: the file itself.

    Raises:
        ScenarioError: the first mistake.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    names, required = _fields(kind)
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        if key not in names:
            raise unknown(
                source, where[: len(where) - len(key)] + shortened(key), key, names, _below(kind, key, path)
            )
        _check(value, hints[key], source, where)
    for key in required:
        if key not in tree:
            raise ScenarioError(f"{source}: {path}.{key}: expected a value, found none; it has no default")


def unknown(
    source: str, where: str, key: str, names: Iterable[str], elsewhere: Iterable[str] = ()
) -> ScenarioError:
    """The mistake of a name that does not exist here; `elsewhere` are dotted keys of sections where it does."""
    names, places = list(names), list(elsewhere)
    hint = f"; did you mean {' or '.join(places)}?" if places else nearest(key, names)
    return ScenarioError(f"{source}: {where}: expected one of {', '.join(names)}{hint}")


def wrong(source: str, where: str, want: str, value: Any, names: Iterable[str] = ()) -> ScenarioError:
    """The mistake of a value that does not fit."""
    hint = nearest(value, names) if isinstance(value, str) else ""
    return ScenarioError(f"{source}: {where}: expected {want}, found {described(value)}{hint}")


def shortened(text: str) -> str:
    """Text of a stranger as part of a sentence: printable, on one line, not too long."""
    return ascii(text[:_SHOWN])[1:-1]


def convert(tree: Mapping[str, Any], kind: type[Any], source: str) -> Any:
    """Makes the Struct of a tree that `check_tree` has seen."""
    try:
        return msgspec.convert(tree, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        what, _, where = str(error).partition(" - at `$.")
        raise ScenarioError(f"{source}: {where.rstrip('`') or 'the scenario'}: {what}") from error


def _check(value: Any, hint: Any, source: str, where: str) -> None:
    """One value, with all that is in it, against its annotation."""
    if _has_fields(hint):
        if not isinstance(value, dict):
            raise wrong(source, where, f"a section [{where}]", value)
        check_tree(value, hint, source, where)
        return
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
    if inner is not None and _has_fields(inner):
        if not isinstance(value, list):
            raise wrong(source, where, "a list of tables", value)
        for number, entry in enumerate(value):
            if not isinstance(entry, dict):
                raise wrong(source, f"{where}[{number}]", "a table", entry)
            check_tree(entry, inner, source, f"{where}[{number}]")
        return
    if inner is not None and isinstance(value, list):
        for number, entry in enumerate(value):
            _check(entry, inner, source, f"{where}[{number}]")
        return
    # The settings of nodes take infinity where it says "never", as the daemon's own file does.
    want = expected(hint, value, finite=not where.startswith("config."))
    if want:
        raise wrong(source, where, want, value, want.removeprefix("one of ").split(", "))


def _below(kind: type, key: str, path: str) -> list[str]:
    """Dotted keys of all fields of this name in the sections of a section."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        if _has_fields(hint):
            where = f"{path}.{name}" if path else name
            found += [f"{where}.{key}"] if key in _fields(hint)[0] else []
            found += _below(hint, key, where)
    return found


def _fields(kind: type) -> tuple[list[str], list[str]]:
    """Names of all fields, and of those without a default."""
    if dataclasses.is_dataclass(kind):
        return [entry.name for entry in dataclasses.fields(kind)], []
    entries = msgspec.structs.fields(kind)
    return [entry.name for entry in entries], [entry.name for entry in entries if entry.required]


def _has_fields(hint: Any) -> bool:
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, Struct))
