"""`p2psim run --watch`, `sweep` and `swarm` on a real terminal (a pty): drawn, interrupted, and it is left as found."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
ENTER_SCREEN, LEAVE_SCREEN, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"
PATIENCE_S = 60.0
# As a shell's child: the pty becomes the terminal that Ctrl-C belongs to.
TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and inherited, where the tests run in the background
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A pty with `p2psim` in it."""

    def __init__(self, *arguments: str, **settings: object) -> None:
        self.fd, self.inner = pty.openpty()
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = termios.tcgetattr(self.inner)
        self.seen = b""
        command = [sys.executable, "-m", "simulation", *arguments]
        if arguments[0] != "swarm":  # which is about them
            command.append("--set=faults={}")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                TAKE_TERMINAL,
                *command,
                *(f"--set={key}={value}" for key, value in settings.items()),
            ],
            cwd=ROOT,
            start_new_session=True,
            stdin=self.inner,
            stdout=self.inner,
            stderr=self.inner,
            env={**os.environ, "TERM": "xterm-256color"},
        )

    def read_until(self, text: bytes, *, after: int = 0) -> int:
        """Read until `text` stands in what came from position `after` on; returns where it ends."""
        end = time.monotonic() + PATIENCE_S
        while text not in self.seen[after:]:
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} never came; the end was {self.seen[-500:]!r}"
            self.seen += os.read(self.fd, 2**16)
        return self.seen.index(text, after) + len(text)

    def ended(self) -> int:
        """The exit status; what was written until then is read."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None or select.select([self.fd], [], [], 0)[0]:
            assert time.monotonic() < end, f"it did not end; the last it wrote was {self.seen[-500:]!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 2**16)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.inner)


@pytest.fixture(params=[12.0, 3000.0])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal("run", "smoke-20", "--watch", "--every", "1", duration_s=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("terminal", [12.0], indirect=True)
def test_a_run_is_drawn_to_its_end_and_its_report_stays(terminal: Terminal) -> None:
    terminal.read_until(ENTER_SCREEN)
    terminal.read_until(b"learning, by accuracy")
    assert terminal.ended() == 0
    left = terminal.seen.rindex(LEAVE_SCREEN)
    assert SHOW_CURSOR in terminal.seen
    after = terminal.seen[left:].decode()
    assert "digest" in after
    assert "PARTIAL" not in after
    assert "█".encode() in terminal.seen[:left]
    assert termios.tcgetattr(terminal.inner) == terminal.before


@pytest.mark.parametrize("terminal", [3000.0], indirect=True)
@pytest.mark.parametrize("way", ["key", "signal"])
def test_ctrl_c_gives_a_partial_report_and_the_terminal_back(terminal: Terminal, way: str) -> None:
    terminal.read_until(b"learning, by accuracy")
    if way == "key":
        os.write(terminal.fd, b"\x03")
    else:
        terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 130
    after = terminal.seen[terminal.seen.rindex(LEAVE_SCREEN) :].decode()
    assert "PARTIAL" in after
    assert "digest" in after
    assert "Traceback" not in after
    assert termios.tcgetattr(terminal.inner) == terminal.before


def test_a_sweep_tells_how_far_it_is_on_one_line(tmp_path: Path) -> None:
    arguments = ("sweep", "smoke-20", "--seeds", "0:3", "--jobs", "1", "--out", str(tmp_path / "r.jsonl"))
    terminal = Terminal(*arguments, nodes=4, duration_s=3.0)
    try:
        terminal.read_until(b"2 of 3 runs, 0 failed")
        terminal.read_until(b"left")
        assert terminal.ended() == 0
        assert SHOW_CURSOR in terminal.seen
        assert b"95 % confidence interval" in terminal.seen
        assert termios.tcgetattr(terminal.inner) == terminal.before
    finally:
        terminal.close()


def test_a_swarm_tells_how_far_it_is_on_one_line_and_ctrl_c_ends_it_with_the_sums() -> None:
    terminal = Terminal("swarm", "--seeds", "0:100000", "--nodes", "3", "--pace", "seconds", "--jobs", "1")
    try:
        terminal.read_until(b" of 100000 seeds, 0 failed")
        terminal.read_until(b"left")
        os.write(terminal.fd, b"\x03")
        assert terminal.ended() == 130
        after = terminal.seen[terminal.seen.rindex(SHOW_CURSOR) :].decode()
        assert "INTERRUPTED   all sums are those of the seeds that were done" in after
        assert "p2psim: interrupted after " in after
        assert "Traceback" not in after
        assert termios.tcgetattr(terminal.inner) == terminal.before
    finally:
        terminal.close()
