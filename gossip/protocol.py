"""What every protocol of a node has in common: one shape, so that a node needs to know none of them by name.

A protocol is a small machine. It is given facts (events of the node, messages of its peers, its own timers, results of
its own jobs, what its siblings have to say) and answers through an `Outbox`. Protocols do not import one another, and
nothing here waits: a new one costs a schema file (gossip/wire), a file of its own and one line in `gossip/peer.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, ClassVar

from msgspec import Struct

from crypto.identity import PublicKey, Signer, Verify
from gossip.config import Config
from gossip.dht.ids import Key, NodeId
from gossip.dht.records import RecordVerifier
from gossip.dht.routing import Contact
from gossip.errors import RemoteError
from gossip.net.connections import Connections
from gossip.net.own_addresses import OwnAddresses
from gossip.outbox import Fact, Outbox
from gossip.sequence import Sequence
from gossip.wire.canonical import Message


class Incoming(Struct, frozen=True):
    """A message of a protocol that both ends speak arrived."""

    peer: NodeId
    key: PublicKey
    message: Any


# --- what protocols and node tell one another ---------------------------------------------------------


class Ready(Fact, frozen=True):
    """The hello of `peer` came, and was sound: the two agree on protocols, and may talk."""

    peer: NodeId
    contact: Contact
    protocols: dict[str, int]  # the version of each that both speak


class Unreached(Fact, frozen=True):
    """No address of `peer` answers; `failures` dials in a row have failed."""

    peer: NodeId
    failures: int


class Banned(Fact, frozen=True):
    """`peer` broke the rules too often: it is told, its connection is closed, and it is forgotten."""

    peer: NodeId
    reason: str
    detail: str


class Unsupported(Fact, frozen=True):
    """`peer` sent a message of no protocol that both speak, for the first time on this connection."""

    peer: NodeId
    tag: str


class Silent(Fact, frozen=True):
    """`peer` left a request without an answer."""

    peer: NodeId


class Entered(Fact, frozen=True):
    """A peer let us into the network since we were last alone."""


class Alone(Fact, frozen=True):
    """No peer is connected. `seeking`: there are addresses to try."""

    seeking: bool


class Working(Fact, frozen=True):
    """What a run is doing: joining, training or exchanging. `begun`: it has not merely been set up."""

    run: bytes
    state: str
    begun: bool


class Provide(Fact, frozen=True):
    """This node holds what `key` names: others should find it there, and it wants to know the others."""

    key: Key


class ProviderFound(Fact, frozen=True):
    """A lookup says that `contact` holds what `key` names. Its record is not verified yet."""

    key: Key
    contact: Contact


class Held(Fact, frozen=True):
    """`peer` says in which runs it takes part, and which shards of each it holds."""

    peer: NodeId
    shards: dict[bytes, list[int]]  # by the id of the run


class Context:
    """What a node lends to its protocols. Only the node changes any of it.

    Args:
        identity: Who signs.
        verify: Checks signatures.
        network: 32 bytes, `crypto.signing.network_id`.
        addresses: Where others can reach us.
        sequence: Numbers for what is signed, one sequence for all.
        store: What `persist` kept in the last life.
        connections: Who is connected, and how they have behaved.
        contacts: All whom any protocol knows how to reach.

    Attributes:
        protocols: Name and versions of each protocol that has messages, sorted; set by the node.
    """

    def __init__(
        self,
        *,
        identity: Signer,
        own: NodeId,
        verify: Verify,
        network: bytes,
        config: Config,
        addresses: OwnAddresses,
        rng: Random,
        entropy: Callable[[int], bytes],
        sequence: Sequence,
        store: Mapping[str, bytes],
        connections: Connections,
        contacts: Callable[[], list[Contact]],
    ) -> None:
        self.identity = identity
        self.own = own
        self.verify = verify
        self.network = network
        self.config = config
        self.addresses = addresses
        self.rng = rng
        self.entropy = entropy
        self.sequence = sequence
        self.store = store
        self.connections = connections
        self.contacts = contacts
        self.protocols: dict[str, list[int]] = {}
        self._records = RecordVerifier(network, verify)

    def verified(self, contact: Contact) -> bool:
        """Whether the record behind `contact` is signed by its owner, so that it may be dialled."""
        return self._records.verified(contact)


Handler = Callable[[Any, float, Outbox], None]


class Protocol:
    """Base of all protocols.

    Attributes:
        name, version: As in `hello`; protocols without messages are our own affair and are not told.
        messages: From its schema file.
        handlers: What to do about each type of event, fact, timer or message that concerns this protocol. A handler of
            messages gets `Incoming`. It validates before it changes anything: what it raises as RemoteError is the
            peer's fault, anything else ours.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    messages: ClassVar[tuple[type[Message], ...]] = ()

    def __init__(self, context: Context) -> None:
        self.context = context
        self.handlers: dict[type, Handler] = {}

    def start(self, now: float, out: Outbox) -> None:
        """The node's life begins."""

    def handle(self, event: Any, now: float, out: Outbox) -> None:
        """Take one event. `RemoteError` for a peer's fault; the node counts it."""
        kind = type(event.message) if type(event) is Incoming else type(event)
        self.handlers[kind](event, now, out)

    def refused(self, event: Incoming, error: RemoteError, now: float, out: Outbox) -> None:
        """`handle` raised `error` for this message, and it was counted. Here the peer can be told."""

    def contacts(self) -> Iterable[Contact]:
        """Whom this protocol knows how to reach."""
        return ()

    def partners(self) -> Iterable[NodeId]:
        """Peers that it is in the middle of something with: their connections are not closed as idle."""
        return ()

    def bounds(self) -> dict[str, tuple[int, int]]:
        """Each table that a peer can make larger: its size now, and its limit."""
        return {}

    def snapshot(self, now: float) -> Struct | None:
        """What people may see of it."""
        return None
