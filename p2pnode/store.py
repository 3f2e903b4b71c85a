"""What survives the process: the node's entries in a database, and its models (p2pnode/models.py).

Two kinds of durability, as `gossip.events.Persist` asks for them. Most entries must survive the death of the *process*:
SQLite in WAL mode with synchronous=NORMAL hands them to the kernel and does not wait (11,000 commits a second).
Sequence numbers must survive *power loss*: the same database with synchronous=FULL, one fsync (124 a second; both
measured on 2 cores). A failed write or fsync is never tried again (no engine studied in ATC'20 got that
right): the daemon ends, and the next start reads what is really there.

Start-up is always recovery: there is no clean flag.
"""

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gossip.learning.saved import SavedModel
from gossip.learning.task import RunInfo
from p2pnode import home_0_1
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import RUNS
from p2pnode.models import DiskFiles, MemoryFiles, Models

Entry = tuple[str, bytes]

DATABASE = "state.sqlite"
# Written to the database; a newer one is refused, because guessing at it could reuse a sequence number. 2: models are
# where 0.1 would not find them, and it would begin anew beside them.
SCHEMA_VERSION = 2


class Store(Protocol):
    """Entries are for the task that owns the node; models for the worker. They share nothing."""

    def put(self, entries: Iterable[Entry], *, fsync: bool) -> None:
        """Make all of the entries durable, or none. An empty value deletes.

        Args:
            fsync: Whether they must survive power loss too.

        Raises:
            UserError: FAILED; the disk did not take them, and nothing that rests on them may happen.
        """

    def load(self) -> dict[str, bytes]:
        """All entries, by name in ascending order."""

    def write_model(self, run: RunInfo, model: SavedModel) -> None:
        """Replace the model of a run in one step; the one before is kept.

        Raises:
            OSError: the disk did not take it. The models that were there still are.
        """

    def read_model(self, run: RunInfo) -> SavedModel | None:
        """The newest model of a run that is whole; None if there is none. One that 0.1 left may be of another run."""

    def manifests(self) -> dict[bytes, bytes]:
        """Manifests by run id, of the runs that have a model here; empty where a run has none."""

    def close(self) -> None: ...


class MemoryStore:
    """A store that lasts as long as its object: for simulation, where a crash loses the node and keeps its disk."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}
        self._models = Models(MemoryFiles())

    def put(self, entries: Iterable[Entry], *, fsync: bool) -> None:
        for name, value in entries:
            if value:
                self._entries[name] = value
            else:
                self._entries.pop(name, None)

    def load(self) -> dict[str, bytes]:
        return dict(sorted(self._entries.items()))

    def write_model(self, run: RunInfo, model: SavedModel) -> None:
        self._models.write(run, model)

    def read_model(self, run: RunInfo) -> SavedModel | None:
        return self._models.read(run.id)

    def manifests(self) -> dict[bytes, bytes]:
        return self._models.manifests()

    def close(self) -> None:
        pass


class SqliteStore:
    """A folder on the disk.

    Args:
        folder: Made, 0700, if absent. Holds `state.sqlite` and `runs`; in a home of 0.1 `model.snap`.

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
        self._models = Models(DiskFiles(folder / RUNS))
        self._old = home_0_1.there(folder)
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

    def put(self, entries: Iterable[Entry], *, fsync: bool) -> None:
        entries = list(entries)
        run = self._database.execute
        try:
            if fsync:
                run("PRAGMA synchronous=FULL")
            run("BEGIN IMMEDIATE")
            for name, value in entries:
                if value:
                    run("INSERT OR REPLACE INTO entries VALUES (?, ?)", (name, value))
                else:
                    run("DELETE FROM entries WHERE name = ?", (name,))
            run("COMMIT")
            if fsync:
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

    # --- models ----------------------------------------------------------------------------------------

    def write_model(self, run: RunInfo, model: SavedModel) -> None:
        self._models.write(run, model)
        if self._old:
            home_0_1.forget(self._folder)
            self._old = False

    def read_model(self, run: RunInfo) -> SavedModel | None:
        found = self._models.read(run.id)
        return home_0_1.read(self._folder, run) if found is None and self._old else found

    def manifests(self) -> dict[bytes, bytes]:
        return self._models.manifests()


def _unusable(path: Path, error: sqlite3.Error) -> UserError:
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return UserError(ExitCode.RUNNING, f"{path}: another daemon has this state open.")
    return UserError(
        ExitCode.HOME,
        f"{path}: expected the state of a node, got: {error}. Without it old sequence numbers could be signed "
        "again; restore the file, or begin with a new home.",
    )
