"""The store on the disk: damage, full disks, second processes, files that are not ours."""

import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest

from gossip.learning.saved import Part, SavedModel
from gossip.learning.task import RunInfo
from p2pnode.errors import ExitCode, UserError
from p2pnode.store import DATABASE, SCHEMA_VERSION, SqliteStore

RUN = RunInfo(b"r" * 32, "", "test/1", b"s" * 32, b"g" * 32, (4,), b"manifest")
MODEL = SavedModel(RUN.id, 1, (), {"shard/0": Part(b"s" * 32, (np.zeros(4, np.float32),))})


def test_nobody_else_can_read_what_is_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state")
    store.put([("sequence", b"1")], fsync=True)
    store.write_model(RUN, MODEL)
    for file in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file
    store.close()


def test_a_disk_that_takes_no_entries_ends_the_daemon_with_a_sentence(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store._database.execute("PRAGMA max_page_count=1")  # SQLite's own "disk full"
    with pytest.raises(UserError) as caught:
        store.put([("mark", bytes(100_000))], fsync=False)
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
    store.put([(f"mark/{number}", bytes(100)) for number in range(1000)], fsync=True)
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
