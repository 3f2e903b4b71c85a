"""Replies kept in case that an offer comes again because its reply was lost: without them such an exchange would count
on one side only."""

from gossip.dht.ids import NodeId
from gossip.events import Send

# Replies kept in memory, whatever their number: eight of the largest. 64 states for newcomers would be 256 MiB.
REPLIES_BYTES_MAX = 2**25
# One peer has at most one part in so many of them: it waits for one reply per shard, and a flood of offers must not
# push out what others may still ask for. We would have moved, and they not.
REPLIES_SHARE = 8


class ReplyCache:
    """Args:
    replies_max: Replies kept.
    keep_s: For so long; a peer asks again within a third of it.
    """

    def __init__(self, *, replies_max: int, keep_s: float) -> None:
        self._replies_max = replies_max
        self._keep_s = keep_s
        # Hash of an offer's header -> reply, date: oldest first.
        self._replies: dict[bytes, tuple[Send, float]] = {}
        self._of: dict[NodeId, dict[bytes, None]] = {}  # the same offers, oldest first, by peer
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, offer: bytes, peer: NodeId) -> Send | None:
        """What answered this offer of this peer."""
        known = self._replies.get(offer)
        return known[0] if known is not None and known[0].peer == peer else None

    def keep(self, offer: bytes, reply: Send, now: float) -> None:
        peer = reply.peer
        self.forget(offer)  # of another peer, which sent the same header and was refused
        theirs = self._of.get(peer)
        if theirs and len(theirs) * REPLIES_SHARE >= self._replies_max:
            self.forget(next(iter(theirs)))
        self._replies[offer] = (reply, now)
        self._of.setdefault(peer, {})[offer] = None
        self._bytes += len(reply.frame)
        while len(self._replies) > 1:
            oldest, (_, date) = next(iter(self._replies.items()))
            if (
                len(self._replies) <= self._replies_max
                and self._bytes <= REPLIES_BYTES_MAX
                and now - date <= self._keep_s
            ):
                break
            self.forget(oldest)

    def forget(self, offer: bytes) -> None:
        kept = self._replies.pop(offer, None)
        if kept is not None:
            reply, _ = kept
            self._bytes -= len(reply.frame)
            theirs = self._of[reply.peer]
            del theirs[offer]
            if not theirs:
                del self._of[reply.peer]

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {"replies": (len(self._replies), self._replies_max)}
