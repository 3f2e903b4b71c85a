"""Who may begin a handshake: limits on strangers, checked before any cryptography is spent on them. No I/O.

A handshake costs us half a millisecond of arithmetic and a connection a file descriptor, so both are rationed by
address before a single byte is read (docs/security.md, T31; wireguard-go rations the same way). Hosts on this machine
and on private networks are not counted one by one: five daemons on 127.0.0.1, or a lab behind one address, are normal.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from p2pnode.address import is_near, parse_address
from p2pnode.metrics import Turned


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """After go-libp2p (connections) and wireguard-go (handshakes); docs/security.md has the whole table."""

    inbound_max: int = 64
    # Connections that have not proved who they are; libp2p allows 32 "transient" ones.
    unproven_max: int = 32
    per_host_max: int = 4  # a v4 address, or a /64 of v6
    per_network_max: int = 8  # a /24 of v4, or a /48 of v6
    handshakes_per_host_s: float = 20.0
    handshakes_per_host_burst: float = 5.0
    handshakes_s: float = 200.0
    handshakes_burst: float = 200.0


# Hosts whose recent handshakes are remembered. A host forgotten too early gains one burst.
HOSTS_REMEMBERED = 4096


class Door:
    """Counts who is inside. Every `enter` that returned None is followed by one `leave`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inside = 0
        self._unproven = 0
        self._crowds: dict[Hashable, int] = {}  # connections by host and by network
        self._all = TokenBucket()
        self._hosts: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    @property
    def inside(self) -> int:
        return self._inside

    @property
    def unproven(self) -> int:
        return self._unproven

    def enter(self, address: str, now: float) -> Turned | None:
        """Let a connection from `address` begin its handshake, or say why not."""
        limits = self._limits
        if self._inside >= limits.inbound_max or self._unproven >= limits.unproven_max:
            return Turned.CROWDED
        crowds = _crowds(address)
        for crowd, size_max in zip(crowds, (limits.per_host_max, limits.per_network_max), strict=False):
            if self._crowds.get(crowd, 0) >= size_max:
                return Turned.ADDRESS
        if crowds and not self._host_bucket(crowds[0]).spend(
            now, rate=limits.handshakes_per_host_s, burst=limits.handshakes_per_host_burst
        ):
            return Turned.RATE
        if not self._all.spend(now, rate=limits.handshakes_s, burst=limits.handshakes_burst):
            return Turned.RATE
        for crowd in crowds:
            self._crowds[crowd] = self._crowds.get(crowd, 0) + 1
        self._inside += 1
        self._unproven += 1
        return None

    def prove(self) -> None:
        """A connection that entered has proved who it is."""
        self._unproven -= 1
        assert self._unproven >= 0

    def leave(self, address: str, *, proven: bool) -> None:
        self._inside -= 1
        self._unproven -= not proven
        assert self._inside >= self._unproven >= 0
        for crowd in _crowds(address):
            self._crowds[crowd] -= 1
            if self._crowds[crowd] == 0:
                del self._crowds[crowd]

    def _host_bucket(self, host: Hashable) -> "TokenBucket":
        bucket = self._hosts.pop(host, None) or TokenBucket()
        self._hosts[host] = bucket
        if len(self._hosts) > HOSTS_REMEMBERED:
            self._hosts.popitem(last=False)
        return bucket


class TokenBucket:
    """Token bucket that remembers what was taken, so that a new one is full."""

    __slots__ = ("_at", "_taken")

    def __init__(self) -> None:
        self._taken = 0.0
        self._at = 0.0

    def spend(self, now: float, *, rate: float, burst: float) -> bool:
        self._taken = max(0.0, self._taken - (now - self._at) * rate)
        self._at = now
        if self._taken + 1.0 > burst:
            return False
        self._taken += 1.0
        return True


def _crowds(address: str) -> tuple[Hashable, ...]:
    """The host and the network that `address` is counted under; nothing for hosts nearby."""
    host, _ = parse_address(address)
    if is_near(host):
        return ()
    number = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        number = number.ipv4_mapped
    host_bits, network_bits = (32, 24) if number.version == 4 else (64, 48)
    return tuple(
        ipaddress.ip_network((number, bits), strict=False).with_prefixlen
        for bits in (host_bits, network_bits)
    )
