"""What a long command says of itself on standard error: on a terminal a line drawn anew, else one now and then."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import click


class Progress:
    """Made by `progress`."""

    def __init__(self, bar: Any, every_s: float) -> None:
        self._bar = bar
        self._every_s = every_s
        self._last = monotonic()

    def tell(self, text: str) -> None:
        """What there is to say now. On a terminal in place of what was said before."""
        if self._bar is not None:
            # One line whatever the width: the spinner and a space are before it.
            self._bar.update(text[: max(0, self._bar.console.width - 3)])
        elif monotonic() - self._last >= self._every_s:
            self._last = monotonic()
            click.echo(text, err=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While the line is away others may write, to standard output too, which the line would take for its own."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def progress(first: str, *, every_s: float = 0.0) -> Iterator[Progress]:
    """Progress while this lasts.

    Args:
        first: What stands on a terminal until there is something to say.
        every_s: Elsewhere, at most a line in so many seconds; 0: all of them.
    """
    if not sys.stderr.isatty():
        yield Progress(None, every_s)
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as bar:
        yield Progress(bar, every_s)


def duration(seconds: float) -> str:
    """For people, in two or three digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
