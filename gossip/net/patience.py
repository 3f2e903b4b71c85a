"""How long to wait for a peer, learned from its own times.

Smoothed time to an answer and its deviation (Jacobson 1988, as in RFC 6298), per peer, so that nobody has to guess. A
peer without times of its own is expected to answer as peers do on the whole. Everything is bounded and finite: one that
never answers widens its own estimate only, and not beyond the limit of the caller.
"""

from msgspec import Struct

from gossip.dht.ids import NodeId

# Peers whose times are remembered; the one that was heard of longest ago is forgotten first.
PEERS_MAX = 1024
# Above any limit of a caller; keeps the arithmetic finite.
SECONDS_MAX = 3600.0
# Each silence widens what is waited for by so much, up to so much in all. Guesses; a caller has a limit of its own.
WIDER = 1.5
WIDER_MAX = 64.0


class _Estimate(Struct):
    mean: float
    deviation: float
    wider: float = 1.0  # by silences since the last answer

    def take(self, seconds: float) -> None:
        error = seconds - self.mean
        self.mean += error / 8.0
        self.deviation += (abs(error) - self.deviation) / 4.0
        self.wider = 1.0


class Patience:
    """All estimates of one node; seconds everywhere."""

    def __init__(self) -> None:
        self._peers: dict[NodeId, _Estimate] = {}
        self._all: _Estimate | None = None

    def answered(self, peer: NodeId, seconds: float) -> None:
        """An answer of `peer` took so long."""
        seconds = min(seconds, SECONDS_MAX)
        if self._all is None:
            self._all = _Estimate(seconds, seconds / 2.0)
        else:
            self._all.take(seconds)
        own = self._peers.pop(peer, None)
        if own is None:
            own = _Estimate(seconds, seconds / 2.0)
            if len(self._peers) >= PEERS_MAX:
                del self._peers[next(iter(self._peers))]
        else:
            own.take(seconds)
        self._peers[peer] = own

    def silent(self, peer: NodeId) -> None:
        """No answer in time. Either `peer` is gone, or its network has become slower than the estimate allows for;
        widen it so that the next answer can get through."""
        own = self._peers.get(peer)
        if own is not None:
            own.wider = min(WIDER * own.wider, WIDER_MAX)

    def usual_s(self, peer: NodeId) -> float:
        """A time that answers of `peer` seldom exceed; 0 while nothing is known of anybody."""
        estimate = self._peers.get(peer, self._all)
        return 0.0 if estimate is None else estimate.mean + 4.0 * estimate.deviation * estimate.wider

    def late_s(self, peer: NodeId) -> float:
        """A time after which `peer` is late: at least twice the usual one, since where a network always takes the
        same, the deviation is next to nothing. Silences do not widen it, or a silent peer would hold up its partners
        ever longer. 0 while nothing is known."""
        estimate = self._peers.get(peer, self._all)
        return 0.0 if estimate is None else estimate.mean + max(4.0 * estimate.deviation, estimate.mean)

    def bounds(self) -> tuple[int, int]:
        return len(self._peers), PEERS_MAX
