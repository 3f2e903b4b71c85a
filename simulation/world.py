"""Hundreds of whole nodes: an agenda of events over the very cores that the daemon drives.

The world is the second driver of `gossip.node.Node` (the first is the daemon): it feeds events in, carries
effects out in order, and owns everything that a core may not touch: time, the network, the disk, the
machine's power switch. What crosses the network is bytes, never objects. Nearest relatives:
n0-computer/iroh-gossip `proto/sim.rs`, TigerBeetle's VOPR.

Determinism: one generator per role and machine, by name; the heap breaks ties by who caused what and his own count; no
set is iterated; a running SHA-256 of each machine covers every event that it was given, with its date as IEEE bits.
Same scenario and seed, same digest, in any process, and in any number of them: machines touch each other through what
travels between them alone, so a world may be a part of a larger one (`simulation.windows`).

Speed: one exchange takes about ten events, so `World.run` and what it calls per event are written flat.
"""

from collections.abc import Callable, Container, Sequence
from heapq import heappop
from math import inf
from random import Random
from typing import Any, TypeVar

from crypto.identity import Entropy, Identity, Signer
from gossip.dht.ids import NodeId
from gossip.errors import LocalError
from gossip.events import (
    Compute,
    Dial,
    Done,
    Drop,
    Emit,
    Event,
    Exchanged,
    Job,
    JobResult,
    Join,
    Learned,
    Leave,
    News,
    Persist,
    Recall,
    Received,
    Refused,
    Save,
    Saved,
    Send,
    Sent,
    Train,
    Unsent,
    Woken,
)
from gossip.net.simultaneous_open import SimultaneousOpen
from simulation.adversaries import Adversaries, verifier
from simulation.agenda import CALL, FRAME, JOB, LEFT, PROGRESS, TRAINED, WAKE, Agenda, Letter
from simulation.batched import Batches, TrainingJob
from simulation.checkers import ExchangeChecker
from simulation.connections import Connections
from simulation.digest import digest_of
from simulation.faults import Absence, Fault, comings_and_goings, plan
from simulation.machines import Host, Observer, Parts, address_of
from simulation.scenario import Scenario
from simulation.seeds import Seeds
from simulation.signatures import Signatures
from simulation.uplinks import Uplink, Uplinks
from simulation.varied import VariedLinks, geography_of, links_of

Answer = TypeVar("Answer")

# What a clean stop takes between the order to leave and the end of the process: time to say goodbye and save.
LEAVE_S = 1.0
# More wake-ups than this of one node at one and the same moment are a loop in the node, not work.
WAKES_AT_ONCE_MAX = 1000


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
        here: Indices of the machines that live here. None: all. What goes to others is put into `agenda.letters`, and
            what comes from them is given to `post`.
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
        here: Container[int] | None = None,
    ) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.events = 0
        self.messages = 0
        self.bytes_sent = 0
        self.exchanges = 0  # applied by their initiator
        self.node_updates = 0  # training jobs ended
        self.refused: dict[str, int] = {}
        self.seeds = seeds
        geography = geography_of(scenario, seeds)
        present = comings_and_goings(scenario, seeds.random("churn"), geography)
        faults = plan(scenario, seeds.random("faults", "plan"), present)
        self.network = links_of(scenario, seeds, faults.partitions, geography)
        self._adversaries = adversaries
        self._hostile: dict[int, str] = adversaries.acts if adversaries is not None else {}
        self._late = faults.starts
        self._faults: dict[str, int] = {}
        self._strikes_of: dict[int, Random] = {}
        self._parts = parts
        self._signatures = signatures
        self._identity: Callable[[Entropy], Signer] = signatures.identity if signatures else Identity.generate
        self._exchange_s = scenario.compute.exchange_s
        self._batches: Batches[Any, Any] = Batches(parts.train, lanes=scenario.compute.lanes)
        self.agenda = Agenda()
        self._connections = Connections(self, scenario.faults.silence_s)
        bandwidth = scenario.network.bandwidth_bytes_s
        self._uplinks = Uplinks(self, bandwidth) if bandwidth else None
        self._checker = ExchangeChecker(parts.run_id, replay) if check else None
        self._tap = adversaries.watch(tap) if adversaries is not None else tap
        self._observer = observer
        # Where work takes no time, whatever a frame causes has happened when its delivery returns.
        self._settle = self._checker is not None and self._exchange_s == 0.0
        self.hosts = self._machines(here)
        self.by_address = {host.address: host for host in self.hosts}
        self._schedule(faults.absences)
        if self._checker is not None:
            self._checker.hostile = dict.fromkeys(self.hosts[index].key for index in self._hostile)
            self._checker.verify = verifier(scenario.config.network, signatures)

    # --- what people ask ----------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """SHA-256 over every event of every machine so far, 64 hexadecimal digits."""
        return digest_of([host.digest.digest() for host in self.hosts])

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

    def ask(self, hosts: Sequence[Host], question: Callable[[Host], Answer]) -> list[Answer]:
        """What a function that changes nothing says of some machines; of a module's own, so that it can travel."""
        return [question(host) for host in hosts]

    def run(self, until: float) -> None:
        """Carries out everything with a date before or at `until`, which is then `now`."""
        heap = self.agenda.heap
        while heap and heap[0][0] <= until:
            date, _, _, kind, host, first, second, third = heappop(heap)
            self.now = date
            if kind == FRAME:
                self._arrive(host, first, second, third)
            elif kind == WAKE:
                if first == host.life:
                    self._wake(host)
            elif kind == TRAINED:
                if first == host.life:
                    assert host.worker is not None, "a life that goes on has a worker"
                    self.deliver(host, Done(second, host.worker.trained(self._batches.result(third))))
            elif kind == CALL:
                first()
            elif kind == JOB:
                if first == host.life:
                    self.deliver(host, Done(second, self._work(host, third)))
            elif kind in (LEFT, PROGRESS):
                assert self._uplinks is not None, "they come from uplinks"
                self._uplinks.step(kind, host, first, second, third)
            else:
                self._connections.step(kind, host, first, second, third)
        self.now = until

    def post(self, letters: list[Letter]) -> None:
        """What machines that live elsewhere have sent to some that live here."""
        if self._checker is not None:
            for _, source, _, kind, _, _, content in letters:
                if kind == FRAME:
                    self._checker.heard(self.hosts[source].key, content)
        self.agenda.arrive(letters, self.hosts)

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
        self.agenda.travel(
            self.now + self.network.delay(source.index),
            FRAME,
            source,
            target,
            source.links[target.id].name,
            frame,
        )

    def leave(self, host: Host) -> None:
        """The operator stops the program: it says goodbye, then its process ends."""
        if host.core is None:
            return
        life = host.life
        self._count(Fault.CHURN)
        self.deliver(host, Leave())

        def end() -> None:
            if host.life == life:
                self._tell_power(host, Fault.CHURN)
                self._stop(host)

        self.agenda.call(self.now + LEAVE_S, host, end)

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
        host.opening = SimultaneousOpen(host.id)
        host.wakes = [inf]
        host.worker = self._parts.worker(host)
        host.core = self._parts.core(host, seeds=self.seeds, now=self.now)
        if self._adversaries is not None:
            host.core = self._adversaries.core(host.core, host, self.now)
        if self._observer is not None:
            self._observer.power(host, "up", self.now)
        self.deliver(host, Join(self._known(host)))

    # --- the beginning --------------------------------------------------------------------------------

    def _machines(self, here: Container[int] | None) -> list[Host]:
        compute = self.scenario.compute
        rng = self.seeds.random("machines")
        hosts = []
        for index in range(self.scenario.nodes):
            identity = self._identity(self.seeds.entropy("identity", index))
            train_s = compute.train_s * rng.lognormvariate(0.0, compute.spread_sigma)
            host = Host(index, identity, address_of(index), train_s)
            host.here = here is None or index in here
            host.uplink = Uplink()
            hosts.append(host)
        slow = round(compute.stragglers * len(hosts))
        for index in self.seeds.random("stragglers").sample(range(len(hosts)), slow):
            hosts[index].train_s *= compute.slowdown
        return hosts

    def _schedule(self, absences: tuple[Absence, ...]) -> None:
        rng = self.seeds.random("start")
        starts = [0.0, *sorted(rng.uniform(0.0, self.scenario.start_s) for _ in self.hosts[1:])]
        for host, start in zip(self.hosts, starts, strict=True):
            if host.here:
                self.agenda.call(self._late.get(host.index, start), host, lambda host=host: self.boot(host))  # type: ignore[misc]
        for absence in absences:
            host = self.hosts[absence.node]
            if not host.here:
                continue
            strike = self.leave if absence.kind is Fault.CHURN else self.crash
            self.agenda.call(absence.start_s, host, lambda host=host, strike=strike: strike(host))  # type: ignore[misc]
            # A clean stop takes its second even of a short absence.
            back = max(absence.end_s, absence.start_s + LEAVE_S * 1.01)
            self.agenda.call(back, host, lambda host=host: self.boot(host))  # type: ignore[misc]
        for cut in self.scenario.faults.partitions:
            # Connections across a cut are silent; their ends give them up when a killed peer's would be given
            # up.
            date = cut.start_s + self.scenario.faults.silence_s
            if date < cut.end_s:
                self._plan_break(date)

    def _plan_break(self, date: float) -> None:
        for host in self.hosts:
            if host.here:
                self.agenda.call(date, host, lambda host=host: self._connections.break_cut(host))  # type: ignore[misc]

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

    def _arrive(self, host: Host, source: Host, name: int, frame: bytes) -> None:
        link = host.links.get(source.id)
        if link is None or link.name != name:
            return  # closed at this end: what still travels is lost
        checker = self._checker
        if checker is not None:
            checker.delivered(
                source=source.id, source_key=source.key, target=host.id, target_key=host.key, frame=frame
            )
        self.deliver(host, Received(source.id, frame))
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
            self.deliver(host, Woken())
        elif deadline < host.wakes[-1]:  # it has moved since the wake-up was set
            self._push_wake(host, deadline)

    def deliver(self, host: Host, event: Event) -> None:
        """Gives a running node one event, then the results of the work it orders that takes no time."""
        core = host.core
        assert core is not None, "events of a dead program are void"
        now = self.now
        covered = host.digest.add
        ready: list[Event] = []
        position = 0
        while True:
            self.events += 1
            covered(now, event)
            if self._tap is not None:
                self._tap(now, host, event)
            effects = core.handle(event, now)
            if host.doomed:
                effects = effects[: self._strike_rng(host).randrange(len(effects) + 1)]
            for effect in effects:
                kind = type(effect)
                if kind is Emit:
                    self._hear(host, effect.news)  # type: ignore[union-attr]
                elif kind is Send:
                    answer = self._send(host, effect)  # type: ignore[arg-type]
                    if answer is not None:
                        ready.append(answer)
                elif kind is Compute:
                    result = self._compute(host, effect.ticket, effect.job)  # type: ignore[union-attr]
                    if result is not None:
                        ready.append(Done(effect.ticket, result))  # type: ignore[union-attr]
                elif kind is Persist:
                    self._persist(host, effect)  # type: ignore[arg-type]
                elif kind is Dial:
                    self._connections.dial(host, effect.address, effect.peer)  # type: ignore[union-attr]
                elif kind is Drop:
                    self._drop(host, effect.peer, effect.reason)  # type: ignore[union-attr,arg-type]
                else:
                    assert kind is Recall, f"unknown effect {kind.__name__}"
                    answer = self._recall(host, effect)  # type: ignore[arg-type]
                    if answer is not None:
                        ready.append(answer)
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

    def _send(self, host: Host, order: Send) -> Event | None:
        """Puts a frame on the way. What its node hears of that at once, if anything."""
        link = host.links.get(order.peer)
        if link is None:
            return Unsent(order.peer, order.ticket) if order.ticket else None
        frame = order.frame
        self.messages += 1
        self.bytes_sent += len(frame)
        if self._checker is not None:
            self._checker.sent(host.key, frame, self.now)
        if self._uplinks is not None:
            return self._uplinks.send(host, link, order)
        now, target = self.now, link.peer
        for delay in self.network.fates(host.index, target.index, len(frame), now):
            self.agenda.travel(now + delay, FRAME, host, target, link.name, frame)
        return Sent(order.peer, order.ticket) if order.ticket else None

    def _recall(self, host: Host, order: Recall) -> Event | None:
        link = host.links.get(order.peer)
        if link is None or self._uplinks is None:
            return None
        return self._uplinks.recall(host, link, order)

    def _drop(self, host: Host, peer: NodeId, reason: str) -> None:
        link = host.links.get(peer)
        if link is not None and self._uplinks is not None:
            self._uplinks.flush(host, link)
        self._connections.drop(host, peer, reason)

    def _compute(self, host: Host, ticket: int, job: Job) -> JobResult | None:
        """Starts a job; its result where it takes no time."""
        assert host.worker is not None, "a running program has a worker"
        if type(job) is Train and job.steps > 0:  # without steps there is nothing to compute
            running: TrainingJob[Any, Any] = self._batches.submit(host.worker.train_input(job.steps))
            self.agenda.push(self.now + host.train_s, TRAINED, host, host.life, ticket, running)
            return None
        if self._exchange_s == 0.0:
            return self._work(host, job)
        self.agenda.push(self.now + self._exchange_s, JOB, host, host.life, ticket, job)
        return None

    def _work(self, host: Host, job: Job) -> JobResult:
        assert host.worker is not None, "a life that goes on has a worker"
        if type(job) is Save:
            host.saved = host.worker.dump()
            return Saved(host.saved.size_bytes)
        return host.worker.run(job)

    def _persist(self, host: Host, order: Persist) -> None:
        for key, value in order.entries:
            if value:
                host.disk[key] = value
            else:
                host.disk.pop(key, None)

    def _hear(self, host: Host, news: News) -> None:
        kind = type(news)
        if host.index in self._hostile:
            return  # villains say what they like
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

    # --- life and death ---

    def _die(self, host: Host) -> None:
        self._count(Fault.CRASH)
        # Half of the deaths take the machine along: no kernel closes the connections.
        silent = self._strike_rng(host).random() < 0.5
        self._tell_power(host, Fault.CRASH)
        self._stop(host, silent=silent)

    def _tell_power(self, host: Host, kind: Fault) -> None:
        if self._observer is not None:
            self._observer.power(host, kind.value, self.now)

    def _stop(self, host: Host, *, silent: bool = False) -> None:
        """The program ends.

        Args:
            silent: The machine ends with it, and no kernel closes the connections.
        """
        host.core = None
        host.worker = None
        host.doomed = False
        host.life += 1
        host.uplink = Uplink()
        self._connections.end(host, silent=silent)

    def _strike_rng(self, host: Host) -> Random:
        """What strikes a machine is drawn from a generator of its own."""
        found = self._strikes_of.get(host.index)
        if found is None:
            found = self._strikes_of[host.index] = self.seeds.random("faults", "strike", host.index)
        return found

    def _push_wake(self, host: Host, deadline: float) -> None:
        host.wakes.append(deadline)
        self.agenda.push(deadline, WAKE, host, host.life)

    def _count(self, kind: Fault) -> None:
        self._faults[kind.value] = self._faults.get(kind.value, 0) + 1
