"""What a node keeps from one life to the next, as entries of `Persist`, and how it is read back.

Entries are our own, but a disk may have been edited or belong to another run: what does not fit is ignored where
starting without it is safe, and refused (LocalError) where it is not.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from gossip.errors import LocalError
from gossip.learning.task import RunInfo

AGES_KEY = "ages"  # + / and hex of a run's id: local steps behind each shard of its last saved model
MARK_KEY = "mark/"  # + hex of an author's key: its highest accepted sequence number
PEERS_KEY = "peers"  # addresses for the next start, so that no single bootstrap node is needed twice
ROUNDS_KEY = "rounds"  # + / and hex of a run's id: local rounds behind its last saved model
CEILING_KEY = "sequence"  # no sequence number below it may be signed again

# Enough that some are still there after a month. A guess.
PEERS_MAX = 32

Entry = tuple[str, bytes]
T = TypeVar("T")


def learned_entries(run: RunInfo, ages: Sequence[int], rounds: int) -> tuple[Entry, Entry]:
    """What belongs to the saved model of a run, besides its arrays."""
    name = run.id.hex()
    return (
        (f"{AGES_KEY}/{name}", msgspec.msgpack.encode(list(ages))),
        (f"{ROUNDS_KEY}/{name}", rounds.to_bytes(8, "big")),
    )


def ages(store: Mapping[str, bytes], run: RunInfo, has_model: bool) -> list[int]:
    """Ages per shard; zeros (a newcomer) without a model, or if they belong to another cut into shards."""
    count = len(run.shard_sizes)
    key = _key_of(store, AGES_KEY, run)
    if has_model and key in store:
        kept = _read(store, key, list[int])
        if len(kept) == count:
            return kept
    return [0] * count


def rounds(store: Mapping[str, bytes], run: RunInfo) -> int:
    return int.from_bytes(store.get(_key_of(store, ROUNDS_KEY, run), b""), "big")


def _key_of(store: Mapping[str, bytes], key: str, run: RunInfo) -> str:
    """Where an entry of a run is. Homes of 0.1 knew one run, and did not name it."""
    named = f"{key}/{run.id.hex()}"
    return named if named in store else key


def mark_entry(author: bytes, seq: int) -> Entry:
    return MARK_KEY + author.hex(), seq.to_bytes(8, "big")


def forgotten_mark_entry(author: bytes) -> Entry:
    """Deletes a mark: the disk must not keep more authors than the memory does."""
    return MARK_KEY + author.hex(), b""


def marks(store: Mapping[str, bytes]) -> dict[bytes, int]:
    """Highest accepted sequence number per author."""
    start = len(MARK_KEY)
    return {
        bytes.fromhex(name[start:]): int.from_bytes(value, "big")
        for name, value in sorted(store.items())
        if name.startswith(MARK_KEY)
    }


def peers_entry(addresses: Sequence[str]) -> Entry:
    return PEERS_KEY, msgspec.msgpack.encode(list(addresses[:PEERS_MAX]))


def peers(store: Mapping[str, bytes]) -> list[str]:
    return _read(store, PEERS_KEY, list[str]) if PEERS_KEY in store else []


def ceiling_entry(ceiling: int) -> Entry:
    return CEILING_KEY, ceiling.to_bytes(8, "big")


def ceiling(store: Mapping[str, bytes]) -> int:
    """The first sequence number that is safe to sign; 0 for a new identity."""
    return int.from_bytes(store.get(CEILING_KEY, b""), "big")


def _read(store: Mapping[str, bytes], key: str, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(store[key], type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LocalError(f"the stored entry {key!r} is damaged: {error}") from error
