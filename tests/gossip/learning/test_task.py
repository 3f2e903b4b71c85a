"""Schemas and runs: two peers agree or can read why not."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.config import LearningConfig, RunConfig
from gossip.errors import LocalError
from gossip.learning.shards import shard_sizes, shard_slices
from gossip.learning.task import NAME_LENGTH_MAX, Leaf, RunInfo, Schema, run_info, run_of
from gossip.run import manifest

SCHEMA = Schema((Leaf("b", (10,), "float32"), Leaf("w", (64, 10), "float32")))


class Named:
    name = "named"
    version = "1"


class Unnamed:
    pass


class Tabled(Named):
    """A task that reads a table."""

    def __init__(self, *names: str) -> None:
        self.columns = names
        self.scaling = manifest.scaling("none")


def info(**changes: object) -> RunInfo:
    given: dict[str, Any] = {
        "network": "main",
        "task": Named(),
        "schema": SCHEMA,
        "genesis": np.zeros(650, np.float32),
        "learning": LearningConfig(),
        **changes,
    }
    return run_info(**given)


def test_a_schema_is_its_names_shapes_types_and_their_order() -> None:
    assert SCHEMA.values == 650
    others = [
        Schema(SCHEMA.leaves[::-1]),
        Schema(SCHEMA.leaves[:1]),
        Schema((Leaf("b", (10,), "float32"), Leaf("w", (10, 64), "float32"))),
        Schema((Leaf("b", (10,), "float16"), Leaf("w", (64, 10), "float32"))),
        Schema((Leaf("bias", (10,), "float32"), Leaf("w", (64, 10), "float32"))),
    ]
    assert len({schema.id for schema in [SCHEMA, *others]}) == 6
    assert all(SCHEMA.difference(other) for other in others)
    assert SCHEMA.difference(Schema(SCHEMA.leaves)) == ""


def test_the_schema_id_is_a_fixed_encoding() -> None:
    # Golden: a change of this value means that no old peer understands a new one.
    assert SCHEMA.id.hex()[:16] == "a9e828e1f583abc1"


def test_a_difference_of_schemas_can_be_read() -> None:
    other = Schema((Leaf("c", (3,), "float32"), Leaf("w", (64, 12), "float32")))
    assert SCHEMA.difference(other) == (
        "the other model lacks b float32[10], has c float32[3] besides,"
        " has w float32[64,12] instead of w float32[64,10]"
    )


def test_everything_that_peers_must_agree_on_changes_the_run() -> None:
    class Newer(Named):
        version = "2"

    ids = {
        info().id,
        info(network="other").id,
        info(task=Unnamed()).id,
        info(task=Newer()).id,
        info(learning=LearningConfig(genesis_seed=1)).id,
        info(learning=LearningConfig(shard_values_max=100)).id,
        info(schema=Schema(SCHEMA.leaves[::-1])).id,
        info(genesis=np.ones(650, np.float32)).id,  # as another version of JAX may draw it
        info(run=RunConfig(purpose="digits of cheques")).id,
        info(run=RunConfig(licence="MIT")).id,
        info(task=Tabled("age", "bmi")).id,
        info(task=Tabled("bmi", "age")).id,
    }
    assert len(ids) == 12
    # What each node decides for itself does not.
    assert info(learning=LearningConfig(local_steps=9, readout_decay=0.5)).id == info().id


def test_a_run_is_derived_from_its_manifest_and_nothing_else() -> None:
    ours = info(task=Tabled("age", "bmi"), learning=LearningConfig(shard_values_max=200, genesis_seed=3))
    read = manifest.decode(ours.manifest)
    assert run_of(read, SCHEMA.values) == ours
    assert read.id == ours.id
    assert read.keys.columns == manifest.columns(["age", "bmi"])
    assert manifest.shown(read)["genesis"].endswith("from seed 3")


def test_a_name_that_no_peer_would_read_is_our_own_mistake() -> None:
    class Long(Named):
        version = "1" * (NAME_LENGTH_MAX - len("named/"))

    ours = info(task=Long())
    assert manifest.decode(ours.manifest).keys.task == ours.task
    Long.version += "1"
    with pytest.raises(LocalError, match="201 characters, at most 200"):
        info(task=Long())


def test_a_genesis_of_another_length_is_our_own_mistake() -> None:
    with pytest.raises(LocalError, match="650 values"):
        info(genesis=np.zeros(651, np.float32))


@given(values=st.integers(1, 5000), values_max=st.integers(1, 6000))
def test_shards_are_few_balanced_and_cover_the_vector(values: int, values_max: int) -> None:
    sizes = shard_sizes(values, values_max)
    assert sum(sizes) == values
    assert max(sizes) <= values_max
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-values // values_max)
    assert [i for part in shard_slices(sizes) for i in range(values)[part]] == list(range(values))


def test_a_vector_without_values_has_no_shards() -> None:
    with pytest.raises(LocalError):
        shard_sizes(0, 10)
