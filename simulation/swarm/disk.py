"""A disk that keeps what it promised and not one byte more: for power loss, full disks and failing writes.

The same contract as the daemon's SQLite (`p2pnode.store.Store`), with its two kinds of durability: entries put with
`fsync` are on the platter when `put` returns; the others are with the kernel, which survives the death of the program
but not of the machine. As in a write-ahead log, what power loss takes is a tail of them, never one from the middle, and
the next entry with `fsync` saves all before it. A model is written as the daemon writes it (p2pnode/models.py), and the
power may go at any of its steps.
"""

import random
from collections.abc import Iterable

from gossip.learning.saved import SavedModel
from gossip.learning.task import RunInfo
from p2pnode.errors import ExitCode, UserError
from p2pnode.models import MemoryFiles, Models
from p2pnode.store import Entry

# Steps of the write of a model with one shard, an optimiser's state and a model before it: two parts, a sync, two
# heads, a sync, two removals.
TORN_STEPS = 8


class PowerLoss(Exception):  # noqa: N818  nobody's error: the machine is off
    """The power went in the middle of a write. Whoever drives the machine kills it."""


class PowerFiles(MemoryFiles):
    """Files of a machine that may lose its power: content is durable when it is written, a name when it is synced.

    Attributes:
        steps_left: Writes, syncs and removals until the power goes, in the middle of the next; None: it stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps_left: int | None = None
        self._durable: dict[tuple[str, str], bytes] = {}

    def write(self, folder: str, name: str, content: Iterable[memoryview | bytes]) -> None:
        whole = b"".join(content)
        self._step(folder, name + ".new", whole[: len(whole) // 2])
        super().write(folder, name, [whole])

    def sync(self, folder: str) -> None:
        self._step()
        for place in sorted({*self._durable, *self._content}):
            if place[0] == folder:
                self._settle(place)

    def remove(self, folder: str, name: str) -> None:
        self._step()
        super().remove(folder, name)

    def lose_power(self, rng: random.Random) -> None:
        """Of the names that were not synced, some are as they were before, some as they became."""
        for place in sorted({*self._durable, *self._content}):
            if self._durable.get(place) != self._content.get(place):
                if rng.random() < 0.5:
                    self._settle(place)
                elif place in self._durable:
                    self._content[place] = self._durable[place]
                else:
                    del self._content[place]

    def _settle(self, place: tuple[str, str]) -> None:
        if place in self._content:
            self._durable[place] = self._content[place]
        else:
            self._durable.pop(place, None)

    def _step(self, folder: str = "", name: str = "", torn: bytes = b"") -> None:
        if self.steps_left is None:
            return
        if self.steps_left == 0:
            if name:
                self._content[folder, name] = torn
            raise PowerLoss
        self.steps_left -= 1


class SimulatedDisk:
    """Entries and models of one machine.

    Attributes:
        full: While set, nothing can be written.
        broken: While set, writes fail with an I/O error.
        tear: The power goes in the middle of the next model that is written.
        off: The power has gone; `lose_power` says what that takes.
        torn: It went in the middle of a model.
    """

    __slots__ = (
        "_entries",
        "_files",
        "_models",
        "_synced",
        "_torn_at",
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
        self._files = PowerFiles()
        self._models = Models(self._files)
        self._torn_at = 0

    # --- the contract of Store ------------------------------------------------------------------------

    def put(self, entries: Iterable[Entry], *, fsync: bool) -> None:
        """Raises UserError, as the daemon's store does, where the disk is full or broken; nothing is kept then."""
        if self.full or self.broken:
            what = "no space left on device" if self.full else "disk I/O error"
            raise UserError(ExitCode.FAILED, f"the simulated disk cannot be written ({what})")
        batch = tuple(entries)
        _apply(self._entries, batch)
        self._unsynced.append(batch)
        if fsync:
            for waiting in self._unsynced:
                _apply(self._synced, waiting)
            self._unsynced.clear()

    def load(self) -> dict[str, bytes]:
        return dict(sorted(self._entries.items()))

    def write_model(self, run: RunInfo, model: SavedModel) -> None:
        """Raises OSError where the disk is full or broken, PowerLoss where the write is torn."""
        if self.full or self.broken:
            raise OSError("no space left on device" if self.full else "disk I/O error")
        if self.tear:
            self.tear = False
            self._files.steps_left = self._torn_at
            # Each time at another step: in a part, between parts, at either head, between them, while clearing up.
            self._torn_at = (self._torn_at + 1) % TORN_STEPS
        try:
            self._models.write(run, model)
        except PowerLoss:
            self.off = self.torn = True
            raise
        finally:
            self._files.steps_left = None

    def read_model(self, run: RunInfo) -> SavedModel | None:
        return self._models.read(run.id)

    def manifests(self) -> dict[bytes, bytes]:
        return self._models.manifests()

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
        self._files.lose_power(rng)
        return lost

    def wipe(self) -> None:
        """Another disk is in its place."""
        self._entries.clear()
        self._synced.clear()
        self._unsynced.clear()
        self._files = PowerFiles()
        self._models = Models(self._files)
        self.off = self.torn = False
        self.full = self.broken = self.tear = False


def _apply(entries: dict[str, bytes], batch: Iterable[Entry]) -> None:
    for name, value in batch:
        if value:
            entries[name] = value
        else:
            entries.pop(name, None)
