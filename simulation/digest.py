"""One number for a whole run: SHA-256 over what every node was given, one after the other.

An event is covered by its date as IEEE bits, its kind, and its content: a frame as it came, anything else encoded. In
which order two nodes were given theirs is not covered, because no node can tell, and a run may be divided over
processes. A payload is covered by the frame that brings it; the job that made it, by its ticket, the payload's length
and its figure. Pieces are collected and hashed some at a time, which costs half as much.
"""

import struct
from collections.abc import Iterable
from hashlib import sha256

import msgspec

from gossip.events import (
    DialFailed,
    Done,
    Event,
    Join,
    Leave,
    Offered,
    PeerDown,
    PeerUp,
    Progress,
    Received,
    Rescued,
    Responded,
    Sent,
    Unsent,
    Woken,
)

# Of thousands of nodes, each: some tens of kilobytes that wait.
PIECES = 24

_STAMP = struct.Struct("<dBI")  # date, kind, bytes of the frame
_MADE = struct.Struct("<dBIQd")  # date, kind, bytes of the payload, ticket, its clip limit or norm
_KIND: dict[type, int] = {
    kind: number
    for number, kind in enumerate(
        (PeerUp, PeerDown, DialFailed, Received, Woken, Done, Join, Leave, Sent, Unsent, Progress)
    )
}
_RECEIVED, _DONE = _KIND[Received], _KIND[Done]
_encode = msgspec.msgpack.Encoder().encode


class EventDigest:
    """Takes the events of one node in the order in which they happen."""

    __slots__ = ("_pieces", "_sha")

    def __init__(self) -> None:
        self._sha = sha256()
        self._pieces: list[bytes] = []

    def add(self, now: float, event: Event) -> None:
        """The node is given `event` now."""
        pieces = self._pieces
        if isinstance(event, Received):
            frame = event.frame
            pieces += (_STAMP.pack(now, _RECEIVED, len(frame)), event.peer, frame)
        elif isinstance(event, Done) and isinstance(result := event.result, Offered | Responded | Rescued):
            figure = result.clip if isinstance(result, Offered) else result.norm
            pieces.append(_MADE.pack(now, _DONE, len(result.payload), event.ticket, figure))
        else:
            pieces += (_STAMP.pack(now, _KIND[type(event)], 0), _encode(event))
        if len(pieces) >= PIECES:
            self._hash()

    def digest(self) -> bytes:
        """Of every event so far, 32 bytes."""
        self._hash()
        return self._sha.digest()

    def _hash(self) -> None:
        self._sha.update(b"".join(self._pieces))
        self._pieces.clear()


def digest_of(digests: Iterable[bytes]) -> str:
    """One number for all nodes from those of each, in the order of their indices; 64 hexadecimal digits."""
    return sha256(b"".join(digests)).hexdigest()
