"""The contract of Store, for the disk, for memory and for the disk of the simulator alike."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gossip.learning.saved import Part, SavedModel, encode
from gossip.learning.task import RunInfo
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
    assert store.read_model(run(1)) is None


@pytest.mark.parametrize("fsync", [False, True])
def test_entries_survive_in_order_of_their_names(reopen: Reopen, fsync: bool) -> None:
    store = reopen(None)
    store.put([("sequence", b"\x00" * 8), ("mark/b", b"2"), ("mark/a", b"1")], fsync=fsync)
    store = reopen(store)
    assert list(store.load().items()) == [("mark/a", b"1"), ("mark/b", b"2"), ("sequence", b"\x00" * 8)]


def test_the_last_value_counts_and_an_empty_one_deletes(reopen: Reopen) -> None:
    store = reopen(None)
    store.put([("a", b"1"), ("b", b"1")], fsync=False)
    store.put([("a", b"2"), ("b", b""), ("absent", b"")], fsync=True)
    store.put([("c", b"1"), ("c", b"3")], fsync=False)
    assert reopen(store).load() == {"a": b"2", "c": b"3"}


def test_what_load_gives_is_a_copy(reopen: Reopen) -> None:
    store = reopen(None)
    store.put([("a", b"1")], fsync=False)
    store.load()["a"] = b"2"
    assert store.load() == {"a": b"1"}


def run(number: int) -> RunInfo:
    """A run; its manifest need only be bytes to a store."""
    return RunInfo(bytes([number]) * 32, "", "test/1", b"s" * 32, b"g" * 32, (3, 2), b"manifest %d" % number)


def model(of: RunInfo, *weights: float, steps: int = 0) -> SavedModel:
    """One shard for each weight, and a state of the optimiser."""
    parts = {
        f"shard/{shard}": Part(b"s" * 32, (np.full(3, weight, np.float32),))
        for shard, weight in enumerate(weights)
    }
    return SavedModel(of.id, steps, ((1, 0.5),), parts | {"optimiser": Part(b"o" * 32, (np.int32(steps),))})


def read(store: Store, of: RunInfo) -> bytes:
    found = store.read_model(of)
    assert found is not None
    return encode(found)[0]


def test_the_newest_model_is_read(reopen: Reopen) -> None:
    store = reopen(None)
    for steps, weights in enumerate([(1.0, 2.0), (1.0, 3.0), (), (1.0, 2.0)]):
        wanted = model(run(1), *weights, steps=steps)
        store.write_model(run(1), wanted)
        assert read(store, run(1)) == encode(wanted)[0]
        store = reopen(store)
        assert read(store, run(1)) == encode(wanted)[0]


def test_runs_stand_side_by_side_each_with_its_manifest(reopen: Reopen) -> None:
    store = reopen(None)
    assert store.manifests() == {}
    for number in (2, 1):
        store.write_model(run(number), model(run(number), float(number)))
    store = reopen(store)
    for number in (1, 2):
        assert read(store, run(number)) == encode(model(run(number), float(number)))[0]
    assert store.manifests() == {run(number).id: run(number).manifest for number in (1, 2)}
    assert store.read_model(run(3)) is None


def test_what_is_read_does_not_change_with_what_is_written_later(reopen: Reopen) -> None:
    store = reopen(None)
    store.write_model(run(1), model(run(1), 1.0))
    found = store.read_model(run(1))
    assert found is not None
    store.write_model(run(1), model(run(1), 2.0))
    store.write_model(run(1), model(run(1), 3.0))
    assert found.parts["shard/0"].arrays[0].tolist() == [1.0, 1.0, 1.0]
