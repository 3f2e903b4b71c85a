"""From the bytes a terminal sends to named keys, and the one table of what keys do.

Terminals send cursor keys as `ESC [ A` or `ESC O A`, depending on a mode nobody remembers; a lone Esc is told
from the start of a sequence only by the silence after it, which is why `flush` exists. What is not
understood is swallowed whole: half a sequence must never act as the letters it contains. Pure: bytes in,
keys out.
"""

import codecs
from typing import NewType

# "up", "enter", "ctrl-c" ..., or the character itself.
Key = NewType("Key", str)

# The help overlay and the table in the documentation are made from this.
KEY_TABLE: tuple[tuple[str, str], ...] = (
    ("q, ctrl-c", "quit"),
    ("?, h", "this help"),
    ("j, k, ↓, ↑", "select a peer"),
    ("PgDn, PgUp, End, Home", "select far away"),
    ("p, space", "pause"),
    ("+, -", "faster, slower"),
    ("esc", "close the help"),
)

_CONTROLS = {
    0x03: "ctrl-c",
    0x04: "ctrl-d",
    0x08: "backspace",
    0x09: "tab",
    0x0A: "enter",
    0x0D: "enter",
    0x20: "space",
    0x7F: "backspace",
}
_FINALS = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end", "Z": "backtab"}
_NUMBERS = {"1": "home", "4": "end", "5": "pageup", "6": "pagedown", "7": "home", "8": "end", "3": "delete"}
_ESCAPE = 0x1B
# No sequence we know is longer; one that is, is noise.
_SEQUENCE_BYTES_MAX = 32


class KeyDecoder:
    """Incremental: bytes may be cut anywhere."""

    def __init__(self) -> None:
        self._pending = bytearray()  # an unfinished escape sequence
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def waiting(self) -> bool:
        """Whether an escape sequence has begun: call `flush` if nothing follows within some 50 ms."""
        return bool(self._pending)

    def feed(self, data: bytes) -> list[Key]:
        """The keys that are complete with `data`."""
        keys: list[Key] = []
        for byte in data:
            if self._pending:
                self._pending.append(byte)
                keys += self._sequence()
            elif byte == _ESCAPE:
                self._pending.append(byte)
            elif byte in _CONTROLS:
                keys.append(Key(_CONTROLS[byte]))
            elif byte >= 0x20:
                keys += [Key(character) for character in self._text.decode(bytes([byte]))]
        return keys

    def flush(self) -> list[Key]:
        """Silence: what began like a sequence and stopped after its Esc was the key Esc."""
        lone = self._pending == bytes([_ESCAPE])
        self._pending.clear()
        return [Key("escape")] if lone else []

    def _sequence(self) -> list[Key]:
        """Look at the pending bytes, `ESC` and at least one more."""
        kind = self._pending[1]
        if kind == _ESCAPE:  # Esc Esc: the first was a key, the second may begin something
            self._pending[:] = bytes([_ESCAPE])
            return [Key("escape")]
        if kind not in b"[O":  # Alt and a letter: not ours
            self._pending.clear()
            return []
        last = self._pending[-1]
        if len(self._pending) == 2 or 0x20 <= last < 0x40:
            if len(self._pending) > _SEQUENCE_BYTES_MAX:
                self._pending.clear()
            return []  # parameters: more is to come
        body = self._pending[2:-1].decode("ascii", "replace")
        self._pending.clear()
        final = chr(last)
        name = _NUMBERS.get(body.partition(";")[0]) if final == "~" else _FINALS.get(final)
        return [Key(name)] if name else []
