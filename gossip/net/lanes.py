"""Lanes: the frames of a connection cut into pieces that interleave, so that a ping does not wait for a model.

A connection has two lanes each way: `control` for what is small and asked for (the DHT, pings, refusals), `bulk` for
payloads. A *piece* is the plaintext of one Noise message:

    lane (1: 0 control, 1 bulk) | flags (1) | number of the frame (4, big-endian) | bytes

    flags: 1 last piece of the frame, 2 the sender gives the frame up (no bytes follow)

What the pieces of a frame carry, put together, is its length (4 bytes, big-endian) and its bytes. Within a lane frames
come one after the other, numbered from 0 modulo 2**32; pieces of the two lanes interleave as the sender likes. A frame
that was given up has used its number. So a receiver needs room for one frame in each lane, and knows from a frame's
first piece how long it is.

Control goes first, but it cannot starve bulk: after CONTROL_RUN pieces one of bulk is due. How large a piece may be is
decided by `gossip.net.pace`. The receiver is strict: a piece is what a sender of ours could have sent, or it is
refused, before anything is kept of it.
"""

from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct

from gossip.errors import Reason, RemoteError

# Of the channel, in the prologue of its handshake: what its messages are, which is pieces. 1 was p2pnode 0.1.
CHANNEL_VERSION = 2


class Lane(StrEnum):
    CONTROL = "control"
    BULK = "bulk"


# One Noise message, less its tag.
PIECE_BYTES_MAX = 65_535 - 16
# Of every piece but the last of its frame. Without this a peer could send megabytes byte by byte, each byte with the
# cost of a whole message.
PIECE_BYTES_MIN = 1024
# Pieces of control in a row while bulk waits. At the largest answers of the DHT (40 KB, as many pieces as the rate
# makes of it) bulk keeps a ninth of a slow link. A guess.
CONTROL_RUN = 8

HEADER_BYTES = 6
START_BYTES = 64
LENGTH_BYTES = 4  # before the bytes of every frame
_LAST, _ABORT = 1, 2
_NUMBERS = 2**32


class Limit(Struct, frozen=True):
    """Of one lane."""

    frame_bytes: int  # the largest frame, in either direction
    frames: int  # that wait to be sent
    waiting_bytes: int  # of these, unless it is only one frame


# The largest message of the DHT has 40 records of 1,000 bytes.
CONTROL_BYTES_MAX = 2**16
# One shard at float32 (2**20 values) with header and signature, rounded up.
BULK_BYTES_MAX = 2**22 + 2**16
# Frames that wait in one lane. A join asks each peer a handful of questions; whoever asks more often than we can answer
# is not answered.
WAITING_MAX = 64
CONTROL_WAITING_BYTES_MAX = 2**20
# Two of the largest.
BULK_WAITING_BYTES_MAX = 2 * BULK_BYTES_MAX
LIMITS: Mapping[Lane, Limit] = MappingProxyType(
    {
        Lane.CONTROL: Limit(CONTROL_BYTES_MAX, WAITING_MAX, CONTROL_WAITING_BYTES_MAX),
        Lane.BULK: Limit(BULK_BYTES_MAX, WAITING_MAX, BULK_WAITING_BYTES_MAX),
    }
)
_LANES = tuple(Lane)
_CODES = {lane: code for code, lane in enumerate(_LANES)}


class Transfer(Struct, frozen=True):
    """A frame under way: what people may see of it."""

    start: bytes  # its first bytes, enough to tell what it is
    size: int  # bytes
    done: int  # of these


class _Waiting(Struct):
    frame: bytes
    ticket: int
    done: int = 0  # bytes that were cut off


class Piece(Struct, frozen=True):
    """A part of a frame: bytes [start, end) of it."""

    lane: Lane
    number: int
    frame: bytes
    start: int
    end: int
    ticket: int  # of the frame
    abort: bool = False

    @property
    def last(self) -> bool:
        """Whether nothing of this frame comes after it."""
        return self.abort or self.end == len(self.frame)

    @property
    def size(self) -> int:
        """Bytes, as a message."""
        return HEADER_BYTES + (0 if self.abort or self.start else LENGTH_BYTES) + self.end - self.start

    def encode(self) -> bytes:
        """The plaintext of a Noise message."""
        flags = _ABORT if self.abort else _LAST if self.last else 0
        header = bytes((_CODES[self.lane], flags)) + self.number.to_bytes(4, "big")
        if self.abort:
            return header
        if self.start == 0:
            header += len(self.frame).to_bytes(LENGTH_BYTES, "big")
        return b"".join((header, memoryview(self.frame)[self.start : self.end]))


class _OutLane:
    """One lane of a Sender."""

    __slots__ = ("abort", "limit", "number", "queue", "waiting_bytes")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.queue: deque[_Waiting] = deque()  # the first may have begun
        self.waiting_bytes = 0  # of whole frames in the queue
        self.number = 0  # of the next frame, or of the one that has begun
        self.abort = False  # the frame with that number was given up after it had begun

    def __bool__(self) -> bool:
        return self.abort or bool(self.queue)

    def leaves(self) -> None:
        """The first frame is through, or given up."""
        self.waiting_bytes -= len(self.queue.popleft().frame)


class Sender:
    """The frames of one connection on their way out, bounded in each lane."""

    def __init__(self, limits: Mapping[Lane, Limit] = LIMITS) -> None:
        self._lanes = {lane: _OutLane(limits[lane]) for lane in _LANES}
        self._control = self._lanes[Lane.CONTROL]
        self._bulk = self._lanes[Lane.BULK]
        self._run = 0  # pieces of control since the last one of bulk, while bulk waits

    def __bool__(self) -> bool:
        """Whether there is something to send."""
        return bool(self._control) or bool(self._bulk)

    def put(self, frame: bytes, lane: Lane, ticket: int = 0) -> bool:
        """Queue a frame. False: the lane is full, and the frame is not taken."""
        out = self._lanes[lane]
        limit = out.limit
        assert len(frame) <= limit.frame_bytes, f"a frame of {len(frame)} bytes does not go by {lane}"
        if out.queue and (
            len(out.queue) >= limit.frames or out.waiting_bytes + len(frame) > limit.waiting_bytes
        ):
            return False
        out.queue.append(_Waiting(frame, ticket))
        out.waiting_bytes += len(frame)
        return True

    def next(self, size_max: int) -> Piece | None:
        """The next piece, cut off for good: it has to be sent.

        Args:
            size_max: Of the piece as a message, from PIECE_BYTES_MIN to PIECE_BYTES_MAX.
        """
        assert PIECE_BYTES_MIN <= size_max <= PIECE_BYTES_MAX
        if self._control and not (self._bulk and self._run >= CONTROL_RUN):
            self._run = self._run + 1 if self._bulk else 0
            return self._cut(Lane.CONTROL, self._control, size_max)
        if self._bulk:
            self._run = 0
            return self._cut(Lane.BULK, self._bulk, size_max)
        return None

    def give_up(self, ticket: int) -> bool:
        """Nobody wants this frame any more. False: it has left, or never came.

        One that has begun is ended by a piece that says so.
        """
        for out in self._lanes.values():
            for place, waiting in enumerate(out.queue):
                if waiting.ticket == ticket:
                    assert ticket, "frames without a ticket cannot be named"
                    out.abort |= waiting.done > 0
                    out.waiting_bytes -= len(waiting.frame)
                    del out.queue[place]
                    return True
        return False

    def tickets(self) -> list[int]:
        """Of all frames that have not left whole."""
        return [waiting.ticket for out in self._lanes.values() for waiting in out.queue if waiting.ticket]

    def under_way(self, lane: Lane) -> Transfer | None:
        """The first frame of a lane, whether it has begun or not."""
        queue = self._lanes[lane].queue
        if not queue:
            return None
        return Transfer(queue[0].frame[:START_BYTES], len(queue[0].frame), queue[0].done)

    def _cut(self, lane: Lane, out: _OutLane, size_max: int) -> Piece:
        number = out.number
        if out.abort:
            out.abort = False
            out.number = (number + 1) % _NUMBERS
            return Piece(lane, number, b"", 0, 0, 0, abort=True)
        first = out.queue[0]
        start = first.done
        room = size_max - HEADER_BYTES - (0 if start else LENGTH_BYTES)
        first.done = end = min(len(first.frame), start + room)
        if end == len(first.frame):
            out.leaves()
            out.number = (number + 1) % _NUMBERS
        return Piece(lane, number, first.frame, start, end, first.ticket)


class _InLane:
    """One lane of a Receiver."""

    __slots__ = ("done", "frame_bytes_max", "number", "parts", "size")

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.number = 0  # of the frame that is expected, or has begun
        self.size = -1  # of the one that has begun; -1: none has
        self.done = 0
        self.parts: list[memoryview] = []

    def ends(self) -> None:
        self.number = (self.number + 1) % _NUMBERS
        self.size, self.done = -1, 0
        self.parts.clear()


class Receiver:
    """Pieces of one connection on their way in. Holds at most one unfinished frame in each lane."""

    def __init__(self, limits: Mapping[Lane, Limit] = LIMITS) -> None:
        self._lanes = tuple(_InLane(limits[lane].frame_bytes) for lane in _LANES)

    def receive(self, piece: bytes) -> bytes | None:
        """The frame that is complete with this piece, if one is.

        Raises:
            RemoteError: no sender of ours sends this here; the connection cannot go on.
        """
        if len(piece) < HEADER_BYTES:
            raise _malformed(f"a piece of {len(piece)} bytes")
        code, flags = piece[0], piece[1]
        if code >= len(_LANES):
            raise _malformed(f"a piece of lane {code}")
        lane = self._lanes[code]
        number = int.from_bytes(piece[2:HEADER_BYTES], "big")
        if number != lane.number:
            raise _malformed(f"expected a piece of frame {lane.number} of its lane, got one of {number}")
        if flags == _ABORT:
            if lane.size < 0 or len(piece) > HEADER_BYTES:
                raise _malformed("a piece gives up a frame that has not begun, or has bytes of it")
            lane.ends()
            return None
        if flags not in (0, _LAST):
            raise _malformed(f"a piece with the flags {flags}")
        return self._part(lane, piece, last=flags == _LAST)

    @property
    def partial(self) -> bool:
        """Whether a frame has begun whose rest has not come."""
        return any(lane.size >= 0 for lane in self._lanes)

    def under_way(self, lane: Lane) -> Transfer | None:
        """The frame that has begun in a lane, if any."""
        coming = self._lanes[_CODES[lane]]
        if coming.size < 0:
            return None
        return Transfer(bytes(coming.parts[0][:START_BYTES]), coming.size, coming.done)

    def _part(self, lane: _InLane, piece: bytes, *, last: bool) -> bytes | None:
        size, start = lane.size, HEADER_BYTES
        if size < 0:
            start += LENGTH_BYTES
            if len(piece) < start:
                raise _malformed("the first piece of a frame does not say how long it is")
            size = int.from_bytes(piece[HEADER_BYTES:start], "big")
            if size > lane.frame_bytes_max:
                raise RemoteError(
                    Reason.OVERSIZED,
                    f"a frame of {size} bytes; in this lane at most {lane.frame_bytes_max} are allowed",
                )
        done = lane.done + len(piece) - start
        if done > size or last != (done == size):
            raise _malformed(
                f"{done} bytes of a frame of {size}, and its last piece {'has' if last else 'has not'} come"
            )
        if not last and len(piece) < PIECE_BYTES_MIN:
            raise _malformed(f"a piece of {len(piece)} bytes that is not the last of its frame")
        part = memoryview(piece)[start:]
        if not last:
            lane.size, lane.done = size, done
            lane.parts.append(part)
            return None
        frame = b"".join((*lane.parts, part))
        lane.ends()
        return frame


def _malformed(detail: str) -> RemoteError:
    return RemoteError(Reason.MALFORMED, detail)
