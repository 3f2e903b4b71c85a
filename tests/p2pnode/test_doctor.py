"""What `p2pnode doctor` says of the runs in a home."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.config import LearningConfig, RunConfig
from gossip.learning.saved import Part, SavedModel
from gossip.learning.task import Leaf, RunInfo, Schema, run_info
from p2pnode import doctor, keyfile
from p2pnode import home as homes
from p2pnode.home import Home
from p2pnode.models import MANIFEST
from p2pnode.store import SqliteStore

SCHEMA = Schema((Leaf("w", (4,), "float32"),))


class Named:
    name = "digits"
    version = "1"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    homes.create(made)
    keyfile.make_identity(made, passphrase=None)
    return made


def run(**changes: Any) -> RunInfo:
    given: dict[str, Any] = {"network": "main", "learning": LearningConfig(genesis_seed=3), **changes}
    task: Any = Named()
    return run_info(task=task, schema=SCHEMA, genesis=np.zeros(4, np.float32), **given)


def keep(home: Home, *runs: RunInfo) -> None:
    store = SqliteStore(home.state)
    for one in runs:
        parts = {"shard/0": Part(SCHEMA.id, (np.zeros(4, np.float32), np.zeros(4, np.float32)))}
        store.write_model(one, SavedModel(one.id, 7, ((0, 0.0),), parts))
    store.close()


def said(home: Home) -> list[tuple[str, str]]:
    return [(one.verdict, one.detail) for one in doctor.examine(home) if one.check == "run"]


def test_a_home_without_a_model_has_no_run(home: Home) -> None:
    assert said(home) == []


def test_a_run_is_shown_key_by_key(home: Home) -> None:
    home.config.write_text("[learning]\ngenesis_seed = 3\n")
    keep(home, run())
    [(verdict, detail)] = said(home)
    assert verdict == "good"
    assert detail.startswith(f"{run().id.hex()[:12]}: ")
    for words in ("task 'digits/1'", "network 'main'", "from seed 3", "w float32[4]"):
        assert words in detail


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        (
            run(),
            "the seed of the initial weights is 0 in the settings and 3 in the saved run (learning.genesis_seed)",
        ),
        (
            run(learning=LearningConfig(), network="ward 7"),
            "the network is 'main' in the settings and 'ward 7' in the saved run (network.name)",
        ),
        (
            run(learning=LearningConfig(shard_values_max=2)),
            "the most values of a shard are 1048576 in the settings and 2 in the saved run "
            "(learning.shard_values_max)",
        ),
        (
            run(learning=LearningConfig(), run=RunConfig(licence="MIT")),
            "the licence is not named in the settings and 'MIT' in the saved run",
        ),
    ],
)
def test_settings_that_would_make_another_run_are_named(home: Home, saved: RunInfo, sentence: str) -> None:
    keep(home, saved)
    assert said(home) == [("note", f"{saved.id.hex()[:12]}: {sentence}")]


def test_a_damaged_manifest_is_a_note_and_not_the_end(home: Home) -> None:
    keep(home, run())
    (home.runs / run().id.hex() / MANIFEST).write_bytes(b"damaged")
    assert said(home) == [("note", f"{run().id.hex()[:12]}: its manifest cannot be read")]


def test_every_run_of_a_home_is_told(home: Home) -> None:
    home.config.write_text("[learning]\ngenesis_seed = 3\n")
    keep(home, run(), run(network="old"))
    assert sorted(verdict for verdict, _ in said(home)) == ["good", "note"]
