"""The store on the disk: damage, full disks, second processes, files that are not ours."""

import errno
import os
import sqlite3
import stat
from pathlib import Path

import pytest
import structlog

from p2pnode.errors import ExitCode, UserError
from p2pnode.store import DATABASE, SCHEMA_VERSION, SNAPSHOT, SNAPSHOT_BEFORE, SqliteStore


def test_nobody_else_can_read_what_is_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state")
    store.put([("sequence", b"1")], power=True)
    store.write_snapshot(b"weights")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for file in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    store.close()


def test_any_damage_to_the_newest_snapshot_is_noticed_and_the_one_before_is_read(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.write_snapshot(b"old weights")
    store.write_snapshot(b"new weights")
    whole = (tmp_path / SNAPSHOT).read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in [*flipped, whole[:-1], whole + b"\0", b""]:
        (tmp_path / SNAPSHOT).write_bytes(damaged)
        with structlog.testing.capture_logs() as lines:
            assert store.read_snapshot() == b"old weights"
        assert [(line["log_level"], line["event"]) for line in lines] == [("error", "snapshot_damaged")]
    (tmp_path / SNAPSHOT_BEFORE).write_bytes(b"damaged too")
    assert store.read_snapshot() is None
    store.close()


def test_dying_between_the_two_renames_leaves_the_snapshot_before(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.write_snapshot(b"weights")
    os.replace(tmp_path / SNAPSHOT, tmp_path / SNAPSHOT_BEFORE)
    assert store.read_snapshot() == b"weights"
    store.close()


def test_a_full_disk_keeps_the_snapshots_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path)
    store.write_snapshot(b"weights")
    files = sorted(file.name for file in tmp_path.iterdir())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.write_snapshot(b"more weights")
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    assert store.read_snapshot() == b"weights"
    store.close()


def test_a_disk_that_takes_no_entries_ends_the_daemon_with_a_sentence(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store._database.execute("PRAGMA max_page_count=1")  # SQLite's own "disk full"
    with pytest.raises(UserError) as caught:
        store.put([("mark", bytes(100_000))], power=False)
    assert caught.value.code is ExitCode.FAILED
    assert "must not be promised" in str(caught.value)
    store.close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    with pytest.raises(UserError) as caught:
        SqliteStore(tmp_path)
    assert caught.value.code is ExitCode.RUNNING
    store.close()
    SqliteStore(tmp_path).close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database" * 1000)
    with pytest.raises(UserError) as caught:
        SqliteStore(tmp_path)
    assert caught.value.code is ExitCode.HOME


def test_a_damaged_database_is_refused_not_believed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.put([(f"mark/{number}", bytes(100)) for number in range(1000)], power=True)
    store.close()
    data = bytearray((tmp_path / DATABASE).read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 64] = bytes(64)
    (tmp_path / DATABASE).write_bytes(data)
    with pytest.raises(UserError) as caught:
        SqliteStore(tmp_path)
    assert caught.value.code is ExitCode.HOME


def test_a_state_from_the_future_is_refused(tmp_path: Path) -> None:
    SqliteStore(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(UserError) as caught:
        SqliteStore(tmp_path)
    assert caught.value.code is ExitCode.HOME
    assert "newer" in str(caught.value)


def test_a_link_in_place_of_the_database_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / DATABASE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        SqliteStore(tmp_path)
    assert caught.value.code is ExitCode.HOME
