"""What survives the process: the node's entries and the snapshots of its weights.

Two kinds of durability, as `gossip.events.Persist` asks for them. Most entries must survive the death of the *process*:
SQLite in WAL mode with synchronous=NORMAL hands them to the kernel and does not wait (11,000 commits a second).
Sequence numbers must survive *power loss*: the same database with synchronous=FULL, one fsync (124 a second; both
measured on 2 cores). A failed write or fsync is never tried again (no engine studied in ATC'20 got that
right): the daemon ends, and the next start reads what is really there.

Start-up is always recovery: there is no clean flag.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import structlog

from p2pnode.errors import ExitCode, UserError

Entry = tuple[str, bytes]

DATABASE = "state.sqlite"
SNAPSHOT = "model.snap"
SNAPSHOT_BEFORE = "model.snap.1"
# Written to the database; a newer one is refused, because guessing at it could reuse a sequence number.
SCHEMA_VERSION = 1

_MAGIC = b"p2pnode/snapshot/v1\0"
_LENGTH_BYTES = 8
_HASH_BYTES = 32

log = structlog.get_logger(__name__)


class Store(Protocol):
    """Entries are for the task that owns the node; snapshots for the worker. They share nothing."""

    def put(self, entries: Iterable[Entry], *, power: bool) -> None:
        """Make all of the entries durable, or none. An empty value deletes.

        Args:
            power: Whether they must survive power loss too.

        Raises:
            UserError: FAILED; the disk did not take them, and nothing that rests on them may happen.
        """

    def load(self) -> dict[str, bytes]:
        """All entries, by name in ascending order."""

    def write_snapshot(self, data: bytes) -> None:
        """Replace the snapshot in one step; the one before is kept.

        Raises:
            OSError: the disk did not take it. The snapshots that were there still are.
        """

    def read_snapshot(self) -> bytes | None:
        """The newest snapshot that is whole; None if there is none."""

    def close(self) -> None: ...


class MemoryStore:
    """A store that lasts as long as its object: for simulation, where a crash loses the node and keeps its disk."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}
        self._snapshot: bytes | None = None

    def put(self, entries: Iterable[Entry], *, power: bool) -> None:
        for name, value in entries:
            if value:
                self._entries[name] = value
            else:
                self._entries.pop(name, None)

    def load(self) -> dict[str, bytes]:
        return dict(sorted(self._entries.items()))

    def write_snapshot(self, data: bytes) -> None:
        self._snapshot = data

    def read_snapshot(self) -> bytes | None:
        return self._snapshot

    def close(self) -> None:
        pass


class SqliteStore:
    """A folder on the disk.

    Args:
        folder: Made, 0700, if absent. Holds `state.sqlite`, `model.snap` and the snapshot before, `model.snap.1`.

    Raises:
        UserError: HOME where the folder or the database is unusable; RUNNING where another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / DATABASE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite would take the umask; the mode is set before there is anything to read.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise UserError(
                ExitCode.HOME, f"{self._path}: cannot be opened for writing ({error.strerror})."
            ) from error
        self._database = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        try:
            self._open()
        except sqlite3.Error as error:
            self._database.close()
            raise _unusable(self._path, error) from error
        except UserError:
            self._database.close()
            raise

    def _open(self) -> None:
        run = self._database.execute
        # Held until we close or die: two daemons on one state would sign one number twice.
        run("PRAGMA locking_mode=EXCLUSIVE")
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=NORMAL")
        run("BEGIN IMMEDIATE")
        version = int(run("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise UserError(
                ExitCode.HOME,
                f"{self._path}: expected a state of version {SCHEMA_VERSION} or older, found {version}; "
                "run the newer p2pnode that wrote it.",
            )
        run("CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        run(f"PRAGMA user_version={SCHEMA_VERSION}")
        run("COMMIT")
        # Cheap for what we keep, and a damaged number must not be believed.
        found = run("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"damaged: {found}")

    def put(self, entries: Iterable[Entry], *, power: bool) -> None:
        entries = list(entries)
        run = self._database.execute
        try:
            if power:
                run("PRAGMA synchronous=FULL")
            run("BEGIN IMMEDIATE")
            for name, value in entries:
                if value:
                    run("INSERT OR REPLACE INTO entries VALUES (?, ?)", (name, value))
                else:
                    run("DELETE FROM entries WHERE name = ?", (name,))
            run("COMMIT")
            if power:
                run("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            raise UserError(
                ExitCode.FAILED,
                f"{self._path}: cannot be written ({error}); what is not on the disk must not be promised "
                "to peers, so the daemon ends. Make room, then start it again.",
            ) from error

    def load(self) -> dict[str, bytes]:
        try:
            return dict(self._database.execute("SELECT name, value FROM entries ORDER BY name"))
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    def close(self) -> None:
        self._database.close()

    # --- snapshots -------------------------------------------------------------------------------------

    def write_snapshot(self, data: bytes) -> None:
        newest = self._folder / SNAPSHOT
        fresh = self._folder / (SNAPSHOT + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
                file.write(_MAGIC + len(data).to_bytes(_LENGTH_BYTES, "big") + hashlib.sha256(data).digest())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            fresh.unlink(missing_ok=True)  # a full disk needs the room
            raise
        if newest.exists():
            # Between these two renames there is only the snapshot before: `read_snapshot` takes it.
            os.replace(newest, self._folder / SNAPSHOT_BEFORE)
        os.replace(fresh, newest)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # a rename is durable only with its directory
        finally:
            os.close(folder)

    def read_snapshot(self) -> bytes | None:
        for name in (SNAPSHOT, SNAPSHOT_BEFORE):
            path = self._folder / name
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error("snapshot_unreadable", path=str(path), detail=str(error))
                continue
            content = _opened(data)
            if content is not None:
                return content
            log.error("snapshot_damaged", path=str(path), size_bytes=len(data), next="the snapshot before it")
        return None


def _opened(data: bytes) -> bytes | None:
    """The content of a snapshot file, None if a bit of it is wrong."""
    length_at = len(_MAGIC)
    hash_at = length_at + _LENGTH_BYTES
    start = hash_at + _HASH_BYTES
    if len(data) < start or not data.startswith(_MAGIC):
        return None
    content = data[start:]
    if int.from_bytes(data[length_at:hash_at], "big") != len(content):
        return None
    return content if hashlib.sha256(content).digest() == data[hash_at:start] else None


def _unusable(path: Path, error: sqlite3.Error) -> UserError:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return UserError(ExitCode.RUNNING, f"{path}: another daemon has this state open.")
    return UserError(
        ExitCode.HOME,
        f"{path}: expected the state of a node, got: {error}. Without it old sequence numbers could be signed "
        "again; restore the file, or begin with a new home.",
    )
