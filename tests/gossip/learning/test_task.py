"""Schemas and runs: two peers agree or can read why not."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip import wire
from gossip.config import LearningConfig
from gossip.errors import LocalError
from gossip.learning.shards import shard_sizes, shard_slices
from gossip.learning.task import NAME_LENGTH_MAX, Leaf, RunInfo, Schema, run_info

SCHEMA = Schema((Leaf("b", (10,), "float32"), Leaf("w", (64, 10), "float32")))


class Named:
    name = "named"
    version = "1"


class Unnamed:
    pass


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
    }
    assert len(ids) == 7
    # What each node decides for itself does not.
    assert info(learning=LearningConfig(local_steps=9, readout_decay=0.5)).id == info().id


def test_a_peer_of_another_run_reads_why() -> None:
    ours = info()
    other = info(network="other")
    assert ours.difference(run=ours.id, schema=ours.schema, task=ours.task) == ""
    assert "genesis seed" in ours.difference(run=other.id, schema=other.schema, task=other.task)
    assert "schema" in ours.difference(run=other.id, schema=bytes(32), task=other.task)
    assert "'x/1'" in ours.difference(run=other.id, schema=bytes(32), task="x/1")


def test_of_two_versions_with_parts_those_that_differ_are_named() -> None:
    class Parts(Named):
        version = "1, 2 classes a, scale none, 4 columns b"

    ours = info(task=Parts())

    def said(task: str) -> str:
        return ours.difference(run=bytes(32), schema=bytes(32), task=task)

    assert said("named/1, 2 classes a, scale none, 4 columns c") == (
        "our task 'named/1' has '4 columns b', the other's '4 columns c'"
    )
    assert said("named/1, 3 classes c, scale none, 4 columns c") == (
        "our task 'named/1' has '2 classes a, 4 columns b', the other's '3 classes c, 4 columns c'"
    )
    # Nothing to set against each other: both names, whole.
    for other in ("named/1, 2 classes a, scale none", "named/2, 2 classes a, scale none, 4 columns b", ""):
        assert said(other) == f"our task is {ours.task!r}, the other's {other!r}"


def test_a_name_that_no_peer_would_read_is_our_own_mistake() -> None:
    class Long(Named):
        version = "1" * (NAME_LENGTH_MAX - len("named/"))

    name = info(task=Long()).task
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(name), type=wire.Text) == name
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(name + "1"), type=wire.Text)
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
