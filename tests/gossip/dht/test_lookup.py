"""The lookup machine, against a network that stands still and is small enough to know the right answer."""

import random
from collections.abc import Callable
from functools import cache
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.identity import PublicKey
from gossip.dht import lookup
from gossip.dht.ids import NodeId, distance, node_id
from gossip.dht.lookup import Lookup
from gossip.dht.routing import Contact, RoutingTable

K, ALPHA = 20, 3
NODES = 300


def contact(number: int) -> Contact:
    key = PublicKey(number.to_bytes(32, "big"))
    return Contact(node_id(key), key, (f"node-{number}:1",), b"r")


ME = contact(0)
STRANGERS = [contact(n) for n in range(1, 200)]


@cache
def network() -> tuple[list[Contact], dict[NodeId, RoutingTable]]:
    """300 nodes; each has been offered 150 others at random and its own 20 neighbours."""
    rng = random.Random(7)
    everybody = [contact(n) for n in range(NODES)]
    tables = {}
    for me in everybody:
        tables[me.node] = table = RoutingTable(me.node)
        neighbours = sorted(everybody, key=lambda other: distance(other.node, me.node))[1 : K + 1]
        for other in [*neighbours, *rng.sample(everybody, 150)]:
            table.offer(other, 0.0)
    return everybody, tables


def run(machine: Lookup, answer: Callable[[NodeId], list[Contact] | None]) -> list[NodeId]:
    """Ask until done; None is silence. Time passes only when nobody may be asked; returns who was asked."""
    now, asked, in_flight = 0.0, [], []
    while not machine.done:
        for peer in machine.next(now):
            asked.append(peer.node)
            in_flight.append((now, peer.node))
        assert in_flight, "not done, and nobody is asked"
        since, node = in_flight.pop(0)
        found = answer(node)
        if found is not None:
            machine.answered(node, found)
        else:
            now = max(now, since + 3.0)
            machine.failed(node)
    return asked


def true_closest(
    everybody: list[Contact], target: bytes, silent: dict[NodeId, None], count: int = K
) -> list[Contact]:
    live = [peer for peer in everybody if peer.node not in silent and peer.node != ME.node]
    return sorted(live, key=lambda peer: distance(peer.node, target))[:count]


def look_up(target: bytes, silent: dict[NodeId, None], *, paths: int = 1) -> tuple[Lookup, list[NodeId]]:
    _, tables = network()
    seeds = tables[ME.node].closest(target, K)
    machine = Lookup(target, seeds, own=ME.node, k=K, alpha=ALPHA, paths=paths)
    asked = run(machine, lambda node: None if node in silent else tables[node].closest(target, K))
    return machine, asked


# --- the right answer ------------------------------------------------------------------------------------


def test_lookups_find_the_true_closest() -> None:
    everybody, _ = network()
    rng = random.Random(1)
    for _ in range(60):
        target = rng.randbytes(32)
        machine, asked = look_up(target, {})
        assert machine.result() == true_closest(everybody, target, {})
        assert len(asked) == len(set(asked)) == machine.queried < 60
        assert 1 <= machine.hops <= 4


def test_a_lookup_of_our_own_id_finds_our_neighbours_but_not_us() -> None:
    everybody, _ = network()
    machine, asked = look_up(ME.node, {})
    assert machine.result() == true_closest(everybody, ME.node, {})
    assert ME.node not in asked


def test_with_a_fifth_silent_lookups_still_find_the_closest_of_the_others() -> None:
    everybody, _ = network()
    rng = random.Random(2)
    missed = 0
    for _ in range(40):
        silent = dict.fromkeys(peer.node for peer in rng.sample(everybody[1:], NODES // 5))
        target = rng.randbytes(32)
        machine, _ = look_up(target, silent)
        wanted = true_closest(everybody, target, silent)
        missed += len(set(wanted) - set(machine.result()))
    # The tables name 20 nodes, a fifth of them silent, so a few at the far end may stay unheard of.
    assert missed <= 40 * K // 100


def test_disjoint_paths_find_the_closest_too_and_ask_nobody_twice() -> None:
    everybody, _ = network()
    rng = random.Random(3)
    for _ in range(10):
        target = rng.randbytes(32)
        machine, asked = look_up(target, {}, paths=4)
        assert machine.result()[: K // 2] == true_closest(everybody, target, {}, K // 2)
        assert len(asked) == len(set(asked))


def test_disjoint_paths_survive_a_liar_that_a_single_path_need_not() -> None:
    """One seed invents twenty silent nodes next to the target. The other paths never hear of them."""
    target = bytes(32)
    invented = [
        Contact(NodeId(bytes(31) + bytes([n])), PublicKey(bytes(32)), (), b"r")
        for n in range(lookup.ANSWER_MAX)
    ]
    seeds = STRANGERS[:8]
    liar = min(seeds, key=lambda seed: distance(seed.node, target)).node
    machine = Lookup(target, seeds, own=ME.node, k=4, alpha=1, paths=4)
    fakes = {fake.node for fake in invented}
    asked = run(machine, lambda node: None if node in fakes else invented if node == liar else [])
    assert set(asked) >= fakes
    assert {peer.node for peer in machine.result()} < {seed.node for seed in seeds}
    assert machine.queried == 8 + lookup.ANSWER_MAX


def test_whom_a_path_hears_of_it_asks_itself() -> None:
    seeds = sorted(STRANGERS[:2], key=lambda peer: distance(peer.node, bytes(32)))
    machine = Lookup(bytes(32), seeds, own=ME.node, k=4, alpha=1, paths=2)
    assert machine.next(0.0) == seeds
    machine.answered(seeds[1].node, [STRANGERS[5]])
    assert machine.next(0.1) == [STRANGERS[5]]  # although the first path is waiting


# --- rules one by one ---------------------------------------------------------------------------------------


def small(seeds: list[Contact], **options: int) -> Lookup:
    return Lookup(bytes(32), seeds, own=ME.node, **{"k": 3, "alpha": 2, **options})


def test_a_lookup_without_seeds_is_done_with_nothing() -> None:
    machine = small([])
    assert machine.done
    assert machine.next(0.0) == machine.result() == machine.records == []
    assert machine.hops == machine.queried == 0


def test_at_most_alpha_queries_are_in_flight() -> None:
    machine = small(STRANGERS[:10])
    assert len(machine.next(0.0)) == 2
    assert machine.next(0.5) == []


def test_a_slow_query_makes_room_and_its_answer_still_counts() -> None:
    machine = small(STRANGERS[:10])
    slow, _ = machine.next(0.0)
    assert machine.deadline == lookup.PATIENCE_S
    assert len(machine.next(machine.deadline)) == 1
    machine.answered(slow.node, [])
    assert machine.result() == [slow]


def test_a_deadline_is_never_in_the_past() -> None:
    machine = small(STRANGERS[:10])
    now = 0.1
    for _ in range(10):
        machine.next(now)
        assert machine.deadline > now
        if machine.deadline == inf:
            break
        now = machine.deadline
    assert machine.queried == 3
    assert not machine.done


def test_the_nearest_are_asked_first_and_the_far_never() -> None:
    machine = small(STRANGERS)
    order = sorted(STRANGERS, key=lambda peer: distance(peer.node, bytes(32)))
    assert run(machine, lambda node: []) == [peer.node for peer in order[:3]]
    assert machine.result() == order[:3]


def test_too_long_an_answer_is_a_failure() -> None:
    machine = small(STRANGERS[:1])
    (seed,) = machine.next(0.0)
    machine.answered(seed.node, STRANGERS[1 : lookup.ANSWER_MAX + 2])
    assert machine.done
    assert machine.result() == []


def test_our_own_id_in_an_answer_is_ignored() -> None:
    machine = small([STRANGERS[0], ME])
    assert run(machine, lambda node: [ME, STRANGERS[1]]) == [STRANGERS[0].node, STRANGERS[1].node]


def test_answers_nobody_asked_for_are_ignored() -> None:
    machine = small(STRANGERS[:1])
    machine.answered(STRANGERS[0].node, [STRANGERS[1]])  # not asked yet
    machine.answered(STRANGERS[5].node, [STRANGERS[1]], [b"record"])  # a stranger
    (seed,) = machine.next(0.0)
    machine.failed(seed.node)
    machine.answered(seed.node, [STRANGERS[1]], [b"record"])  # too late
    assert machine.done
    assert machine.result() == machine.records == []


def test_records_are_collected_once_and_boundedly() -> None:
    machine = small(STRANGERS[:2])
    one, other = machine.next(0.0)
    machine.answered(one.node, [], [b"a", b"b", b"a"])
    machine.answered(other.node, [], [b"b", *(n.to_bytes(4, "big") for n in range(5000))])
    assert machine.records[:2] == [b"a", b"b"]
    assert len(machine.records) == lookup.RECORDS_MAX


def test_hops_count_the_answers_on_the_way() -> None:
    order = sorted(STRANGERS, key=lambda peer: distance(peer.node, bytes(32)))
    machine = small([order[9]])
    run(machine, lambda node: {order[9].node: [order[5]], order[5].node: [order[0]]}.get(node, []))
    assert machine.hops == 3


@pytest.mark.parametrize("silent_of_4", [0, 2, 3])
def test_inventing_nearer_and_nearer_nodes_ends(silent_of_4: int) -> None:
    """Every answer names nodes nearer than all before, and some of them answer: it must not go on for ever."""
    number = 2**255

    def nearer(node: NodeId) -> list[Contact] | None:
        nonlocal number
        if node[-1] < silent_of_4 and node[-2:-1] == b"\0":
            return None
        found = []
        for _ in range(lookup.ANSWER_MAX):
            number -= 2**240
            invented = NodeId((number + number // 2**240 % 4).to_bytes(32, "big"))
            found.append(Contact(invented, PublicKey(bytes(32)), (), b"r"))
        return found

    machine = small(STRANGERS[:1])
    asked = run(machine, nearer)
    assert len(asked) == machine.queried == lookup.QUERIES_PER_K * 3
    assert len(machine.result()) == 3


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 198), st.lists(st.integers(0, 198), max_size=25)),
        max_size=80,
    ),
    st.integers(1, 3),
)
def test_bounds_hold_whatever_peers_answer(steps: list[tuple[int, int, list[int]]], paths: int) -> None:
    """Answers, failures and silence in any order, about anybody."""
    k, alpha = 3, 2
    machine = small(STRANGERS[:6], k=k, alpha=alpha, paths=paths)
    now = 0.0
    asked: dict[NodeId, None] = {}
    answered: dict[NodeId, None] = {}
    open_queries: dict[NodeId, None] = {}
    for action, who, named in steps:
        node = list(open_queries)[who % len(open_queries)] if open_queries else STRANGERS[who].node
        if action == 0:
            now += 1.5
        elif action == 1:
            machine.failed(node)
            open_queries.pop(node, None)
        else:
            contacts = [STRANGERS[n] for n in named]
            machine.answered(node, contacts)
            if node in open_queries and len(contacts) <= lookup.ANSWER_MAX:
                answered[node] = None
            open_queries.pop(node, None)
        for peer in machine.next(now):
            assert peer.node not in asked
            asked[peer.node] = open_queries[peer.node] = None
        assert len(asked) == machine.queried <= lookup.QUERIES_PER_K * k * paths
        assert sum(len(path.near) for path in machine._paths) <= lookup.CANDIDATES_PER_K * k * paths
        nearest = sorted(answered, key=lambda n: distance(n, bytes(32)))[:k]
        assert [peer.node for peer in machine.result()] == nearest
        if machine.done:
            assert machine.next(now + 100) == []


@pytest.mark.parametrize("paths", [1, 3])
def test_the_same_answers_give_the_same_queries(paths: int) -> None:
    target = random.Random(5).randbytes(32)
    assert look_up(target, {}, paths=paths)[1] == look_up(target, {}, paths=paths)[1]
