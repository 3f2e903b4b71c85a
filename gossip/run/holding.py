"""What a session and its exchanges have in common: what the node holds, and how an exchange goes on and ends."""

from msgspec import Struct, field

from gossip.dht.ids import NodeId
from gossip.errors import Reason
from gossip.learning.task import RunInfo
from gossip.outbox import Fact


class Holding(Struct):
    """What a node holds of one run.

    Args:
        info: The run.
        ages: Local steps behind each shard, 0 for a newcomer.
    """

    info: RunInfo
    ages: list[int]
    moves: dict[NodeId, int] = field(
        default_factory=dict
    )  # offers worked on since our last round began, by peer
    alone: bool = True  # no more than one partner is known

    def new_round(self, *, alone: bool) -> None:
        self.moves.clear()
        self.alone = alone


class Ended(Fact, frozen=True):
    """An exchange that we initiated is over."""

    run: bytes
    number: int
    peer: NodeId
    shard: int
    reason: Reason | None  # None: applied
    crossed: bool = False  # given up for the partner's own offer: this pair is exchanging all the same


class Lasting(Struct, frozen=True):
    """An exchange that we initiated goes on."""

    run: bytes
    number: int
    begun: float  # seconds
