"""What a user plugs in (a task), the shape of what is shared (a schema), and which run that makes.

Two peers may exchange weights only if they mean the same thing by them. So everything they must agree on stands in
the run's manifest (gossip/run/manifest.py), whose hash is the run id: network, leaf names, shapes and types, task,
learning rules, genesis. The receiver owns the manifest; the wire carries bytes of exactly the expected length. JAX is
not imported here: a daemon that only relays, and every command that does not train, lives without it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gossip.config import LearningConfig, RunConfig
from gossip.errors import LocalError
from gossip.learning.codec import BLOCK
from gossip.learning.shards import shard_sizes
from gossip.learning.strategies import VERSIONS
from gossip.run import manifest

FloatArray: TypeAlias = npt.NDArray[np.float32]
Batch: TypeAlias = Mapping[str, npt.NDArray[Any]]
Split: TypeAlias = Literal["train", "test"]

# Characters of "name/version": a manifest with more is malformed to every peer (`manifest.Text`).
NAME_LENGTH_MAX = 200

_SCHEMA_DOMAIN = "p2pnode/schema/v1"


class Task(Protocol):
    """A model, its loss and this machine's data.

    Optional attributes: `name` and `version` (str; change the version when the meaning of the weights changes),
    `columns` and `label` (names of the features in their order, and of what is predicted) and `scaling` (as
    gossip/run/manifest.py makes it), all of which peers must agree on, and
    `optimizer() -> optax.GradientTransformation` (default: SGD, trainer.py).
    """

    def init(self, key: Any) -> Any:
        """Return the parameters, any pytree; its float leaves are shared, the others stay as they are.

        A pure function of the JAX key: every peer derives the same genesis from it.
        """
        ...

    def loss(self, params: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """Return (scalar loss, {metric name: scalar}) for one batch, means over its rows. Pure, jit-able.

        The metric `accuracy`, in [0, 1], is the one by which the simulator and the demo compare; others are shown.
        """
        ...

    def batches(self, split: Split, seed: int) -> Iterator[Batch]:
        """Return {name: array} of fixed shapes, rows first.

        "train" never ends: this machine's rows, in an order that `seed` decides. "test" ends, and is the
        same for every seed.
        """
        ...


class Leaf(Struct, frozen=True, array_like=True):
    """One shared array of the model, as the user named it."""

    name: str  # path in the pytree, "layers/0/w"
    shape: tuple[int, ...]
    dtype: str  # the user's type; on the wire and in the shared vector everything is float32

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


class Schema(Struct, frozen=True):
    """The ordered shared leaves; their concatenation is the vector that shards are cut from."""

    leaves: tuple[Leaf, ...]

    @property
    def values(self) -> int:
        """Length of the shared vector."""
        total = 0
        for leaf in self.leaves:
            count = 1
            for extent in leaf.shape:
                count *= extent
            total += count
        return total

    @property
    def id(self) -> bytes:
        """SHA-256 of the canonical encoding, 32 bytes."""
        return hashlib.sha256(msgspec.msgpack.encode([_SCHEMA_DOMAIN, self.leaves])).digest()

    def difference(self, other: "Schema") -> str:
        """Say in one sentence how `other` differs from this schema; empty if it does not."""
        mine = {leaf.name: leaf for leaf in self.leaves}
        theirs = {leaf.name: leaf for leaf in other.leaves}
        said = [f"lacks {leaf}" for name, leaf in mine.items() if name not in theirs]
        said += [f"has {leaf} besides" for name, leaf in theirs.items() if name not in mine]
        said += [
            f"has {theirs[name]} instead of {leaf}"
            for name, leaf in mine.items()
            if name in theirs and theirs[name] != leaf
        ]
        if not said and self != other:
            said = ["has the same leaves in another order"]
        if not said:
            return ""
        more = f" and {len(said) - 3} more" if len(said) > 3 else ""
        return "the other model " + ", ".join(said[:3]) + more


class RunInfo(Struct, frozen=True):
    """What the node core knows about the learning: the manifest, and of it names, hashes and lengths, never arrays."""

    id: bytes  # 32 bytes: peers of another run are refused
    network: str
    task: str  # "digits/1": name and version, for people
    schema: bytes  # Schema.id, 32 bytes
    reference: bytes  # SHA-256 of the genesis vector, little-endian float32: the A of every exchange
    shard_sizes: tuple[int, ...]  # values in each shard
    manifest: bytes = b""  # the document whose hash `id` is; empty where a run has none, as in some tests


def task_name(task: Task) -> str:
    """Return "name/version" of a task; a task without a name goes by that of its class."""
    kind = type(task)
    name = getattr(task, "name", f"{kind.__module__}:{kind.__qualname__}")
    version = getattr(task, "version", "0")
    return f"{name}/{version}"


def vector_hash(vector: FloatArray) -> bytes:
    """Return the SHA-256 of the little-endian float32 bytes of a vector."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).digest()


def run_info(
    *,
    network: str,
    task: Task,
    schema: Schema,
    genesis: FloatArray,
    learning: LearningConfig,
    run: RunConfig | None = None,
) -> RunInfo:
    """Return the run that a task and these settings make.

    Args:
        network: Name of the network.
        task: Gives name, version, columns and scaling only.
        schema: Of the task's parameters (Trainer.schema).
        genesis: Shared vector of the initial parameters, float32, shape (schema.values,).
        learning: Of it, what peers must agree on: strategy, shard size and genesis seed.
        run: What people agree on.

    Raises:
        LocalError: genesis and schema do not fit each other, the task's name is too long to be told, or there is no
            manifest for them.
    """
    if genesis.shape != (schema.values,):
        raise LocalError(f"genesis has shape {genesis.shape}, the schema has {schema.values} values")
    name = task_name(task)
    if len(name) > NAME_LENGTH_MAX:
        raise LocalError(
            f"the task's name and version have {len(name)} characters, at most {NAME_LENGTH_MAX} can be told to peers:"
            f" {name[:60]!r}..."
        )
    agreed = run or RunConfig()
    names = tuple(getattr(task, "columns", ()))
    made = manifest.make(
        manifest.Keys(
            columns=manifest.columns(names, getattr(task, "label", "")) if names else None,
            genesis=manifest.Genesis(vector_hash(genesis), learning.genesis_seed),
            licence=agreed.licence or None,
            network=network,
            purpose=agreed.purpose or None,
            rules={"block": BLOCK},
            scaling=getattr(task, "scaling", None),
            schema=manifest.shape(schema.id, [str(leaf) for leaf in schema.leaves]),
            shard_values=learning.shard_values_max,
            strategy=VERSIONS[learning.strategy],
            task=name,
        )
    )
    return run_of(made, schema.values)


def run_of(made: manifest.Manifest, values: int) -> RunInfo:
    """Return what the core needs of a manifest.

    Args:
        values: Length of the shared vector, which the schema decides.
    """
    keys = made.keys
    return RunInfo(
        id=made.id,
        network=keys.network,
        task=keys.task,
        schema=keys.schema.hash,
        reference=made.reference,
        shard_sizes=shard_sizes(values, keys.shard_values),
        manifest=made.data,
    )
