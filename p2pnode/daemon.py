"""The daemon: one node at work in the world. The whole of its concurrency in one paragraph:

One task owns the node. Connections, dials, timers and the worker only post events to one bounded inbox; the owner
takes one at a time, lets the node decide, and carries out the effects in order, without ever waiting for a peer or for
arithmetic. `Persist` is carried out on the spot, so whatever follows it rests on what is on the disk. When the inbox is
full its writers wait: connections stop reading, and TCP passes it on.

Faults: a peer's end in its connection (`peers`) or in the node's counters; ours, wherever they happen, reach the one
supervisor here, which logs them and ends the daemon with a status that is not zero. Start-up is always recovery.
"""

import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import structlog
import trio

from crypto.identity import Identity
from crypto.signing import network_id
from gossip.config import Config
from gossip.dht.ids import node_id
from gossip.errors import Reason
from gossip.events import (
    Compute,
    Connected,
    Dial,
    Disconnected,
    Drop,
    Effect,
    Emit,
    Event,
    Exchanged,
    Faulted,
    Join,
    Learned,
    Leave,
    News,
    PeerUp,
    Persist,
    Recall,
    Refused,
    Send,
    StateChanged,
    Unreachable,
    Woken,
)
from gossip.learning.learner import Learner
from gossip.learning.saved import SnapshotError
from gossip.learning.task import RunInfo
from gossip.net.connections import NEWCOMERS, inbound_kept
from gossip.node import Node
from gossip.peer import make_node
from gossip.persisted import CEILING_KEY, ceiling_entry
from gossip.run import manifest
from gossip.sequence import SKIP
from gossip.snapshot import Snapshot
from p2pnode import __version__
from p2pnode.address import AddressError
from p2pnode.door import Limits, TokenBucket
from p2pnode.errors import ExitCode, UserError
from p2pnode.log import lines_dropped
from p2pnode.metrics import Counters
from p2pnode.models import read_manifest
from p2pnode.peers import Peers
from p2pnode.recording import Recorder
from p2pnode.store import Store
from p2pnode.tasks import TASK_FAULTS
from p2pnode.tasks.faults import what_came
from p2pnode.tcp import own_address, reachable_address
from p2pnode.transport import Listener, Transport
from p2pnode.worker import Trains, Worker

# Events that wait for the owner. Each may carry a frame of 4 MiB, so this bounds memory as well; the owner needs well
# under a millisecond for most.
INBOX_MAX = 64
# Work under way when we are told to stop may end within so long. Together with the flush of the connections this stays
# below the 10 s that people and systemd are promised.
FINISH_S = 6.0

log = structlog.get_logger(__name__)


class _Mark:
    """Goes through the inbox; `reached` is set when the owner has handled everything before it."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached = trio.Event()


_Item: TypeAlias = Event | _Mark


class Daemon:
    """One node, from its store and its learner to the network.

    Args:
        identity: Who we are.
        config: Of the core.
        run: What is trained.
        learner: New; takes over the store's snapshot when the daemon runs. Belongs to the daemon from then on.
        trainer: Trains and measures.
        store: What survives. Closed by whoever opened it.
        transport: Real or in memory.
        listen: Where to accept connections; port 0: any.
        advertise: Where others reach us; empty: where we listen.
        join: Addresses through which to enter the network.
        entropy: Secret random bytes.
        rng: For choices that need not be secret.
        on_news: Called in the owner's task for everything that happens; must not wait.
        threads: Whether arithmetic runs on threads; False under a mock clock.
        limits: On strangers.
        recorder: Writes down what the node is given; closed by the daemon.
        task: What `load_task` was given, for the words about its faults.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        config: Config,
        run: RunInfo,
        learner: Learner,
        trainer: Trains,
        store: Store,
        transport: Transport,
        listen: str,
        advertise: tuple[str, ...] = (),
        join: tuple[str, ...] = (),
        entropy: Callable[[int], bytes],
        rng: random.Random,
        on_news: Callable[[News], None] | None = None,
        threads: bool = True,
        limits: Limits | None = None,
        recorder: Recorder | None = None,
        task: str = "",
    ) -> None:
        self._recorder = recorder
        self._identity = identity
        self._config = config
        self._run = run
        self._learner = learner
        self._store = store
        self._transport = transport
        self._listen_at = listen
        self._advertise = advertise
        self._join = join
        self._entropy = entropy
        self._rng = rng
        self._on_news = on_news
        self.counters = Counters()
        self._post, self._inbox = trio.open_memory_channel[_Item](INBOX_MAX)
        self._peers = Peers(
            identity=identity,
            network=network_id(config.network),
            transport=transport,
            post=self._post.send,
            entropy=entropy,
            counters=self.counters,
            limits=limits or Limits(inbound_max=inbound_kept(config.connections_max) + NEWCOMERS),
            # Who said where others reach us knows better than we do: our end may be behind a router.
            reached_at=lambda local: "" if advertise else own_address(local, self._address),
            floor_bytes_s=config.floor_bytes_s,
        )
        self._worker = Worker(
            learner=learner,
            trainer=trainer,
            store=store,
            post=self._post.send,
            counters=self.counters,
            threads=threads,
            task=task,
        )
        self._refusals_logged = TokenBucket()
        self._node: Node | None = None
        self._address = ""
        self._started_at = 0.0
        self._scope = trio.CancelScope()
        self._stop_asked = trio.Event()

    # --- life ----------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until `stop`. Reports "started" with the address on which we listen.

        Raises:
            UserError: ADDRESS, HOME, or FAILED for a fault of our own, which is in the log.
        """
        try:
            with self._scope:
                await self._live(task_status)
            if self._recorder is not None:
                self._recorder.close()
        except Exception as error:  # the one supervisor
            raise _reported(error) from error

    def stop(self) -> None:
        """Leave the network in order, within 10 s. The second time: at once, as after SIGKILL."""
        if self._stop_asked.is_set():
            self._scope.cancel()
        self._stop_asked.set()

    async def _live(self, task_status: trio.TaskStatus[str]) -> None:
        has_model = self._restore()
        listener = await self._listen()
        self._address = listener.address
        self._started_at = trio.current_time()
        make = make_node if self._recorder is None else self._recorder.node
        self._node = make(
            self._identity,
            self._config,
            self._run,
            addresses=self._advertise or tuple(filter(None, [reachable_address(listener.address)])),
            rng=self._rng,
            entropy=self._entropy,
            store=self._entries(),
            has_model=has_model,
            now=self._started_at,
        )
        log.info(
            "started", id=self._node.id.hex(), address=self._address, task=self._run.task, restored=has_model
        )
        # What others need the same of; compared key by key where a peer is refused as `other_run`.
        log.info("run", id=self._run.id.hex(), manifest=self._manifest())
        async with trio.open_nursery() as nursery:
            await nursery.start(self._peers.run)
            await nursery.start(self._worker.run)
            nursery.start_soon(self._own, self._node)
            accepting = trio.CancelScope()
            nursery.start_soon(self._accept, listener, accepting)
            if self._join:
                await self._post.send(Join(self._join))
            task_status.started(self._address)
            await self._stop_asked.wait()
            accepting.cancel()
            await self._wind_down()
            nursery.cancel_scope.cancel()
        log.info("stopped", id=self._node.id.hex())

    def _entries(self) -> dict[str, bytes]:
        """What the node knew at the end of its last life."""
        entries = self._store.load()
        if CEILING_KEY not in entries:
            # Whoever makes a key writes its first number down (`keyfile`), so the state was emptied since: signing old
            # numbers again would look like a lie to every peer.
            log.warning("numbers_lost", skipped=SKIP)
            entries[CEILING_KEY] = ceiling_entry(SKIP)[1]
        return entries

    def _restore(self) -> bool:
        """Give the learner the weights of its last life; False if there are none."""
        model = self._store.read_model(self._run)
        if model is None:
            self._refuse_other_runs()
            return False
        try:
            whole = self._learner.load(model)
        except SnapshotError as error:
            # Going on would leave behind a model that somebody trained.
            raise UserError(
                ExitCode.HOME,
                f"the saved model does not fit ({error}). Give the task and its arguments with which it was made, or "
                "choose another --home for another run.",
            ) from error
        if not whole:
            log.warning(
                "optimiser_begins_anew", detail="the saved state is of another optimiser; weights are kept"
            )
        return True

    def _refuse_other_runs(self) -> None:
        """A home with a model of another run only: a setting was forgotten more often than another run is meant."""
        for other, document in self._store.manifests().items():
            said = f"the run {other.hex()[:12]}, this one is {self._run.id.hex()[:12]}"
            ours = read_manifest(self._run.id, self._run.manifest)
            saved = read_manifest(other, document)
            if ours is not None and saved is not None:
                said = "; ".join(manifest.difference(ours, saved, places=("now", "in the saved run")))
            raise UserError(
                ExitCode.HOME,
                f"this home has the model of another run: {said}. Give the task and its arguments with which it was "
                "made, and the settings of then, or choose another --home for another run.",
            )

    async def _listen(self) -> Listener:
        try:
            return await self._transport.listen(self._listen_at)
        except AddressError as error:
            raise UserError(ExitCode.ADDRESS, f"{error}.") from error
        except OSError as error:
            raise UserError(
                ExitCode.ADDRESS,
                f"{self._listen_at}: cannot listen there ({error.strerror or error}); choose another --listen.",
            ) from error

    async def _accept(self, listener: Listener, accepting: trio.CancelScope) -> None:
        try:
            with accepting:
                await self._peers.accept_from(listener)
        finally:
            with trio.CancelScope(shield=True):
                await listener.aclose()

    async def _wind_down(self) -> None:
        """Say goodbye, let work under way end and be saved, close the connections."""
        with trio.move_on_after(FINISH_S):
            await self._post.send(Leave())
            await self._handled()
            while self._worker.busy:
                await self._worker.idle()
                await self._handled()
            # The node has ordered a snapshot, but what was under way then ended after it. A node that has not begun
            # has nothing to keep.
            if self._worker.unsaved and all(self._node_view().learning.ages):
                await self._worker.save()
        await self._peers.stop()

    async def _handled(self) -> None:
        """Wait until the owner has handled everything that is in the inbox now."""
        mark = _Mark()
        await self._post.send(mark)
        await mark.reached.wait()

    # --- the owner of the node ---------------------------------------------------------------------------

    async def _own(self, node: Node) -> None:
        woken = False
        while True:
            now = trio.current_time()
            item: _Item = Woken()
            if node.deadline > now or woken:
                # After a Woken one item comes first, so that a node that is always due cannot starve its inbox.
                with trio.move_on_at(max(node.deadline, now)):
                    item = await self._receive()
            else:
                await trio.lowlevel.checkpoint()
            woken = isinstance(item, Woken)
            if isinstance(item, _Mark):
                item.reached.set()
                continue
            if isinstance(item, PeerUp):
                self._peers.told(item)
            now = trio.current_time()
            effects: list[Effect] | None = None
            try:
                effects = node.handle(item, now)
            finally:
                if self._recorder is not None:
                    self._recorder.step(now, item, effects)
            for effect in effects:
                self._carry_out(effect)

    async def _receive(self) -> _Item:
        """The next item. Takes what is there even when the deadline is now."""
        try:
            item = self._inbox.receive_nowait()
        except trio.WouldBlock:
            return await self._inbox.receive()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return item

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._peers.send(effect)
            case Emit(news):
                self._tell(news)
            case Compute(ticket, job, _):
                self._worker.submit(ticket, job)
            case Persist(entries, fsync):
                self._store.put(entries, fsync=fsync)
            case Dial():
                self._peers.dial(effect)
            case Recall():
                self._peers.recall(effect)
            case Drop(peer, reason):
                self._peers.drop(peer, reason)

    def _tell(self, news: News) -> None:
        _log_news(news, self._refusals_logged, trio.current_time())
        if self._on_news is not None:
            self._on_news(news)

    # --- what people see and order; the control socket's `Served` ---------------------------------------

    @property
    def address(self) -> str:
        """Where we listen; empty before we do."""
        return self._address

    def status(self) -> dict[str, Any]:
        """The node's snapshot and the facts of this process. Bytes stay bytes."""
        now = trio.current_time()
        view = self._node_view()
        run, dht = view.learning, view.dht
        sizes = self.counters.frame_bytes
        return {
            "id": view.node.hex(),
            "version": __version__,
            "state": view.state,
            "healthy": view.state not in ("isolated", "diverged", "stopping") and not view.degraded,
            "degraded": view.degraded,
            "uptime_s": now - self._started_at,
            "address": self._address,
            "network": self._config.network,
            "task": run.task,
            "run": run.run.hex(),
            "manifest": self._manifest(),
            "schema": run.schema.hex(),
            "shards": run.shards,
            "ages": run.ages,
            "round": run.round,
            "steps": self._learner.steps,
            "loss": run.loss,
            "changes_dropped": run.changes_dropped,
            "exchanges": view.exchanges,
            "initiated": run.initiated,
            "refused": view.refused,
            "refused_by_peers": view.refused_by_peers,
            "peers": len(view.peers),
            "pool": run.pool,
            "contacts": dht.contacts,
            "records": dht.records,
            "lookups": dht.lookups,
            "lost_frames": view.lost_frames,
            "log_lines_dropped": lines_dropped(),
            "memory_bytes": _memory_bytes(),
            "bytes_in": sum(sizes["in"].values()),
            "bytes_out": sum(sizes["out"].values()),
            "connections": self._peers.facts(),
            "transfers": self._peers.transfers(),
            "counters": self.counters.as_dict(),
        }

    def peers(self) -> list[dict[str, Any]]:
        """One entry for each connected peer."""
        view = self._node_view()
        return [
            {
                "id": peer.node.hex(),
                "address": peer.address,
                "inbound": peer.inbound,
                "since_s": peer.since_s,
                "same_run": view.shares_run(peer.node),
                "protocols": peer.protocols,
                "exchanges": peer.exchanges,
                "faults": peer.faults,
            }
            for peer in view.peers
        ]

    def _manifest(self) -> dict[str, str]:
        """What makes the run, key by key, in words."""
        made = read_manifest(self._run.id, self._run.manifest)
        return manifest.shown(made) if made is not None else {}

    def _node_view(self) -> Snapshot:
        assert self._node is not None, "the daemon does not run yet"
        return self._node.snapshot(trio.current_time())

    def identity(self) -> dict[str, Any]:
        key = self._identity.public_key
        return {"id": node_id(key).hex(), "public_key": key.hex(), "address": self._address}

    async def evaluate(self) -> dict[str, Any]:
        """The averaged read-out on the task's test split: its metrics, `loss` and `rows`.

        Raises:
            UserError: TASK; there is nothing to test with.
        """
        try:
            return dict(await self._worker.evaluate())
        except TASK_FAULTS as error:  # a question must not end the daemon
            raise UserError(ExitCode.TASK, f"cannot be tested: {what_came(error)}.") from error

    async def export(self, path: str) -> dict[str, Any]:
        """Write the averaged read-out as safetensors.

        Raises:
            UserError: FAILED; the file cannot be written.
        """
        try:
            size = await self._worker.export(Path(path))
        except OSError as error:
            raise UserError(
                ExitCode.FAILED, f"{path}: cannot be written ({error.strerror or error})."
            ) from error
        return {"path": path, "size_bytes": size}

    async def save(self) -> dict[str, Any]:
        """Write a snapshot of the weights now.

        Raises:
            UserError: FAILED; the disk did not take it.
        """
        size = await self._worker.save()
        if size == 0:
            raise UserError(ExitCode.FAILED, "the snapshot could not be written; the log says why.")
        return {"size_bytes": size}

    async def join(self, addresses: tuple[str, ...]) -> dict[str, Any]:
        """Try to enter the network through more addresses."""
        await self._post.send(Join(addresses))
        return {}


# Of all refusals, so many lines at `info` a second, and at once. One peer can cause fifty a second for as long as it
# likes. The counters have them all.
REFUSALS_LOGGED_S = 2.0
REFUSALS_LOGGED_BURST = 200.0

# Of a message that met a fault of ours, so much stands in the log: a whole one but for its payload.
FAULT_FRAME_BYTES = 4096

# Refusals that are normal; only the counters and `debug` have them.
_FREQUENT = (Reason.BUSY, Reason.NOT_READY, Reason.RATE_LIMITED, Reason.UNEXPECTED)


def _log_news(news: News, refusals: TokenBucket, now: float) -> None:
    """Decisions and transitions at `info`; what happens many times a second at `debug`."""
    match news:
        case Connected():
            log.info("connected", peer=news.peer.hex()[:16], address=news.address, inbound=news.inbound)
        case Disconnected():
            log.info("disconnected", peer=news.peer.hex()[:16], reason=news.reason)
        case Unreachable():
            log.info("unreachable", address=news.address, reason=news.reason)
        case StateChanged():
            log.info("state", state=news.state)
        case Refused():
            seldom = news.reason not in _FREQUENT and refusals.spend(
                now, rate=REFUSALS_LOGGED_S, burst=REFUSALS_LOGGED_BURST
            )
            tell = log.info if seldom else log.debug
            tell(
                "refused" if news.by_us else "refused_by_peer",
                peer=news.peer.hex()[:16] if news.peer is not None else None,
                reason=news.reason,
                detail=news.detail,
            )
        case Exchanged():
            log.debug(
                "exchanged",
                peer=news.peer.hex()[:16],
                shard=news.shard,
                role=news.role,
                distance=news.distance,
                norm=news.norm,
            )
        case Faulted():
            # With what came, the fault can be met again at a desk.
            log.error(
                "fault_of_ours",
                peer=news.peer.hex()[:16],
                during=news.event,
                frame=news.frame[:FAULT_FRAME_BYTES].hex(),
                frame_bytes=len(news.frame),
                exception=news.traceback,
            )
        case Learned():
            log.debug("learned", round=news.round, steps=news.steps, loss=news.loss, dropped=news.dropped)


def _reported(error: Exception) -> UserError:
    """Log every fault in `error` once, and say the first in one sentence."""
    said: UserError | None = None
    for leaf in _leaves(error):
        if isinstance(leaf, UserError):
            said = said or leaf
        else:
            log.critical("fault", exc_info=leaf)
            said = said or UserError(
                ExitCode.FAILED,
                f"the daemon ended by a fault of its own ({leaf!r:.200}); the log has the details.",
            )
    assert said is not None, "an exception group has leaves"
    return said


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


def _memory_bytes() -> int:
    """Resident memory of this process; at its peak where the system does not tell the present."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
