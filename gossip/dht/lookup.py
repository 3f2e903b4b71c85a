"""One iterative lookup: who are the `k` live nodes nearest to a target?

Maymounkov and Mazieres 2002, section 2.3, as a machine without I/O: `next` says whom to ask, the caller
asks and reports `answered` or `failed`, until `done`. With `paths` > 1 the lookup runs as that many
disjoint ones, as in S/Kademlia (Baumgart and Mies 2007, section 4.4): every candidate belongs to the path
that heard of it first, so one liar can spoil one path only.

Nobody is believed beyond an answer: a candidate counts for the result when it has answered itself, on a
channel that proved its key. Whoever invents nearer and nearer nodes costs us at most `QUERIES_PER_K * k`
queries a path.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from math import inf
from operator import itemgetter

from gossip.dht.ids import NodeId, distance
from gossip.dht.routing import Contact

# Contacts in one honest answer at most: one bucket (docs/security.md, T25).
ANSWER_MAX = 20
# Candidates of one path kept, in multiples of k: the furthest go first, and would not have been asked anyway.
CANDIDATES_PER_K = 8
# Queries of one path at most, in multiples of k. Honest lookups of 10^4 nodes take about 2 k.
QUERIES_PER_K = 8
# A query unanswered for so long no longer counts as one of the alpha in flight; its answer is still welcome.
# Kademlia section 2.3 drops slow nodes the same way. Two round trips of a slow link (wan: 0.3 s), rounded up.
PATIENCE_S = 1.0
# Records collected at most: four times what one node keeps for one key.
RECORDS_MAX = 1024


class _State(Enum):
    FRESH = 0
    ASKED = 1
    ANSWERED = 2
    FAILED = 3


@dataclass(slots=True)
class _Candidate:
    contact: Contact
    distance: int
    path: "_Path"
    depth: int  # 1: a seed; else one more than who named it
    state: _State = _State.FRESH


class _Path:
    __slots__ = ("in_flight", "near", "queries")

    def __init__(self) -> None:
        # (distance, candidate) of all that have not failed, nearest first. No two are equally far.
        self.near: list[tuple[int, _Candidate]] = []
        self.in_flight: dict[NodeId, float] = {}  # node -> when its query becomes slow
        self.queries = 0


class Lookup:
    """The state of one lookup. The same seeds and answers in the same order give the same queries.

    Args:
        target: 32 bytes.
        seeds: Whom to start from. Give at least `k` where there are so many.
        own: Our id; never a candidate.
        k: Nodes wanted.
        alpha: Queries in flight at the same time, on each path.
        paths: Disjoint paths; 1: none of this.
    """

    def __init__(
        self,
        target: bytes,
        seeds: Iterable[Contact],
        *,
        own: NodeId,
        k: int,
        alpha: int,
        paths: int = 1,
    ) -> None:
        assert min(k, alpha, paths) >= 1
        self.target = target
        self._own = own
        self._k = k
        self._alpha = alpha
        self._paths = [_Path() for _ in range(paths)]
        self._candidates: dict[NodeId, _Candidate] = {}
        self._records: dict[bytes, None] = {}
        # When `next` may have more although nothing was reported, because a query has become slow; inf: never.
        self.deadline = inf
        # Dealt in order of distance, so that every path gets its share of the near ones.
        unique = {seed.node: seed for seed in seeds}
        nearest = sorted(unique.values(), key=lambda seed: distance(seed.node, target))
        for index, seed in enumerate(nearest):
            self._learn(seed, self._paths[index % paths], depth=1)

    def next(self, now: float) -> list[Contact]:
        """Whom to ask now; each is then in flight until reported. Empty: wait, or `done`."""
        asked = []
        for path in self._paths:
            busy = 0
            for slow in path.in_flight.values():
                busy += now < slow
            for _, candidate in path.near[: self._k]:
                if busy >= self._alpha or path.queries >= QUERIES_PER_K * self._k:
                    break
                if candidate.state is _State.FRESH:
                    candidate.state = _State.ASKED
                    path.in_flight[candidate.contact.node] = now + PATIENCE_S
                    path.queries += 1
                    busy += 1
                    asked.append(candidate.contact)
        self.deadline = min(
            (slow for path in self._paths for slow in path.in_flight.values() if now < slow), default=inf
        )
        return asked

    def answered(self, node: NodeId, contacts: Iterable[Contact], records: Iterable[bytes] = ()) -> None:
        """An answer came. What was not asked for, or came after `failed`, is ignored.

        Args:
            node: Who answered.
            contacts: Whom it named, their ids derived from their keys by the caller. More than 20, and the
                node counts as failed.
            records: What it keeps under the target, for a lookup of records; verified by the caller.
        """
        candidate = self._candidates.get(node)
        if candidate is None or candidate.state is not _State.ASKED:
            return
        named = list(contacts)
        if len(named) > ANSWER_MAX:
            self.failed(node)
            return
        candidate.state = _State.ANSWERED
        del candidate.path.in_flight[node]
        for contact in named:
            self._learn(contact, candidate.path, depth=candidate.depth + 1)
        for record in records:
            if len(self._records) < RECORDS_MAX:
                self._records[record] = None

    def failed(self, node: NodeId) -> None:
        """No answer in time, no connection, or an answer that was refused."""
        candidate = self._candidates.get(node)
        if candidate is None or candidate.state is not _State.ASKED:
            return
        candidate.state = _State.FAILED
        del candidate.path.in_flight[node]
        near = candidate.path.near
        del near[bisect_left(near, candidate.distance, key=itemgetter(0))]

    @property
    def done(self) -> bool:
        """On every path the `k` nearest that did not fail have answered, or the queries are used up."""
        return all(self._path_done(path) for path in self._paths)

    def _path_done(self, path: _Path) -> bool:
        if path.queries >= QUERIES_PER_K * self._k:
            return not path.in_flight
        return all(candidate.state is _State.ANSWERED for _, candidate in path.near[: self._k])

    def result(self) -> list[Contact]:
        """The `k` nearest that have answered so far, nearest first."""
        return [candidate.contact for candidate in self._answered()]

    @property
    def records(self) -> list[bytes]:
        """Different records handed in, in order of arrival."""
        return list(self._records)

    @property
    def hops(self) -> int:
        """Answers it took to hear of, and from, the nearest node of the result; 0: nobody has answered."""
        nearest = self._answered()
        return nearest[0].depth if nearest else 0

    @property
    def queried(self) -> int:
        """How many were asked."""
        return sum(path.queries for path in self._paths)

    def _answered(self) -> list[_Candidate]:
        answered = [c for c in self._candidates.values() if c.state is _State.ANSWERED]
        return sorted(answered, key=lambda candidate: candidate.distance)[: self._k]

    def _learn(self, contact: Contact, path: _Path, *, depth: int) -> None:
        node = contact.node
        if node == self._own or node in self._candidates:
            return
        away = distance(node, self.target)
        if len(path.near) >= CANDIDATES_PER_K * self._k:
            # Who was asked stays: its answer is on the way, or counts.
            fresh = (i for i in reversed(range(len(path.near))) if path.near[i][1].state is _State.FRESH)
            last = next(fresh, None)
            if last is None or path.near[last][0] <= away:
                return
            del self._candidates[path.near.pop(last)[1].contact.node]
        candidate = self._candidates[node] = _Candidate(contact, away, path, depth)
        insort(path.near, (away, candidate))
