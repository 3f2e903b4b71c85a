"""The model of a home of 0.1: one file, `model.snap`, and the one before it. Read here, never written.

A home of 0.1 goes on with its model. The files stay until the first model of today has been written; then they are
removed by `forget`. The run's id was another hash then, over fewer things; it is computed again to see whether the
model is of this run. Whose state the optimiser's is, 0.1 did not write down, so a learner begins with a fresh one.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Struct

from gossip.learning.saved import Part, SavedModel
from gossip.learning.shards import shard_slices
from gossip.learning.task import RunInfo
from gossip.run import manifest
from gossip.run.manifest import Manifest

SNAPSHOT = "model.snap"
SNAPSHOT_BEFORE = "model.snap.1"

_FILE_MAGIC = b"p2pnode/snapshot/v1\0"
_MAGIC = b"p2pnode/weights/v1\0"
_RUN_DOMAIN = "p2pnode/run/v1"
_LENGTH_BYTES = 8
_HASH_BYTES = 32

log = structlog.get_logger(__name__)


class _Header(Struct, frozen=True):
    schema: bytes
    run: bytes
    steps: int
    begun: bool  # the optimiser has a state
    gates: list[tuple[int, float]]
    arrays: list[tuple[str, tuple[int, ...]]]  # weights, read-out, leaves of the optimiser's state


def read(folder: Path, run: RunInfo) -> SavedModel | None:
    """The newest whole model that 0.1 left in a state folder; None if there is none.

    Its run is that of `run` where it is the same in all that 0.1 knew, else the id of then.
    """
    for name in (SNAPSHOT, SNAPSHOT_BEFORE):
        path = folder / name
        try:
            data = path.read_bytes()
            return _model(*_opened(data), run)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, msgspec.MsgspecError) as error:
            log.error("snapshot_damaged", path=str(path), detail=str(error), next="the one before it")
    return None


def there(folder: Path) -> bool:
    return any((folder / name).exists() for name in (SNAPSHOT, SNAPSHOT_BEFORE))


def forget(folder: Path) -> None:
    """Remove the files of 0.1: today's are on the disk."""
    for name in (SNAPSHOT, SNAPSHOT_BEFORE):
        (folder / name).unlink(missing_ok=True)


def run_id(made: Manifest) -> bytes | None:
    """The id that 0.1 gave to the run of a manifest; None where it had none for such a run."""
    keys = made.keys
    if keys.genesis is None or keys.strategy != "shard-pair/1" or keys.rules != {"block": 64}:
        return None
    task = keys.task
    if keys.scaling is not None:
        given = keys.scaling.hash.hex()[:12] if keys.scaling.hash else ""
        task += " scale " + {"own": "standard", "none": "none"}.get(keys.scaling.kind, given)
    agreed = [
        *(_RUN_DOMAIN, keys.network, keys.schema.hash, task, "shard-pair/1", 64),
        *(keys.shard_values, keys.genesis.seed),
    ]
    return hashlib.sha256(msgspec.msgpack.encode(agreed)).digest()


def _opened(data: bytes) -> tuple[_Header, list[npt.NDArray[Any]]]:
    """Raises ValueError, TypeError or MsgspecError where a bit is wrong."""
    hash_at = len(_FILE_MAGIC) + _LENGTH_BYTES
    content = data[hash_at + _HASH_BYTES :]
    if not data.startswith(_FILE_MAGIC) or not content.startswith(_MAGIC):
        raise ValueError("not a model of 0.1")
    if hashlib.sha256(content).digest() != data[hash_at : hash_at + _HASH_BYTES]:
        raise ValueError("its SHA-256 does not match")
    start = len(_MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(content[len(_MAGIC) : start], "little")
    header = msgspec.msgpack.decode(content[start : start + length], type=_Header)
    arrays = []
    offset = start + length
    for kind, shape in header.arrays:
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(content, dtype, count, offset).reshape(shape).copy())
        offset += count * dtype.itemsize
    return header, arrays


def _model(header: _Header, arrays: list[npt.NDArray[Any]], run: RunInfo) -> SavedModel:
    sizes = tuple(run.shard_sizes)
    parts = {}
    if header.schema == run.schema and len(header.gates) == len(sizes) and arrays[0].shape == (sum(sizes),):
        weights, readout, *state = arrays
        parts = {
            f"shard/{shard}": Part(header.schema, (weights[place], readout[place]))
            for shard, place in enumerate(shard_slices(sizes))
        }
        if header.begun:
            parts["optimiser"] = Part(b"", tuple(state))
    same = bool(run.manifest) and run_id(manifest.decode(run.manifest)) == header.run
    return SavedModel(run.id if same else header.run, header.steps, tuple(header.gates), parts)
