"""`p2pnode top`: a process of its own that listens to the control socket and redraws.

A frame of rich can take a quarter of a second; in the daemon it would stop the event loop, here it stops
nothing. One loop over `selectors`: keys, news from the daemon, a changed window. No thread, no trio.
"""

import dataclasses
import os
import selectors
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from p2pnode.control import ControlClient
from p2pnode.dashboard.keys import Key, KeyDecoder
from p2pnode.dashboard.views import Known, Size, Ui, once, pressed, screen
from p2pnode.errors import UserError
from p2pnode.home import Home

# A terminal sends a sequence in one go; 50 ms of silence after Esc means the key itself.
ESCAPE_SILENCE_S = 0.05
# After the daemon went away, look for it again so often.
RETRY_S = 1.0
# Rounds in the sparkline: more than any window is wide.
LOSSES_MAX = 512


def print_once(home: Home, console: Console) -> None:
    """One plain table, for pipes and for `--once`.

    Raises:
        UserError: NO_DAEMON.
    """
    with ControlClient(home) as client:
        known = Known(status=client.call("status"), peers=client.call("peers"))
    console.print(once(known, Size(columns=console.width, rows=console.height)))


def run_top(home: Home, console: Console) -> None:
    """Until q or Ctrl-C. The terminal is left as it was found.

    Raises:
        UserError: NO_DAEMON, when there is none at the start; later it is waited for.
    """
    with _keys_one_by_one(), _window_changes() as changes, _Top(home, console, changes) as top:
        top.connect()
        try:
            with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
                while not top.ui.quit:
                    live.update(screen(top.known, top.ui, _size(console)), refresh=True)
                    top.wait()
        except KeyboardInterrupt:
            return


class _Top:
    """The loop's state: what is known, what was pressed, and the connection, which may be gone."""

    def __init__(self, home: Home, console: Console, changes: socket.socket) -> None:
        self.known, self.ui = Known(), Ui()
        self._home = home
        self._console = console
        self._changes = changes
        self._decoder = KeyDecoder()
        self._client: ControlClient | None = None
        self._retry_at = 0.0
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(sys.stdin, selectors.EVENT_READ)
        self._waiting.register(changes, selectors.EVENT_READ)

    def __enter__(self) -> "_Top":
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()
        self._waiting.close()

    def connect(self) -> None:
        """Raises UserError (NO_DAEMON)."""
        self._retry_at = time.monotonic() + RETRY_S
        client = ControlClient(self._home)
        client.send("subscribe", interval_s=self.ui.interval_s)
        self._client = client
        self._waiting.register(client.fileno(), selectors.EVENT_READ)

    def _disconnect(self) -> None:
        if self._client is not None:
            self._waiting.unregister(self._client.fileno())
            self._client.close()
            self._client = None

    def wait(self) -> None:
        """Take in whatever comes next; returns at least once in RETRY_S."""
        pace = self.ui.interval_s
        ready = [
            entry.fd
            for entry, _ in self._waiting.select(ESCAPE_SILENCE_S if self._decoder.waiting else RETRY_S)
        ]
        if not ready:
            self._press(self._decoder.flush())
        if self._changes.fileno() in ready:
            self._changes.recv(1024)
        if sys.stdin.fileno() in ready:
            typed = os.read(sys.stdin.fileno(), 1024)
            # An empty read means that the terminal is gone.
            self._press(self._decoder.feed(typed) if typed else [Key("q")])
        try:
            if self._client is not None and self._client.fileno() in ready:
                self.known = _heard(self.known, self._client.receive(), paused=self.ui.paused)
            if self.ui.interval_s != pace:
                self._disconnect()
                self.connect()  # with the new pace
            elif self._client is None and time.monotonic() >= self._retry_at:
                self.connect()
        except UserError as error:
            self._disconnect()
            self.known = dataclasses.replace(self.known, trouble=str(error))

    def _press(self, keys: list[Key]) -> None:
        page = max(self._console.height - 10, 1)
        for key in keys:
            self.ui = pressed(self.ui, key, peers=len(self.known.peers), page=page)


def _heard(known: Known, answers: list[dict[str, Any]], *, paused: bool) -> Known:
    if paused:
        return known
    status, peers, losses = known.status, known.peers, known.losses
    for answer in answers:
        if answer.get("event") == "status" and isinstance(answer.get("data"), dict):
            before, status = status.get("round"), answer["data"]
            loss = status.get("loss")
            if status.get("round") != before and isinstance(loss, int | float):
                losses = (*losses, float(loss))[-LOSSES_MAX:]
        elif answer.get("event") == "peers" and isinstance(answer.get("data"), list):
            peers = answer["data"]
    return Known(status=status, peers=peers, losses=losses)


def _size(console: Console) -> Size:
    return Size(columns=console.width, rows=console.height)


@contextmanager
def _keys_one_by_one() -> Iterator[None]:
    """Deliver keys at once and without echo; Ctrl-C still interrupts."""
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    tty.setcbreak(handle)
    try:
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


@contextmanager
def _window_changes() -> Iterator[socket.socket]:
    """A socket that becomes readable when the window was resized (SIGWINCH)."""
    ear, mouth = socket.socketpair()
    ear.setblocking(False)
    mouth.setblocking(False)

    def nothing(number: int, frame: FrameType | None) -> None:
        """The byte on the socket is all that is needed; a handler must exist for it to be written."""

    old_handler = signal.signal(signal.SIGWINCH, nothing)
    old_fd = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    try:
        yield ear
    finally:
        signal.set_wakeup_fd(old_fd)
        signal.signal(signal.SIGWINCH, old_handler)
        ear.close()
        mouth.close()
