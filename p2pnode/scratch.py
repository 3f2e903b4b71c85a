"""The temporary folder of a demo: gone when the demo ends, and when it was killed, gone when the next one starts.

A folder of an earlier demo is removed only if it is surely ours and nobody uses it: it belongs to this user, closed
to others, and holds a lock file that its demo kept locked (flock) from before the file had its name. The kernel lets go
of a lock when its process dies, however it dies, and knows it across containers too; process numbers would be guesses,
they are given to others again. A killed demo's daemons end by themselves within seconds; until then they lock their
homes.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "p2pnode-demo-"
LOCK = "demo.lock"
# In so young a folder a daemon may be on its way to its lock: it imports for some seconds first. Generous.
YOUNG_S = 120.0


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder, 0700, for as long as the context lasts. Removes what killed demos left."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = -1
    try:
        fresh = path / (LOCK + ".new")
        lock = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Locked before it can be found, so that nobody takes a demo that starts for one that is gone.
        os.rename(fresh, path / LOCK)
        # Its date is the clock of the disk where the others lie, too.
        remove_leftovers(path.parent, now=path.stat().st_mtime)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def remove_leftovers(parent: Path, *, now: float) -> None:
    """Remove the folders of demos that are gone. What cannot be looked at or removed stays.

    Args:
        parent: Where demos make their folders.
        now: Seconds on the clock by which files there are dated.
    """
    for path in sorted(parent.glob(PREFIX + "*")):
        try:
            found = path.lstat()
        except OSError:
            continue
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
        if not ours or now - found.st_mtime < YOUNG_S:
            continue
        lock = _take(path / LOCK)
        if lock is None:
            continue
        try:
            if not any(_is_held(home) for home in path.glob("*/daemon.lock")):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _take(path: Path) -> int | None:
    """Lock a file that is there; None where there is none, or another process has it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_held(path: Path) -> bool:
    handle = _take(path)
    if handle is None:
        return True
    os.close(handle)
    return False
