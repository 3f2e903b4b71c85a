"""All connections of the daemon: one for each peer, dialled or accepted, and nothing that one does harms another.

The core orders (`send`, `dial`, `drop`: none of them waits), connections report (`PeerUp`, `Received`, `PeerDown`,
`DialFailed`) into the inbox of the task that owns the core. While the inbox is full, connections stop reading, and
TCP makes their peers wait: that is the whole of the backpressure inwards. Outwards each connection has a bounded
queue that loses its oldest frame when it is full.

**One connection for each peer.** Two nodes often dial each other in the same moment, and a peer that lost power dials
again while we still hold its dead connection. So the node with the *smaller id decides* and the other follows:

- After the handshake the decider sends CHOSEN as the first frame of a connection it takes, or TWIN and closes. The
  follower uses a connection only after CHOSEN, and then ends the one it had before.
- The decider keeps what it has, unless it is older than SETTLED_S and the *peer* dialled the new one: then the peer
  has lost the old one and does not know it, or would not have dialled.

Why both end with the same one: the decider holds at most one (deciding and taking is one step without a wait), so only
the order in which the follower sees two CHOSEN matters. The decider takes c2 after c1 only when it chose c1 more than
SETTLED_S ago. The follower waits for its word on c1 for less than that, so by then it has taken c1 or given it up: it
cannot take c1 after c2. A rule that both ends apply on their own ("keep the one dialled by the smaller id") is simpler
and was rejected: it cannot tell two dials in one moment from a redial after a crash, because the two ends learn of a
connection's beginning and end at different times.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum, auto

import structlog
import trio

from crypto.identity import Identity
from crypto.noise import KeyPair
from gossip.dht.ids import NodeId, node_id
from gossip.events import Dial, DialFailed, Event, PeerDown, PeerUp, Received
from gossip.wire import FRAME_BYTES_MAX
from p2pnode.address import AddressError
from p2pnode.door import Door, Limits
from p2pnode.metrics import Counters, Failure, Turned, increase
from p2pnode.secure import HANDSHAKE_S, LinkError, SecureConnection, open_secure
from p2pnode.transport import Link, Listener, Transport

# Name resolution and TCP connect; two tries of SYN (1 s, 2 s) and some slowness of name servers.
DIAL_S = 10.0
# Dials under way at the same time. Three lookups of three, and the exchanges; more would be a bug or an attack.
DIALS_MAX = 64
# See above. The follower waits at most 2 * HANDSHAKE_S for a word on a connection.
SETTLED_S = 3 * HANDSHAKE_S
# What was sent before `drop` has so long to leave. gossip/events.py, Drop.
FLUSH_S = 1.0
# One line in the log about connections turned away, at most every so often.
TURNED_LOG_S = 10.0
# Queue of one connection. Both bounds hold; the second is two frames of the largest kind.
OUTBOX_FRAMES_MAX = 64
OUTBOX_BYTES_MAX = 2 * FRAME_BYTES_MAX

CHOSEN = b"\x01chosen"
TWIN = b"\x00twin"

log = structlog.get_logger(__name__)


class State(Enum):
    PENDING = (
        auto()
    )  # open, but the core has not heard of it yet: what it sends is meant for an older connection
    ACTIVE = auto()
    CLOSING = auto()  # sends what is queued, reports nothing any more


class Peers:
    """The connections of one node.

    Args:
        identity: Ours, proved to every peer.
        network: 32 bytes, `crypto.signing.network_id`.
        transport: Real or in memory.
        post: Puts an event into the inbox, waiting while it is full.
        entropy: For handshakes.
        counters: What is counted.
        limits: On strangers.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        network: bytes,
        transport: Transport,
        post: Callable[[Event], Awaitable[None]],
        entropy: Callable[[int], bytes],
        counters: Counters,
        limits: Limits | None = None,
    ) -> None:
        self._identity = identity
        self._id = node_id(identity.public_key)
        self._network = network
        self._static = KeyPair.generate(entropy)
        self._transport = transport
        self._post = post
        self._entropy = entropy
        self._counters = counters
        self._door = Door(limits or Limits())
        self._held: dict[NodeId, _Held] = {}
        # Address being dialled -> the orders that wait for the outcome.
        self._dialling: dict[str, list[Dial]] = {}
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._turned_logged_at = -math.inf
        self._turned_since = 0  # turned away since the last line about it
        self._changed = trio.lowlevel.ParkingLot()  # somebody came up or left

    # --- for the daemon ------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own all tasks of all connections, until cancelled; then every connection is closed at once."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def accept_from(self, listener: Listener) -> None:
        """Accept connections until cancelled. Never waits for a peer."""
        assert self._nursery is not None
        while True:
            link = await listener.accept()
            turned = Turned.STOPPING if self._stopping else self._door.enter(link.remote, trio.current_time())
            if turned is None:
                self._nursery.start_soon(self._accepted, link)
            else:
                self._turn_away(link.remote, turned)
                await trio.aclose_forcefully(link)

    def _turn_away(self, address: str, reason: Turned) -> None:
        """Count, and log now and then: a flood of connections must not become a flood of lines."""
        increase(self._counters.turned_away, reason)
        self._turned_since += 1
        now = trio.current_time()
        if now >= self._turned_logged_at + TURNED_LOG_S:
            log.info("connections_turned_away", count=self._turned_since, last=address, reason=reason)
            self._turned_logged_at, self._turned_since = now, 0

    def told(self, up: PeerUp) -> None:
        """The core is about to handle this event: frames it sends from now on are meant for this connection."""
        held = self._held.get(up.peer)
        if held is not None and held.up is up and held.state is State.PENDING:
            held.state = State.ACTIVE

    def send(self, peer: NodeId, frame: bytes) -> None:
        """Queue a frame. Lost where there is no connection; where the queue is full, its oldest frames are."""
        held = self._held.get(peer)
        if held is None or held.state is not State.ACTIVE:
            self._counters.frames_dropped += 1
        else:
            self._counters.frames_dropped += held.outbox.put(frame)

    def dial(self, order: Dial) -> None:
        """Begin to dial. A dial to an address that is being dialled already is answered together with that."""
        assert self._nursery is not None
        if order.address in self._dialling:
            self._dialling[order.address].append(order)
            return
        if self._stopping or len(self._dialling) >= DIALS_MAX:
            reason = "stopping" if self._stopping else f"{DIALS_MAX} other dials are under way"
            self._nursery.start_soon(self._post, DialFailed(order.address, order.peer, reason))
            return
        self._dialling[order.address] = [order]
        self._nursery.start_soon(self._dial, order.address)

    def drop(self, peer: NodeId, reason: str) -> None:
        """Close a connection after what is queued has left, at most FLUSH_S from now."""
        held = self._held.get(peer)
        if held is not None and held.state is State.ACTIVE:
            held.flush(reason)

    async def stop(self) -> None:
        """Take no new connections, flush and close all. Returns when they are closed, after FLUSH_S at most.

        The inbox must still be read.
        """
        self._stopping = True
        for held in list(self._held.values()):
            held.flush("we are stopping")
        with trio.move_on_after(FLUSH_S + 0.5):
            while self._held:
                await self._changed.park()

    def facts(self) -> dict[str, int]:
        """For `status`."""
        return {
            "connected": len(self._held),
            "inbound": self._door.inside,
            "unproven": self._door.unproven,
            "dialling": len(self._dialling),
        }

    # --- from a link to a connection -------------------------------------------------------------------

    async def _accepted(self, link: Link) -> None:
        proven = False
        try:
            connection = await self._proved(link, initiator=False)
            proven = True
            self._door.prove()
            async with connection:
                held = await self._agree(connection, address=link.remote, inbound=True)
                increase(self._counters.connections, "accepted")
                await self._serve(held)
        except LinkError as failure:
            if failure.failure is not Failure.TWIN:
                log.info("handshake_failed", address=link.remote, reason=failure.failure, detail=str(failure))
            increase(self._counters.handshakes_failed, failure.failure)
        finally:
            self._door.leave(link.remote, proven=proven)

    async def _dial(self, address: str) -> None:
        try:
            connection = await self._proved(await self._dialled(address), initiator=True)
        except LinkError as failure:
            await self._dial_failed(self._dialling.pop(address), failure)
            return
        async with connection:
            reached = connection.peer
            refusal: LinkError | None = None
            held: _Held | None = None
            if any(order.peer in (None, reached) for order in self._dialling[address]):
                try:
                    held = await self._agree(connection, address=address, inbound=False)
                except LinkError as failure:
                    refusal = failure
                    if failure.failure is Failure.TWIN:
                        await self._until_up(reached)
            orders = self._dialling.pop(address)
            stranger = LinkError(Failure.STRANGER, f"Somebody else was reached there, {reached.hex()[:16]}.")
            await self._dial_failed([o for o in orders if o.peer not in (None, reached)], stranger)
            if refusal is not None:
                await self._dial_failed([o for o in orders if o.peer in (None, reached)], refusal)
            if held is not None:
                increase(self._counters.connections, "dialled")
                await self._serve(held)

    async def _dialled(self, address: str) -> Link:
        try:
            with trio.move_on_after(DIAL_S):
                return await self._transport.dial(address)
        except (OSError, AddressError) as error:
            raise LinkError(Failure.CLOSED, str(error)) from error
        raise LinkError(Failure.SLOW, f"No answer from {address} in {DIAL_S:g} s.")

    async def _dial_failed(self, orders: list[Dial], failure: LinkError) -> None:
        for order in orders:
            increase(self._counters.connections, "dial_failed")
            if failure.failure is Failure.TWIN:
                reason = "already connected"
            else:
                reason = str(failure)
                log.debug("dial_failed", address=order.address, reason=failure.failure, detail=reason)
            await self._post(DialFailed(order.address, order.peer, reason))

    async def _proved(self, link: Link, *, initiator: bool) -> SecureConnection:
        return await open_secure(
            link,
            identity=self._identity,
            network=self._network,
            initiator=initiator,
            static=self._static,
            entropy=self._entropy,
        )

    async def _until_up(self, peer: NodeId) -> None:
        """Wait until the core has been told of the twin: only then "already connected" is true for it."""
        with trio.move_on_after(HANDSHAKE_S):
            while (held := self._held.get(peer)) is None or not held.posted:
                await self._changed.park()

    # --- one for each peer -------------------------------------------------------------------------------

    async def _agree(self, connection: SecureConnection, *, address: str, inbound: bool) -> "_Held":
        """Agree with the peer that this connection is the one, and take it.

        Raises:
            LinkError: TWIN if another one is.
        """
        if self._stopping:
            raise LinkError(Failure.CLOSED, "We are stopping.")
        if self._id < connection.peer:
            current = self._held.get(connection.peer)
            if current is not None and not current.gives_way(inbound=inbound):
                await connection.send(TWIN)
                raise LinkError(Failure.TWIN, "We keep the connection that we have.")
            held = self._take(connection, address=address, inbound=inbound)
            try:
                await connection.send(CHOSEN)
            except LinkError:
                await self._release(held)
                raise
            return held
        word = b""
        with trio.move_on_after(HANDSHAKE_S):
            word = await connection.receive()
        if word == TWIN:
            raise LinkError(Failure.TWIN, "The peer keeps the connection that it has.")
        if word != CHOSEN:
            raise LinkError(Failure.SLOW, "Expected the peer to choose this connection; it did not.")
        return self._take(connection, address=address, inbound=inbound)

    def _take(self, connection: SecureConnection, *, address: str, inbound: bool) -> "_Held":
        before = self._held.get(connection.peer)
        if before is not None:
            before.end("replaced by a newer connection")
        up = PeerUp(connection.peer, connection.key, address, inbound)
        held = _Held(connection, up, after=before.gone if before is not None else None)
        self._held[connection.peer] = held
        return held

    async def _release(self, held: "_Held") -> None:
        """Forget a connection, but not before the one that it replaced has reported its end."""
        if held.after is not None:
            await held.after.wait()
        if self._held.get(held.up.peer) is held:
            del self._held[held.up.peer]
        held.gone.set()
        self._changed.unpark_all()

    # --- while it lasts ------------------------------------------------------------------------------------

    async def _serve(self, held: "_Held") -> None:
        """Report, carry frames both ways, report the end."""
        if held.after is not None:
            await held.after.wait()
        await self._post(held.up)
        held.posted = True
        self._changed.unpark_all()
        with held.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, held)
                nursery.start_soon(self._write, held)
        increase(self._counters.connections, "closed")
        await self._post(PeerDown(held.up.peer, held.reason))
        await self._release(held)

    async def _read(self, held: "_Held") -> None:
        try:
            while True:
                frame = await held.connection.receive()
                self._counters.frame("in", frame)
                if held.state is not State.CLOSING:
                    await self._post(Received(held.up.peer, frame))
        except LinkError as failure:
            self._lost(held, failure)

    async def _write(self, held: "_Held") -> None:
        try:
            while (frame := await held.outbox.get()) is not None:
                self._counters.frame("out", frame)
                await held.connection.send(frame)
            # The reader goes on: the peer closes when it has read all, or `flush` gives up.
            await held.connection.finish()
        except LinkError as failure:
            self._lost(held, failure)

    def _lost(self, held: "_Held", failure: LinkError) -> None:
        if held.end(str(failure)):
            increase(self._counters.connections_lost, failure.failure)
            if failure.failure is not Failure.CLOSED:
                log.info(
                    "connection_lost",
                    peer=held.up.peer.hex()[:16],
                    address=held.up.address,
                    reason=failure.failure,
                    detail=str(failure),
                )


class _Held:
    """The one connection with one peer."""

    def __init__(self, connection: SecureConnection, up: PeerUp, *, after: trio.Event | None) -> None:
        self.connection = connection
        self.up = up
        # `gone` of the connection that it replaces. Not that connection itself: each would keep the one before it in
        # memory, back to the first.
        self.after = after
        self.state = State.PENDING
        self.posted = False  # `up` is in the inbox
        self.outbox = Outbox()
        self.scope = trio.CancelScope()
        self.reason = ""
        self.gone = trio.Event()  # its PeerDown is in the inbox
        self._since = trio.current_time()

    def gives_way(self, *, inbound: bool) -> bool:
        """Whether the decider gives this connection up for a new one; `inbound`: the peer dialled the new one."""
        if self.state is State.CLOSING:
            return True
        return inbound and trio.current_time() - self._since > SETTLED_S

    def flush(self, reason: str) -> None:
        """Send what is queued, then end."""
        if not self.reason:
            self.reason = reason
        self.state = State.CLOSING
        self.outbox.finish()
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + FLUSH_S)

    def end(self, reason: str) -> bool:
        """End at once. Whether this was the first to want it."""
        first = not self.reason
        if first:
            self.reason = reason
        self.state = State.CLOSING
        self.scope.cancel()
        return first


class Outbox:
    """Frames on their way to one peer, oldest first, bounded in number and bytes."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._finished = False
        self._changed = trio.lowlevel.ParkingLot()

    def put(self, frame: bytes) -> int:
        """Queue `frame`; returns how many older ones had to go.

        The oldest goes first: whoever waited for it has probably given up, and the newest answers a question that
        is still open.
        """
        assert not self._finished
        self._frames.append(frame)
        self._bytes += len(frame)
        pushed_out = 0
        while len(self._frames) > OUTBOX_FRAMES_MAX or (
            self._bytes > OUTBOX_BYTES_MAX and len(self._frames) > 1
        ):
            self._bytes -= len(self._frames.popleft())
            pushed_out += 1
        self._changed.unpark_all()
        return pushed_out

    async def get(self) -> bytes | None:
        """The oldest frame; None when no more will come. For one task."""
        while not self._frames:
            if self._finished:
                return None
            await self._changed.park()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame

    def finish(self) -> None:
        self._finished = True
        self._changed.unpark_all()
