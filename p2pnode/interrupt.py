"""Ctrl-C while modules are imported: the process ends at once, and quietly, with the status of an interrupt.

Python's own way raises KeyboardInterrupt wherever the interpreter is. In the middle of an import that is often C code
that drops it, or a callback where it is only printed, so that the person presses again and again; and before `cli.main`
runs, it is a traceback. An import holds nothing that must be put in order: locks and files go with the process, and a
daemon's start is always recovery.

Imports nothing that takes time itself, since it comes first.
"""

import os
import signal
from types import FrameType

# As in `errors.ExitCode`, which is imported under our protection.
_INTERRUPTED = 130


class EndsAtOnce:
    """A context in which Ctrl-C ends the process.

    Nothing changes where SIGINT is ignored, where somebody handles it in a way of their own, and off the main thread.
    """

    def __enter__(self) -> None:
        self._ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            try:
                signal.signal(signal.SIGINT, _end)
            except ValueError:  # not the main thread, where Python delivers no signals
                self._ours = False

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)
