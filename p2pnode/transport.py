"""What the daemon needs of a network: listen, dial, and links that carry bytes both ways.

Two implementations, one contract (`tests/contracts/test_transport.py`): sockets (`p2pnode.tcp`) and memory
(`simulation.memory`), so that framing, backpressure, cancellation and shutdown of the real daemon can be tested
without a network. Links are plain `trio` streams that know their other end; encryption lies above them.
"""

import abc
import ipaddress
from collections.abc import Sequence
from typing import Protocol

import trio


class AddressError(ValueError):
    """Not of the form host:port."""


class Link(trio.abc.HalfCloseableStream):
    """An ordered, reliable stream of bytes between two ends, not yet authenticated."""

    @property
    @abc.abstractmethod
    def remote(self) -> str:
        """Address of the other end as we see it: host:port."""

    def fates(self, size_bytes: int) -> Sequence[float] | None:
        """What the network does to a frame of this size: the delays in seconds of the copies that arrive.

        None means that nature decides, which is the truth of every real link. A simulated link answers from the
        same `LinkModel` as the simulator's world; it is asked above the encryption, because a lost frame
        must cost a frame and not the whole channel.
        """
        return None


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


def parse_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`.

    Raises:
        AddressError: the port is missing or not in [0, 65535], or a v6 address stands without brackets.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise AddressError(f"expected host:port, got {address!r}")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise AddressError(f"expected a port between 0 and 65535 after the last colon, got {address!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"expected [address]:port for an IPv6 address, got {address!r}")
    if not host or not host.isprintable() or any(mark in host for mark in " []/@"):
        raise AddressError(f"expected host:port, got {address!r}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_near(host: str) -> bool:
    """Whether `host` is this machine or on a private network, where many nodes share one address for good reasons.

    A name that is no IP address is near: links report numbers, so names occur in memory only.
    """
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        number = number.ipv4_mapped
    return number.is_private
