"""The routing table under any sequence of events, beside a model that only remembers what must hold.

Time is a rule like the others. Ids are short of bits on purpose: few buckets, so that they fill.
"""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from crypto.identity import PublicKey
from gossip.dht import routing
from gossip.dht.ids import NodeId, common_prefix_bits, distance
from gossip.dht.routing import Contact, RoutingTable

K = 3
OWN = NodeId(b"\x55" + bytes(31))
# 64 ids in 4 or 5 buckets; some share a public subnet.
IDS = [NodeId(bytes([n * 4]) + bytes(30) + bytes([n])) for n in range(64)]
nodes = st.sampled_from(IDS)
targets = st.binary(min_size=32, max_size=32) | nodes


def contact(node: NodeId, address: int) -> Contact:
    host = f"8.8.{address}.1" if address < 3 else "10.0.0.1"
    return Contact(node, PublicKey(node[::-1]), (f"{host}:4000",), b"r")


class Table(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = RoutingTable(OWN, k=K)
        self.now = 0.0
        self.offered: dict[NodeId, Contact] = {}
        self.answered: dict[NodeId, None] = {}  # ever
        self.seen: dict[NodeId, float] = {}  # members only: last sign of life
        self.failures: dict[NodeId, int] = {}  # members only: in a row

    @rule(seconds=st.sampled_from([0.1, 5.0, 61.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(node=nodes, address=st.integers(0, 9))
    def offer(self, node: NodeId, address: int) -> None:
        before = {member.node for member in self.table.contacts()}
        probe = self.table.offer(contact(node, address), self.now)
        after = {member.node for member in self.table.contacts()}
        self.offered[node] = contact(node, address)
        # Nobody but the one offered comes in. Only its move into a full subnet can cost it its own place.
        assert after - before <= {node} or before - after == {node}
        assert before - after <= {node}
        if probe is not None:
            assert probe.node in after
            assert node not in after
            assert common_prefix_bits(probe.node, OWN) == common_prefix_bits(node, OWN)
            silent_s = self.now - self.seen.get(probe.node, -1e9)
            assert silent_s >= routing.PROBE_AFTER_S or self.failures.get(probe.node)

    @rule(node=nodes)
    def alive(self, node: NodeId) -> None:
        before = {member.node for member in self.table.contacts()}
        self.table.alive(node, self.now)
        self.answered[node] = None
        if node in before:
            self.seen[node], self.failures[node] = self.now, 0
        assert {member.node for member in self.table.contacts()} == before

    @rule(node=nodes)
    def failed(self, node: NodeId) -> None:
        before = {member.node for member in self.table.contacts()}
        self.table.failed(node, self.now)
        after = {member.node for member in self.table.contacts()}
        assert before - after <= {node}
        if node in before:
            self.failures[node] = self.failures.get(node, 0) + 1
            # A member that answered since its last failure but one stays.
            assert node in after or self.failures[node] >= routing.FAILURES_MAX

    @rule(node=nodes)
    def remove(self, node: NodeId) -> None:
        self.table.remove(node)
        assert node not in self.table

    @rule(goal=targets, count=st.integers(1, 25))
    def closest(self, goal: bytes, count: int) -> None:
        members = self.table.contacts()
        expected = sorted(members, key=lambda member: distance(member.node, goal))[:count]
        assert self.table.closest(goal, count) == expected
        live = self.table.closest(goal, count, live=True)
        assert all(member.node in self.answered and not self.failures.get(member.node) for member in live)

    @rule(seed=st.integers(0, 3))
    def refresh(self, seed: int) -> None:
        due = self.table.next_refresh <= self.now
        found = self.table.refresh_targets(self.now, random.Random(seed))
        assert bool(found) == due
        assert self.table.next_refresh > self.now

    @invariant()
    def bounds_hold(self) -> None:
        members = self.table.contacts()
        assert len(members) == len(self.table) == len({member.node for member in members})
        assert OWN not in self.table
        subnets: dict[str, int] = {}
        for index, bucket in enumerate(self.table.stats()):
            assert bucket.live <= bucket.contacts <= K
            assert bucket.replacements <= routing.REPLACEMENTS_MAX
            inside = [m for m in members if common_prefix_bits(m.node, OWN) == index]
            assert len(inside) == bucket.contacts
            hosts = [m.addresses[0] for m in inside if m.addresses[0].startswith("8.8.")]
            for host in hosts:
                subnets[host] = subnets.get(host, 0) + 1
                assert hosts.count(host) <= routing.SUBNET_PER_BUCKET_MAX
        assert all(count <= routing.SUBNET_PER_TABLE_MAX for count in subnets.values())

    @invariant()
    def members_are_what_was_offered(self) -> None:
        for member in self.table.contacts():
            assert member.node in self.offered
        self.seen = {node: seen for node, seen in self.seen.items() if node in self.table}
        self.failures = {node: count for node, count in self.failures.items() if node in self.table}


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
