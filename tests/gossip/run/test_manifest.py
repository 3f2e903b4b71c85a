"""The manifest of a run: one content, one spelling, one id; and what two of them differ in, in sentences."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import LocalError, Reason, RemoteError
from gossip.run.manifest import (
    MANIFEST_BYTES_MAX,
    Base,
    Columns,
    Genesis,
    Keys,
    Manifest,
    Scaling,
    Shape,
    columns,
    decode,
    difference,
    make,
    scaling,
    shape,
    shown,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "manifest.json"


def keys(**changes: Any) -> Keys:
    least: dict[str, Any] = {
        "network": "main",
        "task": "digits/1",
        "schema": shape(b"\x02" * 32, ["b float32[10]", "w float32[64,10]"]),
        "genesis": Genesis(hash=b"\x01" * 32, seed=3),
        "strategy": "shard-pair/1",
        "rules": {"block": 64},
        "shard_values": 2**20,
    }
    return Keys(**(least | changes))


FULL: dict[str, Any] = {
    "columns": columns(["age", "bmi", "größe"], "ill"),
    "scaling": scaling("given", bytes(24), bytes(24)),
    "parent": b"\x03" * 32,
    "licence": "CC-BY-4.0",
    "purpose": "early signs of diabetes",
    "share": "adapter",
    "terms": b"\x04" * 32,
    "until": 1_900_000_000,
}


def raw(document: object) -> bytes:
    return msgspec.msgpack.encode(document, order="sorted")


def document(manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.msgpack.decode(manifest.data)
    return found


def refusal(data: bytes) -> Reason:
    with pytest.raises(RemoteError) as caught:
        decode(data)
    return caught.value.reason


# --- the document ------------------------------------------------------------------------------------


def test_manifests_have_their_golden_bytes_and_ids() -> None:
    """A change of these means that runs of before have other ids: nobody goes on where they were."""
    golden = json.loads(GOLDEN.read_text())
    for name, made in {"least": make(keys()), "full": make(keys(**FULL))}.items():
        assert made.data.hex() == golden[name]["data"], name
        assert made.id.hex() == golden[name]["id"], name
        assert decode(bytes.fromhex(golden[name]["data"])) == made


def test_every_key_changes_the_id() -> None:
    ids = {make(keys()).id}
    changes = FULL | {
        "network": "other",
        "task": "digits/2",
        "schema": shape(b"\x05" * 32, []),
        "genesis": Genesis(hash=b"\x01" * 32, seed=4),
        "strategy": "el-push/1",
        "rules": {"block": 32},
        "shard_values": 200,
    }
    for name, value in changes.items():
        ids.add(make(keys(**{name: value})).id)
    ids.add(make(keys(genesis=None, base=Base(b"\x01" * 32))).id)
    assert len(ids) == len(changes) + 2
    assert set(changes) | {"base"} == set(Keys.__struct_fields__)


def test_what_is_absent_is_not_in_the_document() -> None:
    least = "_ genesis network rules schema shard_values strategy task"
    assert sorted(document(make(keys()))) == least.split()


def test_a_key_of_a_later_version_is_kept_hashed_and_shown() -> None:
    ours = make(keys())
    later = decode(raw(document(ours) | {"privacy": {"epsilon": 8}, "zeal": "high"}))
    assert later.unknown == {"privacy": {"epsilon": 8}, "zeal": "high"}
    assert later.keys == ours.keys
    assert later.id != ours.id
    assert shown(later)["privacy"] == "{'epsilon': 8}"
    assert any("privacy" in sentence for sentence in difference(ours, later))
    nested = document(ours)
    nested["genesis"]["device"] = "cpu"
    assert decode(raw(nested)).id != ours.id
    assert difference(ours, decode(raw(nested)))


def test_another_version_of_the_document_is_refused_with_its_name() -> None:
    with pytest.raises(RemoteError, match="manifest/2"):
        decode(raw(document(make(keys())) | {"_": "manifest/2"}))


@pytest.mark.parametrize(
    "change",
    [
        {"genesis": None, "base": None},
        {"base": Base(b"\x01" * 32)},  # and a genesis
    ],
)
def test_a_manifest_says_once_what_the_run_begins_with(change: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match="genesis"):
        make(keys(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": ""},  # nothing is said by leaving it out
        {"task": ""},
        {"rules": {}},
        {"licence": 7},
        {"genesis": {"hash": b"\x01" * 31, "seed": 1}},
        {"genesis": {"hash": "1" * 32, "seed": 1}},
        {"columns": {"count": 2, "hash": b"\x01" * 32, "names": ["a", "b"]}},
        {"until": 2**63},
        {"network": "n" * 201},
        {"parent": b""},
    ],
)
def test_one_meaning_has_one_spelling(change: dict[str, Any]) -> None:
    assert refusal(raw(document(make(keys())) | change)) is Reason.MALFORMED


def test_a_manifest_that_is_too_long_is_refused_before_it_is_read() -> None:
    full = raw(document(make(keys())) | {"zeal": ["z" * 1000] * 17})
    assert len(full) > MANIFEST_BYTES_MAX
    assert refusal(full) is Reason.OVERSIZED
    assert refusal(b"\xff" * (MANIFEST_BYTES_MAX + 1)) is Reason.OVERSIZED


def test_every_cut_and_every_trailing_byte_is_refused() -> None:
    data = make(keys(**FULL)).data
    for end in range(len(data)):
        assert refusal(data[:end]) is Reason.MALFORMED
    assert refusal(data + b"\0") is Reason.MALFORMED


def test_a_flipped_byte_gives_another_id_or_a_refusal() -> None:
    whole = make(keys(**FULL))
    for at in range(len(whole.data)):
        for bit in (1, 0x80):
            flipped = bytearray(whole.data)
            flipped[at] ^= bit
            try:
                found = decode(bytes(flipped))
            except RemoteError:
                continue
            assert found.id != whole.id


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_remote_error(data: bytes) -> None:
    with suppress(RemoteError):
        assert decode(data).data == data


VALUES = st.recursive(
    st.integers(0, 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Keys.__struct_fields__, "zeal", "other"]), VALUES, max_size=4))
def test_documents_with_anything_in_them_are_read_or_refused_and_always_shown(
    changes: dict[str, Any],
) -> None:
    ours = make(keys())
    try:
        found = decode(raw(document(ours) | changes))
    except RemoteError:
        return
    said = [*difference(ours, found), *difference(found, ours), *shown(found).values(), *shown(found)]
    assert all(sentence.isascii() and sentence.isprintable() for sentence in said)
    assert (found.data == ours.data) == (not difference(ours, found))


def test_lists_that_are_too_long_for_people_are_there_as_a_hash() -> None:
    names = [f"column {number}" for number in range(3000)]
    made = make(keys(columns=columns(names), schema=shape(b"\x02" * 32, names)))
    assert len(made.data) < 1000
    other = make(keys(columns=columns([*names[1:], names[0]]), schema=shape(b"\x02" * 32, names)))
    [sentence] = difference(made, other)
    assert "another order" in sentence


def test_the_longest_texts_and_lists_fit() -> None:
    names = [f"{number:02}" + "n" * 96 for number in range(30)]
    wide = "ü" * 200
    longest = keys(
        **FULL
        | {
            "network": wide,
            "task": wide,
            "strategy": wide,
            "share": wide,
            "licence": wide,
            "purpose": "p" * 1000,
            "columns": columns(names),
            "schema": shape(b"\x02" * 32, names),
            "scaling": scaling("given", bytes(1536), bytes(1536)),
        }
    )
    made = make(longest)
    assert made.keys.columns is not None
    assert made.keys.columns.names == names
    assert len(made.data) <= MANIFEST_BYTES_MAX


# --- differences -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"network": "other"}, "the network is 'main' here and 'other' there (network.name)"),
        ({"task": "table/1"}, "the task is 'digits/1' here and 'table/1' there (task.factory)"),
        (
            {"genesis": Genesis(b"\x09" * 32, 4)},
            "the seed of the initial weights is 3 here and 4 there (learning.genesis_seed)",
        ),
        (
            {"shard_values": 200},
            "the most values of a shard are 1048576 here and 200 there (learning.shard_values_max)",
        ),
        (
            {"strategy": "el-push/1"},
            "the strategy is 'shard-pair/1' here and 'el-push/1' there (learning.strategy)",
        ),
        ({"rules": {"block": 32}}, "the rules of the exchange are block 64 here and block 32 there"),
        (
            {"schema": shape(b"\x09" * 32, ["b float32[10]", "w float32[64,12]"])},
            "the model has 'w float32[64,10]' only here and 'w float32[64,12]' only there",
        ),
        ({"licence": "MIT"}, "the licence is not named here and 'MIT' there"),
        ({"parent": b"\x07" * 32}, "the run is made from not named here and run 070707070707 there"),
    ],
)
def test_a_difference_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    assert difference(make(keys()), make(keys(**change))) == [sentence]


def test_equal_manifests_do_not_differ() -> None:
    assert difference(make(keys(**FULL)), make(keys(**FULL))) == []


def test_other_initial_weights_from_one_seed_are_blamed_on_jax_and_not_on_the_seed() -> None:
    ours, other = make(keys()), make(keys(genesis=Genesis(b"\x09" * 32, 3)))
    [sentence] = difference(ours, other)
    assert "another version of JAX" in sentence
    assert "JAX_DEFAULT_PRNG_IMPL" in sentence
    # Where the model is another one, its weights are, too: that is no news.
    model = make(keys(genesis=Genesis(b"\x09" * 32, 3), schema=shape(b"\x09" * 32, ["w float32[3]"])))
    assert len(difference(ours, model)) == 1


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["age", "glucose", "bmi"],
            "the table has the same in another order here than there: number 2 is 'bmi' here and 'glucose' there",
        ),
        (["age", "bmi"], "the table has 'glucose' only here"),
        (["age", "bmi", "sugar"], "the table has 'glucose' only here and 'sugar' only there"),
        (["age", "bmi", "glucose", "age"], "the table has some names more than once"),
    ],
)
def test_other_columns_are_named(names: list[str], sentence: str) -> None:
    ours = make(keys(columns=columns(["age", "bmi", "glucose"])))
    assert difference(ours, make(keys(columns=columns(names)))) == [sentence]


def test_another_label_is_named() -> None:
    ours, other = (make(keys(columns=columns(["age", "bmi"], label))) for label in ("ill", "dead"))
    assert difference(ours, other) == ["the column that is predicted is 'ill' here and 'dead' there"]
    long = columns(["age"], "l" * 2000)
    assert (long.names, long.label) == (None, None)
    assert make(keys(columns=long)).id != make(keys(columns=columns(["age"]))).id


def test_the_places_have_the_names_that_the_caller_gives() -> None:
    said = difference(make(keys()), make(keys(network="old")), places=("now", "in the saved run"))
    assert said == ["the network is 'main' now and 'old' in the saved run (network.name)"]


def test_many_differences_are_cut_short() -> None:
    other = keys(**FULL | {"network": "other", "task": "x/1", "strategy": "y/1", "shard_values": 1})
    said = difference(make(keys()), make(other))
    assert len(said) == 7
    assert said[-1].endswith(" more")


def test_what_a_manifest_says_is_told_key_by_key() -> None:
    said = shown(make(keys(**FULL)))
    assert said["task"] == "'digits/1'"
    assert said["genesis"] == "010101010101 from seed 3"
    assert said["columns"] == "3 columns: 'age', 'bmi', 'gr\\xf6\\xdfe', to predict 'ill'"
    assert said["schema"] == "020202020202: b float32[10], w float32[64,10]"
    assert "base" not in said
    assert list(said) == sorted(said)


def test_the_protocol_page_has_every_key(root: Path) -> None:
    page = (root / "docs/protocol.md").read_text()
    table = page.partition("<!-- manifest:begin -->\n")[2].partition("<!-- manifest:end -->")[0]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    assert [row[1].strip().strip("`") for row in rows] == ["_", *Keys.__struct_fields__]
    parts = {Base: "base", Columns: "columns", Genesis: "genesis", Scaling: "scaling", Shape: "schema"}
    for kind, key in parts.items():
        [row] = [row for row in rows if f"`{key}`" in row[1]]
        assert re.findall("`([a-z]+)`", row[2]) == sorted(kind.__struct_fields__)
