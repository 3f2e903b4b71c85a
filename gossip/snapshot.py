"""What people may see of a node: immutable copies, for status commands, dashboards and checkers."""

from typing import Any

from msgspec import Struct

from gossip.dht.ids import NodeId


class PeerView(Struct, frozen=True):
    """What is known about one connected peer."""

    node: NodeId
    address: str
    inbound: bool
    since_s: float
    protocols: dict[str, int]  # what both speak, and the version
    exchanges: int
    faults: int


class DhtView(Struct, frozen=True):
    """What the DHT shows."""

    contacts: int  # in the routing table
    records: int  # stored for others
    lookups: int  # ended
    active: list[str]  # purposes of the lookups under way


class RunView(Struct, frozen=True):
    """What one run shows."""

    run: bytes
    task: str
    schema: bytes
    shards: int
    ages: list[int]
    round: int
    loss: float  # of the last local training job; nan before the first
    changes_dropped: int  # of local training, because they were not finite
    initiated: int  # exchanges applied that we initiated
    pool: int  # holders known


class ExchangeView(Struct, frozen=True):
    """What the exchange shows."""

    runs: list[RunView]


class RunsView(Struct, frozen=True):
    """What is known about the runs of others."""

    shared: list[NodeId]  # connected peers that take part in a run of ours


class Snapshot(Struct, frozen=True):
    """What people may see of a node; everything is a copy."""

    node: NodeId
    state: str
    degraded: bool  # events of several unrelated peers met faults of our own
    exchanges: int  # applied, in any role
    refused: dict[str, int]  # by us, per reason
    refused_by_peers: dict[str, int]
    peers: list[PeerView]
    lost_frames: int
    protocols: dict[str, Any]  # what each protocol shows, by its name

    @property
    def dht(self) -> DhtView:
        view: DhtView = self.protocols["dht"]
        return view

    @property
    def learning(self) -> RunView:
        """The first run, which is the only one of a daemon."""
        view: ExchangeView = self.protocols["exchange"]
        return view.runs[0]

    def shares_run(self, peer: NodeId) -> bool:
        view: RunsView = self.protocols["run"]
        return peer in view.shared
