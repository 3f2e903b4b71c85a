"""What a session and its exchanges have in common: what the node holds, and how an exchange goes on and ends."""

from math import inf

from msgspec import Struct, field

from crypto.identity import PublicKey
from gossip.dht.ids import NodeId
from gossip.dht.routing import Contact
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


class Outgoing(Struct):
    """An exchange that we initiated."""

    holding: Holding
    number: int
    shard: int
    contact: Contact
    state: str  # offering, waiting, finishing; withdrawn: offering no more
    age: int
    begun: float  # when the exchange began
    since: float = 0.0  # when the offer left for the first time; until then, when it was put on the way
    moved_at: float = 0.0  # when it was last put on the way, or something large between the two last moved
    ticket: int = 0  # of the offer, until it has left
    overtaken: int = 0  # offers of the partner that have arrived meanwhile
    hash: bytes = b""
    frame: bytes = b""
    clip: float = inf  # the largest change that we accept back
    repeated: bool = False


class Incoming(Struct):
    """An offer of another that is being worked on."""

    holding: Holding
    shard: int
    peer: NodeId
    key: PublicKey
    hash: bytes
    age: int
    codec: str
