"""What the daemon needs of a network: listen, dial, and links that carry bytes both ways.

Two implementations, one contract (`tests/contracts/test_transport.py`): sockets (`p2pnode.tcp`), and the simulator's
in memory, so that framing, backpressure, cancellation and shutdown of the real daemon can be tested without a network.
Links are plain `trio` streams that know their other end; encryption lies above them.
"""

import abc
from typing import Protocol

import trio


class Link(trio.abc.HalfCloseableStream):
    """An ordered, reliable stream of bytes between two ends, not yet authenticated."""

    @property
    @abc.abstractmethod
    def remote(self) -> str:
        """Address of the other end as we see it: host:port."""

    @property
    @abc.abstractmethod
    def local(self) -> str:
        """Address of our end: host:port. Of a connection that we dialled, not the port on which we listen."""

    def hold_unsent(self, size_bytes: int) -> None:
        """Take about so many bytes that cannot be sent yet, and no more: what is more urgent waits behind them."""


class Listener(Protocol):
    """Where others reach us, until `aclose`."""

    @property
    def address(self) -> str:
        """Where we really listen, host:port; never port 0."""

    async def accept(self) -> Link:
        """The next connection. Survives everything that a stranger can cause."""

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """A way to listen and to dial; knows nothing of peers or keys."""

    async def listen(self, address: str) -> Listener:
        """Start to listen; port 0 takes any free one.

        Raises:
            OSError: the address is taken, or not ours.
            AddressError: not an address.
        """

    async def dial(self, address: str) -> Link:
        """Connect.

        Raises:
            OSError: nobody answers there.
            AddressError: not an address.
        """
