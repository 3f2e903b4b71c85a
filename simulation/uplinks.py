"""What machines of a world send goes through their uplinks, piece by piece, as the daemon's does through its own.

Each connection has the lanes and the pace of the daemon (`gossip.net.lanes`, `gossip.net.pace`), so that pieces have
the sizes that they have there, and control goes first. The connections of a machine share its uplink, a piece each in
turn, which is how TCP shares a bottleneck. A frame is on its way when its last piece has left; what becomes of it then
is asked from the link model once, because a lost frame must cost a frame and not the connection.

A world whose links have no bandwidth has no uplinks: there all that is sent has left.
"""

from collections import deque
from typing import Any

from gossip.events import Event, Progress, Recall, Send, Sent, Unsent
from gossip.net.lanes import HEADER_BYTES, LENGTH_BYTES, LIMITS, Lane, Limit, Piece, Sender
from gossip.net.pace import WRITE_BYTES_START, Pace
from simulation.agenda import FRAME, LEFT, PROGRESS
from simulation.connections import Carrier
from simulation.machines import Host, Link

# As the daemon (p2pnode/net/lanes.py).
PROGRESS_S = 1.0
# As the daemon: what was sent before a connection is closed has so long to leave (p2pnode/peers.py).
FLUSH_S = 1.0
# Villains send what no node of ours does; who receives it refuses it.
_LIMITS = {
    lane: Limit(frame_bytes=2**31, frames=limit.frames, waiting_bytes=limit.waiting_bytes)
    for lane, limit in LIMITS.items()
}
# What a frame that is one piece has besides its bytes.
_ONE_PIECE = HEADER_BYTES + LENGTH_BYTES


class Line:
    """One end of a connection: its lanes, and how fast they empty."""

    __slots__ = ("begun", "link", "pace", "progress_at", "sender", "size", "waiting")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.sender = Sender(_LIMITS)
        self.pace = Pace()
        self.waiting = False  # for its turn
        self.size = 0  # bytes of its last piece, if more was behind that one, else 0
        self.begun = 0.0  # when that piece began to leave
        self.progress_at = 0.0  # when its frame of bulk began, or both ends last heard that it moves


class Uplink:
    """Of one machine."""

    __slots__ = ("free_at", "scheduled", "turns")

    def __init__(self) -> None:
        self.free_at = 0.0  # when what is leaving has left
        self.scheduled = False  # whether the agenda has that date
        self.turns: deque[Line] = deque()  # connections with something to send


class Uplinks:
    """Args:
    world: Carries out what happens.
    rate: Bytes per second of each uplink.
    """

    def __init__(self, world: Carrier, rate: float) -> None:
        self._world = world
        self._rate = rate

    def send(self, host: Host, link: Link, order: Send) -> Event | None:
        """A node sends a frame. What it hears of that at once, if anything."""
        now, uplink = self._world.now, host.uplink
        line: Line | None = link.line
        if uplink.free_at <= now and not uplink.scheduled and (line is None or not line.sender):
            size = len(order.frame) + _ONE_PIECE
            if size <= (line.pace.piece_bytes if line is not None else WRITE_BYTES_START):
                self._send_whole(host, link, order, size)
                return Sent(order.peer, order.ticket) if order.ticket else None
        if line is None:
            line = link.line = Line(link)
        if not line.sender.put(order.frame, order.lane, order.ticket):
            return Unsent(order.peer, order.ticket) if order.ticket else None
        self._enqueue(uplink, line)
        if uplink.free_at <= now and not uplink.scheduled:
            self._begin(host)
        else:
            self._schedule(host)
        return None

    def _send_whole(self, host: Host, link: Link, order: Send, size: int) -> None:
        """Nobody waits, and the frame is one piece, as most are: the system takes it at once."""
        world, uplink = self._world, host.uplink
        uplink.free_at = date = world.now + size / self._rate
        source, target = host.index, link.peer
        for delay in world.network.fates(source, target.index, len(order.frame), date, lane=order.lane):
            world.agenda.travel(date + delay, FRAME, host, target, link.name, order.frame)

    def recall(self, host: Host, link: Link, order: Recall) -> Event | None:
        """A node wants to send no more of a frame. What it hears of that at once, if anything."""
        line: Line | None = link.line
        given_up = line is not None and line.sender.give_up(order.ticket)
        return Unsent(order.peer, order.ticket) if given_up else None

    def flush(self, host: Host, link: Link) -> None:
        """A connection is about to be closed at this end: what waits leaves before, if there is time."""
        line: Line | None = link.line
        if line is None:
            return
        uplink, now = host.uplink, self._world.now
        date = max(uplink.free_at, now)
        while (piece := line.sender.next(line.pace.piece_bytes)) is not None:
            date += piece.size / self._rate
            if date > now + FLUSH_S:
                break
            uplink.free_at = date
            self._leave(host, link, piece, date)

    def step(self, kind: int, host: Host, first: Any, second: Any, third: Any) -> None:
        """A piece has left, or something large moves towards a machine."""
        if kind == LEFT:
            if first == host.life:
                self._left(host, second, third)
        else:
            assert kind == PROGRESS, f"unknown kind of entry {kind}"
            there = host.links.get(first.id)
            if there is not None and there.name == second:
                self._world.deliver(host, Progress(first.id))

    def _left(self, host: Host, link: Link | None, piece: Piece | None) -> None:
        world, uplink = self._world, host.uplink
        uplink.scheduled = False
        news: list[Event] = []
        if link is not None and piece is not None and _open(host, link):
            news = self._moved(host, link.line, piece)
        if uplink.free_at <= world.now:
            self._begin(host)
        elif uplink.turns:
            self._schedule(host)
        life = host.life
        for event in news:
            if host.life == life and host.core is not None:
                world.deliver(host, event)

    def _moved(self, host: Host, line: Line, piece: Piece) -> list[Event]:
        """A piece has left. What the node hears of it."""
        world, link, now = self._world, line.link, self._world.now
        peer = link.peer
        news: list[Event] = []
        if piece.last and not piece.abort and piece.ticket:
            news.append(Sent(peer.id, piece.ticket))
        if self._progresses(line, piece, now):
            line.progress_at = now
            news.append(Progress(peer.id))
            delay = world.network.reliable(host.index, peer.index, now)
            if delay is not None:
                world.agenda.travel(now + delay, PROGRESS, host, peer, link.name, None)
        return news

    def _begin(self, host: Host) -> None:
        """The uplink is free: the next piece begins to leave, if there is one."""
        uplink, now = host.uplink, self._world.now
        while uplink.turns:
            line = uplink.turns.popleft()
            line.waiting = False
            link = line.link
            if not _open(host, link):
                continue  # closed: what waited is lost
            if line.size:
                line.pace.took(line.size, now - line.begun)
            piece = line.sender.next(line.pace.piece_bytes)
            if piece is None:
                line.size = 0
                continue  # it was recalled
            more = bool(line.sender)
            line.size, line.begun = piece.size if more else 0, now
            uplink.free_at = now + piece.size / self._rate
            if piece.lane is Lane.BULK and piece.start == 0:
                line.progress_at = now
            self._leave(host, link, piece, uplink.free_at)
            if more:
                self._enqueue(uplink, line)
            asked = (piece.last and piece.ticket) or self._progresses(line, piece, uplink.free_at)
            if asked or uplink.turns:
                uplink.scheduled = True
                self._world.agenda.push(uplink.free_at, LEFT, host, host.life, link, piece)
            return

    def _leave(self, host: Host, link: Link, piece: Piece, date: float) -> None:
        """A piece leaves at `date`; with the last one its frame is on its way."""
        if not piece.last or piece.abort:
            return
        world, target = self._world, link.peer
        delays = world.network.fates(host.index, target.index, len(piece.frame), date, lane=piece.lane)
        for delay in delays:
            world.agenda.travel(date + delay, FRAME, host, target, link.name, piece.frame)

    @staticmethod
    def _progresses(line: Line, piece: Piece, date: float) -> bool:
        """Whether the nodes at both ends hear at `date` that something large moves."""
        return piece.lane is Lane.BULK and date >= line.progress_at + PROGRESS_S

    def _schedule(self, host: Host) -> None:
        """Somebody waits for the uplink."""
        uplink = host.uplink
        if not uplink.scheduled:
            uplink.scheduled = True
            self._world.agenda.push(uplink.free_at, LEFT, host, host.life, None, None)

    @staticmethod
    def _enqueue(uplink: Uplink, line: Line) -> None:
        if not line.waiting:
            line.waiting = True
            uplink.turns.append(line)


def _open(host: Host, link: Link) -> bool:
    """Whether a connection has not been closed at this end."""
    return host.links.get(link.peer.id) is link
