"""Frames over a secure connection, in the two lanes of `gossip.net.lanes`, at the pace that the link allows.

A piece is cut and encrypted only when the system can take it, so that what is urgent overtakes all that is not on its
way yet; and the system is asked to hold no more than about one write (`Link.hold_unsent`), because our lanes end where
its buffer begins. What is under way may take any time as long as it moves: below the floor the connection is given up.
"""

from collections.abc import Iterator
from typing import Any

import trio
from msgspec import Struct

from crypto.identity import PublicKey
from gossip.dht.ids import NodeId
from gossip.errors import RemoteError
from gossip.net.lanes import PIECE_BYTES_MAX, PIECE_BYTES_MIN, Lane, Piece, Receiver, Sender
from gossip.net.pace import WINDOW_S, Meter, Pace, Watch
from p2pnode.metrics import Failure, message_kind
from p2pnode.secure import LinkError, SecureConnection

# The core hears so often, at most, that something large moves; for the first time when it has moved for so long.
PROGRESS_S = 1.0


class Moved(Struct, frozen=True):
    """What one read or write brought about."""

    frames: list[bytes]  # that have arrived, or left, whole
    tickets: list[int] = []  # of those that have left
    progress: bool = False  # something large moves, and the core has not heard of it for a while


class Lanes(trio.abc.AsyncResource):
    """One connection. One task may write and one may read at the same time; `put` never waits.

    Args:
        connection: Belongs to the lanes from now on.
        floor_bytes_s: Slower is as good as dead.
    """

    def __init__(self, connection: SecureConnection, *, floor_bytes_s: float) -> None:
        now = trio.current_time()
        self._connection = connection
        self._floor = floor_bytes_s
        self._out, self._in = Sender(), Receiver()
        self._pace = Pace()
        self._held_unsent = 0  # what the system was last asked to hold
        self._handed: tuple[int, float] | None = None  # bytes of the last write, and when it began
        self._meter_out, self._meter_in = Meter(), Meter()
        self._watch_out = Watch(floor_bytes_s * WINDOW_S)
        self._watch_in = Watch(floor_bytes_s * WINDOW_S)
        # A frame of bulk whose sender goes on with everything else, and never with it, would be kept for ever. At the
        # floor a piece of the largest size arrives within half of this.
        self._watch_bulk = Watch(1.0, WINDOW_S + 2.0 * PIECE_BYTES_MAX / floor_bytes_s)
        self._out_since = self._in_since = now  # when the last frame of bulk began
        self._progress_at = now
        self._early: list[bytes] = []  # frames that came behind the one that `hear` returned
        self._finished = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def peer(self) -> NodeId:
        return self._connection.peer

    @property
    def key(self) -> PublicKey:
        return self._connection.key

    @property
    def local(self) -> str:
        """Address of our end."""
        return self._connection.link.local

    # --- out ------------------------------------------------------------------------------------------------

    def put(self, frame: bytes, lane: Lane, ticket: int = 0) -> bool:
        """Queue a frame. False: its lane is full, or `finish` was called."""
        if self._finished or not self._out.put(frame, lane, ticket):
            return False
        self._changed.unpark_all()
        return True

    def give_up(self, ticket: int) -> bool:
        """Send no more of a frame. False: all of it has left."""
        given_up = self._out.give_up(ticket)
        self._changed.unpark_all()
        return given_up

    def finish(self) -> None:
        """No more frames will be put."""
        self._finished = True
        self._changed.unpark_all()

    async def write(self) -> Moved | None:
        """Hand what is most urgent to the system; None when all has left and no more will come.

        Raises:
            LinkError: the connection is dead, or the peer takes less than the floor.
        """
        while not self._out:
            self._watch_out.end()
            self._handed = None  # how long nothing was sent says nothing about the link
            if self._finished:
                await self._connection.finish()
                return None
            await self._changed.park()
        if self._handed is None:
            self._meter_out.begin(trio.current_time())
        self._watch_out.begin(trio.current_time())
        await self._writable()
        pieces = list(self._cut())
        size = sum(piece.size for piece in pieces)
        began = trio.current_time()
        with trio.move_on_after(WINDOW_S + size / self._floor) as scope:
            await self._connection.send(piece.encode() for piece in pieces)
        if scope.cancelled_caught:
            raise self._stalled("took")
        now = trio.current_time()
        self._handed = (size, began)
        self._meter_out.moved(size, now)
        self._watch_out.moved(size)
        bulk = [piece for piece in pieces if piece.lane is Lane.BULK]
        if any(piece.start == 0 for piece in bulk):
            self._out_since = began
        left = [piece for piece in pieces if piece.last and not piece.abort]
        return Moved(
            [piece.frame for piece in left],
            [piece.ticket for piece in left if piece.ticket],
            bool(bulk) and self._progress(self._out_since, now),
        )

    async def say(self, frame: bytes) -> None:
        """Send one small frame now, before `write` is called for the first time."""
        taken = self.put(frame, Lane.CONTROL)
        assert taken, "nothing was sent before"
        await self.write()

    async def _writable(self) -> None:
        while True:
            with trio.move_on_at(self._watch_out.deadline) as scope:
                await self._connection.writable()
            now = trio.current_time()
            if not scope.cancelled_caught:
                break
            if self._watch_out.stalled(now):
                raise self._stalled("took")
        if self._handed is not None:
            size, at = self._handed
            self._pace.took(size, now - at)
        # A call to the system for a change that matters.
        if not self._held_unsent / 2 < self._pace.write_bytes < 2 * self._held_unsent:
            self._held_unsent = self._pace.write_bytes
            self._connection.link.hold_unsent(self._held_unsent)

    def _cut(self) -> Iterator[Piece]:
        """Pieces for one write."""
        room = self._pace.write_bytes
        while room >= PIECE_BYTES_MIN and (piece := self._out.next(min(room, PIECE_BYTES_MAX))) is not None:
            room -= piece.size
            yield piece

    # --- in -------------------------------------------------------------------------------------------------

    async def read(self) -> Moved:
        """Frames that have arrived, perhaps none. Waits as long as the peer is silent between frames.

        Raises:
            LinkError: closed, broken, forged, or slower than the floor in the middle of a frame.
        """
        if self._early:
            frames, self._early = self._early, []
            return Moved(frames)
        with trio.move_on_at(min(self._watch_in.deadline, self._watch_bulk.deadline)) as scope:
            messages, size = await self._connection.receive()
        now = trio.current_time()
        if scope.cancelled_caught:
            for watch in (self._watch_in, self._watch_bulk):
                if now >= watch.deadline and watch.stalled(now):
                    raise self._stalled("sent")
            return Moved([])
        self._meter_in.moved(size, now)
        before = self._in.under_way(Lane.BULK)
        try:
            frames = [frame for data in messages if (frame := self._in.receive(data)) is not None]
        except RemoteError as error:
            raise LinkError(
                Failure.PIECES, f"The peer cuts frames as nobody does: {error.detail}."
            ) from error
        bulk = self._in.under_way(Lane.BULK)
        if before is None:
            self._meter_in.begin(now)
        if before is None or (bulk is not None and bulk.done < before.done):
            self._in_since = now
        moves = bulk is not None and bulk != before
        _keep(self._watch_in, self._connection.partial or self._in.partial, size, now)
        _keep(self._watch_bulk, bulk is not None, int(moves), now)
        return Moved(frames, progress=moves and self._progress(self._in_since, now))

    async def hear(self) -> bytes:
        """The first frame, before `read` is called for the first time."""
        while not (frames := (await self.read()).frames):
            pass
        first, *self._early = frames
        return first

    # --- for people -----------------------------------------------------------------------------------------

    def transfers(self) -> list[dict[str, Any]]:
        """The large frames under way: one each way at most."""
        now = trio.current_time()
        ways = (
            ("out", self._out.under_way(Lane.BULK), self._meter_out),
            ("in", self._in.under_way(Lane.BULK), self._meter_in),
        )
        return [
            {
                "peer": self.peer.hex(),
                "direction": direction,
                "kind": message_kind(transfer.start),
                "bytes": transfer.done,
                "of": transfer.size,
                "bytes_per_s": round(meter.rate(now)),
            }
            for direction, transfer, meter in ways
            if transfer is not None
        ]

    # --- the end --------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        await self._connection.aclose()

    def _progress(self, since: float, now: float) -> bool:
        """Whether the core has to hear of what has been under way since `since`."""
        if now < max(self._progress_at, since) + PROGRESS_S:
            return False
        self._progress_at = now
        return True

    def _stalled(self, what: str) -> LinkError:
        return LinkError(
            Failure.STALLED,
            f"The peer {what} less than {self._floor:g} bytes a second of a frame (network.floor_bytes_s).",
        )


def _keep(watch: Watch, under_way: bool, moved: int, now: float) -> None:
    if under_way:
        watch.begin(now)
        watch.moved(moved)
    else:
        watch.end()
