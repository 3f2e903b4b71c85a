"""Values of settings as people write them: TOML, in which a plain word needs no quotes, as behind `--set`.

What is printed here can be pasted back: `?key=value` of it chooses the run that it was printed for.
"""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from p2pnode.settings import to_toml

# Names that need no quotes in TOML.
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# Texts that need none behind `--set` and in a query: neither TOML of another kind, nor a sign that ends something.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")
# Of a run that has no such key.
ABSENT = "-"


def value_of(text: str) -> Any:
    """A value as in TOML; what is not valid TOML is text."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text
    return document["value"] if len(document) == 1 else text


def shown(value: Any) -> str:
    """A value so that `value_of` gives it back; `-` for None, which is that of a run without the key."""
    if value is None:
        return ABSENT
    if isinstance(value, str) and _WORD.fullmatch(value) and value_of(value) == value:
        return value
    return _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return to_toml(value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else to_toml(name)


def under(tree: Mapping[str, Any], key: str) -> Any:
    """What stands under a dotted key, a value or a whole section; None where there is nothing."""
    found: Any = tree
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def keys_of(tree: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted keys of all values and of all sections."""
    keys = []
    for name, value in tree.items():
        keys.append(f"{path}{name}")
        if isinstance(value, Mapping):
            keys += keys_of(value, f"{path}{name}.")
    return keys


def agrees(found: Any, wanted: Any) -> bool:
    """Whether a value is the one that was named; of tables what was named counts, since runs are stored with defaults.

    A truth value is no number. A table without anything in it agrees with itself only.
    """
    if isinstance(wanted, dict):
        if not isinstance(found, Mapping) or not wanted:
            return isinstance(found, Mapping) and not found
        return all(name in found and agrees(found[name], entry) for name, entry in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(agrees(one, other) for one, other in zip(found, wanted, strict=True))
        )
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)
