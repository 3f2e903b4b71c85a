"""The one place where text from outside is made harmless, for logs, tables and the dashboard.

A name, an error or an agent string that a peer chose may contain escape sequences that move the cursor,
retitle the window or fake a second log line (docs/security.md, T41). In a file of its own because every command
needs it and logging takes long to import.
"""

import unicodedata

# Longer texts are cut: a line is for reading.
TEXT_LENGTH_MAX = 500


def is_text(text: str) -> bool:
    """Whether `text` has a form in UTF-8. Python gives a lone surrogate for each byte of an argument, a variable or a
    file name that has none, and such a text can be neither printed nor written to a file of settings."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
