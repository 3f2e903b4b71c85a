"""The contract of Store, for the disk, for memory and for the disk of the simulator alike."""

from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.store import MemoryStore, SqliteStore, Store
from simulation.swarm.disk import SimulatedDisk

Reopen = Callable[[Store | None], Store]


@pytest.fixture(params=["sqlite", "memory", "simulated"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Opens the store; given an open one, closes it and opens what the next process would see."""

    def open_again(store: Store | None) -> Store:
        if store is not None:
            store.close()
        if request.param == "sqlite":
            return SqliteStore(tmp_path / "state")
        kind = MemoryStore if request.param == "memory" else SimulatedDisk
        return store if isinstance(store, kind) else kind()

    return open_again


def test_a_new_store_is_empty(reopen: Reopen) -> None:
    store = reopen(None)
    assert store.load() == {}
    assert store.read_snapshot() is None


@pytest.mark.parametrize("power", [False, True])
def test_entries_survive_in_order_of_their_names(reopen: Reopen, power: bool) -> None:
    store = reopen(None)
    store.put([("sequence", b"\x00" * 8), ("mark/b", b"2"), ("mark/a", b"1")], power=power)
    store = reopen(store)
    assert list(store.load().items()) == [("mark/a", b"1"), ("mark/b", b"2"), ("sequence", b"\x00" * 8)]


def test_the_last_value_counts_and_an_empty_one_deletes(reopen: Reopen) -> None:
    store = reopen(None)
    store.put([("a", b"1"), ("b", b"1")], power=False)
    store.put([("a", b"2"), ("b", b""), ("absent", b"")], power=True)
    store.put([("c", b"1"), ("c", b"3")], power=False)
    assert reopen(store).load() == {"a": b"2", "c": b"3"}


def test_what_load_gives_is_a_copy(reopen: Reopen) -> None:
    store = reopen(None)
    store.put([("a", b"1")], power=False)
    store.load()["a"] = b"2"
    assert store.load() == {"a": b"1"}


def test_the_newest_snapshot_is_read(reopen: Reopen) -> None:
    store = reopen(None)
    for content in (b"first", b"", bytes(100_000)):
        store.write_snapshot(content)
        assert store.read_snapshot() == content
        store = reopen(store)
        assert store.read_snapshot() == content
