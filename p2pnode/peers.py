"""All connections of the daemon: one for each peer, dialled or accepted, and nothing that one does harms another.

The core orders (`send`, `recall`, `dial`, `drop`: none of them waits), connections report (`PeerUp`, `Received`,
`Sent`, `Progress`, `PeerDown`, `DialFailed`) into the inbox of the task that owns the core. While the inbox is full,
connections stop reading, and TCP makes their peers wait: that is the whole of the backpressure inwards. Outwards each
connection has two bounded lanes (`p2pnode.net.lanes`); what a full one does not take is lost, and the core is told.

Which of several connections with one peer is the one, `gossip.net.simultaneous_open` decides.
"""

import math
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any

import structlog
import trio

from crypto.identity import Identity
from crypto.noise import KeyPair
from gossip.dht.ids import NodeId, node_id
from gossip.events import (
    Dial,
    DialFailed,
    Event,
    PeerDown,
    PeerUp,
    Progress,
    Recall,
    Received,
    Send,
    Sent,
    Unsent,
)
from gossip.net.simultaneous_open import DIAL_S, HANDSHAKE_S, Role, SimultaneousOpen, Word
from p2pnode.address import AddressError
from p2pnode.door import Door, Limits
from p2pnode.metrics import Counters, Failure, Turned, increase
from p2pnode.net.lanes import Lanes
from p2pnode.secure import LinkError, open_secure
from p2pnode.transport import Link, Listener, Transport

# Dials under way at the same time. Three lookups of three, and the exchanges; more would be a bug or an attack.
DIALS_MAX = 64
# What was sent before `drop` has so long to leave. gossip/events.py, Drop.
FLUSH_S = 1.0
# One line in the log about connections turned away, at most every so often.
TURNED_LOG_S = 10.0

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
        reached_at: Where the peer, and those beside it, can reach us, of our end of a connection; empty: unknown.
        floor_bytes_s: Of a connection on which something is under way; a slower one is given up.
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
        reached_at: Callable[[str], str] = lambda local: "",
        floor_bytes_s: float,
    ) -> None:
        self._identity = identity
        self._id = node_id(identity.public_key)
        self._network = network
        self._static = KeyPair.generate(entropy)
        self._transport = transport
        self._post = post
        self._entropy = entropy
        self._counters = counters
        self._reached_at = reached_at
        self._floor_bytes_s = floor_bytes_s
        self._door = Door(limits or Limits())
        self._open: SimultaneousOpen[_Held] = SimultaneousOpen(self._id)
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
        held = self._open.get(up.peer)
        if held is not None and held.up is up and held.state is State.PENDING:
            held.state = State.ACTIVE

    def send(self, order: Send) -> None:
        """Queue a frame. Lost where there is no connection, or where its lane is full."""
        held = self._open.get(order.peer)
        if (
            held is None
            or held.state is not State.ACTIVE
            or not held.lanes.put(order.frame, order.lane, order.ticket)
        ):
            self._counters.frames_dropped += 1
            if order.ticket:
                self._tell(Unsent(order.peer, order.ticket))

    def recall(self, order: Recall) -> None:
        """Send no more of a frame, if not all of it has left."""
        held = self._open.get(order.peer)
        if held is not None and held.state is State.ACTIVE and held.lanes.give_up(order.ticket):
            self._tell(Unsent(order.peer, order.ticket))

    def dial(self, order: Dial) -> None:
        """Begin to dial. A dial to an address that is being dialled already is answered together with that."""
        assert self._nursery is not None
        if order.address in self._dialling:
            self._dialling[order.address].append(order)
            return
        if self._stopping or len(self._dialling) >= DIALS_MAX:
            reason = "stopping" if self._stopping else f"{DIALS_MAX} other dials are under way"
            self._tell(DialFailed(order.address, order.peer, reason))
            return
        self._dialling[order.address] = [order]
        self._nursery.start_soon(self._dial, order.address)

    def drop(self, peer: NodeId, reason: str) -> None:
        """Close a connection after what is queued has left, at most FLUSH_S from now."""
        held = self._open.get(peer)
        if held is not None and held.state is State.ACTIVE:
            self._flush(held, reason)

    async def stop(self) -> None:
        """Take no new connections, flush and close all. Returns when they are closed, after FLUSH_S at most.

        The inbox must still be read.
        """
        self._stopping = True
        for _, held in list(self._open):
            self._flush(held, "we are stopping")
        with trio.move_on_after(FLUSH_S + 0.5):
            while len(self._open):
                await self._changed.park()

    def facts(self) -> dict[str, int]:
        """For `status`."""
        return {
            "connected": len(self._open),
            "inbound": self._door.inside,
            "unproven": self._door.unproven,
            "dialling": len(self._dialling),
        }

    def transfers(self) -> list[dict[str, Any]]:
        """The large frames under way, for `status`."""
        return [transfer for _, held in self._open for transfer in held.lanes.transfers()]

    def _tell(self, event: Event) -> None:
        """Post what an order has brought about at once: the owner must not wait for its own inbox."""
        assert self._nursery is not None
        self._nursery.start_soon(self._post, event)

    # --- from a link to a connection -------------------------------------------------------------------

    async def _accepted(self, link: Link) -> None:
        proven = False
        try:
            lanes = await self._proved(link, initiator=False)
            proven = True
            self._door.prove()
            async with lanes:
                held = await self._agree(lanes, address=link.remote, inbound=True)
                increase(self._counters.connections, "accepted")
                await self._serve(held)
        except LinkError as failure:
            if failure.failure is not Failure.DUPLICATE:
                log.info("handshake_failed", address=link.remote, reason=failure.failure, detail=str(failure))
            increase(self._counters.handshakes_failed, failure.failure)
        finally:
            self._door.leave(link.remote, proven=proven)

    async def _dial(self, address: str) -> None:
        try:
            lanes = await self._proved(await self._dialled(address), initiator=True)
        except LinkError as failure:
            await self._dial_failed(self._dialling.pop(address), failure)
            return
        async with lanes:
            reached = lanes.peer
            refusal: LinkError | None = None
            held: _Held | None = None
            if any(order.peer in (None, reached) for order in self._dialling[address]):
                try:
                    held = await self._agree(lanes, address=address, inbound=False)
                except LinkError as failure:
                    refusal = failure
                    if failure.failure is Failure.DUPLICATE:
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
            if failure.failure is Failure.DUPLICATE:
                reason = "already connected"
            else:
                reason = str(failure)
                log.debug("dial_failed", address=order.address, reason=failure.failure, detail=reason)
            await self._post(DialFailed(order.address, order.peer, reason))

    async def _proved(self, link: Link, *, initiator: bool) -> Lanes:
        connection = await open_secure(
            link,
            identity=self._identity,
            network=self._network,
            initiator=initiator,
            static=self._static,
            entropy=self._entropy,
        )
        return Lanes(connection, floor_bytes_s=self._floor_bytes_s)

    async def _until_up(self, peer: NodeId) -> None:
        """Wait until the core has been told of the other one: only then "already connected" is true for it."""
        with trio.move_on_after(HANDSHAKE_S):
            while (held := self._open.get(peer)) is None or not held.posted:
                await self._changed.park()

    # --- one for each peer -------------------------------------------------------------------------------

    async def _agree(self, lanes: Lanes, *, address: str, inbound: bool) -> "_Held":
        """Agree with the peer that this connection is the one, and take it.

        Raises:
            LinkError: DUPLICATE if another one is.
        """
        if self._stopping:
            raise LinkError(Failure.CLOSED, "We are stopping.")
        peer = lanes.peer
        local = self._reached_at(lanes.local)
        held = _Held(lanes, PeerUp(peer, lanes.key, address, inbound, local))
        if self._open.role(peer) is Role.DECIDER:
            word, replaced = self._open.decide(peer, held, inbound=inbound, now=trio.current_time())
            if word is Word.DUPLICATE:
                await lanes.say(word.value)
                raise LinkError(Failure.DUPLICATE, "We keep the connection that we have.")
            held.replace(replaced)
            try:
                await lanes.say(word.value)
            except LinkError:
                await self._release(held)
                raise
            return held
        first = b""
        with trio.move_on_after(HANDSHAKE_S):
            first = await lanes.hear()
        if first == Word.DUPLICATE.value:
            raise LinkError(Failure.DUPLICATE, "The peer keeps the connection that it has.")
        if first != Word.ACCEPTED.value:
            raise LinkError(Failure.SLOW, "Expected the peer to accept this connection; it did not.")
        held.replace(self._open.accepted(peer, held, now=trio.current_time()))
        return held

    async def _release(self, held: "_Held") -> None:
        """Forget a connection, but not before the one that it replaced has reported its end."""
        if held.after is not None:
            await held.after.wait()
        self._open.ended(held.up.peer, held)
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
        await self._post(PeerDown(held.up.peer, held.reason, held.slow))
        await self._release(held)

    async def _read(self, held: "_Held") -> None:
        peer = held.up.peer
        try:
            while True:
                moved = await held.lanes.read()
                for frame in moved.frames:
                    self._counters.frame("in", frame)
                    await self._report(held, Received(peer, frame))
                if moved.progress:
                    await self._report(held, Progress(peer))
        except LinkError as failure:
            self._lost(held, failure)

    async def _write(self, held: "_Held") -> None:
        peer = held.up.peer
        try:
            while (moved := await held.lanes.write()) is not None:
                for frame in moved.frames:
                    self._counters.frame("out", frame)
                if moved.progress:
                    await self._report(held, Progress(peer))
                for ticket in moved.tickets:
                    await self._report(held, Sent(peer, ticket))
            # The reader goes on: the peer closes when it has read all, or `flush` gives up.
        except LinkError as failure:
            self._lost(held, failure)

    async def _report(self, held: "_Held", event: Event) -> None:
        if held.state is not State.CLOSING:
            await self._post(event)

    def _flush(self, held: "_Held", reason: str) -> None:
        self._open.closing(held.up.peer, held)
        held.flush(reason)

    def _lost(self, held: "_Held", failure: LinkError) -> None:
        self._open.closing(held.up.peer, held)
        held.slow = failure.failure is Failure.STALLED
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

    def __init__(self, lanes: Lanes, up: PeerUp) -> None:
        self.lanes = lanes
        self.up = up
        self.state = State.PENDING
        self.posted = False  # `up` is in the inbox
        self.scope = trio.CancelScope()
        self.reason = ""
        self.slow = False  # it ends because it carried too little
        self.gone = trio.Event()  # its PeerDown is in the inbox
        # `gone` of the connection that it replaces. Not that connection itself: each would keep the one before it in
        # memory, back to the first.
        self.after: trio.Event | None = None

    def replace(self, before: "_Held | None") -> None:
        """Take the place of an older connection, which ends."""
        if before is not None:
            before.end("replaced by a newer connection")
            self.after = before.gone

    def flush(self, reason: str) -> None:
        """Send what is queued, then end."""
        if not self.reason:
            self.reason = reason
        self.state = State.CLOSING
        self.lanes.finish()
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + FLUSH_S)

    def end(self, reason: str) -> bool:
        """End at once. Whether this was the first to want it."""
        first = not self.reason
        if first:
            self.reason = reason
        self.state = State.CLOSING
        self.scope.cancel()
        return first
