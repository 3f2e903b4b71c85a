"""A saved model as bytes: every bit of it is checked, and equal parts have equal names."""

import numpy as np
import pytest

from gossip.learning.saved import Part, SavedModel, SnapshotError, decode, encode, named

MODEL = SavedModel(
    run=b"r" * 32,
    steps=7,
    gates=((3, 0.25), (0, 0.0)),
    parts={
        "shard/0": Part(b"s" * 32, (np.arange(6, dtype=np.float32), np.ones(6, np.float32))),
        "shard/1": Part(b"s" * 32, (np.zeros(5, np.float32), np.zeros(5, np.float32))),
        # Types of every width, so that some begin at odd bytes; a single number; nothing at all.
        "optimiser": Part(
            b"o" * 32,
            (
                np.int32(7),
                np.array([1, 2, 3], np.uint8),
                np.arange(4, dtype=">f8").reshape(2, 2),
                np.zeros(0),
            ),
        ),
        "bare": Part(b"", ()),
    },
)


def contents(model: SavedModel) -> tuple[bytes, dict[str, bytes]]:
    head, pieces = encode(model)
    return head, {name: b"".join(content) for name, content in pieces.items()}


def test_what_is_decoded_is_what_was_encoded() -> None:
    head, stored = contents(MODEL)
    assert named(head) == set(stored)
    found = decode(head, stored.__getitem__)
    assert (found.run, found.steps, found.gates) == (MODEL.run, MODEL.steps, MODEL.gates)
    assert list(found.parts) == list(MODEL.parts)
    for name, part in found.parts.items():
        expected = MODEL.parts[name]
        assert part.meaning == expected.meaning
        for array, wanted in zip(part.arrays, expected.arrays, strict=True):
            assert array.flags.aligned
            assert array.shape == wanted.shape
            np.testing.assert_array_equal(array, wanted)
    assert contents(found) == (head, stored)


def test_equal_arrays_are_one_content_and_a_changed_one_is_another() -> None:
    _, stored = contents(MODEL)
    weights = np.arange(6, dtype=np.float32)
    twice = SavedModel(
        MODEL.run,
        0,
        (),
        {name: Part(b"s" * 32, (weights, weights)) for name in ("shard/0", "shard/1")},
    )
    assert len(contents(twice)[1]) == 1
    changed = MODEL.parts | {"shard/1": Part(b"s" * 32, (np.ones(5, np.float32), np.zeros(5, np.float32)))}
    after = contents(SavedModel(MODEL.run, 8, MODEL.gates, changed))[1]
    assert len(set(stored) - set(after)) == len(set(after) - set(stored)) == 1


def test_every_damage_is_noticed() -> None:
    head, stored = contents(MODEL)
    for at in range(len(head)):
        flipped = head[:at] + bytes([head[at] ^ 0x10]) + head[at + 1 :]
        with pytest.raises(SnapshotError):
            decode(flipped, stored.__getitem__)
    for bad in (b"", head[:-1], head + b"\0"):
        with pytest.raises(SnapshotError):
            named(bad)
    for name, content in stored.items():
        damaged = [content + b"\0", content[:-1]] if content else [b"\0"]
        damaged += [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(len(content))]
        for bad in damaged:
            with pytest.raises(SnapshotError):
                decode(head, (stored | {name: bad}).__getitem__)


def test_the_size_is_that_of_all_arrays() -> None:
    assert MODEL.size_bytes == 2 * 6 * 4 + 2 * 5 * 4 + 4 + 3 + 4 * 8
