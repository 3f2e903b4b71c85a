"""Where others reach us: what we were told at the start, and what connections show.

A machine on several networks has an address in each, and one that moves has another tomorrow: the local end of a
connection is where those on the network that it comes from can reach us. Loopback never leaves the machine.
"""

from gossip.addresses import is_loopback
from gossip.dht.kinds import ADDRESSES_MAX
from gossip.dht.routing import subnet_of

# Own addresses learned from connections. Wired, wireless, a tunnel and one to spare: a guess.
REACHED_MAX = 4


class OwnAddresses:
    """Args:
    given: As far as we were told; "host:port", the best first.

    Attributes:
        version: Rises whenever what others should know has changed.
    """

    def __init__(self, given: tuple[str, ...]) -> None:
        self._given = given
        self._reached: dict[str, None] = {}  # local ends of connections, the one seen last at the end
        self.all = given
        self.version = 0

    def reached_at(self, address: str) -> None:
        """A connection has this end.

        The newest come first, before what we were told at the start, but behind those that are reached from everywhere;
        the one that no connection had for the longest time goes.
        """
        seen = address in self._reached
        self._reached.pop(address, None)
        self._reached[address] = None
        if seen:
            return
        if len(self._reached) > REACHED_MAX:
            del self._reached[next(iter(self._reached))]
        addresses = dict.fromkeys([*reversed(self._reached), *self._given])
        if set(addresses) == set(self.all):
            return
        before = self.told(nearby=True)
        self.all = tuple(sorted(addresses, key=lambda one: subnet_of(one) is None))[:ADDRESSES_MAX]
        self.version += self.told(nearby=True) != before

    def told(self, *, nearby: bool) -> tuple[str, ...]:
        """Our addresses as a peer may hear them. One on this machine (`nearby`) is told a loopback address, too, where
        there is no other: records are passed on, so the others do for both."""
        far = tuple(address for address in self.all if not is_loopback(address))
        return far or (self.all if nearby else ())
