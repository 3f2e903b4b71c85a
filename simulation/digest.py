"""One number for a whole run: SHA-256 over every event that any node was given.

An event is covered by its date as IEEE bits, the node, its kind, and its content: a frame as it came, anything else
encoded. A payload is covered by the frame that brings it; the job that made it, by its ticket, the payload's length and
its figure. Pieces are collected and hashed some hundred at a time, which costs half as much.
"""

import struct
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
    Received,
    Responded,
    Woken,
)

# Some hundred kilobytes, which are still in a cache of the processor when they are hashed.
PIECES = 256

_STAMP = struct.Struct("<dIBI")  # date, node, kind, bytes of the frame
_MADE = struct.Struct("<dIBIQd")  # date, node, kind, bytes of the payload, ticket, its clip limit or norm
_KIND: dict[type, int] = {
    kind: number
    for number, kind in enumerate((PeerUp, PeerDown, DialFailed, Received, Woken, Done, Join, Leave))
}
_RECEIVED, _DONE = _KIND[Received], _KIND[Done]
_encode = msgspec.msgpack.Encoder().encode


class EventDigest:
    """Takes events in the order in which they happen."""

    __slots__ = ("_pieces", "_sha")

    def __init__(self) -> None:
        self._sha = sha256()
        self._pieces: list[bytes] = []

    def add(self, now: float, node: int, event: Event) -> None:
        """Node number `node` is given `event` now."""
        pieces = self._pieces
        if isinstance(event, Received):
            frame = event.frame
            pieces += (_STAMP.pack(now, node, _RECEIVED, len(frame)), event.peer, frame)
        elif isinstance(event, Done) and isinstance(result := event.result, Offered | Responded):
            figure = result.clip if isinstance(result, Offered) else result.norm
            pieces.append(_MADE.pack(now, node, _DONE, len(result.payload), event.ticket, figure))
        else:
            pieces += (_STAMP.pack(now, node, _KIND[type(event)], 0), _encode(event))
        if len(pieces) >= PIECES:
            self._hash()

    def hexdigest(self) -> str:
        """Of every event so far, 64 hexadecimal digits."""
        self._hash()
        return self._sha.hexdigest()

    def _hash(self) -> None:
        self._sha.update(b"".join(self._pieces))
        self._pieces.clear()
