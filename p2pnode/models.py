"""Saved models on the disk, each run in a folder of its own.

    runs/<id>/manifest     the run's manifest
    runs/<id>/<hash>       a part of the model: a shard, the optimiser's state
    runs/<id>/current      the head that names the parts of the newest model; replaced in one step
    runs/<id>/before       the head of the one before, for the day on which a part of the newest is damaged

Parts are written first and made durable, then the head is replaced, then what no head names is removed. Whatever moment
the program or the machine dies at, `current` names parts that are there and whole.

The steps are written once, over `Files`: the disk, memory, and the disk of the simulator, which loses its power between
any two of them.
"""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from gossip.errors import RemoteError
from gossip.learning import saved
from gossip.learning.saved import SavedModel, SnapshotError
from gossip.learning.task import RunInfo
from gossip.run import manifest
from gossip.run.manifest import Manifest

MANIFEST = "manifest"
CURRENT = "current"
BEFORE = "before"
_FRESH = ".new"
# A run id in hexadecimal digits.
_FOLDER_CHARACTERS = 64

log = structlog.get_logger(__name__)


class Files(Protocol):
    """Folders of small and large files; a name stands for whole content or does not exist."""

    def folders(self) -> list[str]:
        """In ascending order."""

    def names(self, folder: str) -> list[str]:
        """In ascending order; none where there is no such folder. Leftovers of writes that did not end among them."""

    def read(self, folder: str, name: str) -> bytes:
        """Raises OSError."""

    def write(self, folder: str, name: str, content: Iterable[memoryview | bytes]) -> None:
        """Give this content to a name, in one step. The content is durable then, the name only after `sync`.

        Raises:
            OSError: the disk did not take it. The name is as it was.
        """

    def sync(self, folder: str) -> None:
        """Make names durable. Raises OSError."""

    def remove(self, folder: str, name: str) -> None:
        """Raises OSError."""


class Models:
    """The saved models of one home."""

    def __init__(self, files: Files) -> None:
        self._files = files
        # Folders in which something was found damaged: the next write relies on nothing there.
        self._damaged: set[str] = set()

    def write(self, run: RunInfo, model: SavedModel) -> None:
        """Replace the model of a run in one step. What has not changed is not written again.

        Raises:
            OSError: the disk did not take it. The models that were there still are.
        """
        folder = run.id.hex()
        head, contents = saved.encode(model)
        there = set() if folder in self._damaged else set(self._files.names(folder))
        fresh = [name for name in contents if name not in there]
        try:
            if run.manifest and MANIFEST not in there:
                self._files.write(folder, MANIFEST, [run.manifest])
            for name in fresh:
                self._files.write(folder, name, contents[name])
            self._files.sync(folder)
            if CURRENT in there:
                self._files.write(folder, BEFORE, [self._files.read(folder, CURRENT)])
            self._files.write(folder, CURRENT, [head])
            self._files.sync(folder)
        except OSError:
            self._clear(folder)  # a full disk needs the room
            raise
        self._damaged.discard(folder)
        self._clear(folder)

    def read(self, run: bytes) -> SavedModel | None:
        """The newest model of a run that is whole; None if there is none."""
        folder = run.hex()
        for name in (CURRENT, BEFORE):
            if name not in self._files.names(folder):
                continue
            try:
                head = self._files.read(folder, name)
                return saved.decode(head, partial(self._files.read, folder))
            except (OSError, SnapshotError) as error:
                self._damaged.add(folder)
                log.error(
                    "snapshot_damaged", path=f"{folder}/{name}", detail=str(error), next="the one before it"
                )
        return None

    def manifests(self) -> dict[bytes, bytes]:
        """Manifests by run id, of the runs that have a model here; empty where a run has none."""
        found = {}
        for folder in self._files.folders():
            names = self._files.names(folder)
            if len(folder) == _FOLDER_CHARACTERS and (CURRENT in names or BEFORE in names):
                try:
                    found[bytes.fromhex(folder)] = (
                        self._files.read(folder, MANIFEST) if MANIFEST in names else b""
                    )
                except (OSError, ValueError) as error:
                    log.error("manifest_unreadable", path=f"{folder}/{MANIFEST}", detail=str(error))
        return found

    def _clear(self, folder: str) -> None:
        """Remove what no head names."""
        kept = {MANIFEST, CURRENT, BEFORE}
        try:
            names = self._files.names(folder)
            for head in (CURRENT, BEFORE):
                if head in names:
                    try:
                        kept |= saved.named(self._files.read(folder, head))
                    except SnapshotError:
                        continue  # a damaged head names nothing; it was told when it was read
            for name in names:
                if name not in kept:
                    self._files.remove(folder, name)
        except OSError as error:
            log.warning("snapshot_litter", folder=folder, detail=str(error))


def read_manifest(run: bytes, document: bytes) -> Manifest | None:
    """One of `Models.manifests`; None where it is absent, damaged or of a later version."""
    if not document or manifest.run_id(document) != run:
        return None
    try:
        return manifest.decode(document)
    except RemoteError:
        return None


class DiskFiles:
    """Files under a folder of this machine.

    Args:
        root: Made, 0700, with the first file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def folders(self) -> list[str]:
        try:
            return sorted(
                entry.name for entry in os.scandir(self._root) if entry.is_dir(follow_symlinks=False)
            )
        except FileNotFoundError:
            return []

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self._root / folder))
        except FileNotFoundError:
            return []

    def read(self, folder: str, name: str) -> bytes:
        return (self._root / folder / name).read_bytes()

    def write(self, folder: str, name: str, content: Iterable[memoryview | bytes]) -> None:
        place = self._root / folder
        if not place.is_dir():
            for made in (self._root, place):
                made.mkdir(mode=0o700, exist_ok=True)
                _sync_folder(made.parent)  # a new folder is durable only with the one that it stands in
        fresh = place / (name + _FRESH)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
                for piece in content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, place / name)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def sync(self, folder: str) -> None:
        _sync_folder(self._root / folder)

    def remove(self, folder: str, name: str) -> None:
        (self._root / folder / name).unlink(missing_ok=True)


class MemoryFiles:
    """Files that last as long as their object."""

    def __init__(self) -> None:
        self._content: dict[tuple[str, str], bytes] = {}

    def folders(self) -> list[str]:
        return sorted({folder for folder, _ in self._content})

    def names(self, folder: str) -> list[str]:
        return sorted(name for place, name in self._content if place == folder)

    def read(self, folder: str, name: str) -> bytes:
        try:
            return self._content[folder, name]
        except KeyError:
            raise FileNotFoundError(f"{folder}/{name}") from None

    def write(self, folder: str, name: str, content: Iterable[memoryview | bytes]) -> None:
        self._content[folder, name] = b"".join(content)

    def sync(self, folder: str) -> None:
        pass

    def remove(self, folder: str, name: str) -> None:
        self._content.pop((folder, name), None)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
