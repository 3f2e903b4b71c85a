"""A model as it is kept between two lives: parts with hashes of their own, and a head that names them.

    part     arrays that are kept together, with the hash of what gives them their meaning; its content (the arrays one
             after the other, little-endian) is named by its SHA-256, so that what has not changed need not be written
    head     run, counts, and of each part: name, hash, meaning, types and shapes

`Learner.dump` makes one and `Learner.load` takes it; where contents and heads lie is not decided here.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

Array: TypeAlias = npt.NDArray[Any]
# What a file of this content consists of, in order; nothing is copied to write it.
Content: TypeAlias = list[memoryview]

_HEAD_MAGIC = b"p2pnode/model/v1\0"
_HASH_BYTES = 32


class SnapshotError(Exception):
    """A saved model is damaged, or belongs to another model. The message is for people."""


class Part(Struct, frozen=True):
    """Arrays that are kept together.

    Attributes:
        meaning: Hash of the model's schema, of the optimiser and its state, of the strategy's state; empty: not known.
        arrays: Belong to the saved model: whoever makes one copies what goes on changing.
    """

    meaning: bytes
    arrays: tuple[Array, ...]


class SavedModel(Struct, frozen=True, eq=False):
    """Everything that a restart needs. Two are equal if they would be the same bytes on a disk."""

    run: bytes  # id
    steps: int  # optimiser steps taken
    gates: tuple[tuple[int, float], ...]  # accepted changes and their usual norm, per shard
    parts: Mapping[str, Part]

    @property
    def size_bytes(self) -> int:
        """Of all contents; the head is small."""
        return sum(array.nbytes for part in self.parts.values() for array in part.arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SavedModel) and encode(self)[0] == encode(other)[0]

    __hash__ = None  # type: ignore[assignment]  # arrays have none


class _PartHead(Struct, frozen=True):
    arrays: list[tuple[str, tuple[int, ...]]]  # dtype and shape
    hash: bytes
    meaning: bytes


class _Head(Struct, frozen=True):
    gates: list[tuple[int, float]]
    parts: dict[str, _PartHead]
    run: bytes
    steps: int


def encode(model: SavedModel) -> tuple[bytes, dict[str, Content]]:
    """Return the head, and contents by the hexadecimal digits of their hash."""
    contents: dict[str, Content] = {}
    heads = {}
    for name, part in model.parts.items():
        arrays = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for array in part.arrays]
        content = [array.reshape(-1).view(np.uint8).data for array in arrays]
        digest = hashlib.sha256()
        for piece in content:
            digest.update(piece)
        contents[digest.hexdigest()] = content
        heads[name] = _PartHead(
            # ascontiguousarray makes a row of a single number.
            [(ours.dtype.str, array.shape) for ours, array in zip(arrays, part.arrays, strict=True)],
            digest.digest(),
            part.meaning,
        )
    body = msgspec.msgpack.encode(_Head(list(model.gates), heads, model.run, model.steps))
    return _HEAD_MAGIC + hashlib.sha256(body).digest() + body, contents


def named(head: bytes) -> set[str]:
    """Return the names of the contents that a head needs.

    Raises:
        SnapshotError: damaged.
    """
    return {part.hash.hex() for part in _open(head).parts.values()}


def decode(head: bytes, read: Callable[[str], bytes]) -> SavedModel:
    """Return the model of a head.

    Args:
        read: From the name of a content to the content.

    Raises:
        SnapshotError: damaged; of head and contents every bit is checked.
    """
    found = _open(head)
    parts = {}
    for name, part in found.parts.items():
        content = read(part.hash.hex())
        if hashlib.sha256(content).digest() != part.hash:
            raise SnapshotError(f"{name} is damaged: its SHA-256 does not match")
        parts[name] = Part(part.meaning, _arrays(name, part, content))
    return SavedModel(found.run, found.steps, tuple(found.gates), parts)


def _open(head: bytes) -> _Head:
    start = len(_HEAD_MAGIC) + _HASH_BYTES
    if not head.startswith(_HEAD_MAGIC):
        raise SnapshotError("this is not the head of a saved model, or one of another version")
    body = head[start:]
    if hashlib.sha256(body).digest() != head[len(_HEAD_MAGIC) : start]:
        raise SnapshotError("the head of the saved model is damaged: its SHA-256 does not match")
    try:
        return msgspec.msgpack.decode(body, type=_Head)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"the head of the saved model cannot be read: {error}") from error


def _arrays(name: str, part: _PartHead, content: bytes) -> tuple[Array, ...]:
    arrays = []
    offset = 0
    try:
        for kind, shape in part.arrays:
            dtype = np.dtype(kind)
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(content, dtype, count, offset).reshape(shape)
            # Views of the content, but for what would begin at an odd byte.
            arrays.append(array.astype(dtype.newbyteorder("="), copy=not array.flags.aligned))
            offset += count * dtype.itemsize
    except (ValueError, TypeError) as error:
        raise SnapshotError(f"{name} cannot be read: {error}") from error
    if offset != len(content):
        raise SnapshotError(f"{name} is longer or shorter than its head says")
    return tuple(arrays)
