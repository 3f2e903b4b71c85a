"""Lines go to a stream that may be gone, full or stuck; each costs lines, which are counted, and nothing else."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.outlet import PATIENCE_MS, Outlet


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass  # the test closed it


def test_lines_arrive_whole_and_in_order(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    for number in range(3):
        outlet.write(f"line {number} é \ud800\n")
    assert os.read(pipe[0], 2**16).decode() == "".join(f"line {number} é \\ud800\n" for number in range(3))
    assert outlet.dropped == 0


def test_a_stream_that_there_is_not_drops_every_line() -> None:
    outlet = Outlet(None)
    outlet.write("one\n")
    outlet.write("two\n")
    assert outlet.dropped == 2


def test_a_full_disk_drops_lines() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    outlet = Outlet(full)
    outlet.write("one\n")
    os.close(full)
    outlet.write("and a descriptor that is closed\n")
    assert outlet.dropped == 2


def test_a_collector_that_restarts_gets_the_lines_after_it(tmp_path: Path) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    outlet = Outlet(writer)
    outlet.write("before\n")
    assert os.read(reader, 100) == b"before\n"
    os.close(reader)
    outlet.write("lost\n")
    outlet.write("lost too\n")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    outlet.write("after\n")
    assert os.read(reader, 100) == b"after\n"
    assert outlet.dropped == 2
    os.close(reader)
    os.close(writer)


def test_a_reader_that_does_not_read_stops_nobody_and_misses_lines(pipe: tuple[int, int]) -> None:
    """The pipe fills; then lines are dropped at once, not waited for; when it is read, lines come again, whole."""
    outlet = Outlet(pipe[1])
    line = "x" * 20_000 + "\n"  # more than a pipe takes at once: one is cut off in the middle
    began = time.monotonic()
    for _ in range(200):
        outlet.write(line)
    assert time.monotonic() - began < 20 * PATIENCE_MS / 1000
    assert outlet.dropped > 190
    held = os.read(pipe[0], 2**20)
    outlet.write("again\n")
    lines = (held + os.read(pipe[0], 2**20)).decode().split("\n")
    whole = [one + "\n" for one in lines if one + "\n" == line]
    assert len(whole) == 200 + 1 - outlet.dropped - 1
    assert lines[-2:] == ["again", ""]


def test_threads_do_not_mix_their_lines(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    writers = [
        threading.Thread(target=lambda name=name: [outlet.write(name * 300 + "\n") for _ in range(50)])
        for name in "abc"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = os.read(pipe[0], 2**20).decode().splitlines()
    assert sorted(lines) == sorted(name * 300 for name in "abc" for _ in range(50))
