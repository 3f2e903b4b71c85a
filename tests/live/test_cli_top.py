"""`p2pnode top` on a real terminal (a pty): drawn, steered by keys, resized, and left as it was found."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode import control_server
from p2pnode import home as homes
from p2pnode.home import Home

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
ENTER_SCREEN, LEAVE_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"
HOSTILE = "\x1b]0;owned\x07\x1b[2J"
PATIENCE_S = 30.0
# As a shell's child: the pty becomes the terminal that Ctrl-C belongs to.
TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and inherited, where the tests run in the background
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Answering:
    """A daemon as far as `top` can see."""

    def __init__(self) -> None:
        self.round = 0

    def status(self) -> dict[str, Any]:
        self.round += 1
        return {
            "id": "ab" * 32,
            "state": "training",
            "round": self.round,
            "loss": 1 / self.round,
            "refused": {},
        }

    def peers(self) -> list[dict[str, Any]]:
        return [{"id": f"{n:02x}" * 32, "address": f"peer-{n}{HOSTILE}:1"} for n in range(1, 40)]

    def identity(self) -> dict[str, Any]:
        return {}

    async def evaluate(self) -> dict[str, Any]:
        return {}

    async def export(self, path: str) -> dict[str, Any]:
        return {}

    async def save(self) -> dict[str, Any]:
        return {}

    async def join(self, addresses: tuple[str, ...]) -> dict[str, Any]:
        return {}

    def stop(self) -> None: ...


@contextmanager
def serving(home: Home) -> Iterator[None]:
    """The control socket of `home`, answered from another thread."""
    ready, scope = threading.Event(), trio.CancelScope()
    token: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        token.append(trio.lowlevel.current_trio_token())
        listener = control_server.listen(home)
        ready.set()
        with scope:
            await control_server.ControlServer(Answering(), listener).run()
        listener.close()
        home.socket.unlink()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield
    finally:
        token[0].run_sync_soon(scope.cancel)
        thread.join(PATIENCE_S)


class Terminal:
    """A pty with `p2pnode top` in it."""

    def __init__(self, home: Home, *, rows: int = 24, columns: int = 90) -> None:
        self.fd, inner = pty.openpty()
        self.inner = inner
        self.resize(rows, columns, tell=False)
        self.before = termios.tcgetattr(inner)
        self.seen = b""
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                TAKE_TERMINAL,
                sys.executable,
                "-m",
                "p2pnode",
                "top",
                "--home",
                str(home.path),
            ],
            cwd=ROOT,
            start_new_session=True,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=os.environ | {"TERM": "xterm-256color"},
        )

    def resize(self, rows: int, columns: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def read_until(self, text: bytes, *, after: int = 0) -> int:
        """Read until `text` stands in what came from position `after` on; returns where it ends."""
        end = time.monotonic() + PATIENCE_S
        while text not in self.seen[after:]:
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} never came; the end was {self.seen[-500:]!r}"
            self.seen += os.read(self.fd, 2**16)
        return self.seen.index(text, after) + len(text)

    def press(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def ended(self) -> int:
        """The exit status; what was written until then is read."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it did not end; the last it wrote was {self.seen[-500:]!r}"
            ready, _, _ = select.select([self.fd], [], [], 0.1)
            if ready:
                self.seen += os.read(self.fd, 2**16)
        while select.select([self.fd], [], [], 0)[0]:
            self.seen += os.read(self.fd, 2**16)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.inner)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    homes.create(made)
    return made


@pytest.fixture
def terminal(home: Home) -> Iterator[Terminal]:
    with serving(home):
        made = Terminal(home)
        yield made
        made.close()


def test_top_is_drawn_steered_resized_and_leaves_no_trace(terminal: Terminal) -> None:
    """One life of a view, from the first frame to the restored terminal."""
    terminal.read_until(ENTER_SCREEN)
    terminal.read_until(b"abababababab")

    terminal.press(b"jj")
    at = terminal.read_until(b"030303030303", after=0)
    terminal.press(b"?")
    at = terminal.read_until(b"select far away", after=at)
    terminal.press(b"\x1b")  # a lone Esc, known by the silence after it
    at = terminal.read_until(b"q quit", after=at)
    terminal.press(b"p")
    at = terminal.read_until(b"paused", after=at)
    terminal.press(b"p")
    at = terminal.read_until(b"every 0.5 s", after=at)
    terminal.press(b"-")
    at = terminal.read_until(b"every 1 s", after=at)

    terminal.resize(12, 60)
    terminal.press(b"\x1b[F")  # End: the last peer, which a window of 12 rows shows only when scrolled
    at = terminal.read_until(b"272727272727", after=at)

    terminal.press(b"q")
    assert terminal.ended() == 0
    assert terminal.seen.rindex(LEAVE_SCREEN) > terminal.seen.rindex(ENTER_SCREEN)
    assert SHOW_CURSOR in terminal.seen[terminal.seen.rindex(b"272727272727") :]
    assert termios.tcgetattr(terminal.inner) == terminal.before
    assert b"owned\x07" not in terminal.seen
    assert b"\\x1b" in terminal.seen


@pytest.mark.parametrize("way", ["key", "signal"])
def test_ctrl_c_ends_it_cleanly(terminal: Terminal, way: str) -> None:
    terminal.read_until(b"q quit")
    if way == "key":
        terminal.press(b"\x03")
    else:
        terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 0
    assert LEAVE_SCREEN in terminal.seen
    assert termios.tcgetattr(terminal.inner) == terminal.before


def test_it_says_so_when_the_daemon_goes_and_goes_on_when_it_returns(home: Home) -> None:
    with serving(home):
        terminal = Terminal(home)
        terminal.read_until(b"q quit")
    try:
        at = terminal.read_until(b"no daemon runs")
        with serving(home):
            terminal.read_until(b"q quit", after=at)
            terminal.press(b"q")
            assert terminal.ended() == 0
    finally:
        terminal.close()


def test_without_a_terminal_it_prints_one_table(home: Home) -> None:
    with serving(home):
        answer = subprocess.run(
            [sys.executable, "-m", "p2pnode", "top", "--home", str(home.path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert len(lines) > 40
    assert all(line.isprintable() for line in lines)
