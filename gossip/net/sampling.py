"""Whom to exchange with: a uniform sample of the holders that were ever seen.

The mathematics of gossip averaging wants partners drawn uniformly. Follows Brahms (Bortnikov, Gurevich,
Keidar, Kliot, Shraer 2009): a *min-wise sampler* keeps the id with the smallest keyed hash, so hearing an id a
thousand times is worth no more than hearing it once, and a flood of repetitions moves nothing. Departures:

- One secret key and the `pool_max` smallest hashes (a bottom-k sketch) instead of many keys with one minimum each:
  the same distribution without replacement, for one hash per new id instead of thirty-two.
- Ids come only from what we asked for (DHT lookups) and from authenticated connections; nobody can push ids at us,
  so the limits on pushes of the paper have nothing to limit.
- The key changes with every `rotate`, so that a large network's sample is fresh and neighbourhoods do not freeze
  (docs/security.md, T19).
"""

import hashlib
import random

from gossip.dht.ids import NodeId
from gossip.dht.routing import Contact

# Ids that are remembered as too large for the pool, so that each is hashed once: the same come again with every lookup.
REJECTED_MAX = 4096


class Membership:
    """The pool of known holders and draws from it.

    Args:
        own: Our id; never in the pool.
        pool_max: Entries kept.
        key: 16 secret bytes, so that nobody can choose ids that we prefer.
    """

    def __init__(self, own: NodeId, *, pool_max: int, key: bytes) -> None:
        self._own = own
        self._pool_max = pool_max
        self._key = key
        self._contacts: dict[NodeId, Contact] = {}
        # shard -> holders, as list and position, so that a draw and a removal take constant time.
        self._holders: dict[int, list[NodeId]] = {}
        self._positions: dict[int, dict[NodeId, int]] = {}
        # Only needed once the pool is full: hashes of the members, and whose is the largest (None: not known).
        self._hashes: dict[NodeId, bytes] = {}
        self._last: NodeId | None = None
        # Who was not let in under this key, in front of a pool that has only become harder to enter since.
        self._rejected: dict[NodeId, None] = {}

    def __len__(self) -> int:
        return len(self._contacts)

    def __contains__(self, node: NodeId) -> bool:
        return node in self._contacts

    def contact(self, node: NodeId) -> Contact | None:
        return self._contacts.get(node)

    def contacts(self) -> list[Contact]:
        return list(self._contacts.values())

    def observe(self, contact: Contact, shard: int) -> None:
        """Somebody says that `contact` holds `shard`: the lookup that found it, or the peer itself."""
        node = contact.node
        if node == self._own or node in self._rejected:
            return
        if node not in self._contacts:
            if not self._admit(node):
                return
            self._contacts[node] = contact
            self._last = None
        elif contact.record:
            self._contacts[node] = contact
        holders = self._holders.setdefault(shard, [])
        positions = self._positions.setdefault(shard, {})
        if node not in positions:
            positions[node] = len(holders)
            holders.append(node)

    def forget(self, node: NodeId) -> None:
        """It does not answer any more. A later lookup may bring it back."""
        self._rejected.clear()
        self._remove(node)

    def _remove(self, node: NodeId) -> None:
        if self._contacts.pop(node, None) is None:
            return
        self._hashes.pop(node, None)
        self._last = None
        for shard, holders in self._holders.items():
            position = self._positions[shard].pop(node, None)
            if position is None:
                continue
            last = holders.pop()
            if last != node:
                holders[position] = last
                self._positions[shard][last] = position

    def partner(self, shard: int, rng: random.Random) -> Contact | None:
        """A uniformly random known holder of `shard`, or None."""
        holders = self._holders.get(shard)
        if not holders:
            return None
        # int(random() * n) is uniform to 2**-53 * n, and five times as fast as choice().
        return self._contacts[holders[int(rng.random() * len(holders))]]

    def rotate(self, key: bytes) -> None:
        """Use another secret from now on; present members stay until somebody with a smaller hash is seen."""
        self._key = key
        self._hashes.clear()
        self._rejected.clear()
        self._last = None

    def _admit(self, node: NodeId) -> bool:
        if len(self._contacts) < self._pool_max:
            return True
        if self._last is None:
            for member in self._contacts:
                if member not in self._hashes:
                    self._hashes[member] = self._hash(member)
            self._last = max(self._hashes, key=self._hashes.__getitem__)
        if self._hash(node) >= self._hashes[self._last]:
            self._rejected[node] = None
            if len(self._rejected) > REJECTED_MAX:
                self._rejected.clear()
            return False
        self._remove(self._last)
        return True

    def _hash(self, node: NodeId) -> bytes:
        return hashlib.blake2b(node, key=self._key, digest_size=8).digest()
