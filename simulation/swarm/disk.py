"""A disk that keeps what it promised and not one byte more: for power loss, full disks and failing writes.

The same contract as the daemon's SQLite (`p2pnode.store.Store`), with its two kinds of durability: entries put with
`power` are on the platter when `put` returns; the others are with the kernel, which survives the death of the program
but not of the machine. As in a write-ahead log, what power loss takes is a tail of them, never one from the middle, and
the next entry with `power` saves all before it. A snapshot is written beside the old one, and a write that was torn
leaves the old one in its place.
"""

import hashlib
import random
from collections.abc import Iterable

from p2pnode.errors import ExitCode, UserError
from p2pnode.store import SNAPSHOT, SNAPSHOT_BEFORE, Entry

_HASH_BYTES = 32
_FRESH = SNAPSHOT + ".new"


class PowerLoss(Exception):  # noqa: N818  nobody's error: the machine is off
    """The power went in the middle of a write. Whoever drives the machine kills it."""


class SimulatedDisk:
    """Entries and snapshots of one machine.

    Attributes:
        full: While set, nothing can be written.
        broken: While set, writes fail with an I/O error.
        tear: The power goes in the middle of the next snapshot.
        off: The power has gone; `lose_power` says what that takes.
        torn: It went in the middle of a snapshot.
    """

    __slots__ = (
        "_entries",
        "_files",
        "_synced",
        "_unsynced",
        "broken",
        "full",
        "off",
        "tear",
        "torn",
    )

    def __init__(self) -> None:
        self.full = False
        self.broken = False
        self.tear = False
        self.off = False
        self.torn = False
        self._entries: dict[str, bytes] = {}  # what a reader sees
        self._synced: dict[str, bytes] = {}  # what survives the loss of power
        self._unsynced: list[tuple[Entry, ...]] = []  # put since then, in order
        self._files: dict[str, bytes] = {}

    # --- the contract of Store ------------------------------------------------------------------------

    def put(self, entries: Iterable[Entry], *, power: bool) -> None:
        """Raises UserError, as the daemon's store does, where the disk is full or broken; nothing is kept then."""
        if self.full or self.broken:
            what = "no space left on device" if self.full else "disk I/O error"
            raise UserError(ExitCode.FAILED, f"the simulated disk cannot be written ({what})")
        batch = tuple(entries)
        _apply(self._entries, batch)
        self._unsynced.append(batch)
        if power:
            for waiting in self._unsynced:
                _apply(self._synced, waiting)
            self._unsynced.clear()

    def load(self) -> dict[str, bytes]:
        return dict(sorted(self._entries.items()))

    def write_snapshot(self, data: bytes) -> None:
        """Raises OSError where the disk is full or broken, PowerLoss where the write is torn."""
        if self.full or self.broken:
            raise OSError("no space left on device" if self.full else "disk I/O error")
        whole = hashlib.sha256(data).digest() + data
        if self.tear:
            self.tear = False
            self.off = self.torn = True
            self._files[_FRESH] = whole[: len(whole) // 2]
            raise PowerLoss
        if SNAPSHOT in self._files:
            self._files[SNAPSHOT_BEFORE] = self._files[SNAPSHOT]
        self._files[SNAPSHOT] = whole

    def read_snapshot(self) -> bytes | None:
        for name in (SNAPSHOT, SNAPSHOT_BEFORE):
            whole = self._files.get(name)
            if whole is not None and hashlib.sha256(whole[_HASH_BYTES:]).digest() == whole[:_HASH_BYTES]:
                return whole[_HASH_BYTES:]
        return None

    def close(self) -> None:
        pass

    # --- what happens to disks ------------------------------------------------------------------------

    def lose_power(self, rng: random.Random) -> list[Entry]:
        """Only a prefix of what was not synced is still there; returns the entries that are lost."""
        kept = rng.randrange(len(self._unsynced) + 1)
        for batch in self._unsynced[:kept]:
            _apply(self._synced, batch)
        lost = [entry for batch in self._unsynced[kept:] for entry in batch]
        self._unsynced.clear()
        self._entries = dict(self._synced)
        return lost

    def wipe(self) -> None:
        """Another disk is in its place."""
        self._entries.clear()
        self._synced.clear()
        self._unsynced.clear()
        self._files.clear()
        self.off = self.torn = False
        self.full = self.broken = self.tear = False


def _apply(entries: dict[str, bytes], batch: Iterable[Entry]) -> None:
    for name, value in batch:
        if value:
            entries[name] = value
        else:
            entries.pop(name, None)
