"""Hundreds of whole nodes in one process: a heap of events over the very cores that the daemon drives.

The world is the second driver of `gossip.node.Node` (the first is the daemon): it feeds events in, carries
effects out in order, and owns everything that a core may not touch: time, the network, the disk, the
machine's power switch. What crosses the network is bytes, never objects. Nearest relatives:
n0-computer/iroh-gossip `proto/sim.rs`, TigerBeetle's VOPR.

Determinism: one generator per role, by name; the heap breaks ties by a sequence number; no set is iterated; a
running SHA-256 covers every event that any node was given, with its date as IEEE bits. Same scenario and
seed, same digest, in any process.

Speed: one exchange takes about ten events, so `World.run` and what it calls per event are written flat.
"""

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from math import inf
from typing import Any, Protocol, TypeAlias

from crypto.identity import Entropy, Identity, PublicKey, Signer
from gossip.dht.ids import NodeId, node_id
from gossip.errors import LocalError
from gossip.events import (
    Compute,
    Dial,
    DialFailed,
    Done,
    Drop,
    Effect,
    Emit,
    Event,
    Exchanged,
    Job,
    JobResult,
    Join,
    Learned,
    Leave,
    News,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    Refused,
    Save,
    Saved,
    Send,
    Train,
    Trained,
    Woken,
)
from simulation.adversaries import Adversaries, verifier
from simulation.batched import Batches, TrainingJob
from simulation.checkers import ExchangeChecker
from simulation.digest import EventDigest
from simulation.faults import Absence, Fault, comings_and_goings, plan
from simulation.scenario import Scenario
from simulation.seeds import Seeds
from simulation.signatures import Signatures
from simulation.varied import VariedLinks, geography_of, links_of

# A dial that nobody answers fails after so long; the daemon's own limit for connecting.
DIAL_TIMEOUT_S = 5.0
# What a clean stop takes between the order to leave and the end of the process: time to say goodbye and save.
LEAVE_S = 1.0
# More wake-ups than this of one node at one and the same moment are a loop in the node, not work.
WAKES_AT_ONCE_MAX = 1000

# Kinds of heap entries.
_FRAME = 0  # (link, frame)
_WAKE = 1  # (life, None)
_TRAINED = 2  # (ticket, training job)
_JOB = 3  # (ticket, job)
_CALL = 4  # (what to do, None)


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

    def dump(self) -> bytes: ...


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
    """One open connection. Each end has it in its `links` until that end is closed."""

    __slots__ = ("a", "b")

    def __init__(self, a: "Host", b: "Host") -> None:
        self.a = a
        self.b = b


class Host:
    """One machine: its disk survives what happens to the program on it."""

    __slots__ = (
        "address",
        "core",
        "disk",
        "doomed",
        "id",
        "identity",
        "index",
        "key",
        "life",
        "links",
        "saved",
        "slowness",
        "train_s",
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
        self.saved: bytes | None = None  # what Save wrote
        self.links: dict[NodeId, Link] = {}
        self.life = 0  # counts starts of the program; what was under way in an earlier life is void
        # Dates of the wake-ups in the heap, the next one last: a deadline is pushed only where it is earlier than all.
        self.wakes: list[float] = [inf]
        self.wakes_at_once = 0
        self.doomed = False  # dies in the middle of the next list of effects


Deferred: TypeAlias = Callable[[], None]
Entry: TypeAlias = tuple[float, int, int, Host, Any, Any]


def address_of(index: int) -> str:
    """The address of node `index`; the first 256 are in different /16 networks, as peers at large are."""
    return f"10.{index % 256}.{index // 256}.1:7400"


class World:
    """One run of a scenario.

    Args:
        scenario: What is simulated.
        seeds: The children of the run's seed.
        parts: Makes nodes and learners.
        replay: The command that repeats this run; part of every violation's message.
        check: Whether the checkers watch.
        tap: Called with (date, node, event) before each event, for transcripts and tests.
        observer: Told the news of nodes, and when programs begin and end.
        signatures: Where keys come from and who checks signatures, the same that `parts` gives its cores. None: keys
            are Ed25519's, and everybody checks at once.
        adversaries: Who is hostile. None: nobody.
    """

    def __init__(
        self,
        scenario: Scenario,
        seeds: Seeds,
        parts: Parts,
        *,
        replay: str = "",
        check: bool = True,
        tap: Callable[[float, Host, Event], None] | None = None,
        observer: Observer | None = None,
        signatures: Signatures | None = None,
        adversaries: Adversaries | None = None,
    ) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.events = 0
        self.messages = 0
        self.bytes_sent = 0
        self.exchanges = 0  # applied by their initiator
        self.node_updates = 0  # training jobs ended
        self.refused: dict[str, int] = {}
        self.news_counts: dict[str, int] = {}
        self.seeds = seeds
        geography = geography_of(scenario, seeds)
        present = comings_and_goings(scenario, seeds.random("churn"), geography)
        faults = plan(scenario, seeds.random("faults", "plan"), present)
        self.network = links_of(scenario, seeds, faults.partitions, geography)
        self._adversaries = adversaries
        self._hostile: dict[int, str] = adversaries.acts if adversaries is not None else {}
        self._late = faults.starts
        self._faults: dict[str, int] = {}
        self._rng = seeds.random("faults", "strike")
        self._parts = parts
        self._signatures = signatures
        self._identity: Callable[[Entropy], Signer] = signatures.identity if signatures else Identity.generate
        self._exchange_s = scenario.compute.exchange_s
        self._batches: Batches[Any, Any] = Batches(parts.train, lanes=scenario.compute.lanes)
        self._digest = EventDigest()
        self._heap: list[Entry] = []
        self._sequence = 0
        self._checker = ExchangeChecker(parts.run_id, replay) if check else None
        self._tap = adversaries.watch(tap) if adversaries is not None else tap
        self._observer = observer
        # Where work takes no time, whatever a frame causes has happened when its delivery returns.
        self._settle = self._checker is not None and self._exchange_s == 0.0
        self.hosts = self._machines()
        self._by_address = {host.address: host for host in self.hosts}
        self._schedule(faults.absences)
        if self._checker is not None:
            self._checker.hostile = dict.fromkeys(self.hosts[index].key for index in self._hostile)
            self._checker.verify = verifier(scenario.config.network, signatures)

    # --- what people ask ----------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """SHA-256 over every event so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()

    @property
    def faults(self) -> dict[str, int]:
        """Faults that really struck, by kind, sorted by name."""
        counts = dict(self.network.counts)
        more = [self._faults, self._adversaries.counts] if self._adversaries is not None else [self._faults]
        for kind, count in (entry for found in more for entry in found.items()):
            counts[kind] = counts.get(kind, 0) + count
        return dict(sorted(counts.items()))

    @property
    def checks(self) -> int:
        """How often the checkers looked; 0 without them."""
        return self._checker.checks if self._checker is not None else 0

    def up(self) -> list[Host]:
        """Machines whose program runs now."""
        return [host for host in self.hosts if host.core is not None]

    def honest(self) -> list[Host]:
        """Machines whose program runs now and does as it should: those that figures are about."""
        return [host for host in self.hosts if host.core is not None and host.index not in self._hostile]

    def run(self, until: float) -> None:
        """Carries out everything with a date before or at `until`, which is then `now`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            date, _, kind, host, first, second = heappop(heap)
            self.now = date
            if kind == _FRAME:
                self._arrive(host, first, second)
            elif kind == _WAKE:
                if first == host.life:
                    self._wake(host)
            elif kind == _CALL:
                first()
            elif first[0] == host.life:
                ticket = first[1]
                assert host.worker is not None, "a life that goes on has a worker"
                if kind == _TRAINED:
                    self._deliver(host, Done(ticket, host.worker.trained(self._batches.result(second))))
                else:
                    self._deliver(host, Done(ticket, self._work(host, second)))
        self.now = until

    def settle(self) -> None:
        """Returns when all signatures made so far were checked; part of the work of a run.

        Raises:
            LocalError: one of them is none.
        """
        if self._signatures is not None:
            self._signatures.settle()

    def close(self) -> None:
        """Ends the training thread, and the process that checks signatures."""
        self._batches.close()
        if self._signatures is not None:
            self._signatures.close()

    def inject(self, source: Host, target: Host, frame: bytes) -> None:
        """Puts bytes of the caller's choice on the connection between two nodes: for attacks in tests."""
        link = source.links[target.id]
        self._push(self.now + self.network.delay(), _FRAME, target, link, frame)

    def leave(self, host: Host) -> None:
        """The operator stops the program: it says goodbye, then its process ends."""
        if host.core is None:
            return
        life = host.life
        self._count(Fault.CHURN)
        self._deliver(host, Leave())

        def end() -> None:
            if host.life == life:
                self._tell_power(host, Fault.CHURN)
                self._stop(host, noticed_after_s=0.0)

        self._later(LEAVE_S, host, end)

    def crash(self, host: Host) -> None:
        """The program dies at its next event, after a random part of the effects of that event."""
        if host.core is not None:
            host.doomed = True

    def boot(self, host: Host) -> None:
        """Starts the program with what is on the machine's disk."""
        if host.core is not None:
            if host.doomed:  # nothing happened to it since its death sentence: it is carried out now
                self._die(host)
            else:
                return
        host.life += 1
        host.wakes = [inf]
        host.worker = self._parts.worker(host)
        host.core = self._parts.core(host, seeds=self.seeds, now=self.now)
        if self._adversaries is not None:
            host.core = self._adversaries.core(host.core, host, self.now)
        if self._observer is not None:
            self._observer.power(host, "up", self.now)
        self._deliver(host, Join(self._known(host)))

    # --- the beginning --------------------------------------------------------------------------------

    def _machines(self) -> list[Host]:
        compute = self.scenario.compute
        rng = self.seeds.random("machines")
        hosts = []
        for index in range(self.scenario.nodes):
            identity = self._identity(self.seeds.entropy("identity", index))
            train_s = compute.train_s * rng.lognormvariate(0.0, compute.spread_sigma)
            hosts.append(Host(index, identity, address_of(index), train_s))
        slow = round(compute.stragglers * len(hosts))
        for index in self.seeds.random("stragglers").sample(range(len(hosts)), slow):
            hosts[index].train_s *= compute.slowdown
        return hosts

    def _schedule(self, absences: tuple[Absence, ...]) -> None:
        rng = self.seeds.random("start")
        starts = [0.0, *sorted(rng.uniform(0.0, self.scenario.start_s) for _ in self.hosts[1:])]
        for host, start in zip(self.hosts, starts, strict=True):
            self._at(self._late.get(host.index, start), host, lambda host=host: self.boot(host))  # type: ignore[misc]
        for absence in absences:
            host = self.hosts[absence.node]
            strike = self.leave if absence.kind is Fault.CHURN else self.crash
            self._at(absence.start_s, host, lambda host=host, strike=strike: strike(host))  # type: ignore[misc]
            # A clean stop takes its second even of a short absence.
            back = max(absence.end_s, absence.start_s + LEAVE_S * 1.01)
            self._at(back, host, lambda host=host: self.boot(host))  # type: ignore[misc]
        for cut in self.scenario.faults.partitions:
            # Connections across a cut are silent; their ends give them up when a killed peer's would be given
            # up.
            date = cut.start_s + self.scenario.faults.silence_s
            if date < cut.end_s:
                self._at(date, self.hosts[0], self._break_cut_links)

    def _known(self, host: Host) -> tuple[str, ...]:
        """The one address that a node is started with."""
        if host.index == 0:
            return (self.hosts[1].address,)
        if self.scenario.join == "first":
            return (self.hosts[0].address,)
        # Who has started before, and can be dialled.
        nat = self.network.nat if isinstance(self.network, VariedLinks) else None
        before = [
            other
            for other in range(host.index)
            if other not in self._late and (nat is None or not nat.kind(other))
        ]
        return (self.hosts[self.seeds.random("join", host.index).choice(before or [0])].address,)

    # --- events in ------------------------------------------------------------------------------------

    def _arrive(self, host: Host, link: Link, frame: bytes) -> None:
        source = link.b if link.a is host else link.a
        if host.links.get(source.id) is not link:
            return  # closed at this end: what still travels is lost
        checker = self._checker
        if checker is not None:
            checker.delivered(
                source=source.id, source_key=source.key, target=host.id, target_key=host.key, frame=frame
            )
        self._deliver(host, Received(source.id, frame))
        if self._settle:
            checker.settle()  # type: ignore[union-attr]

    def _wake(self, host: Host) -> None:
        core = host.core
        assert core is not None, "wake-ups of a dead program are void"
        host.wakes.pop()
        deadline = core.deadline
        if deadline <= self.now:
            host.wakes_at_once += 1
            if host.wakes_at_once > WAKES_AT_ONCE_MAX:
                raise LocalError(f"node {host.index} wants to be woken again and again at {self.now} s")
            self._deliver(host, Woken())
        elif deadline < host.wakes[-1]:  # it has moved since the wake-up was set
            self._push_wake(host, deadline)

    def _deliver(self, host: Host, event: Event) -> None:
        """Gives a running node one event, then the results of the work it orders that takes no time."""
        core = host.core
        assert core is not None, "events of a dead program are void"
        now = self.now
        covered = self._digest.add
        ready: list[Event] = []
        position = 0
        while True:
            self.events += 1
            covered(now, host.index, event)
            if self._tap is not None:
                self._tap(now, host, event)
            effects = core.handle(event, now)
            if host.doomed:
                effects = effects[: self._rng.randrange(len(effects) + 1)]
            for effect in effects:
                kind = type(effect)
                if kind is Emit:
                    self._hear(host, effect.news)  # type: ignore[union-attr]
                elif kind is Send:
                    self._send(host, effect.peer, effect.frame)  # type: ignore[union-attr,arg-type]
                elif kind is Compute:
                    result = self._compute(host, effect.ticket, effect.job)  # type: ignore[union-attr]
                    if result is not None:
                        ready.append(Done(effect.ticket, result))  # type: ignore[union-attr]
                elif kind is Persist:
                    self._persist(host, effect)  # type: ignore[arg-type]
                elif kind is Dial:
                    self._dial(host, effect.address, effect.peer)  # type: ignore[union-attr]
                else:
                    assert kind is Drop, f"unknown effect {kind.__name__}"
                    self._drop(host, effect.peer, effect.reason)  # type: ignore[union-attr,arg-type]
            if host.doomed:
                self._die(host)
                return
            if position == len(ready):
                break
            event = ready[position]
            position += 1
        deadline = core.deadline
        if deadline > now:
            host.wakes_at_once = 0
        else:
            deadline = now
        if deadline < host.wakes[-1]:
            self._push_wake(host, deadline)

    # --- effects out ------------------------------------------------------------------------------------

    def _send(self, host: Host, peer: NodeId, frame: bytes) -> None:
        link = host.links.get(peer)
        if link is None:
            return
        target = link.b if link.a is host else link.a
        self.messages += 1
        self.bytes_sent += len(frame)
        if self._checker is not None:
            self._checker.sent(host.key, frame, self.now)
        now = self.now
        for delay in self.network.fates(host.index, target.index, len(frame), now):
            self._sequence += 1
            heappush(self._heap, (now + delay, self._sequence, _FRAME, target, link, frame))

    def _compute(self, host: Host, ticket: int, job: Job) -> JobResult | None:
        """Starts a job; its result where it takes no time."""
        assert host.worker is not None, "a running program has a worker"
        if type(job) is Train and job.steps > 0:  # without steps there is nothing to compute
            running: TrainingJob[Any, Any] = self._batches.submit(host.worker.train_input(job.steps))
            self._push(self.now + host.train_s, _TRAINED, host, (host.life, ticket), running)
            return None
        if self._exchange_s == 0.0:
            return self._work(host, job)
        self._push(self.now + self._exchange_s, _JOB, host, (host.life, ticket), job)
        return None

    def _work(self, host: Host, job: Job) -> JobResult:
        assert host.worker is not None, "a running program has a worker"
        if type(job) is Save:
            host.saved = host.worker.dump()
            return Saved(len(host.saved))
        return host.worker.run(job)

    def _persist(self, host: Host, order: Persist) -> None:
        for key, value in order.entries:
            if value:
                host.disk[key] = value
            else:
                host.disk.pop(key, None)

    def _hear(self, host: Host, news: News) -> None:
        kind = type(news)
        name = kind.__name__
        if host.index in self._hostile:
            return  # villains say what they like
        self.news_counts[name] = self.news_counts.get(name, 0) + 1
        if kind is Learned:
            self.node_updates += 1
        elif kind is Exchanged:
            if news.role == "initiator":  # type: ignore[union-attr]
                self.exchanges += 1
            if self._checker is not None:
                self._checker.told(host.id, news, self.now)  # type: ignore[arg-type]
        elif kind is Refused and news.by_us:  # type: ignore[union-attr]
            reason = str(news.reason)  # type: ignore[union-attr]
            self.refused[reason] = self.refused.get(reason, 0) + 1
        if self._observer is not None:
            self._observer.news(host, news, self.now)

    # --- connections --------------------------------------------------------------------------------------

    def _dial(self, host: Host, address: str, peer: NodeId | None) -> None:
        target = self._by_address.get(address)
        life = host.life
        delay = None if target is None else self.network.handshake(host.index, target.index, self.now)

        def settled() -> None:
            if host.life != life or host.core is None:
                return
            reason = "no answer" if delay is None or target is None else self._connect(host, target, peer)
            if reason:
                self._deliver(host, DialFailed(address, peer, reason))

        self._later(DIAL_TIMEOUT_S if delay is None else min(delay, DIAL_TIMEOUT_S), host, settled)

    def _connect(self, host: Host, target: Host, peer: NodeId | None) -> str:
        """The end of a handshake: PeerUp at both ends, or why not."""
        if target is host:
            return "the address is our own"
        if target.core is None:
            return "connection refused"
        if peer is not None and peer != target.id:
            return "another node answered"
        old = host.links.get(target.id)
        if old is not None and target.links.get(host.id) is old:
            return "already connected"
        # One end does not know yet that the old connection is gone: the new one replaces it.
        for end, other in ((host, target), (target, host)):
            if end.links.pop(other.id, None) is not None:
                self._deliver(end, PeerDown(other.id, "replaced by a newer connection"))
                if end.core is None:
                    return "connection reset"
        link = Link(host, target)
        host.links[target.id] = link
        target.links[host.id] = link
        self._deliver(target, PeerUp(host.id, host.key, host.address, True))
        if target.core is None:  # that was its last event
            del host.links[target.id]
            return "connection reset"
        if host.links.get(target.id) is link:
            self._deliver(host, PeerUp(target.id, target.key, target.address, False))
        return ""

    def _drop(self, host: Host, peer: NodeId, reason: str) -> None:
        link = host.links.pop(peer, None)
        if link is None:
            return
        other = link.b if link.a is host else link.a
        life = host.life

        def closed() -> None:
            if host.life == life and host.core is not None and peer not in host.links:
                self._deliver(host, PeerDown(peer, reason))

        self._later(0.0, host, closed)
        self._notify(link, other, host, 0.0)

    def _notify(self, link: Link, end: Host, gone: Host, silence_s: float) -> None:
        """Tells `end` that the other end of `link` is closed: behind what was sent, or after a silence."""
        delay = None if silence_s else self.network.reliable(gone.index, end.index, self.now)

        def noticed() -> None:
            if end.core is not None and end.links.get(gone.id) is link:
                del end.links[gone.id]
                self._deliver(end, PeerDown(gone.id, "timed out" if delay is None else "closed by the peer"))

        self._later(self.scenario.faults.silence_s if delay is None else delay, end, noticed)

    def _break_cut_links(self) -> None:
        for host in self.hosts:
            for link in list(host.links.values()):
                if link.a is host and self.network.cut(link.a.index, link.b.index, self.now):
                    for end, gone in ((link.a, link.b), (link.b, link.a)):
                        if end.core is not None and end.links.get(gone.id) is link:
                            del end.links[gone.id]
                            self._deliver(end, PeerDown(gone.id, "timed out"))

    # --- life and death ---

    def _die(self, host: Host) -> None:
        self._count(Fault.CRASH)
        # Half of the deaths take the machine along: no kernel closes the connections.
        silence = self.scenario.faults.silence_s if self._rng.random() < 0.5 else 0.0
        self._tell_power(host, Fault.CRASH)
        self._stop(host, noticed_after_s=silence)

    def _tell_power(self, host: Host, kind: Fault) -> None:
        if self._observer is not None:
            self._observer.power(host, kind.value, self.now)

    def _stop(self, host: Host, *, noticed_after_s: float) -> None:
        host.core = None
        host.worker = None
        host.doomed = False
        host.life += 1
        links, host.links = host.links, {}
        for link in links.values():
            self._notify(link, link.b if link.a is host else link.a, host, noticed_after_s)

    # --- the heap ---

    def _push(self, date: float, kind: int, host: Host, first: Any, second: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (date, self._sequence, kind, host, first, second))

    def _push_wake(self, host: Host, deadline: float) -> None:
        host.wakes.append(deadline)
        self._push(deadline, _WAKE, host, host.life, None)

    def _later(self, delay: float, host: Host, call: Deferred) -> None:
        self._push(self.now + delay, _CALL, host, call, None)

    def _at(self, date: float, host: Host, call: Deferred) -> None:
        if date < inf:
            self._push(date, _CALL, host, call, None)

    def _count(self, kind: Fault) -> None:
        self._faults[kind.value] = self._faults.get(kind.value, 0) + 1


def store_of(host: Host) -> Mapping[str, bytes]:
    """What the program finds on the disk of its machine when it starts: a copy, as reading a file is."""
    return dict(host.disk)
