"""The demo's temporary folder: nothing of a killed demo stays for ever, nothing of anybody else is touched."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pnode.scratch import YOUNG_S, scratch_folder

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import time
from p2pnode.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "node-0").mkdir()
    (folder / "node-0" / "daemon.lock").touch()
    print(folder, flush=True)
    time.sleep(300)
"""
Demo = tuple[subprocess.Popen[str], Path]


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def begin(parent: Path) -> Iterator[Callable[[], Demo]]:
    """Start a process with a folder of its own, which looks older than it is."""
    processes = []

    def start() -> Demo:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == parent
        age(folder)
        return process, folder

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def age(folder: Path) -> None:
    then = folder.stat().st_mtime - YOUNG_S - 1
    os.utime(folder, (then, then))


def test_the_folder_is_gone_when_the_demo_ends(parent: Path) -> None:
    with scratch_folder() as folder:
        assert list(parent.iterdir()) == [folder]
    assert list(parent.iterdir()) == []


def test_the_folder_of_a_killed_demo_goes_when_the_next_one_starts(
    parent: Path, begin: Callable[[], Demo]
) -> None:
    (killed, left), (_, living) = begin(), begin()
    killed.kill()
    killed.wait()
    assert left.exists()
    with scratch_folder() as folder:
        assert sorted(parent.iterdir()) == sorted([living, folder])


def test_a_daemon_that_still_ends_keeps_the_folder(parent: Path, begin: Callable[[], Demo]) -> None:
    killed, left = begin()
    killed.kill()
    killed.wait()
    with (left / "node-0" / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch_folder():
            assert left.exists()
    with scratch_folder():
        assert not left.exists()


def test_what_is_not_surely_ours_stays(parent: Path, begin: Callable[[], Demo]) -> None:
    killed, left = begin()
    killed.kill()
    killed.wait()
    left.rename(parent / "somewhere")  # a link leads there
    (parent / "p2pnode-demo-link").symlink_to(parent / "somewhere")
    (parent / "p2pnode-demo-file").write_text("")
    stays = ["p2pnode-demo-link", "p2pnode-demo-file", "somewhere"]
    for name, mode in (("nolock", 0o700), ("open", 0o755), ("young", 0o700)):
        folder = parent / f"p2pnode-demo-{name}"
        folder.mkdir()
        folder.chmod(mode)
        if name != "nolock":
            (folder / "demo.lock").touch()
        if name != "young":
            age(folder)
        stays.append(folder.name)
    with scratch_folder() as new:
        assert sorted(path.name for path in parent.iterdir()) == sorted([*stays, new.name])
