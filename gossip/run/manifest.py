"""The manifest of a run: one document of at most 16 KiB that says what peers must agree on; its hash is the run id.

It is encoded as messages are (gossip/wire/canonical.py): one canonical msgpack map of maps, arrays, strings, byte
strings and unsigned integers, so that one content has one spelling and one id. What does not apply is absent, so that a
later version can add keys and the runs of today keep their ids. A key that this version does not know is kept, shown
and hashed; only the version in the tag `_` says that known keys mean something else.

Lists that people want to read (leaves, columns) stand in it where they are short; their hash always does.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from gossip.errors import LocalError, Reason, RemoteError
from gossip.wire import canonical as wire
from gossip.wire.run import MANIFEST_BYTES_MAX

# Each of the lists that are there for people. Three of them and all texts at their longest fit into a manifest.
_LIST_BYTES_MAX = 3 * 2**10

_DOMAIN = b"p2pnode/manifest/v1\0"
_COLUMNS_DOMAIN = "p2pnode/columns/v1"

# Differences that are told; a peer with 500 other columns must not fill a log.
_SAID_MAX = 6
_SHOWN_CHARACTERS = 60

Bytes32: TypeAlias = wire.Bytes32
Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200)]


class Genesis(Struct, frozen=True, omit_defaults=True):
    """Initial weights that every peer draws for itself."""

    hash: Bytes32  # SHA-256 of the vector, little-endian float32
    seed: wire.U63


class Base(Struct, frozen=True, omit_defaults=True):
    """Initial weights that were given: a checkpoint, the result of another run."""

    hash: Bytes32  # SHA-256 of the vector, little-endian float32
    name: Text | None = None


class Shape(Struct, frozen=True, omit_defaults=True):
    """The shared arrays of the model."""

    hash: Bytes32  # Schema.id
    leaves: Annotated[list[Text], Meta(min_length=1)] | None = (
        None  # "w float32[64,10]", where the list is short
    )


class Columns(Struct, frozen=True, omit_defaults=True):
    """The features of a table, in their order."""

    count: wire.U32
    hash: Bytes32  # of the names, the label's among them
    label: Annotated[str, Meta(min_length=1)] | None = None  # the column that is predicted
    names: Annotated[list[str], Meta(min_length=1)] | None = None  # where the list is short


class Scaling(Struct, frozen=True, omit_defaults=True):
    """How features are brought to one scale before they reach the model."""

    kind: wire.Word  # "own" (by each file's own rows), "given", "none"
    deviation: bytes | None = None  # of each column, little-endian float64, where that is short
    hash: Bytes32 | None = None  # of means and deviations, where they were given
    mean: bytes | None = None


class Keys(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="_", tag="manifest/1"):
    """What this version knows, in the order of the names: that is the canonical order."""

    base: Base | None = None  # this or `genesis`
    columns: Columns | None = None
    genesis: Genesis | None = None
    licence: Text | None = None  # of the model, an SPDX expression
    network: Annotated[str, Meta(max_length=200)]
    parent: Bytes32 | None = None  # id of the run that this one was made from
    purpose: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None
    # Of the exchange, what both ends must do alike: {"block": values that share a scale in int8 and int4}.
    rules: Annotated[dict[str, wire.U63 | Text], Meta(min_length=1)]
    scaling: Scaling | None = None
    schema: Shape
    shard_values: wire.U32  # at most so many in one shard
    share: Text | None = None  # what of the model is exchanged, where that is not all of it
    strategy: Text  # name and version
    task: Text  # name and version
    terms: Bytes32 | None = None  # SHA-256 of the text under which data and model are used
    until: wire.U63 | None = None  # date after which the run is over, in seconds since 1970


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(Keys)


class Manifest(Struct, frozen=True):
    """A manifest as it came or was made.

    Attributes:
        data: The document, at most MANIFEST_BYTES_MAX bytes; what is hashed, kept and passed on.
        keys: Of it, what this version knows.
        unknown: The others, by name.
    """

    data: bytes
    keys: Keys
    unknown: Mapping[str, Any]

    @property
    def id(self) -> bytes:
        """The run id, 32 bytes."""
        return run_id(self.data)

    @property
    def reference(self) -> bytes:
        """SHA-256 of the initial weights: the A of every exchange."""
        start = self.keys.genesis or self.keys.base
        assert start is not None, "checked where it was made or read"
        return start.hash


def run_id(data: bytes) -> bytes:
    """The id of the run whose manifest these bytes are, 32 bytes."""
    return hashlib.sha256(_DOMAIN + data).digest()


def make(keys: Keys) -> Manifest:
    """Return the manifest with these keys.

    Raises:
        LocalError: they do not fit into a manifest, or do not say which weights the run begins with.
    """
    try:
        # By way of a dict: msgspec reserves the head of a map for all fields, also where some are left out.
        return decode(_encoder.encode(msgspec.to_builtins(keys, builtin_types=(bytes,))))
    except RemoteError as error:
        raise LocalError(f"these settings make no manifest: {error.detail}") from error


def decode(data: bytes) -> Manifest:
    """Read a manifest from anywhere.

    Raises:
        RemoteError: OVERSIZED or MALFORMED. Nothing else, whatever the bytes.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise RemoteError(
            Reason.OVERSIZED, f"a manifest of {len(data)} bytes; at most {MANIFEST_BYTES_MAX} are allowed"
        )
    wire.scan(data)
    try:
        keys = _decoder.decode(data)
        document = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # msgspec quotes unknown tags, which are the author's text.
        raise RemoteError(
            Reason.MALFORMED, f"not a manifest that this version reads: {ascii(str(error)[:120])[1:-1]}"
        ) from None
    if (keys.genesis is None) == (keys.base is None):
        raise RemoteError(Reason.MALFORMED, "a manifest names either a genesis or base weights")
    if keys.columns is not None and keys.columns.names is not None:
        names = keys.columns.names
        if keys.columns.count != len(names) or keys.columns.hash != _hash_of(names, keys.columns.label or ""):
            raise RemoteError(Reason.MALFORMED, "the names of columns in a manifest do not have its hash")
    known = {"_", *Keys.__struct_fields__}
    return Manifest(data, keys, {name: value for name, value in document.items() if name not in known})


# --- the parts that are lists --------------------------------------------------------------------------


def shape(schema: bytes, leaves: Sequence[str]) -> Shape:
    """Return the key `schema` of a model with this schema id, whose leaves read so."""
    readable = all(len(leaf) <= 200 for leaf in leaves)
    return Shape(schema, _short(leaves) if readable else None)


def columns(names: Sequence[str], label: str = "") -> Columns:
    """Return the key `columns` of a table with these features.

    Args:
        names: In their order.
        label: Name of the column that is predicted; empty: it has none.
    """
    readable = _short([*names, label]) is not None
    return Columns(
        count=len(names),
        hash=_hash_of(names, label),
        label=label if label and readable else None,
        names=list(names) if names and readable else None,
    )


def scaling(kind: str, mean: bytes = b"", deviation: bytes = b"") -> Scaling:
    """Return the key `scaling`.

    Args:
        kind: One word.
        mean, deviation: One number for each column, little-endian float64; empty where none were given.
    """
    if not mean and not deviation:
        return Scaling(kind)
    digest = hashlib.sha256(mean + deviation).digest()
    short = len(mean) + len(deviation) <= _LIST_BYTES_MAX
    return Scaling(kind, deviation if short else None, digest, mean if short else None)


def _hash_of(names: Sequence[str], label: str) -> bytes:
    return hashlib.sha256(_encoder.encode([_COLUMNS_DOMAIN, label, list(names)])).digest()


def _short(texts: Sequence[str]) -> list[str] | None:
    """The texts where a manifest has room for them, else None. A pure function: peers must come to the same."""
    sizes = [len(text.encode()) for text in texts]
    if not texts or sum(sizes) + 3 * len(sizes) > _LIST_BYTES_MAX or max(sizes) > wire.STR_BYTES_MAX:
        return None
    return list(texts) if len(texts) <= wire.ARRAY_MAX else None


# --- for people ----------------------------------------------------------------------------------------


def shown(manifest: Manifest) -> dict[str, str]:
    """Return what the manifest says, key by key, in words; escaped, for it may be anybody's."""
    document = {name: getattr(manifest.keys, name) for name in Keys.__struct_fields__}
    said = {name: _value(name, value) for name, value in document.items() if value is not None}
    return said | {ascii(name)[1:-1]: _plain(value) for name, value in manifest.unknown.items()}


def difference(ours: Manifest, other: Manifest, *, places: tuple[str, str] = ("here", "there")) -> list[str]:
    """Say how two manifests differ, most important first, a sentence for each key; empty if they do not.

    Args:
        places: What to call the two, as in "the seed is 3 here and 4 there".
    """
    if ours.data == other.data:
        return []
    said = list(_differences(ours, other, places)) or [
        "they differ within a key, in what this version does not know"
    ]
    if len(said) > _SAID_MAX:
        said[_SAID_MAX:] = [f"{len(said) - _SAID_MAX} more"]
    return said


# What people call a key, and the setting behind it, in the order in which differences are told.
_WORDS = {
    "network": ("the network is", "network.name"),
    "task": ("the task is", "task.factory"),
    "columns": ("the table has", ""),
    "scaling": ("the scaling of features is", ""),
    "schema": ("the model has", ""),
    "shard_values": ("the most values of a shard are", "learning.shard_values_max"),
    "strategy": ("the strategy is", "learning.strategy"),
    "rules": ("the rules of the exchange are", ""),
    "share": ("what is exchanged is", ""),
    "base": ("the weights to begin with are", ""),
    "parent": ("the run is made from", ""),
    "purpose": ("the purpose is", ""),
    "licence": ("the licence is", ""),
    "terms": ("the terms are", ""),
    "until": ("the run ends at", ""),
}


def _differences(ours: Manifest, other: Manifest, places: tuple[str, str]) -> Iterator[str]:
    here, there = places
    for name, (words, setting) in _WORDS.items():
        mine, its = getattr(ours.keys, name), getattr(other.keys, name)
        if mine == its:
            continue
        hint = f" ({setting})" if setting else ""
        if isinstance(mine, Columns) and isinstance(its, Columns):
            yield _columns_differ(mine, its, places)
        elif isinstance(mine, Shape) and isinstance(its, Shape) and mine.leaves and its.leaves:
            yield _lists_differ("the model", mine.leaves, its.leaves, places)
        else:
            yield f"{words} {_value(name, mine)} {here} and {_value(name, its)} {there}{hint}"
    yield from _genesis_differs(ours, other, places)
    for name in sorted({*ours.unknown, *other.unknown}):
        mine, its = ours.unknown.get(name), other.unknown.get(name)
        if mine != its:
            key = _plain(name)
            yield f"{key}, which this version does not know, is {_plain(mine)} {here} and {_plain(its)} {there}"


def _genesis_differs(ours: Manifest, other: Manifest, places: tuple[str, str]) -> Iterator[str]:
    here, there = places
    mine, its = ours.keys.genesis, other.keys.genesis
    if mine is None or its is None or mine == its:
        return
    if mine.seed != its.seed:
        yield (
            f"the seed of the initial weights is {mine.seed} {here} and {its.seed} {there} (learning.genesis_seed)"
        )
    elif ours.keys.task == other.keys.task and ours.keys.schema == other.keys.schema:
        # Otherwise they differ for a reason that has been told already.
        yield (
            f"the initial weights are {_hex(mine.hash)} {here} and {_hex(its.hash)} {there} although task, model and "
            "seed are the same: another version of JAX or another setting of it (JAX_DEFAULT_PRNG_IMPL, "
            "JAX_THREEFRY_PARTITIONABLE, JAX_ENABLE_X64), or other hardware, draws other numbers"
        )


def _columns_differ(mine: Columns, its: Columns, places: tuple[str, str]) -> str:
    here, there = places
    if mine.names and mine.names == its.names:
        return f"the column that is predicted is {_plain(mine.label)} {here} and {_plain(its.label)} {there}"
    if mine.names and its.names:
        return _lists_differ("the table", mine.names, its.names, places)
    if mine.count != its.count:
        return f"the table has {mine.count} columns {here} and {its.count} {there}"
    return f"the table has other columns {here} than {there}, or the same in another order"


def _lists_differ(whole: str, mine: Sequence[str], its: Sequence[str], places: tuple[str, str]) -> str:
    here, there = places
    if mine == its:
        return f"{whole} reads the same {here} and {there}, but its hash is another one"
    only_here = [_plain(name) for name in mine if name not in its]
    only_there = [_plain(name) for name in its if name not in mine]
    if not only_here and not only_there and len(mine) == len(its):
        at = next(place for place, pair in enumerate(zip(mine, its, strict=True)) if pair[0] != pair[1])
        return (
            f"{whole} has the same in another order {here} than {there}: number {at + 1} is {_plain(mine[at])} "
            f"{here} and {_plain(its[at])} {there}"
        )
    parts = []
    if only_here:
        parts.append(f"{_listed(only_here)} only {here}")
    if only_there:
        parts.append(f"{_listed(only_there)} only {there}")
    return f"{whole} has {' and '.join(parts) or 'some names more than once'}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _value(name: str, value: Any) -> str:
    """A known key in words."""
    match value:
        case None:
            return "not named"
        case Genesis():
            return f"{_hex(value.hash)} from seed {value.seed}"
        case Base():
            return _hex(value.hash) + (f" ({_plain(value.name)})" if value.name else "")
        case Shape():
            leaves = ", ".join(_plain(leaf)[1:-1] for leaf in (value.leaves or [])[:3])
            more = f" and {len(value.leaves) - 3} more" if value.leaves and len(value.leaves) > 3 else ""
            return _hex(value.hash) + (f": {leaves}{more}" if leaves else "")
        case Columns():
            names = f": {_listed([_plain(name) for name in value.names])}" if value.names else ""
            label = f", to predict {_plain(value.label)}" if value.label else ""
            return f"{value.count} columns{names}{label}"
        case Scaling():
            return _plain(value.kind) + (f" {_hex(value.hash)}" if value.hash else "")
        case dict():
            return ", ".join(f"{_plain(key)[1:-1]} {_plain(item)}" for key, item in value.items())
    return f"run {_hex(value)}" if name == "parent" else _plain(value)


def _plain(value: Any) -> str:
    """Any value of a document: short, and without a character that a terminal would obey."""
    if value is None:
        return "absent"
    if isinstance(value, bytes):
        return _hex(value)
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _hex(value: bytes) -> str:
    return value.hex()[:12]
