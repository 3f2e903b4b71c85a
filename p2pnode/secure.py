"""An encrypted, authenticated connection: frames of a peer who has proved its key, over any link.

`crypto.channel` decides what the bytes mean; this file gives it a stream and a clock. Whatever strangers do to the
port (random bytes, an HTTP request, half a handshake, silence) ends here as one LinkError with one sentence.
"""

import math
from collections import deque
from collections.abc import Callable

import trio

from crypto.channel import Established, Frame, SecureChannel
from crypto.errors import CryptoError
from crypto.identity import Identity, PublicKey
from crypto.noise import KeyPair
from gossip.dht.ids import NodeId, node_id
from gossip.net.simultaneous_open import HANDSHAKE_S
from gossip.wire.canonical import FRAME_BYTES_MAX
from gossip.wire.connection import CHANNEL_VERSION
from p2pnode.metrics import Failure
from p2pnode.transport import Link

# An honest dialler speaks at once; one round trip of a bad link.
FIRST_BYTE_S = 2.0
# A frame may take so long, plus its size at the slowest rate: a peer that trickles must not hold buffers for ever.
# At 16 KiB/s the largest frame takes 4 minutes. A guess: slower is a peer that holds our
# buffers, not one that learns.
STALL_S = 10.0
BYTES_PER_S_MIN = 16 * 1024
# One read from the link. Large enough that a shard of 4 MiB takes few turns of the event loop.
RECEIVE_BYTES = 2**18


class LinkError(Exception):
    """A connection ended, or did not come about. The peer's fault or the network's, never ours.

    Args:
        failure: From the closed vocabulary of the counters.
        detail: One sentence for the log.
    """

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class SecureConnection(trio.abc.AsyncResource):
    """Frames in both directions. One task may send and one may receive at the same time; more senders take turns.

    Made by `open_secure`. Closing is abrupt: use `finish` first where the last frames matter.
    """

    def __init__(self, link: Link, channel: SecureChannel, key: PublicKey, early: list[bytes]) -> None:
        self.link = link
        self.key = key
        self.peer: NodeId = node_id(key)
        self._channel = channel
        self._arrived = deque(early)
        self._sending = trio.Lock()
        # While a frame is arriving: when it has to be complete, without its bytes.
        self._partial_since = math.inf
        self._partial_bytes = 0

    async def send(self, frame: bytes) -> None:
        """Send one frame, at most FRAME_BYTES_MAX bytes. Returns when the link has taken it.

        Raises:
            LinkError: the connection is dead, or the peer does not read.
        """
        async with self._sending:
            try:
                with trio.move_on_after(_allowed_s(len(frame))) as scope:
                    for piece in self._channel.seal_frame(frame):
                        await self.link.send_all(piece)
            except CryptoError as error:
                raise LinkError(Failure.CRYPTO, str(error)) from error
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise LinkError(Failure.CLOSED, "The connection broke while we sent.") from error
            if scope.cancelled_caught:
                self._channel.close()  # part of a message is on its way: nothing sensible can follow
                raise LinkError(
                    Failure.STALLED, f"The peer did not take a frame of {len(frame)} bytes in time."
                )

    async def receive(self) -> bytes:
        """The next frame. Waits as long as the peer is silent between frames.

        Raises:
            LinkError: closed, broken, forged, or stalled in the middle of a frame.
        """
        while not self._arrived:
            data = b""
            with trio.move_on_at(self._partial_since + _allowed_s(self._partial_bytes)) as scope:
                data = await _read(self.link)
            if scope.cancelled_caught:
                raise LinkError(
                    Failure.STALLED, f"The peer stalled after {self._partial_bytes} bytes of a frame."
                )
            if not data:
                raise LinkError(Failure.CLOSED, "The peer closed the connection.")
            self._take(data)
        return self._arrived.popleft()

    def _take(self, data: bytes) -> None:
        try:
            events = self._channel.receive_data(data)
        except CryptoError as error:
            raise LinkError(Failure.CRYPTO, str(error)) from error
        self._arrived.extend(event.data for event in events if isinstance(event, Frame))
        if self._arrived:
            # Something may have begun behind the last frame; its clock starts with its next bytes.
            self._partial_since, self._partial_bytes = math.inf, 0
        else:
            self._partial_since = min(self._partial_since, trio.current_time())
            self._partial_bytes += len(data)

    async def finish(self) -> None:
        """Say that no more frames will come. What was sent arrives; receiving goes on."""
        async with self._sending:
            try:
                await self.link.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it has gone already, which is all that we wanted to bring about

    async def aclose(self) -> None:
        self._channel.close()
        await trio.aclose_forcefully(self.link)


async def open_secure(
    link: Link,
    *,
    identity: Identity,
    network: bytes,
    initiator: bool,
    static: KeyPair,
    entropy: Callable[[int], bytes],
) -> SecureConnection:
    """Carry out the handshake on a fresh link. Closes the link if that fails.

    Args:
        link: Belongs to the connection from now on.
        identity: Ours.
        network: 32 bytes, `crypto.signing.network_id`.
        initiator: Whether we dialled.
        static: The X25519 pair of this process, never stored.
        entropy: For the ephemeral key.

    Raises:
        LinkError: silent, slow, closed, or not a peer of this network.
    """
    channel = SecureChannel(
        identity=identity,
        network=network,
        version=CHANNEL_VERSION,
        initiator=initiator,
        entropy=entropy,
        frame_bytes_max=FRAME_BYTES_MAX,
        static=static,
    )
    connection: SecureConnection | None = None
    try:
        with trio.move_on_after(HANDSHAKE_S):
            connection = await _handshake(link, channel, initiator=initiator)
    finally:
        if connection is None:  # also when we are cancelled: nobody else knows this link
            channel.close()
            await trio.aclose_forcefully(link)
    if connection is None:
        raise LinkError(
            Failure.SLOW, f"Expected a complete handshake within {HANDSHAKE_S:g} s, got a part of it."
        )
    return connection


async def _handshake(link: Link, channel: SecureChannel, *, initiator: bool) -> SecureConnection:
    try:
        if initiator:
            await link.send_all(channel.data_to_send())
        key: PublicKey | None = None
        early: list[bytes] = []
        # Only who was dialled may expect to hear something at once.
        patience = math.inf if initiator else FIRST_BYTE_S
        while key is None:
            data = b""
            with trio.move_on_after(patience) as scope:
                data = await _read(link)
            if scope.cancelled_caught:
                raise LinkError(
                    Failure.SILENT, f"Expected a handshake, got not a byte in {FIRST_BYTE_S:g} s."
                )
            if not data:
                raise LinkError(Failure.CLOSED, "The peer closed the connection during the handshake.")
            patience = math.inf
            for event in channel.receive_data(data):
                if isinstance(event, Established):
                    key = event.key
                else:
                    early.append(event.data)
            answer = channel.data_to_send()
            if answer:
                await link.send_all(answer)
    except CryptoError as error:
        raise LinkError(Failure.CRYPTO, str(error)) from error
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise LinkError(Failure.CLOSED, "The connection broke during the handshake.") from error
    return SecureConnection(link, channel, key, early)


async def _read(link: Link) -> bytes:
    """Bytes, or nothing where the other end closed, politely or not."""
    try:
        data = await link.receive_some(RECEIVE_BYTES)
    except trio.BrokenResourceError:
        return b""
    return data if isinstance(data, bytes) else bytes(data)


def _allowed_s(size_bytes: int) -> float:
    return STALL_S + size_bytes / BYTES_PER_S_MIN
