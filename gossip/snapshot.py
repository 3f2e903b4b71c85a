"""What people may see of a node: immutable copies, for status commands, dashboards and checkers."""

from msgspec import Struct

from gossip.dht.ids import NodeId


class PeerView(Struct, frozen=True):
    """What is known about one connected peer."""

    node: NodeId
    address: str
    inbound: bool
    since_s: float
    same_run: bool
    exchanges: int
    faults: int


class Snapshot(Struct, frozen=True):
    """What people may see of a node; everything is a copy."""

    node: NodeId
    state: str
    run: bytes
    task: str
    schema: bytes
    shards: int
    ages: list[int]
    round: int
    loss: float  # of the last local training job; nan before the first
    changes_dropped: int  # of local training, because they were not finite
    exchanges: int  # applied, in any role
    initiated: int  # of these, initiated here
    refused: dict[str, int]  # by us, per reason
    refused_by_peers: dict[str, int]
    peers: list[PeerView]
    pool: int  # holders known
    contacts: int  # in the routing table
    records: int  # stored for others
    lookups: int
    lost_frames: int
