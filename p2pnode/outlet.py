"""Where lines for people go: a stream that may be gone, full or stuck, none of which may end or stop a daemon.

A line that cannot be written is dropped and counted, and the next one is tried again, because collectors of logs
restart and disks are emptied. Bytes go straight to the descriptor: Python's own streams keep what they could not write
and fail once more at exit.
"""

import os
import select
import threading

# A stream that is full and has been read until now is waited for so long; the event loop stands still meanwhile. One
# that is stuck is not waited for again before it takes a line. A guess.
PATIENCE_MS = 100
# What a pipe that is ready takes without blocking.
PIECE_BYTES = select.PIPE_BUF


class Outlet:
    """One descriptor as a file to which whole lines are written. Threads may share it.

    Args:
        descriptor: Open for writing, and not ours to close; None: there is none, and every line is dropped.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._ready = select.poll()
        if descriptor is not None:
            self._ready.register(descriptor, select.POLLOUT)
        self._stuck = False
        self._torn = False  # whether the last line was cut off
        self.dropped = 0  # lines

    def write(self, text: str) -> int:
        """Write a line with its end, or drop it. Never raises for what the world does; returns the length of `text`."""
        with self._lock:
            if not self._written(text.encode(errors="backslashreplace")):
                self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""

    def _written(self, line: bytes) -> bool:
        if self._descriptor is None:
            return False
        rest = b"\n" + line if self._torn else line
        size = len(rest)
        while rest:
            try:
                # A reader that is gone is `ready`, too: writing tells.
                self._stuck = not self._ready.poll(0 if self._stuck else PATIENCE_MS)
                if self._stuck:
                    break
                rest = rest[os.write(self._descriptor, rest[:PIECE_BYTES]) :]
            except OSError:
                break
        if len(rest) < size:
            self._torn = bool(rest)
        return not rest
