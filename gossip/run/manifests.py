"""The protocol `run`: which runs a peer takes part in, and the documents behind their ids.

After `hello` each side names its runs and the shards that it holds. Where the two share none, the documents are
fetched, once for each run id, so that both can say in words what differs.
"""

from collections import OrderedDict
from collections.abc import Iterable

from gossip.dht.ids import NodeId
from gossip.errors import Reason, RemoteError
from gossip.events import PeerDown, Refused, Sent, Unsent
from gossip.learning.task import RunInfo
from gossip.outbox import Outbox, Timer
from gossip.protocol import Context, Held, Incoming, Protocol, Ready
from gossip.requests import Requests
from gossip.run import manifest as documents
from gossip.snapshot import RunsView
from gossip.wire import run as schema
from gossip.wire.run import GetManifest, Holds, ManifestMessage, Share

# Manifests of others that are remembered, of at most 16 KiB: 1 MiB.
KNOWN_MAX = 64
# Messages of this protocol per peer: it names each run once, and asks for a document when it meets a new one. A guess.
MESSAGES_PER_S = 10.0
MESSAGES_BURST = 100.0
# Documents asked for at the same time: one for each peer of another run. A guess.
ASKED_MAX = 128


class ManifestOverdue(Timer, frozen=True):
    number: int


class Runs(Protocol):
    """Args:
    runs: What this node takes part in.
    """

    name = "run"
    messages = schema.MESSAGES

    def __init__(self, context: Context, *, runs: Iterable[RunInfo]) -> None:
        super().__init__(context)
        self._own = {info.id: info for info in runs}
        self._theirs: dict[NodeId, tuple[bytes, ...]] = {}  # of connected peers
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._requests: Requests[bytes] = Requests(
            ManifestOverdue, timeout_s=context.config.dht.request_timeout_s, limit=ASKED_MAX
        )
        self.handlers = {
            Ready: self._ready,
            PeerDown: self._down,
            Sent: self._requests.sent,
            Unsent: self._unsent,
            ManifestOverdue: self._overdue,
            Holds: self._holds,
            GetManifest: self._asked,
            ManifestMessage: self._told,
        }

    def _ready(self, fact: Ready, now: float, out: Outbox) -> None:
        shares = [Share(i.id, list(range(len(i.shard_sizes)))[:1024]) for i in self._own.values()]
        out.send(fact.peer, Holds(shares))

    def _down(self, event: PeerDown, now: float, out: Outbox) -> None:
        self._theirs.pop(event.peer, None)
        self._requests.lost(event.peer, out)

    def _overdue(self, timer: ManifestOverdue, now: float, out: Outbox) -> None:
        self._requests.overdue(timer.number, out)

    def _unsent(self, event: Unsent, now: float, out: Outbox) -> None:
        self._requests.unsent(event.ticket, out)

    def _spend(self, event: Incoming, now: float) -> None:
        self.context.connections.charge(event.peer, now, rate=MESSAGES_PER_S, burst=MESSAGES_BURST)

    def _holds(self, event: Incoming, now: float, out: Outbox) -> None:
        self._spend(event, now)
        peer, message = event.peer, event.message
        theirs = {share.run: share.shards for share in message.runs}
        before = self._theirs.get(peer, ())
        self._theirs[peer] = tuple(theirs)
        out.fact(Held(peer, theirs))
        if self._own and self._own.keys().isdisjoint(theirs):
            for run in theirs:
                if run not in before:
                    self._differ(peer, run, now, out)

    def _differ(self, peer: NodeId, run: bytes, now: float, out: Outbox) -> None:
        """A run that is not ours: say what differs, once it is known."""
        if run in self._known:
            self._say(peer, run, out)
        else:
            question = GetManifest(self._requests.next(), run)
            self._requests.ask(peer, question, ManifestMessage, run, now, out)

    def _asked(self, event: Incoming, now: float, out: Outbox) -> None:
        self._spend(event, now)
        message: GetManifest = event.message
        own = self._own.get(message.run)
        data = own.manifest if own is not None else self._known.get(message.run, b"")
        out.send(event.peer, ManifestMessage(data, message.n))

    def _told(self, event: Incoming, now: float, out: Outbox) -> None:
        message: ManifestMessage = event.message
        run = self._requests.answered(event.peer, message, out)
        if message.data:
            if documents.run_id(message.data) != run:
                raise RemoteError(Reason.WRONG_HASH, "a manifest that does not hash to the id of its run")
            self._known[run] = message.data
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        self._say(event.peer, run, out)

    def _say(self, peer: NodeId, run: bytes, out: Outbox) -> None:
        ours = next(iter(self._own.values()))
        ids = f"our run is {ours.id.hex()[:12]}, the other's {run.hex()[:12]}"
        data = self._known.get(run)
        if data is None or not ours.manifest:
            detail = f"{ids}; one of them has no manifest to compare"
        else:
            try:
                differences = documents.difference(documents.decode(ours.manifest), documents.decode(data))
                detail = f"{ids}: {'; '.join(differences)}"
            except RemoteError as error:
                # It has the right hash, so that its maker made it so: of a later version, perhaps.
                detail = f"{ids}; its manifest cannot be read here: {error.detail}"
        out.emit(Refused(peer, Reason.OTHER_RUN, True, detail))

    def bounds(self) -> dict[str, tuple[int, int]]:
        return {
            "known": (len(self._known), KNOWN_MAX),
            "requests": self._requests.bounds(),
        }

    def snapshot(self, now: float) -> RunsView:
        return RunsView(
            [peer for peer, runs in self._theirs.items() if not self._own.keys().isdisjoint(runs)]
        )
