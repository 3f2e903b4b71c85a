"""The routing table: who stays, who goes, who is probed, who is nearest."""

import random
from math import inf

import pytest

from crypto.identity import PublicKey
from gossip.dht import routing
from gossip.dht.ids import NodeId, common_prefix_bits, distance, node_id
from gossip.dht.routing import Contact, RoutingTable, subnet_of

OWN = NodeId(bytes(32))
K = 4


def contact(prefix: int, n: int = 0, *, address: str = "127.0.0.1:4000", record: bytes = b"r") -> Contact:
    """A contact that shares exactly `prefix` bits with OWN."""
    number = (1 << (255 - prefix)) + n
    return Contact(
        NodeId(number.to_bytes(32, "big")), PublicKey(number.to_bytes(32, "little")), (address,), record
    )


def random_contacts(count: int, rng: random.Random) -> list[Contact]:
    keys = [PublicKey(rng.randbytes(32)) for _ in range(count)]
    return [Contact(node_id(key), key, ("10.0.0.1:1",), b"r") for key in keys]


def full_table(now: float = 0.0, **options: bool) -> RoutingTable:
    """One bucket, full of members that were alive at `now`, `now` + 1, ..."""
    table = RoutingTable(OWN, k=K, **options)
    for n in range(K):
        table.offer(contact(0, n), now)
        table.alive(contact(0, n).node, now + n)
    return table


# --- who stays and who goes ----------------------------------------------------------------------------


def test_full_bucket_keeps_the_old_live_peer() -> None:
    """A newcomer waits; the member silent for longest is to be probed, and its answer keeps its place."""
    table = full_table()
    assert table.offer(contact(0, 99), 100.0) == contact(0, 0)
    table.alive(contact(0, 0).node, 101.0)
    assert contact(0, 0).node in table
    assert contact(0, 99).node not in table
    assert table.offer(contact(0, 98), 102.0) == contact(0, 1)


def test_a_silent_member_makes_room_for_who_waits() -> None:
    table = full_table()
    table.offer(contact(0, 99), 100.0)
    for _ in range(routing.FAILURES_MAX):
        table.failed(contact(0, 0).node, 103.0)
    assert contact(0, 0).node not in table
    assert table.get(contact(0, 99).node) == contact(0, 99)
    assert len(table) == K


def test_one_lost_answer_is_not_a_death() -> None:
    table = full_table()
    table.offer(contact(0, 99), 100.0)
    table.failed(contact(0, 0).node, 103.0)
    table.alive(contact(0, 0).node, 110.0)
    table.failed(contact(0, 0).node, 120.0)
    assert contact(0, 0).node in table


def test_when_our_own_network_fails_the_table_does_not_empty() -> None:
    """Every probe fails for a while, but nobody waits for the places."""
    table = full_table()
    for _ in range(10):
        for n in range(K):
            table.failed(contact(0, n).node, 100.0)
    assert len(table) == K
    for n in range(K):
        table.failed(contact(0, n).node, 10.0 + routing.FORGET_AFTER_S)
    assert len(table) == 0


def test_who_never_answered_goes_after_two_failures() -> None:
    table = RoutingTable(OWN, k=K)
    table.offer(contact(3), 0.0)
    table.failed(contact(3).node, 1.0)
    assert len(table) == 1
    table.failed(contact(3).node, 2.0)
    assert len(table) == 0


def test_a_flood_of_newcomers_moves_nobody_and_costs_one_probe_a_minute() -> None:
    table = full_table()
    before = table.contacts()
    probes = [table.offer(contact(0, n), 50.0 + n / 1000) for n in range(100, 10_100)]
    # Members were alive at 0, 1, 2, 3; a minute later each is asked once.
    assert [probe for probe in probes if probe is not None] == [contact(0, 0)]
    assert table.contacts() == before
    assert table.stats()[0].replacements == routing.REPLACEMENTS_MAX


def test_the_replacement_heard_from_last_is_promoted() -> None:
    table = full_table()
    for n in (97, 98, 99):
        table.offer(contact(0, n), 10.0)
    table.alive(contact(0, 97).node, 11.0)
    table.remove(contact(0, 2).node)
    assert contact(0, 97).node in table
    table.remove(contact(0, 3).node)
    assert contact(0, 99).node in table


def test_a_replacement_that_fails_is_forgotten() -> None:
    table = full_table()
    table.offer(contact(0, 99), 10.0)
    table.failed(contact(0, 99).node, 11.0)
    table.remove(contact(0, 0).node)
    assert contact(0, 99).node not in table


def test_we_are_never_in_our_own_table() -> None:
    table = RoutingTable(OWN, k=K)
    assert table.offer(Contact(OWN, PublicKey(bytes(32)), (), b""), 0.0) is None
    assert len(table) == 0
    assert table.closest(OWN, 10) == []


def test_strangers_may_answer_or_fail_without_effect() -> None:
    table = full_table()
    before = table.contacts()
    table.alive(contact(0, 99).node, 1.0)
    table.failed(contact(200).node, 1.0)
    table.remove(contact(7).node)
    assert table.contacts() == before


def test_a_contact_is_updated_in_place_and_keeps_its_record() -> None:
    table = full_table()
    moved = contact(0, 0, address="127.0.0.1:5000", record=b"new")
    table.offer(moved, 10.0)
    assert table.get(moved.node) == moved
    table.offer(contact(0, 0, address="127.0.0.1:6000", record=b""), 11.0)
    assert table.get(moved.node) == moved
    assert len(table) == K
    elsewhere = contact(0, 0, address="8.8.8.8:1")
    table.offer(elsewhere, 12.0)
    assert table.offer(contact(0, 99), 100.0) == elsewhere  # still the least recently seen


# --- who is nearest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 20, 1000])
def test_closest_agrees_with_sorting_everything(count: int) -> None:
    """In a known implementation that walks over the buckets, 3 of 200 random targets came out wrong."""
    rng = random.Random(count)
    own = NodeId(rng.randbytes(32))
    table = RoutingTable(own)
    for peer in random_contacts(600, rng):
        table.offer(peer, 0.0)
    members = table.contacts()
    assert 100 < len(members) == len(table)
    near_us = [bytes([own[0]]) + rng.randbytes(31) for _ in range(50)]
    targets = [rng.randbytes(32) for _ in range(200)] + near_us + [own] + [m.node for m in members[:50]]
    for target in targets:
        dumb = sorted(members, key=lambda member: distance(member.node, target))[:count]
        assert table.closest(target, count) == dumb


def test_only_live_members_are_recommended_to_others() -> None:
    table = RoutingTable(OWN, k=K)
    for n in range(3):
        table.offer(contact(0, n), 0.0)
    table.alive(contact(0, 1).node, 1.0)
    table.alive(contact(0, 2).node, 1.0)
    table.failed(contact(0, 2).node, 2.0)
    assert table.closest(OWN, 10, live=True) == [contact(0, 1)]
    assert len(table.closest(OWN, 10)) == 3
    assert table.stats()[0].live == 1


# --- refresh ---------------------------------------------------------------------------------------------


def test_refresh_aims_at_each_bucket_that_nobody_looked_into() -> None:
    table = RoutingTable(OWN, k=K, refresh_interval_s=600.0)
    assert table.next_refresh == inf
    assert table.refresh_targets(0.0, random.Random(0)) == []
    for prefix in (0, 5):
        table.offer(contact(prefix), 0.0)
    targets = table.refresh_targets(0.0, random.Random(0))
    assert [common_prefix_bits(target, OWN) for target in targets] == [0, 1, 2, 3, 4, 5]
    assert table.next_refresh == 600.0
    table.looked(targets[2], 300.0)
    assert table.refresh_targets(599.9, random.Random(0)) == []
    again = table.refresh_targets(600.0, random.Random(1))
    assert [common_prefix_bits(target, OWN) for target in again] == [0, 1, 3, 4, 5]
    assert table.next_refresh == 900.0


def test_refresh_reaches_the_deepest_bucket() -> None:
    table = RoutingTable(OWN, k=K)
    table.offer(contact(255), 0.0)
    targets = table.refresh_targets(0.0, random.Random(0))
    assert [common_prefix_bits(target, OWN) for target in targets] == list(range(256))


# --- subnets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "same_as"),
    [
        ("8.8.4.4:1", "8.8.4.200:9"),
        ("[2001:4860:1:2::3]:1", "[2001:4860:1:ffff::]:2"),
        ("[::ffff:8.8.4.4]:1", "8.8.4.9:1"),
    ],
)
def test_neighbours_share_a_subnet(address: str, same_as: str) -> None:
    assert subnet_of(address) is not None
    assert subnet_of(address) == subnet_of(same_as)


def test_others_do_not() -> None:
    addresses = ["8.8.4.4:1", "8.8.5.4:1", "[2001:4860:1::1]:1", "[2001:4860:2::1]:1"]
    assert len({subnet_of(address) for address in addresses}) == 4


PRIVATE = ["127.0.0.1:1", "10.1.2.3:1", "192.168.0.1:1", "[::1]:1", "[fe80::1]:1", "[fd00::1]:1"]
NAMES = ["example.org:1", "node-17:4000", "", ":", "8.8.8.8", "999.1.1.1:1", "[::1"]


@pytest.mark.parametrize("address", [*PRIVATE, *NAMES])
def test_private_addresses_and_names_have_no_subnet(address: str) -> None:
    assert subnet_of(address) is None


def test_one_subnet_gets_two_places_in_a_bucket_and_ten_in_the_table() -> None:
    table = RoutingTable(OWN)
    for prefix in range(20):
        for n in range(3):
            table.offer(contact(prefix, n, address=f"8.8.8.{n}:{prefix + 1}"), 0.0)
    per_bucket = [bucket.contacts for bucket in table.stats()]
    assert max(per_bucket) == 2
    assert len(table) == 10
    table.offer(contact(30, address="8.8.9.1:1"), 0.0)
    assert len(table) == 11


def test_a_place_of_a_subnet_becomes_free_again() -> None:
    table = RoutingTable(OWN)
    for n in range(3):
        table.offer(contact(0, n, address="8.8.8.8:1"), 0.0)
    assert len(table) == 2
    table.remove(contact(0, 0).node)
    table.offer(contact(0, 2, address="8.8.8.8:1"), 0.0)
    assert contact(0, 2).node in table
    for _ in range(20):
        for n in range(3):
            table.offer(contact(1, n, address="8.8.8.8:1"), 0.0)
            table.remove(contact(1, n).node)
    table.offer(contact(2, address="8.8.8.8:1"), 0.0)
    assert contact(2).node in table


def test_moving_into_a_full_subnet_costs_the_place() -> None:
    table = RoutingTable(OWN)
    for n in range(2):
        table.offer(contact(0, n, address="8.8.8.8:1"), 0.0)
    table.offer(contact(0, 2, address="9.9.9.9:1"), 0.0)
    table.offer(contact(0, 2, address="8.8.8.9:1"), 1.0)
    assert contact(0, 2).node not in table
    assert len(table) == 2


def test_swarms_on_loopback_and_with_limits_off_fill_the_bucket() -> None:
    local, unlimited = RoutingTable(OWN), RoutingTable(OWN, subnet_limits=False)
    for n in range(20):
        local.offer(contact(0, n, address=f"127.0.0.1:{n + 1}"), 0.0)
        unlimited.offer(contact(0, n, address=f"8.8.8.8:{n + 1}"), 0.0)
    assert len(local) == len(unlimited) == 20
