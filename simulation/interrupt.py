"""Ctrl-C as a question that a long command answers when it can: the first one asks, the second one ends at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

# As shells report a program that Ctrl-C ended.
INTERRUPTED = 130


class Interrupt:
    """Whether somebody pressed Ctrl-C."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def asking(*, then: str) -> Iterator[Interrupt]:
    """While this lasts, the first Ctrl-C sets `asked` and says `then` on standard error; the second raises.

    With nothing to say it is silent, for a screen that is drawn.

    On another thread than the main one, where Python delivers no signals, nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handler(number: int, frame: FrameType | None) -> Any:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        if then:
            click.echo(f"p2psim: {then}; once more ends at once", err=True)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
