"""Connections as the core sees them: who is up, who is being dialled, what waits, when to try again.

Only bookkeeping: the driver opens and closes sockets. A frame for a peer that is not connected waits for the dial it
starts, and for the hello that says which protocols the peer speaks; if no address answers, the frame is lost and the
peer rests for a while (exponential backoff with jitter, so that a returning peer is not met by everybody in the same
second).
"""

import random
from collections.abc import Sequence

from msgspec import Struct, field

from crypto.identity import PublicKey
from gossip.addresses import is_loopback
from gossip.dht.ids import NodeId
from gossip.errors import Reason, RemoteError
from gossip.events import Dial, DialFailed, Drop, Effect, PeerUp, Recall, Send

# What two peers speak before they have said what they speak.
AT_FIRST = {"connection": 1}
# Frames that wait for one dial: a lookup and an exchange at the same time are three; the rest is slack.
WAITING_MAX = 16
# Places that the driver's door keeps beyond `inbound_kept`: without them the idle connections of a network's first node
# would shut out every newcomer that knows only its address.
NEWCOMERS = 8
# Rest after the first failed dial, doubled for each further one, up to the second figure. Guesses near libp2p's.
BACKOFF_S = 1.0
BACKOFF_S_MAX = 300.0
# Rest of a peer that is slower than the floor: links change their rate within minutes, if they do. A guess.
SLOW_S = 300.0
# Failures beyond so many wait no longer: 2^9 s is above the limit. Counted no further, since a power of two that grows
# with what strangers do overflows after 1,024 of them.
BACKOFFS_COUNTED = 10
# Peers whose failures are remembered; the oldest is forgotten first.
BACKOFFS_MAX = 4096


def inbound_kept(connections_max: int) -> int:
    """How many connections that others opened are kept: 56 of 96, the rest is for those of our own choice."""
    return max(1, connections_max * 7 // 12)


class Connection(Struct):
    """One open connection."""

    key: PublicKey
    address: str
    inbound: bool
    since: float
    nearby: bool = False  # the peer is on this machine
    ready: bool = False  # its hello has come
    protocols: dict[str, int] = field(
        default_factory=lambda: dict(AT_FIRST)
    )  # what both speak, and the version
    unsupported: dict[str, None] = field(default_factory=dict)  # tags that it was told we do not know
    faults: int = 0  # what the peer did wrong on this connection
    silent: int = 0  # requests in a row that it did not answer, while nothing at all came from it
    heard_at: float = 0.0  # when something came from it, or something large last moved
    budget: float = 0.0  # tokens for requests, see `Connections.spend`
    budget_at: float = 0.0
    used: int = 0  # when it was last used, counted in uses of any connection


class _Waiting(Struct):
    addresses: list[str]  # still to be tried, after the one being dialled
    frames: list[tuple[str, Send]]  # and their protocols


class Connections:
    """Args:
    connections_max: Above this, the least recently used idle connection is dropped.
    """

    def __init__(self, *, connections_max: int, rng: random.Random) -> None:
        self._connections_max = connections_max
        self._rng = rng
        self._up: dict[NodeId, Connection] = {}
        self._uses = 0
        self._inbound = 0  # of these
        self._waiting: dict[NodeId, _Waiting] = {}  # until a dial succeeds and the hello has come
        self._failures: dict[NodeId, tuple[int, float]] = {}  # node -> (failures in a row, not before)
        self._banned: dict[NodeId, float] = {}  # node -> until
        self.lost_frames = 0

    def __len__(self) -> int:
        return len(self._up)

    def __contains__(self, node: NodeId) -> bool:
        return node in self._up

    def get(self, node: NodeId) -> Connection | None:
        return self._up.get(node)

    def items(self) -> list[tuple[NodeId, Connection]]:
        return list(self._up.items())

    def nearby(self, node: NodeId) -> bool:
        """Whether `node` is connected over loopback."""
        connection = self._up.get(node)
        return connection is not None and connection.nearby

    def resting(self, node: NodeId, now: float) -> bool:
        """Whether a dial to `node` failed so recently that we do not try again yet."""
        failure = self._failures.get(node)
        return failure is not None and now < failure[1]

    def send(
        self, order: Send, addresses: Sequence[str], protocol: str, now: float, out: list[Effect]
    ) -> bool:
        """Send now, or dial and wait first. False: not possible now (no address, resting, too much waits already, or
        the peer does not speak this protocol)."""
        node = order.peer
        connection = self._up.get(node)
        if connection is not None:
            if protocol in connection.protocols:
                self._uses += 1
                connection.used = self._uses
                out.append(order)
                return True
            if connection.ready:
                return False
        waiting = self._waiting.get(node)
        if waiting is None:
            if connection is not None:
                self._waiting[node] = _Waiting([], [(protocol, order)])
                return True
            if addresses and not self.resting(node, now) and not self.banned(node, now):
                self._waiting[node] = _Waiting(list(addresses[1:]), [(protocol, order)])
                out.append(Dial(addresses[0], node))
                return True
        elif len(waiting.frames) < WAITING_MAX:
            waiting.frames.append((protocol, order))
            return True
        self.lost_frames += 1
        return False

    def recall(self, node: NodeId, ticket: int, out: list[Effect]) -> None:
        """Nobody wants this frame any more: send no more of it."""
        waiting = self._waiting.get(node)
        if waiting is not None:
            waiting.frames = [(name, order) for name, order in waiting.frames if order.ticket != ticket]
        elif node in self._up:
            out.append(Recall(node, ticket))

    def opened(self, event: PeerUp, now: float) -> None:
        self._uses += 1
        nearby = is_loopback(event.address) or is_loopback(event.local)
        self._up[event.peer] = Connection(
            event.key,
            event.address,
            event.inbound,
            now,
            nearby=nearby,
            heard_at=now,
            budget_at=now,
            used=self._uses,
        )
        self._inbound += event.inbound

    def ready(self, node: NodeId, protocols: dict[str, int], out: list[Effect]) -> None:
        """Its hello has come: send what waited, and forgive only now that earlier dials failed. A peer that takes
        connections and closes them again would otherwise be dialled in every round."""
        connection = self._up[node]
        connection.protocols = {**AT_FIRST, **protocols}
        connection.ready = True
        self._failures.pop(node, None)
        waiting = self._waiting.pop(node, None)
        if waiting is not None:
            out.extend(order for protocol, order in waiting.frames if protocol in protocols)

    def heard(self, connection: Connection, now: float) -> None:
        """Something came: the peer is there, and the connection is the last to be dropped as idle."""
        connection.silent, connection.heard_at = 0, now
        self._uses += 1
        connection.used = self._uses

    def closed(self, node: NodeId, now: float) -> bool:
        """The connection is gone; False if there was none."""
        connection = self._up.pop(node, None)
        self._inbound -= connection is not None and connection.inbound
        if connection is not None and not connection.ready:
            self._waiting.pop(node, None)
            self.rest(node, now)
        return connection is not None

    def dial_failed(self, event: DialFailed, now: float, out: list[Effect]) -> bool:
        """Try the next address; True when there is none left and the peer counts as unreachable."""
        node = event.peer
        if node is None or node in self._up:
            return False
        waiting = self._waiting.get(node)
        if waiting is not None and waiting.addresses:
            out.append(Dial(waiting.addresses.pop(0), node))
            return False
        self._waiting.pop(node, None)
        self.rest(node, now)
        return True

    def rest(self, node: NodeId, now: float) -> None:
        failures = min(self._failures.pop(node, (0, 0.0))[0] + 1, BACKOFFS_COUNTED)
        pause = min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** (failures - 1)) * self._rng.uniform(0.5, 1.5)
        self._failures[node] = (failures, now + pause)
        if len(self._failures) > BACKOFFS_MAX:
            del self._failures[next(iter(self._failures))]

    def too_slow(self, node: NodeId, now: float) -> None:
        """The connection to it carried less than the floor: do not dial it for a while."""
        self.rest(node, now)
        self._failures[node] = (self._failures[node][0], now + SLOW_S)

    def ban(self, node: NodeId, until: float) -> None:
        self._banned[node] = until
        if len(self._banned) > BACKOFFS_MAX:
            del self._banned[next(iter(self._banned))]

    def banned(self, node: NodeId, now: float) -> bool:
        return self._banned.get(node, 0.0) > now

    def failures(self, node: NodeId) -> int:
        return self._failures.get(node, (0, 0.0))[0]

    def spend(self, node: NodeId, now: float, *, rate: float, burst: float) -> bool:
        """Token bucket of what `node` may ask of us: `rate` a second, `burst` at once. False: over budget."""
        connection = self._up.get(node)
        if connection is None:
            return False
        # A new connection starts with a full bucket: budget counts what was taken.
        taken = max(0.0, connection.budget - (now - connection.budget_at) * rate)
        connection.budget_at = now
        if taken + 1.0 > burst:
            connection.budget = taken
            return False
        connection.budget = taken + 1.0
        return True

    def charge(self, node: NodeId, now: float, *, rate: float, burst: float) -> None:
        """As `spend`. Raises RemoteError, RATE_LIMITED, over budget."""
        if not self.spend(node, now, rate=rate, burst=burst):
            raise RemoteError(Reason.RATE_LIMITED, f"more than {rate:g} requests a second")

    def shed(self, keep: Sequence[NodeId], out: list[Effect]) -> None:
        """Above a limit, drop the least recently used connections that are not in `keep`."""
        surplus = len(self._up) - self._connections_max
        if surplus > 0:
            idle = [node for node in self._up if node not in keep]
        else:
            surplus = self._inbound - inbound_kept(self._connections_max)
            if surplus <= 0:
                return
            idle = [node for node, connection in self._up.items() if connection.inbound and node not in keep]
        idle.sort(key=lambda node: self._up[node].used)
        out.extend(Drop(node, "connection limit") for node in idle[:surplus])

    def bounds(self) -> dict[str, tuple[int, int]]:
        """As `Protocol.bounds`."""
        # Dials are begun by our own lookups and exchanges, whose number is limited elsewhere: a guess far above it.
        return {
            "waiting": (len(self._waiting), 256),
            "failures": (len(self._failures), BACKOFFS_MAX),
            "bans": (len(self._banned), BACKOFFS_MAX),
        }

    def banned_now(self, now: float) -> list[NodeId]:
        """All who are banned at this date."""
        return [node for node, until in self._banned.items() if until > now]
