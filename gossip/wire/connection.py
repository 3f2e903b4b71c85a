"""Messages of the connection itself: who a peer is, which protocols it speaks, and why it closes."""

from typing import Annotated, TypeAlias

from msgspec import Meta

from gossip.wire.canonical import U32, Message, Record, Text, Word

# Protocols of one node, and versions of one protocol that a node speaks at the same time. Guesses, far above today's.
PROTOCOLS_MAX = 64
VERSIONS_MAX = 8
# What `extra` may hold in all, names and values.
EXTRA_BYTES_MAX = 1024

Versions: TypeAlias = Annotated[list[U32], Meta(min_length=1, max_length=VERSIONS_MAX)]
Extra: TypeAlias = Annotated[bytes, Meta(max_length=EXTRA_BYTES_MAX)]


class Hello(Message, frozen=True, tag="hello"):
    """First message in both directions. Two peers speak the highest version of each protocol that both name."""

    agent: Text  # "p2pnode/0.2.0"
    extra: Annotated[
        dict[Word, Extra], Meta(max_length=16)
    ]  # for what comes later; unknown names are ignored
    protocols: Annotated[dict[Word, Versions], Meta(max_length=PROTOCOLS_MAX)]
    record: Record  # own signed peer record


class Bye(Message, frozen=True, tag="bye"):
    reason: Text


class Unsupported(Message, frozen=True, tag="unsupported"):
    """A message of this tag came, and is of no protocol that both speak. Never answered."""

    tag: Word


MESSAGES = (Hello, Bye, Unsupported)
