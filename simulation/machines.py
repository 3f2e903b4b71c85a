"""The machines of a world, what runs on them, and what a world needs of that.

A machine's disk survives what happens to the program on it. What a world has of a machine that another process carries
out (`simulation.windows`) is its name and address.
"""

from collections.abc import Mapping
from math import inf
from typing import Any, Protocol

from crypto.identity import PublicKey, Signer
from gossip.dht.ids import NodeId, node_id
from gossip.events import Effect, Event, Job, JobResult, News, Trained
from gossip.learning.saved import SavedModel
from gossip.net.simultaneous_open import SimultaneousOpen
from simulation.digest import EventDigest
from simulation.seeds import Seeds


class Core(Protocol):
    """What a world needs of a node; `gossip.node.Node` is one."""

    @property
    def deadline(self) -> float: ...

    def handle(self, event: Event, now: float) -> list[Effect]: ...


class Worker(Protocol):
    """What a world needs of the owner of the weights; `gossip.learning.learner.Learner` is one."""

    def run(self, job: Job) -> JobResult: ...

    def train_input(self, steps: int) -> Any: ...

    def trained(self, output: Any) -> Trained: ...

    def dump(self) -> SavedModel: ...


class Parts(Protocol):
    """Where cores and workers come from, and who carries out training."""

    run_id: bytes

    def core(self, host: "Host", *, seeds: Seeds, now: float) -> Core:
        """A node for the machine `host`, with what is on its disk."""
        ...

    def worker(self, host: "Host") -> Worker:
        """An owner of weights for `host`: from its snapshot where there is one, else from genesis."""
        ...

    def train(self, inputs: Any) -> list[Any]:
        """Outputs of up to `lanes` training inputs, in their order. Called on another thread."""
        ...


class Observer(Protocol):
    """Who is told what a node says and what happens to machines, on the way. Must change nothing."""

    def news(self, host: "Host", news: News, now: float) -> None: ...

    def power(self, host: "Host", kind: str, now: float) -> None:
        """The program of a machine began ("up") or ended (the kind of fault)."""
        ...


class Link:
    """One end of an open connection; the other end has one of the same name until it is closed there."""

    __slots__ = ("line", "name", "peer", "since")

    def __init__(self, name: int, peer: "Host", since: float) -> None:
        self.line: Any = None  # its lanes, where links have a bandwidth (simulation/uplinks.py)
        self.name = name  # of all connections ever, only this one's
        self.peer = peer
        self.since = since  # when it opened at this end


class Dialling:
    """A dial without an end."""

    __slots__ = ("address", "duplicate", "opens_at", "peer", "target")

    def __init__(self, address: str, peer: NodeId | None, target: "Host | None") -> None:
        self.address = address
        self.peer = peer  # who should be there; None: whoever is
        self.target = target  # who is there; None: nobody
        self.opens_at = inf  # once the other end has answered: when the third leg arrives
        self.duplicate = False  # whether another connection with the target is about to open

    @property
    def rising(self) -> bool:
        """Whether the connection is as good as open."""
        return self.opens_at < inf


class Host:
    """One machine: its disk survives what happens to the program on it."""

    __slots__ = (
        "address",
        "core",
        "dialled",
        "dials",
        "digest",
        "disk",
        "doomed",
        "here",
        "id",
        "identity",
        "index",
        "key",
        "life",
        "links",
        "opening",
        "pushed",
        "saved",
        "slowness",
        "train_s",
        "uplink",
        "wakes",
        "wakes_at_once",
        "worker",
    )

    def __init__(self, index: int, identity: Signer, address: str, train_s: float) -> None:
        self.index = index
        self.identity = identity
        self.key: PublicKey = identity.public_key
        self.id: NodeId = node_id(identity.public_key)
        self.address = address
        self.train_s = train_s  # virtual duration of a training job here
        self.core: Core | None = None  # None: the program is not running
        self.worker: Worker | None = None
        self.disk: dict[str, bytes] = {}  # what Persist wrote
        self.saved: SavedModel | None = None  # what Save wrote
        self.here = True  # False: another world carries it out (`simulation.windows`)
        self.digest = EventDigest()
        self.uplink: Any = None  # where links have a bandwidth (simulation/uplinks.py)
        self.pushed = 0  # heap entries that it has caused
        self.links: dict[NodeId, Link] = {}
        self.dials: dict[int, Dialling] = {}  # by the name of the connection to be
        # Names of the connections that were taken, open or about to be.
        self.opening: SimultaneousOpen[int] = SimultaneousOpen(self.id)
        self.dialled = 0  # dials ever
        self.life = 0  # counts starts of the program; what was under way in an earlier life is void
        # Dates of the wake-ups in the heap, the next one last: a deadline is pushed only where it is earlier than all.
        self.wakes: list[float] = [inf]
        self.wakes_at_once = 0
        self.doomed = False  # dies in the middle of the next list of effects


def address_of(index: int) -> str:
    """The address of node `index`; the first 256 are in different /16 networks, as peers at large are."""
    return f"10.{index % 256}.{index // 256}.1:7400"


def store_of(host: Host) -> Mapping[str, bytes]:
    """What the program finds on the disk of its machine when it starts: a copy, as reading a file is."""
    return dict(host.disk)
