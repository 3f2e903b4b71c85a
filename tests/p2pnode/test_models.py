"""Saved models on the disk: only what changed is written, any death leaves a whole one, and nothing is left lying."""

import errno
import itertools
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog

from gossip.learning.saved import Part, SavedModel, encode
from gossip.learning.task import RunInfo
from p2pnode.models import BEFORE, CURRENT, MANIFEST, DiskFiles, MemoryFiles, Models
from simulation.swarm.disk import PowerFiles, PowerLoss

RUN = RunInfo(b"r" * 32, "", "test/1", b"s" * 32, b"g" * 32, (4, 4), b"manifest")
FOLDER = RUN.id.hex()


def model(*weights: float, steps: int = 0) -> SavedModel:
    parts = {
        f"shard/{shard}": Part(b"s" * 32, (np.full(4, weight, np.float32),))
        for shard, weight in enumerate(weights)
    }
    return SavedModel(RUN.id, steps, ((2, 0.5),), parts)


def steps(models: Models) -> int:
    found = models.read(RUN.id)
    assert found is not None
    return found.steps


class Watched(MemoryFiles):
    """Files that say what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, folder: str, name: str, content: Iterable[memoryview | bytes]) -> None:
        self.written.append(name)
        super().write(folder, name, content)


def test_a_run_has_a_folder_with_its_manifest_its_parts_and_a_head(tmp_path: Path) -> None:
    models = Models(DiskFiles(tmp_path / "runs"))
    models.write(RUN, model(1.0, 2.0))
    folder = tmp_path / "runs" / FOLDER
    parts = sorted(encode(model(1.0, 2.0))[1])
    assert sorted(file.name for file in folder.iterdir()) == sorted([*parts, CURRENT, MANIFEST])
    assert (folder / MANIFEST).read_bytes() == b"manifest"
    # A shard is on the disk as its numbers are.
    contents = {file.read_bytes() for file in folder.iterdir()}
    assert np.full(4, 2.0, "<f4").tobytes() in contents


def test_only_the_parts_that_changed_are_written() -> None:
    files = Watched()
    models = Models(files)
    models.write(RUN, model(1.0, 2.0))
    files.written.clear()
    models.write(RUN, model(1.0, 3.0, steps=1))
    [fresh] = set(encode(model(1.0, 3.0))[1]) - set(encode(model(1.0, 2.0))[1])
    assert sorted(files.written) == sorted([fresh, CURRENT, BEFORE])
    # Another process finds them, too.
    files.written.clear()
    Models(files).write(RUN, model(1.0, 3.0, steps=2))
    assert sorted(files.written) == sorted([CURRENT, BEFORE])


def test_what_no_head_names_is_removed(tmp_path: Path) -> None:
    models = Models(DiskFiles(tmp_path))
    for number in range(20):
        models.write(RUN, model(float(number), 7.0, steps=number))
        if number == 5:
            (tmp_path / FOLDER / "0123abcd.new").write_bytes(b"left by a program that was killed")
    kept = {name for number in (18, 19) for name in encode(model(float(number), 7.0))[1]}
    assert {file.name for file in (tmp_path / FOLDER).iterdir()} == {*kept, CURRENT, BEFORE, MANIFEST}


def test_any_damage_to_the_newest_model_is_noticed_and_the_one_before_is_read(tmp_path: Path) -> None:
    models = Models(DiskFiles(tmp_path))
    models.write(RUN, model(1.0, 2.0, steps=1))
    models.write(RUN, model(1.0, 3.0, steps=2))
    [fresh] = set(encode(model(1.0, 3.0))[1]) - set(encode(model(1.0, 2.0))[1])
    for name in (CURRENT, fresh):
        path = tmp_path / FOLDER / name
        whole = path.read_bytes()
        flipped = [whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :] for at in range(len(whole))]
        for damaged in [*flipped, whole[:-1], whole + b"\0", b""]:
            path.write_bytes(damaged)
            with structlog.testing.capture_logs() as lines:
                assert steps(models) == 1
            assert [(line["log_level"], line["event"]) for line in lines] == [("error", "snapshot_damaged")]
        path.unlink()
        assert steps(models) == 1
        path.write_bytes(whole)
    assert steps(models) == 2


def test_a_model_written_after_damage_does_not_rest_on_what_was_damaged(tmp_path: Path) -> None:
    """The same numbers again: the file of that name is there, but it is not what its name says."""
    models = Models(DiskFiles(tmp_path))
    models.write(RUN, model(1.0, 2.0, steps=1))
    models.write(RUN, model(1.0, 3.0, steps=2))
    [fresh] = set(encode(model(1.0, 3.0))[1]) - set(encode(model(1.0, 2.0))[1])
    (tmp_path / FOLDER / fresh).write_bytes(b"damaged")
    models = Models(DiskFiles(tmp_path))
    assert steps(models) == 1
    models.write(RUN, model(1.0, 3.0, steps=3))
    assert steps(models) == 3
    (tmp_path / FOLDER / CURRENT).unlink()
    assert steps(Models(DiskFiles(tmp_path))) == 1, "the good one was not replaced by the damaged one"


def test_when_nothing_is_whole_there_is_no_model(tmp_path: Path) -> None:
    models = Models(DiskFiles(tmp_path))
    models.write(RUN, model(1.0, 2.0))
    for file in (tmp_path / FOLDER).iterdir():
        file.write_bytes(b"damaged")
    assert models.read(RUN.id) is None
    models.write(RUN, model(1.0, 2.0, steps=5))
    assert steps(models) == 5


def test_a_full_disk_keeps_the_models_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(DiskFiles(tmp_path))
    models.write(RUN, model(1.0, 2.0, steps=1))
    models.write(RUN, model(1.0, 3.0, steps=2))
    files = sorted(file.name for file in (tmp_path / FOLDER).iterdir())
    real = os.fsync
    for room in range(6):  # two parts, the folder, two heads, the folder
        left = itertools.count(room, -1)

        def full(handle: int, left: Iterator[int] = left) -> None:
            if next(left) <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                models.write(RUN, model(4.0, 5.0, steps=3))
        found = steps(Models(DiskFiles(tmp_path)))
        if room < 5:
            assert found == 2
            there = sorted(file.name for file in (tmp_path / FOLDER).iterdir())
            # Once the head of the newest has become the one before, what the old one named is not needed.
            assert there == files if room < 4 else set(there) < set(files)
    assert found == 3, "the head was replaced; only that it stays is not certain"


def test_power_lost_at_every_step_leaves_a_whole_model_whichever_names_had_become_durable() -> None:
    """All steps of a write, with the names that were not synced kept or lost in many ways; then the next write."""
    tried = set()
    for step in range(20):
        for seed in range(12):
            files = PowerFiles()
            models = Models(files)
            models.write(RUN, model(1.0, 2.0, steps=1))
            models.write(RUN, model(1.0, 3.0, steps=2))
            files.steps_left = step
            try:
                models.write(RUN, model(4.0, 3.0, steps=3))
            except PowerLoss:
                tried.add(step)
            files.steps_left = None
            files.lose_power(random.Random(seed))
            after = Models(files)
            found = steps(after)
            assert found in (2, 3)
            after.write(RUN, model(5.0, 6.0, steps=4))
            assert steps(Models(files)) == 4
            kept = {
                name
                for weights in [(5.0, 6.0), (1.0, 3.0), (4.0, 3.0)]
                for name in encode(model(*weights))[1]
            }
            assert set(files.names(FOLDER)) <= {*kept, CURRENT, BEFORE, MANIFEST}
    assert tried == set(range(len(tried)))
    assert len(tried) >= 6, "a part, a sync, two heads, a sync, a removal"


def test_links_and_strange_folders_are_no_runs(tmp_path: Path) -> None:
    models = Models(DiskFiles(tmp_path))
    models.write(RUN, model(1.0))
    (tmp_path / "notes").mkdir()
    (tmp_path / ("x" * 64)).mkdir()
    (tmp_path / ("x" * 64) / CURRENT).write_bytes(b"")
    (tmp_path / ("b" * 64)).symlink_to(tmp_path / FOLDER)
    with structlog.testing.capture_logs():
        assert models.manifests() == {RUN.id: b"manifest"}
