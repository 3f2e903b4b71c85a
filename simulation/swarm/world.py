"""A world in which everything goes wrong that the swarm knows of: disks, clocks, addresses, keys, and liars.

The nodes of `simulation.world.World`, with a simulated disk and a clock of their own each. The first nodes are honest,
those after `SwarmOptions.nodes` are villains.
"""

import numpy as np

from crypto.identity import Identity
from crypto.signing import network_id
from gossip.dht.ids import NodeId, node_id, provider_key
from gossip.errors import Reason
from gossip.events import (
    Adopt,
    Connected,
    Event,
    Finish,
    Job,
    JobResult,
    News,
    PeerDown,
    Persist,
    Received,
    Refused,
    Respond,
    Save,
    Train,
    Woken,
)
from gossip.node import Node
from p2pnode.errors import UserError
from simulation.agenda import JOB
from simulation.machines import Core, Host
from simulation.network import LinkModel, LinkSettings
from simulation.seeds import Seeds
from simulation.swarm.checkers import ACCUSING, SwarmChecker
from simulation.swarm.clock import Clocked
from simulation.swarm.draw import CROWDED_KINDS, SwarmOptions
from simulation.swarm.incidents import Incident, plan_incidents
from simulation.swarm.network import SwarmLinks
from simulation.swarm.sybil import Band, Sybil, identity_near
from simulation.swarm.synthetic import SyntheticParts
from simulation.villain import Villain
from simulation.world import World

# Drift of a bad quartz is a ten-thousandth; of a virtual machine that is starved, much more.
DRIFT_MAX = 0.1
# A laptop that slept.
JUMP_S_MAX = 3600.0
SLOWER = 30.0
# ... and there an exchange, which takes next to nothing elsewhere, takes this long, one after the other: of seconds'
# worth of offers some have to be refused.
SLOW_EXCHANGE_S = 0.5
# Documented in docs/security.md, T35: so many faults end a connection. A frame that no program of ours makes does at
# once.
FAULTS_ENDING = 10
# These do not count: they happen between honest nodes.
FORGIVEN = frozenset(
    {
        Reason.BUSY,
        Reason.NOT_READY,
        Reason.UNEXPECTED,
        Reason.OTHER_RUN,
        Reason.RATE_LIMITED,
        Reason.TIMEOUT,
        Reason.REPLAYED,
    }
)
# While memory is short, this share of the jobs that hold a second copy of the weights is one too many.
KILLED = 0.3
# A supervisor starts the program again after so long, and it may be killed again: seconds of systemd's RestartSec.
RESTART_S = (0.5, 5.0)
# Machines of a person with many keys: public addresses, of one /24 for each band.
SYBIL_SUBNETS = {"sybil": "45.9.8", "eclipse": "45.9.9"}


class SwarmWorld(World):
    """Args:
    options: Of this run.
    seeds: Of this run.
    parts: Made from the same two.
    replay: The command that repeats this run.
    """

    def __init__(self, options: SwarmOptions, seeds: Seeds, parts: SyntheticParts, *, replay: str) -> None:
        self.options = options
        self.parts = parts
        self._struck: dict[str, int] = {}
        self._hostile_frames: dict[bytes, str] = {}  # hostile frames that were sent -> kind
        self._absent: dict[int, float] = {}  # host -> it belongs to the crowd that comes at this date
        self._slow: dict[int, None] = {}  # hosts that compute slowly
        self._busy_until: dict[int, float] = {}  # when their last job ends
        self._faulted: dict[tuple[int, NodeId], int] = {}  # (host, peer) -> faults on their connection
        self._pressed: dict[int, None] = {}  # hosts whose memory is short
        self._oom: dict[int, None] = {}  # hosts whose kernel is about to kill the program
        self._advertised: dict[
            int, str
        ] = {}  # host -> the address that led to it before a middlebox changed it
        self._bands: dict[str, Band] = {}
        self._acquainted: dict[
            int, int
        ] = {}  # eclipsed host -> the life in which it has known somebody honest
        self._healed = False
        self._rng = seeds.random("faults", "strike")
        super().__init__(options.scenario, seeds, parts, replay=replay, check=False, tap=self._seen)
        self._train_s = [host.train_s for host in self.hosts]
        self.incidents = plan_incidents(options, seeds)
        self.checker = SwarmChecker(
            run=parts.run_id,
            network=network_id(options.scenario.config.network),
            honest={host.key: None for host in self.hosts[: options.nodes]},
            replay=replay,
        )
        self._checker = self.checker  # type: ignore[assignment]  # the same calls, another judge
        self._settle = True
        parts.witness = self.checker
        self.network = SwarmLinks(
            options.scenario.network,
            seeds.random("network"),
            partitions=self.incidents.partitions,
            one_way=self.incidents.one_way,
            clogs=self.incidents.clogs,
            corruption=options.corruption,
            corrupted=self._corrupted,
        )
        for index, act in enumerate(options.villains, options.nodes):
            self._enlist(index, act)
        for incident in self.incidents.machines:
            self._plan(incident)
        cuts = [(cut.start_s, cut.end_s) for cut in self.incidents.partitions]
        cuts += [(cut.start_s, cut.end_s) for cut in self.incidents.one_way]
        for start, end in cuts:
            date = start + self.scenario.faults.silence_s
            if date < end:
                self._plan_break(date)

    # --- what the swarm asks --------------------------------------------------------------------------

    @property
    def honest_hosts(self) -> list[Host]:
        return self.hosts[: self.options.nodes]

    @property
    def faults(self) -> dict[str, int]:
        counts = dict(super().faults)
        for kind, count in self._struck.items():
            counts[kind] = counts.get(kind, 0) + count
        return dict(sorted(counts.items()))

    def node(self, host: Host) -> Node:
        """The core of an honest node that runs."""
        clocked = host.core
        assert isinstance(clocked, Clocked)
        assert isinstance(clocked.core, Node)
        return clocked.core

    def heal(self) -> None:
        """The faults stop: a sound network, everybody up, villains gone, nobody trains any more."""
        self._healed = True
        self.parts.training = False
        counts = self.network.counts
        delay = self.scenario.network
        sound = LinkSettings(
            delay_s_mean=delay.delay_s_mean, delay_s_min=delay.delay_s_min, jitter=delay.jitter
        )
        self.network = LinkModel(sound, self.seeds.random("network", "sound"))
        self.network.counts = counts
        self._absent.clear()
        self._pressed.clear()
        self._slow.clear()
        for index in list(self._advertised):
            self._address_back(self.hosts[index])
        for host in self.hosts[self.options.nodes :]:
            if host.core is not None:
                self._stop(host)
        for host in self.honest_hosts:
            disk = self.parts.disks[host.index]
            disk.full = disk.broken = disk.tear = False
            host.train_s = self._train_s[host.index]
            self.boot(host)

    def inspect(self) -> None:
        """Bounds of every table and queue of honest nodes; nobody honest is banned or convicted."""
        self_ids = {host.id: host for host in self.honest_hosts}
        for host in self.honest_hosts:
            if host.core is None:
                continue
            node = self.node(host)
            if not np.isfinite(host.worker.weights()).all():  # type: ignore[union-attr]
                self.checker.fail(host, "its weights are not finite")
            self.checker.bounds(host, node.bounds())
            connections = node.context.connections
            records = node.protocol("dht").records
            self._judge_crowds(host, node)
            clock = self.parts.clocks[host.index]
            for peer in connections.banned_now(clock.local(self.now)):
                if peer in self_ids:
                    self.checker.fail(host, f"it has banned the honest node {self_ids[peer].index}")
            for owner in records._proofs:
                if owner in self_ids:
                    self.checker.fail(
                        host, f"it holds a proof against the honest node {self_ids[owner].index}"
                    )

    def _judge_crowds(self, host: Host, node: Node) -> None:
        """One subnet owns neither bucket nor table, and whoever has known somebody honest goes on knowing somebody."""
        if not self._bands:
            return
        table = node.protocol("dht").table
        for subnet in SYBIL_SUBNETS.values():
            counts = [
                sum(entry.contact.addresses[0].startswith(subnet) for entry in bucket.entries.values())
                for bucket in table._buckets
            ]
            self.checker.bounds(
                host,
                {
                    f"a bucket's part of {subnet}.0/24": (max(counts, default=0), 2),
                    f"the table's part of {subnet}.0/24": (sum(counts), 10),
                },
            )
        band = self._bands.get("eclipse")
        if band is None or band.victim is not host:
            return
        honest = [other for other in self.honest_hosts if other is not host]
        # Who was cut off for long has forgotten everybody who did not answer, but not their addresses: those are
        # dialled when nobody known has them.
        contacts = {contact.node for contact in node.context.contacts()}
        remembered = node.protocol("bootstrap").remembered
        known = any(
            other.id in table or other.id in contacts or other.address in remembered for other in honest
        )
        if known:
            self._acquainted[host.index] = host.life
        elif self._acquainted.get(host.index) == host.life:
            self.checker.fail(host, "it knows nobody but those who surround it")

    # --- the beginning ----------------------------------------------------------------------------------

    def _enlist(self, index: int, act: str) -> None:
        every_s = self.options.safety_s / 40.0
        if act in CROWDED_KINDS:
            self._enlist_sybil(self.hosts[index], act, every_s)
            return

        def make(node: Node, host: Host) -> Core:
            return Villain(
                node,
                host,
                act,
                run=self.parts.run_info,
                seeds=self.seeds,
                now=self.now,
                every_s=every_s,
                mark=self._mark,
            )

        self.parts.hostile[index] = make
        if act == "false_address":
            victim = self.seeds.random("swarm", "victim").randrange(self.options.nodes)
            self.parts.false_addresses[index] = (self.hosts[victim].address, "10.254.0.1:1")

    def _enlist_sybil(self, host: Host, act: str, every_s: float) -> None:
        band = self._bands.get(act)
        if band is None:
            place = provider_key(self.parts.run_id, 0)
            index = self.seeds.random("swarm", "eclipsed").randrange(self.options.nodes)
            band = self._bands[act] = Band(act, place, self.hosts[index] if act == "eclipse" else None)
        number = host.index - self.options.nodes
        target = band.place if band.victim is None else band.victim.id
        if band.victim is None or number % 2:
            host.identity = identity_near(target, self.seeds.entropy("sybil", host.index))
            host.key = host.identity.public_key
            host.id = node_id(host.key)
        del self.by_address[host.address]
        host.address = f"{SYBIL_SUBNETS[act]}.{number + 1}:7400"
        self.by_address[host.address] = host

        def make(node: Node, host: Host) -> Core:
            return Sybil(
                node,
                host,
                band,
                run=self.parts.run_info,
                seeds=self.seeds,
                now=self.now,
                every_s=every_s,
                mark=self._mark,
            )

        self.parts.hostile[host.index] = make

    def _mark(self, frame: bytes, kind: str) -> None:
        self._hostile_frames[frame] = kind

    def _plan(self, incident: Incident) -> None:
        def strike() -> None:
            if not self._healed:
                self._strike(incident)

        def end() -> None:
            if not self._healed:
                self._end(incident)

        if incident.kind == "flash_crowd":
            for node in incident.nodes:
                self._absent[node] = incident.start_s
        self.agenda.call(incident.start_s, self.hosts[0], strike)
        if incident.end_s > incident.start_s:
            self.agenda.call(incident.end_s, self.hosts[0], end)

    def boot(self, host: Host) -> None:
        if host.index >= self.options.nodes and self._healed:
            return
        if self._absent.get(host.index, 0.0) > self.now:
            return
        super().boot(host)

    # --- what strikes -----------------------------------------------------------------------------------

    def _strike(self, incident: Incident) -> None:
        for index in incident.nodes:
            host = self.hosts[index]
            disk, clock = self.parts.disks[index], self.parts.clocks[index]
            rng = self._rng
            match incident.kind:
                case "flash_crowd":
                    self._absent.pop(index, None)
                    if host.core is None:
                        self._strikes("flash_crowd")
                        self.boot(host)
                case "clock_drift":
                    # From the beginning on: nobody's clock changes its rate later.
                    clock.rate = 1.0 + rng.uniform(-DRIFT_MAX, DRIFT_MAX)
                    self._strikes("clock_drift")
                case "clock_jump":
                    if host.core is not None:
                        clock.jump(rng.uniform(0.0, JUMP_S_MAX) * rng.random() ** 2)
                        self._strikes("clock_jump")
                        self.deliver(host, Woken())
                case "disk_full":
                    disk.full = True
                case "io_error":
                    disk.broken = True
                case "torn_snapshot":
                    disk.tear = True
                case "slow_compute":
                    if host.core is not None:
                        host.train_s *= SLOWER
                        self._slow[index] = None
                        self._strikes("slow_compute")
                case "churn" | "mass_leave" if host.core is not None:
                    if incident.kind == "mass_leave":
                        self._strikes("mass_leave")
                    self.leave(host)
                case "crash":
                    self.crash(host)
                case "power_loss" if host.core is not None:
                    disk.off = True
                    self.crash(host)
                case "key_change" | "address_change" if host.core is not None:
                    self._stop(host)
                case "rebinding" if host.core is not None and host.links:
                    self._rebind(host, "rebinding")
                case "outer_address" if host.core is not None and host.links:
                    self._change_outer_address(host)
                case "memory_pressure":
                    self._pressed[index] = None
                case _:
                    pass  # it hit somebody who was away

    def _end(self, incident: Incident) -> None:
        for index in incident.nodes:
            host = self.hosts[index]
            disk = self.parts.disks[index]
            match incident.kind:
                case "disk_full" | "io_error" | "torn_snapshot":
                    disk.full = disk.broken = disk.tear = False
                case "slow_compute":
                    host.train_s = self._train_s[index]
                    self._slow.pop(index, None)
                case "memory_pressure":
                    self._pressed.pop(index, None)
                case "outer_address":
                    self._address_back(host)
                case "key_change" if host.core is None:
                    self._change_key(host)
                case "address_change" if host.core is None:
                    self._change_address(host)
                case _:
                    pass
            self.boot(host)

    def _strikes(self, kind: str) -> None:
        self._struck[kind] = self._struck.get(kind, 0) + 1

    def _corrupted(self, source: int, target: int) -> None:
        a, b = self.hosts[source], self.hosts[target]

        def broken() -> None:
            self._break(a, b, "a frame did not authenticate")

        self.agenda.call(self.now, a, broken)

    def _break(self, a: Host, b: Host, reason: str) -> None:
        for end, gone in ((a, b), (b, a)):
            if end.core is not None and self._connections.lose(end, gone.id) is not None:
                self.deliver(end, PeerDown(gone.id, reason))

    def _rebind(self, host: Host, kind: str) -> None:
        """A middlebox forgets the connections of a node; both ends notice when nothing comes for long enough."""
        silence = self.scenario.faults.silence_s
        network = self.network
        if isinstance(network, SwarmLinks):
            network.mute(host.index, self.now + silence, kind)
        links = list(host.links.values())

        def noticed() -> None:
            for link in links:
                if host.links.get(link.peer.id) is link:
                    self._strikes(kind)
                    self._break(host, link.peer, "timed out")

        self.agenda.call(self.now + silence, host, noticed)

    def _change_outer_address(self, host: Host) -> None:
        """The middlebox has another address from now on: what the node advertises leads nowhere until it is back."""
        self._address_back(host)
        self._advertised[host.index] = host.address
        del self.by_address[host.address]
        host.address = f"10.{host.index % 256}.{200 + host.life % 50}.1:7400"
        self.by_address[host.address] = host
        self._rebind(host, "outer_address")

    def _address_back(self, host: Host) -> None:
        """The advertised address leads to the node again; a program that started meanwhile advertises the other one,
        which does so, too."""
        address = self._advertised.pop(host.index, None)
        if address is not None:
            self.by_address.setdefault(address, host)

    def _change_key(self, host: Host) -> None:
        """The disk is gone with everything on it: the machine comes back as somebody new."""
        self._strikes("key_change")
        self.parts.disks[host.index].wipe()
        host.saved = None
        host.identity = Identity.generate(self.seeds.entropy("identity", host.index, host.life))
        host.key = host.identity.public_key
        host.id = node_id(host.key)
        self.checker.trust(host.key)

    def _change_address(self, host: Host) -> None:
        self._strikes("address_change")
        del self.by_address[host.address]
        host.address = f"10.{host.index % 256}.{100 + host.life % 100}.1:7400"
        self.by_address[host.address] = host

    # --- hooks of the world -------------------------------------------------------------------------------

    def _seen(self, now: float, host: Host, event: Event) -> None:
        if self._hostile_frames and type(event) is Received and host.index < self.options.nodes:
            kind = self._hostile_frames.get(event.frame)
            if kind is not None:
                self._strikes(kind)

    def deliver(self, host: Host, event: Event) -> None:
        try:
            super().deliver(host, event)
        except UserError:
            # The disk did not take an entry: the daemon ends, and nothing that rests on the entry has happened.
            disk = self.parts.disks[host.index]
            self._strikes("disk_full" if disk.full else "io_error")
            self._stop(host)

    def _compute(self, host: Host, ticket: int, job: Job) -> JobResult | None:
        if host.index < self.options.nodes:
            self.checker.ordered(host, job)
        start = max(self.now, self._busy_until.get(host.index, 0.0))
        if (host.index in self._slow or start > self.now) and not isinstance(job, Train):
            self._busy_until[host.index] = end = start + SLOW_EXCHANGE_S
            self.agenda.push(end, JOB, host, host.life, ticket, job)
            return None
        return super()._compute(host, ticket, job)

    def _drop(self, host: Host, peer: NodeId, reason: str) -> None:
        faults = self._faulted.pop((host.index, peer), 0)
        if (
            host.index < self.options.nodes
            and reason in ACCUSING
            and reason not in (Reason.MALFORMED, Reason.OVERSIZED)
        ):
            self.checker.checks += 1
            if faults < FAULTS_ENDING:
                self.checker.fail(host, f"it ended a connection after {faults} faults ({reason})")
        super()._drop(host, peer, reason)

    def _work(self, host: Host, job: Job) -> JobResult:
        result = super()._work(host, job)
        # Between the deed and the word: the weights have changed or lie on the disk, and the node never hears of it.
        pressed = host.index in self._pressed and isinstance(job, Respond | Finish | Adopt | Save)
        if pressed and not host.doomed and self._rng.random() < KILLED:
            self._oom[host.index] = None
            host.doomed = True
        return result

    def _known(self, host: Host) -> tuple[str, ...]:
        """Besides the one address, that of the first node, which never moves: others may be gone by the time."""
        return tuple(dict.fromkeys((*super()._known(host), self.hosts[0 if host.index else 1].address)))

    def _persist(self, host: Host, order: Persist) -> None:
        self.parts.disks[host.index].put(order.entries, fsync=order.fsync)

    def _hear(self, host: Host, news: News) -> None:
        if host.index >= self.options.nodes:
            return  # villains say what they like
        super()._hear(host, news)
        if isinstance(news, Refused):
            self.checker.accused(host, news)
            if news.by_us and news.peer is not None and news.reason not in FORGIVEN:
                name = (host.index, news.peer)
                self._faulted[name] = self._faulted.get(name, 0) + 1
        elif isinstance(news, Connected):
            self._faulted.pop((host.index, news.peer), None)

    def _die(self, host: Host) -> None:
        disk = self.parts.disks[host.index]
        killed = host.index in self._oom
        self._oom.pop(host.index, None)
        if not disk.off and killed:
            # The kernel lives, and closes the connections; whoever supervises the program starts it again.
            self._strikes("memory_pressure")
            self._stop(host)
            self.agenda.call(self.now + self._rng.uniform(*RESTART_S), host, lambda: self.boot(host))
            return
        if not disk.off:
            super()._die(host)
            return
        disk.off = False
        self._strikes("torn_snapshot" if disk.torn else "power_loss")
        disk.torn = False
        lost = disk.lose_power(self._rng)
        kept = disk.load()
        marks = {
            bytes.fromhex(name[5:]): int.from_bytes(kept.get(name, b""), "big")
            for name, _ in lost
            if name.startswith("mark/")
        }
        self.checker.forgot(host, marks)
        self._stop(host, silent=True)

    def _stop(self, host: Host, *, silent: bool = False) -> None:
        super()._stop(host, silent=silent)
        self._busy_until.pop(host.index, None)
        self.checker.stopped(host)
