"""Logging: one line per event, and nothing from a peer can become anything but text.

A name, an error or an agent string that a peer chose may contain escape sequences that move the cursor,
retitle the window or fake a second log line (threats.md, T41). `printable` is the one place where such text
is made harmless; the dashboard uses it too.
"""

import json
import logging
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

# Longer texts are cut: a log line is for reading. Tracebacks of our own are exempt.
TEXT_LENGTH_MAX = 500

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def printable(text: str, limit: int = TEXT_LENGTH_MAX) -> str:
    """`text` with everything that is not a visible character or a plain space escaped, cut to `limit`
    characters.

    Escaped are C0 and C1 controls, line and paragraph separators, every format character (bidirectional
    overrides, zero-width, tags), lone surrogates, private use and unassigned code points, and the backslash
    itself, so that no two texts look the same by escaping. Combining marks are kept, after composition (NFC),
    but at most two in a row.
    """
    # Cut first: composing a hostile megabyte is work; composition never makes a text more than three times
    # longer.
    composed = unicodedata.normalize("NFC", text[: limit + 1])
    parts: list[str] = []
    marks = 0
    for character in composed:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if character == "\\":
            parts.append("\\\\")
        elif character.isprintable() and marks <= 2:
            parts.append(character)
        else:
            parts.append(_escaped(character))
    safe = "".join(parts)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def _escaped(character: str) -> str:
    code = ord(character)
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if known:
        return known
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def configure(
    *, level: str, json_lines: bool, stream: TextIO | None = None, color: bool | None = None
) -> None:
    """Set structlog up for this process.

    Args:
        level: debug, info, warning or error.
        json_lines: One JSON object per line; else `time level event key=value ...`.
        stream: Where lines go; None: stderr.
        color: For console lines; None: when the stream is a terminal.
    """
    target = stream if stream is not None else sys.stderr
    colored = target.isatty() if color is None else color
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
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=True,
    )


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
