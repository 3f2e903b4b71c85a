"""Logging: one line per event, and nothing from a peer can become anything but text (`printable`).

Decisions and transitions are logged, not steps: what changed, for whom, and why something was refused. A log that
fails costs lines, which are counted, and nothing else (`outlet`).
"""

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from p2pnode.outlet import Outlet
from p2pnode.printable import TEXT_LENGTH_MAX, printable

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(
    *, level: str, json_lines: bool, stream: TextIO | None = None, color: bool | None = None
) -> None:
    """Set structlog up for this process.

    Args:
        level: debug, info, warning or error.
        json_lines: One JSON object per line; else `time level event key=value ...`.
        stream: Where lines go; None: stderr, whatever becomes of it.
        color: For console lines; None: when the stream is a terminal.
    """
    target = stream or sys.stderr  # which is None where there was none when the process began
    colored = (target is not None and target.isatty()) if color is None else color
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            json_line if json_lines else (console_line_colored if colored else console_line),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        context_class=dict,
        logger_factory=structlog.WriteLoggerFactory(file=stream or cast(TextIO, _outlet(sys.stderr))),
        cache_logger_on_first_use=True,
    )


def say(text: str) -> None:
    """One line for the person who started the daemon, on stdout, whatever becomes of that."""
    _outlet(sys.stdout).write(text + "\n")


def lines_dropped() -> int:
    """How many lines the log and stdout did not take, since the process began."""
    return sum(outlet.dropped for outlet in _outlets.values())


# By descriptor; -1 for a stream that there is not.
_outlets: dict[int, Outlet] = {}


def _outlet(stream: TextIO | None) -> Outlet:
    descriptor = stream.fileno() if stream is not None else None
    return _outlets.setdefault(-1 if descriptor is None else descriptor, Outlet(descriptor))


def json_line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """Renderer: one JSON object; controls cannot occur in it, because strings are escaped twice over."""
    return json.dumps(
        {printable(str(key), 64): _plain(key, value) for key, value in event.items()}, allow_nan=False
    )


def console_line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """Renderer for people: `12:00:01 info     exchanged  peer=ab12 norm=0.25`."""
    return _console(event, "", "", "")


_LEVEL_COLOR = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31;1m"}


def console_line_colored(logger: WrappedLogger, method: str, event: EventDict) -> str:
    return _console(event, _LEVEL_COLOR.get(str(event.get("level")), "\x1b[32m"), "\x1b[2m", "\x1b[0m")


def _console(event: Mapping[str, Any], accent: str, dim: str, reset: str) -> str:
    rest = {key: value for key, value in event.items() if key not in ("timestamp", "level", "event")}
    clock = str(event.get("timestamp", ""))[11:19]
    words = [
        f"{dim}{printable(str(key), 64)}={reset}{_word(_plain(key, value))}" for key, value in rest.items()
    ]
    name = printable(str(event.get("event", "")))
    return f"{dim}{clock}{reset} {accent}{event.get('level', ''):<8}{reset}{name}" + "".join(
        f"  {w}" for w in words
    )


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if not value or set(value) & set(' ="') else value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _plain(key: object, value: Any) -> Any:
    """Anything as JSON data whose strings are printable."""
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if value - value == 0.0 else str(value)  # NaN and infinity are not JSON
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 64 else value[:64].hex() + "…"
    if isinstance(value, Mapping):
        return {printable(str(k), 64): _plain(k, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, part) for part in value]
    # A traceback is ours and useful only whole; it may quote a peer, so it is escaped like the rest.
    return printable(str(value), 20_000 if key == "exception" else TEXT_LENGTH_MAX)
