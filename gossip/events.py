"""What goes into a Node and what comes out: facts, orders and news.

Events are facts, effects are orders, news is for people. `Node.handle(event, now)` takes one event and
returns effects, which the driver carries out **in order**; when it carries out `Persist`, the entries must
survive the death of the process before the next effect is begun. Everything is immutable.

Arrays never pass through here. A job (`Train`, `Offer`, ...) is carried out by the `Learner`, the only owner of
the weights; its result comes back as the event `Done`.
"""

from typing import TypeAlias

from msgspec import Struct

from crypto.identity import PublicKey
from gossip.dht.ids import NodeId
from gossip.errors import Reason
from gossip.net.lanes import Lane

# --- jobs for the Learner, and their results -----------------------------------------------------


class Train(Struct, frozen=True):
    """Run `steps` optimiser steps on local data, starting from the weights as they are now.

    The *change* is added to the weights when the job ends, so that exchanges in between are kept.
    """

    steps: int


class Trained(Struct, frozen=True):
    steps: int
    loss: float  # mean over the steps
    dropped: bool = False  # the change was not finite: the weights are as before


class Offer(Struct, frozen=True):
    """Encode shard `shard` against its reference: Q(x[s] - A[s])."""

    shard: int
    codec: str


class Offered(Struct, frozen=True):
    payload: bytes
    clip: float  # the largest change of norm we would accept back; inf: no limit yet


class Respond(Struct, frozen=True):
    """Answer an offer: step 2 of ShardPair (decode, gate, clip, apply +c/2, return c; or `Rescued`); or `Taken`."""

    shard: int
    codec: str
    payload: bytes
    clip: float  # declared by the initiator; the smaller of the two limits counts, and this one in a rescue


class Responded(Struct, frozen=True):
    payload: bytes  # c, encoded
    distance: float  # |x_i - x_j| before the exchange
    norm: float  # |c|


class Rescued(Struct, frozen=True):
    """The offered state is too far from ours to follow it: nothing was changed here, and c goes back all the same.

    It is as long as the initiator allows, whatever we allow ourselves: who is far from everybody is drawn in by its own
    judgement, and insisting moves no other node.
    """

    payload: bytes  # c, encoded
    distance: float  # |x_i - x_j|
    norm: float  # |c|
    detail: str  # what was too far


class Taken(Struct, frozen=True):
    """What was offered will be averaged with what others push: nothing goes back but that it was taken."""

    distance: float  # |x_i - x_j|
    norm: float  # of it, what counts after the clip


class Finish(Struct, frozen=True):
    """Step 3 of ShardPair: apply -c/2 to the weights as they are now."""

    shard: int
    codec: str
    payload: bytes
    clip: float  # the limit that our offer declared


class Finished(Struct, frozen=True):
    norm: float  # |c|


class Adopt(Struct, frozen=True):
    """Replace the shard by the decoded state: what a newcomer does instead of averaging."""

    shard: int
    codec: str
    payload: bytes


class Adopted(Struct, frozen=True):
    distance: float  # how far the shard moved


class JobRefused(Struct, frozen=True):
    """The payload did not pass length, finiteness or gate: nothing was changed."""

    reason: Reason
    detail: str


class Save(Struct, frozen=True):
    """Write a snapshot of the weights and of the optimiser to durable storage, atomically."""


class Saved(Struct, frozen=True):
    size_bytes: int


Job: TypeAlias = Train | Offer | Respond | Finish | Adopt | Save
JobResult: TypeAlias = (
    Trained | Offered | Responded | Rescued | Taken | Finished | Adopted | JobRefused | Saved
)

# --- events: facts -------------------------------------------------------------------------------


class PeerUp(Struct, frozen=True):
    """An authenticated connection to `peer` is open. At most one for each peer at any time."""

    peer: NodeId
    key: PublicKey
    address: str  # host:port of the other end as we see it; for an outbound connection: what we dialled
    inbound: bool
    # Our end of it, host:port, as others on the same network can dial us; empty: not known, or of no use to them.
    local: str = ""


class PeerDown(Struct, frozen=True):
    peer: NodeId
    reason: str
    slow: bool = False  # it carried less than the floor: another connection would not carry more


class DialFailed(Struct, frozen=True):
    """The `Dial` with this address ended without a connection (or reached another peer than expected)."""

    address: str
    peer: NodeId | None
    reason: str


class Received(Struct, frozen=True):
    peer: NodeId
    frame: bytes


class Sent(Struct, frozen=True):
    """The last byte of the frame with this ticket has left the machine, as far as it can tell.

    Every ticket of a `Send` is answered once, by this or by `Unsent`, unless the connection ends before (PeerDown).
    """

    peer: NodeId
    ticket: int


class Unsent(Struct, frozen=True):
    """The frame with this ticket will not arrive: there is no connection, its lane was full, or it was recalled."""

    peer: NodeId
    ticket: int


class Progress(Struct, frozen=True):
    """A large frame moves, to or from this peer. At most once a second for each connection."""

    peer: NodeId


class Woken(Struct, frozen=True):
    """`Node.deadline` has come."""


class Done(Struct, frozen=True):
    ticket: int
    result: JobResult


class Join(Struct, frozen=True):
    """The operator names addresses through which to enter the network."""

    addresses: tuple[str, ...]


class Leave(Struct, frozen=True):
    """The operator wants this node to stop: say goodbye, start nothing new."""


Event: TypeAlias = (
    PeerUp | PeerDown | DialFailed | Received | Sent | Unsent | Progress | Woken | Done | Join | Leave
)

# --- effects: orders -----------------------------------------------------------------------------


class Send(Struct, frozen=True):
    """Put one frame on the connection to `peer`. If there is none any more, or the lane is full, the frame is lost.

    Frames of one lane arrive in the order in which they were sent; `control` overtakes `bulk`.
    """

    peer: NodeId
    frame: bytes
    lane: Lane = Lane.CONTROL
    ticket: int = 0  # not 0: answered by Sent or Unsent


class Recall(Struct, frozen=True):
    """Nobody wants the frame with this ticket any more: send no more of it. Answered by Unsent, if it was in time."""

    peer: NodeId
    ticket: int


class Dial(Struct, frozen=True):
    """Open a connection; answered by PeerUp or DialFailed. `peer` is None where only the address is known."""

    address: str
    peer: NodeId | None


class Drop(Struct, frozen=True):
    """Close the connection after what was sent has left (within a second); answered by PeerDown."""

    peer: NodeId
    reason: str


class Compute(Struct, frozen=True):
    """Have the Learner of `run` do `job`; answered by Done with the same ticket."""

    ticket: int
    job: Job
    run: bytes


class Persist(Struct, frozen=True):
    """Make these entries durable before the next effect. An empty value deletes the entry.

    With `fsync` they must survive power loss too; without, the death of the process.
    """

    entries: tuple[tuple[str, bytes], ...]
    fsync: bool = False


class Emit(Struct, frozen=True):
    news: "News"


# --- news: for logs, counters, dashboards and the simulator's checkers ------------------------------


class Exchanged(Struct, frozen=True):
    """Our side of an exchange is applied. `role`: initiator, responder, adopter; donor and rescuer do not move.

    A rescuer refused what it was offered for its distance, which is told, too.
    """

    peer: NodeId
    shard: int
    role: str
    distance: float  # |x_i - x_j| where known, else nan
    norm: float  # |c| where known, else nan


class Learned(Struct, frozen=True):
    """A local training job ended."""

    round: int
    steps: int
    loss: float
    dropped: bool = False  # the change was not finite: the weights are as before


class Refused(Struct, frozen=True):
    """Something was refused. `by_us`: we refused what the peer sent; else the peer refused ours."""

    peer: NodeId | None
    reason: Reason
    by_us: bool
    detail: str


class Connected(Struct, frozen=True):
    peer: NodeId
    address: str
    inbound: bool


class Disconnected(Struct, frozen=True):
    peer: NodeId
    reason: str


class Unreachable(Struct, frozen=True):
    address: str
    reason: str


class Looked(Struct, frozen=True):
    """A DHT lookup ended. `purpose`: join, refresh, walk, providers or publish."""

    purpose: str
    hops: int
    queried: int
    found: int


class Faulted(Struct, frozen=True):
    """A fault of our own, met by an event of `peer`: the peer was dropped, and the node goes on."""

    peer: NodeId
    event: str  # name of its type
    frame: bytes  # what came, where it was a message
    traceback: str


class StateChanged(Struct, frozen=True):
    """starting, joining, training, diverged, exchanging, isolated, stopping; idle: without any run."""

    state: str


News: TypeAlias = (
    Exchanged | Learned | Refused | Connected | Disconnected | Unreachable | Looked | Faulted | StateChanged
)

Effect: TypeAlias = Send | Recall | Dial | Drop | Compute | Persist | Emit
