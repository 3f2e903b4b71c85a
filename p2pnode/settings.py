"""Settings of the daemon: defaults < config.toml < environment < command line, one table for all of them.

The sections `dht`, `membership`, `exchange` and `learning` *are* the dataclasses of `gossip.config`: names,
types, defaults and the sentences that explain them are read from there, so there is nothing to keep in step.
A key that nobody knows is refused with the nearest one that exists: a misspelt setting that is silently
ignored costs a night.

Environment: `P2PNODE_SECTION__KEY`, for example `P2PNODE_LEARNING__LOCAL_STEPS=8`. Command line:
`--set learning.local_steps=8`. What a setting takes decides how its text is read: text as it stands, a list between
commas, a number as TOML writes it. Only the arguments of a task, whose kinds are not known, are read as TOML values,
and as plain text where that fails.
"""

import dataclasses
import datetime
import difflib
import inspect
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from gossip.config import Config
from p2pnode.address import AddressError, parse_address
from p2pnode.errors import ExitCode, UserError
from p2pnode.printable import is_text
from p2pnode.values import CHOICES, described, expected, rule

Value: TypeAlias = bool | int | float | str | tuple[str, ...]

# A settings file is written by hand; one that is longer is not a settings file.
FILE_BYTES_MAX = 2**20
# What a record takes (`gossip.dht.records`), which is not imported: settings are read by commands that start fast. A
# test compares them.
ADVERTISED_MAX = 8
ADVERTISED_EACH_MAX = 128
ENVIRONMENT_PREFIX = "P2PNODE_"
TASK_ARGS = "task.args."


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    # Accept connections here. Other machines must be able to reach it; 127.0.0.1:7400 keeps the node to this
    # machine, port 0 lets the system choose.
    listen: str = "0.0.0.0:7400"
    # host:port under which others reach this node, where that differs from `listen` (port forwarding,
    # containers).
    advertise: tuple[str, ...] = ()
    # Known addresses (host:port) through which to enter the network. Any node of the network will do.
    join: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    # What is learned: a built-in name (digits, table) or module:factory of your own. Keyword arguments of the
    # factory stand in [task.args].
    factory: str = "digits"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    # debug, info, warning or error.
    level: Annotated[str, Meta(extra={CHOICES: ("debug", "info", "warning", "error")})] = "info"
    # console (for people), json (for machines) or auto: console on a terminal, else json.
    format: Annotated[str, Meta(extra={CHOICES: ("auto", "console", "json")})] = "auto"


# Sections in the order in which people read them. `network` is what stands at the top of gossip's Config.
_SECTIONS: dict[str, type] = {
    "node": NodeSettings,
    "network": Config,
    "task": TaskSettings,
    **{
        name: hint
        for name, hint in typing.get_type_hints(Config).items()
        if dataclasses.is_dataclass(hint) and isinstance(hint, type)
    },
    "log": LogSettings,
}
# The one name that reads badly as it is: network.network.
_RENAMED = {("network", "network"): "name"}

# Settings that are addresses: how to have them one by one.
_ADDRESSES: dict[str, Callable[[Any], tuple[str, ...]]] = {
    "node.listen": lambda address: (address,),
    "node.advertise": tuple,
    "node.join": tuple,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    name: str  # section.key, as people write it
    kind: Any  # int, float, str or tuple[str, ...]
    default: Any  # of that kind
    owner: type  # the dataclass that has it ...
    attribute: str  # ... under this name
    hint: Any  # the kind with its range or its words, as it stands beside the field


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the daemon was told, resolved, checked and immutable."""

    node: NodeSettings = field(default_factory=NodeSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    task_args: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the task's factory
    log: LogSettings = field(default_factory=LogSettings)
    core: Config = field(default_factory=Config)
    origins: Mapping[str, str] = field(default_factory=dict)  # name -> who said so; absent: default

    def value(self, name: str) -> Value:
        """The value in force for a row of the table."""
        row = TABLE[name]
        section = name.partition(".")[0]
        if row.owner is Config:
            owner: object = self.core
        elif section in ("node", "task", "log"):
            owner = getattr(self, section)
        else:
            owner = getattr(self.core, section)
        value: Value = getattr(owner, row.attribute)
        return value


def _table() -> dict[str, Setting]:
    rows = {}
    for section, owner in _SECTIONS.items():
        hints = typing.get_type_hints(owner)
        full = typing.get_type_hints(owner, include_extras=True)
        for entry in dataclasses.fields(owner):
            if dataclasses.is_dataclass(hints[entry.name]):
                continue  # a section of its own
            name = f"{section}.{_RENAMED.get((section, entry.name), entry.name)}"
            rows[name] = Setting(
                name=name,
                kind=hints[entry.name],
                default=entry.default,
                owner=owner,
                attribute=entry.name,
                hint=full[entry.name],
            )
    return rows


TABLE: dict[str, Setting] = _table()


def load(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Iterable[tuple[str, str, str]] = (),
    remembered: Path | None = None,
) -> Settings:
    """Resolve the settings.

    Args:
        file: config.toml; None or absent: none.
        environ: `os.environ`; only names that begin with P2PNODE_ and contain `__` are looked at.
        flags: (flag, name, text) in rising order of precedence, e.g. ("--set", "learning.local_steps", "8").
        remembered: How the home was started last (`p2pnode.remembered`), weakest of all, and only where no task is
            named: who names one says all about it.

    Raises:
        UserError: USAGE; names the file or flag, the key, what was expected and what came.
    """
    found: dict[str, tuple[Any, str]] = {}
    if file is not None and file.exists():
        for name, value in _read(file):
            found[name] = (_checked(name, value, origin=str(file)), str(file))
    for variable, text in sorted((environ or {}).items()):
        if variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            found[name] = (_given(name, text, origin=variable), variable)
    for flag, name, text in flags:
        found[name] = (_given(name, text, origin=flag), flag)
    if remembered is not None and "task.factory" not in found and remembered.exists():
        for name, value in _read(remembered):
            found.setdefault(name, (_checked(name, value, origin=str(remembered)), str(remembered)))
    return _assembled(found)


def parse_assignment(text: str) -> tuple[str, str]:
    """Split `section.key=value` of `--set`.

    Raises:
        UserError: USAGE.
    """
    name, equals, value = text.partition("=")
    if not equals or "." not in name:
        raise UserError(ExitCode.USAGE, f"--set expects section.key=value, got {text!r}.")
    return name.strip(), value


def default_toml(values: Mapping[str, str] | None = None) -> str:
    """The commented config.toml that `init` writes.

    Every default stands in a comment, so that a later version may improve it; `values` (name -> text) are
    written as settings.
    """
    given = {name: _given(name, text, origin="--set") for name, text in (values or {}).items()}
    lines = [
        "# Settings of one p2pnode. What is commented out is the default. Stronger than this file are the",
        "# environment (P2PNODE_SECTION__KEY) and flags (--set section.key=value); what is in force, and who",
        "# said so, is shown by `p2pnode config show --origin`.",
    ]
    for section, owner in _SECTIONS.items():
        lines += ["", f"[{section}]"]
        explained = documentation(owner)
        for row in TABLE.values():
            if row.owner is owner:
                lines += [f"# {line}" for line in explained[row.attribute]]
                key = row.name.partition(".")[2]
                if row.name in given:
                    lines.append(f"{key} = {to_toml(given[row.name])}")
                else:
                    lines.append(f"# {key} = {to_toml(row.default)}")
        if section == "task":
            lines += ["", "[task.args]"]
            lines += [
                f"{toml_key(name.removeprefix(TASK_ARGS))} = {to_toml(value)}"
                for name, value in given.items()
                if name.startswith(TASK_ARGS)
            ] or ["# Keyword arguments of the factory, for example:", "# lr = 0.1"]
    return "\n".join(lines) + "\n"


def documentation(owner: type) -> dict[str, list[str]]:
    """The comment above (or behind) each field of a settings dataclass, as lines of text."""
    explained: dict[str, list[str]] = {}
    pending: list[str] = []
    names = {entry.name for entry in dataclasses.fields(owner)}
    for line in inspect.getsource(owner).splitlines():
        text = line.strip()
        name = text.partition(":")[0]
        if text.startswith("#"):
            pending.append(text.removeprefix("#").strip())
        elif name in names:
            behind = text.partition("  #")[2].strip()
            explained[name] = [*pending, *([behind] if behind else [])]
            pending = []
        else:
            pending = []
    return explained


def shown(settings: Settings) -> list[tuple[str, Any, str]]:
    """(name, value, origin) of everything in force, in the order of the file."""
    rows: list[tuple[str, Any, str]] = [
        (name, settings.value(name), settings.origins.get(name, "default")) for name in TABLE
    ]
    arguments = [
        (TASK_ARGS + key, value, settings.origins.get(TASK_ARGS + key, "default"))
        for key, value in settings.task_args.items()
    ]
    after_task = max(index for index, row in enumerate(rows) if row[0].startswith("task.")) + 1
    return rows[:after_task] + arguments + rows[after_task:]


# --- from outside to values ------------------------------------------------------------------------


def _read(file: Path) -> list[tuple[str, Any]]:
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise UserError(
                ExitCode.USAGE, f"{file}: expected at most {FILE_BYTES_MAX} bytes of settings, got more."
            )
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise UserError(ExitCode.USAGE, f"{file}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise UserError(ExitCode.USAGE, f"{file}: expected a TOML file, got: {error}.") from error
    values: list[tuple[str, Any]] = []
    for section, table in document.items():
        if section not in _SECTIONS:
            raise _unknown(section, _SECTIONS, origin=str(file), kind="section")
        if not isinstance(table, dict):
            raise UserError(
                ExitCode.USAGE, f"{file}: expected a section [{section}], got {described(table)}."
            )
        for key, value in table.items():
            name = f"{section}.{key}"
            if name == TASK_ARGS.rstrip("."):
                if not isinstance(value, dict):
                    raise UserError(
                        ExitCode.USAGE, f"{file}: expected a table [task.args], got {described(value)}."
                    )
                values += [(TASK_ARGS + argument, content) for argument, content in value.items()]
            else:
                values.append((name, value))
    return values


def _given(name: str, text: str, *, origin: str) -> Any:
    """The value that a flag or a variable gives to a setting."""
    if not is_text(text):
        raise UserError(ExitCode.USAGE, f"{origin}: {name}: expected text in UTF-8, got {described(text)}.")
    return _checked(name, _from_text(name, text), origin=origin)


def _from_text(name: str, text: str) -> Any:
    """Read the text of a flag or variable: as the type of the setting wants it."""
    row = TABLE.get(name)
    if row is not None and row.kind is str:
        # Blanks around an address or one of a few words are a matter of typing, those in a name belong to it.
        return text.strip() if name in _ADDRESSES or rule(row.hint).choices else text
    if row is not None and row.kind == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # ValueError: a number of too many digits, too
        return text
    # A second line would smuggle in a second key.
    return document["value"] if len(document) == 1 else text


def to_text(name: str, value: Any) -> str:
    """`value` as a flag or variable gives it to the setting: what `_from_text` reads."""
    if isinstance(value, str) and name in TABLE:
        return value
    if isinstance(value, tuple) and name in TABLE:
        return ",".join(value)
    return to_toml(value)


def _checked(name: str, value: Any, *, origin: str) -> Any:
    if name.startswith(TASK_ARGS):
        argument = name.removeprefix(TASK_ARGS)
        if not argument.isidentifier():
            raise UserError(
                ExitCode.USAGE,
                f"{origin}: task.args: expected the name of a keyword argument, got {described(argument)}.",
            )
        return value  # the factory knows
    if name not in TABLE:
        raise _unknown(name, TABLE, origin=origin, kind="setting")
    row = TABLE[name]
    want = expected(row.hint, value, finite=False)
    if want:
        raise UserError(ExitCode.USAGE, f"{origin}: {name}: expected {want}, got {described(value)}.")
    if isinstance(value, str) and "\0" in value:
        # No command line could say it again.
        raise UserError(
            ExitCode.USAGE, f"{origin}: {name}: expected text without NUL, got {described(value)}."
        )
    result: Any = msgspec.convert(value, row.kind, strict=True)
    for address in _ADDRESSES[name](result) if name in _ADDRESSES else ():
        try:
            parse_address(address)
        except AddressError as error:
            raise UserError(ExitCode.USAGE, f"{origin}: {name}: {error}.") from error
    if name == "node.advertise":
        _check_advertised(result, origin)
    return result


def _check_advertised(addresses: tuple[str, ...], origin: str) -> None:
    """They go into a signed record, which has room for some and takes no character that cannot be seen."""
    if len(addresses) > ADVERTISED_MAX:
        want = f"at most {ADVERTISED_MAX} addresses"
        raise UserError(
            ExitCode.USAGE, f"{origin}: node.advertise: expected {want}, got {described(addresses)}."
        )
    for address in addresses:
        if not address.isascii() or len(address) > ADVERTISED_EACH_MAX or parse_address(address)[1] == 0:
            want = f"host:port in ASCII, at most {ADVERTISED_EACH_MAX} characters, the port not 0"
            raise UserError(
                ExitCode.USAGE, f"{origin}: node.advertise: expected {want}, got {address!r:.200}."
            )


def _unknown(name: str, known: Iterable[str], *, origin: str, kind: str) -> UserError:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "`p2pnode config show` lists all of them."
    return UserError(ExitCode.USAGE, f"{origin}: there is no {kind} {name!r}; {hint}")


def _assembled(found: Mapping[str, tuple[Any, str]]) -> Settings:
    def filled(section: str, owner: type) -> dict[str, Any]:
        return {
            row.attribute: found[row.name][0]
            for row in TABLE.values()
            if row.owner is owner and row.name in found and row.name.startswith(section + ".")
        }

    core = Config(
        **filled("network", Config),
        **{
            section: owner(**filled(section, owner))
            for section, owner in _SECTIONS.items()
            if section not in ("node", "network", "task", "log")
        },
    )
    return Settings(
        node=NodeSettings(**filled("node", NodeSettings)),
        task=TaskSettings(**filled("task", TaskSettings)),
        task_args={
            name.removeprefix(TASK_ARGS): value
            for name, (value, _) in found.items()
            if name.startswith(TASK_ARGS)
        },
        log=LogSettings(**filled("log", LogSettings)),
        core=core,
        origins={name: origin for name, (_, origin) in found.items()},
    )


def to_toml(value: Any) -> str:
    """`value` as it stands behind `key = ` in a TOML file, on one line and without a character that cannot be seen."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(map(_toml_character, value)) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(to_toml(part) for part in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_key(key)} = {to_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def toml_key(key: str) -> str:
    """`key` as it stands before the `=` in a TOML file."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else to_toml(key)


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
