"""Messages about runs: which ones a peer takes part in, what of them it holds, and what they are."""

from typing import Annotated

from msgspec import Meta, Struct

from gossip.wire.canonical import U32, U63, Bytes32, Message

MANIFEST_BYTES_MAX = 2**14
# Runs of one machine: one or a few. A guess.
RUNS_MAX = 16


class Share(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer holds of one run."""

    run: Bytes32
    shards: Annotated[list[U32], Meta(max_length=1024)]  # ascending


class Holds(Message, frozen=True, tag="holds"):
    """All runs that the sender takes part in. After `hello`, and again whenever it changes."""

    runs: Annotated[list[Share], Meta(max_length=RUNS_MAX)]


class GetManifest(Message, frozen=True, tag="get_manifest"):
    n: U63
    run: Bytes32


class ManifestMessage(Message, frozen=True, tag="manifest"):
    """The document whose hash is the run id; empty where it is not known here."""

    data: Annotated[bytes, Meta(max_length=MANIFEST_BYTES_MAX)]
    n: U63


MESSAGES = (Holds, GetManifest, ManifestMessage)
