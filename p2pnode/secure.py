"""An encrypted, authenticated connection: messages of a peer who has proved its key, over any link.

`crypto.channel` decides what the bytes mean; this file gives it a stream and a clock. Whatever strangers do to the
port (random bytes, an HTTP request, half a handshake, silence) ends here as one LinkError with one sentence.
"""

import math
from collections.abc import Callable, Iterable

import trio

from crypto.channel import Established, Message, SecureChannel, VersionError
from crypto.errors import CryptoError
from crypto.identity import Identity, PublicKey
from crypto.noise import KeyPair
from gossip.dht.ids import NodeId, node_id
from gossip.net.lanes import CHANNEL_VERSION
from gossip.net.simultaneous_open import HANDSHAKE_S
from p2pnode.metrics import Failure
from p2pnode.transport import Link

# An honest dialler speaks at once; one round trip of a bad link.
FIRST_BYTE_S = 2.0
# One read from the link. Large enough that a shard of 4 MiB takes few turns of the event loop.
RECEIVE_BYTES = 2**18

_CLOSED = "The peer closed the connection during the handshake."
# What 0.1 does when it is dialled by us.
_CLOSED_AT_ONCE = (
    "The peer closed the connection before it answered: it speaks the protocol of p2pnode 0.1 and has to be updated, "
    "or it takes no more connections."
)


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
    """Messages in both directions. One task may send and one may receive at the same time.

    Made by `open_secure`. Closing is abrupt: use `finish` first where the last messages matter. How long anything may
    take is the caller's business.
    """

    def __init__(self, link: Link, channel: SecureChannel, key: PublicKey, early: list[bytes]) -> None:
        self.link = link
        self.key = key
        self.peer: NodeId = node_id(key)
        self._channel = channel
        self._early = early  # messages that came with the end of the handshake

    async def send(self, messages: Iterable[bytes]) -> None:
        """Put messages on the link, in order and at once. Returns when the link has taken them.

        Whoever is cancelled meanwhile has to close the connection: a part of a message may be on its way.

        Raises:
            LinkError: the connection is dead.
        """
        try:
            await self.link.send_all(self._channel.seal(*messages))
        except CryptoError as error:
            raise LinkError(Failure.CRYPTO, str(error)) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkError(Failure.CLOSED, "The connection broke while we sent.") from error

    async def writable(self) -> None:
        """Wait until the link may take more.

        Raises:
            LinkError: the connection is dead.
        """
        try:
            await self.link.wait_send_all_might_not_block()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkError(Failure.CLOSED, "The connection broke while we sent.") from error

    async def receive(self) -> tuple[list[bytes], int]:
        """The messages that are complete with what the link brings next, perhaps none; and how many bytes it brought.

        Raises:
            LinkError: closed, broken or forged.
        """
        if self._early:
            messages, self._early = self._early, []
            return messages, 0
        data = await _read(self.link)
        if not data:
            raise LinkError(Failure.CLOSED, "The peer closed the connection.")
        try:
            events = self._channel.receive_data(data)
        except CryptoError as error:
            raise LinkError(Failure.CRYPTO, str(error)) from error
        return [event.data for event in events if isinstance(event, Message)], len(data)

    @property
    def partial(self) -> bool:
        """Whether a part of a message has arrived, whose rest has not."""
        return self._channel.partial

    async def finish(self) -> None:
        """Say that no more messages will come. What was sent arrives; receiving goes on. Not while sending."""
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
        heard = False
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
                raise LinkError(
                    Failure.CLOSED, _CLOSED if heard else _CLOSED_AT_ONCE if initiator else _CLOSED
                )
            heard = True
            patience = math.inf
            for event in channel.receive_data(data):
                if isinstance(event, Established):
                    key = event.key
                else:
                    early.append(event.data)
            answer = channel.data_to_send()
            if answer:
                await link.send_all(answer)
    except VersionError as error:
        await _send_last_word(link, channel)
        raise LinkError(Failure.VERSION, _other_version(error.theirs)) from error
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


async def _send_last_word(link: Link, channel: SecureChannel) -> None:
    """Tell a peer of another version which one is ours."""
    try:
        await link.send_all(channel.data_to_send())
        await link.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it did not wait for that


def _other_version(theirs: int) -> str:
    program = "the protocol of p2pnode 0.1" if theirs == 1 else f"version {theirs} of the protocol"
    older = "The peer has to be updated." if theirs < CHANNEL_VERSION else "Update this node."
    return f"The peer speaks {program}, we speak version {CHANNEL_VERSION}. {older}"
