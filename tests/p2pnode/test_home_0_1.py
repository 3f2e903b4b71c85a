"""Homes of 0.1 (tests/golden/home-0.1): key, numbers and model as 0.1 itself read them, to the bit."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from gossip.config import ExchangeConfig, LearningConfig
from gossip.learning.learner import Learner
from gossip.learning.saved import SavedModel, SnapshotError, encode
from gossip.learning.task import Leaf, RunInfo, Schema, run_info
from gossip.run import manifest
from p2pnode import home_0_1, keyfile, settings
from p2pnode.home import Home
from p2pnode.home_0_1 import SNAPSHOT, SNAPSHOT_BEFORE
from p2pnode.store import SqliteStore
from p2pnode.tasks import load_task

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "home-0.1"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())

every_home = pytest.mark.parametrize("name", sorted(EXPECTED))


@pytest.fixture
def home(name: str, tmp_path: Path) -> Home:
    """A copy of a golden home, closed to others as git cannot keep it."""
    copy = tmp_path / name
    shutil.copytree(GOLDEN / name, copy)
    copy.chmod(0o700)
    (copy / "identity.key").chmod(0o600)
    return Home(copy)


def run_of(home: Home, **changes: Any) -> tuple[RunInfo, np.ndarray]:
    """What a daemon of today trains with the settings of a home."""
    from gossip.learning.trainer import Trainer

    found = settings.load(file=home.config)
    learning = replace(found.core.learning, **changes)
    task = load_task(found.task.factory, found.task_args)
    trainer = Trainer(task, seed=learning.genesis_seed)
    run = run_info(
        network=found.core.network,
        task=task,
        schema=trainer.schema,
        genesis=trainer.genesis,
        learning=learning,
    )
    return run, trainer.genesis


def read(home: Home, run: RunInfo) -> SavedModel | None:
    store = SqliteStore(home.state)
    found = store.read_model(run)
    store.close()
    return found


def hashes(model: SavedModel) -> list[str]:
    """Of weights, read-out and the leaves of the optimiser's state."""
    shards = [part.arrays for name, part in model.parts.items() if name.startswith("shard/")]
    whole = [np.concatenate([arrays[which] for arrays in shards]) for which in (0, 1)]
    state = model.parts["optimiser"].arrays
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in (*whole, *state)]


@every_home
def test_key_and_numbers_are_those_of_then(name: str, home: Home) -> None:
    assert keyfile.claimed_identity(home)[1].hex() == EXPECTED[name]["id"]
    store = SqliteStore(home.state)
    entries = {key: value.hex() for key, value in store.load().items()}
    store.close()
    assert entries == EXPECTED[name]["entries"]


@every_home
def test_the_model_is_that_of_then_and_of_the_run_that_the_settings_make_today(name: str, home: Home) -> None:
    expected = EXPECTED[name]
    run, _ = run_of(home)
    model = read(home, run)
    assert model is not None
    assert model.run == run.id
    assert run.schema.hex() == expected["schema"]
    assert home_0_1.run_id(manifest.decode(run.manifest)) == bytes.fromhex(expected["run"])
    assert model.steps == expected["steps"]
    assert [list(gate) for gate in model.gates] == expected["gates"]
    assert hashes(model) == [array["sha256"] for array in expected["arrays"]]


@every_home
def test_the_old_files_stay_until_the_first_new_model_is_written(name: str, home: Home) -> None:
    run, genesis = run_of(home)
    one = Learner(run, genesis, exchange=ExchangeConfig(), learning=LearningConfig(readout_decay=0.9))
    store = SqliteStore(home.state)
    model = store.read_model(run)
    assert model is not None
    one.load(model)
    assert sorted(file.name for file in home.state.glob("model*")) == [SNAPSHOT, SNAPSHOT_BEFORE]
    store.write_model(run, one.dump())
    assert not list(home.state.glob("model*"))
    store.close()
    again = read(home, run)
    assert again is not None
    assert encode(again) == encode(one.dump())
    assert again.steps == EXPECTED[name]["steps"]


@pytest.mark.parametrize("name", ["digits"])
def test_a_disk_that_takes_no_new_model_keeps_the_old_one(
    name: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, genesis = run_of(home)
    store = SqliteStore(home.state)

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.write_model(
                run, Learner(run, genesis, exchange=ExchangeConfig(), learning=LearningConfig()).dump()
            )
    store.close()
    model = read(home, run)
    assert model is not None
    assert model.steps == EXPECTED[name]["steps"]


@pytest.mark.parametrize("name", ["digits"])
@pytest.mark.parametrize("damage", [b"", b"p2pnode/snapshot/v1\0", None])
def test_a_damaged_model_of_then_is_noticed_and_the_one_before_is_read(
    name: str, home: Home, damage: bytes | None
) -> None:
    run, _ = run_of(home)
    path = home.state / SNAPSHOT
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    with structlog.testing.capture_logs() as lines:
        model = read(home, run)
    assert model is not None
    assert model.run == run.id
    assert model.steps <= EXPECTED[name]["steps"]
    assert [line["event"] for line in lines] == ["snapshot_damaged"]


@pytest.mark.parametrize("name", ["digits"])
def test_a_model_of_then_is_not_taken_for_another_run(name: str, home: Home) -> None:
    run, genesis = run_of(home, genesis_seed=4)
    model = read(home, run)
    assert model is not None
    one = Learner(run, genesis, exchange=ExchangeConfig(), learning=LearningConfig())
    with pytest.raises(SnapshotError, match="belongs to run 93159b5c0aad"):
        one.load(model)


@pytest.mark.parametrize(
    ("scaling", "old"),
    [
        ({}, "d1f430acf1bb72f278d37216e2750ac1415d4e9ec5e39ad6eca7c899af9243a5"),
        ({"scale": "none"}, "1d42ac5fd0e300432707be9b2d514bcde67b68b2312cd56eebb1f03cd67092d0"),
        (
            {"mean": [50, 120], "deviation": [10, 15]},
            "99dcecea82a60f61aee9afdd2be138a5b522514cdd461b07eee4586e01d74f6b",
        ),
    ],
)
def test_a_table_has_the_run_id_of_then_whatever_its_columns_are_called(
    scaling: dict[str, Any], old: str, tmp_path: Path
) -> None:
    """What 0.1 said of a file with two columns and these classes; columns were not part of it."""
    file = tmp_path / "clinic.csv"
    file.write_text("age,weight,diagnosis\n" + "50,70,no\n60,80,yes\n" * 5)
    run = run_info(
        network="main",
        task=load_task("table", {"path": str(file), "label": "diagnosis", **scaling}),
        schema=Schema((Leaf("w", (3,), "float32"),)),
        genesis=np.zeros(3, np.float32),
        learning=LearningConfig(genesis_seed=5),
    )
    assert home_0_1.run_id(manifest.decode(run.manifest)) == bytes.fromhex(old)
