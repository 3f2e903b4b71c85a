"""One world in several processes: the same events with the same digest, sooner.

Machines touch each other through what travels between them alone, and nothing travels in less than the least delay of
the network. So what happens within one such window, from the earliest event anywhere on, cannot reach another process
within it: each process carries out its own machines' events up to the end of the window, then all swap what travels
between them, and agree on where the next one begins. Conservative synchronisation in safe windows: Lubachevsky 1989,
"Efficient distributed event-driven simulations of multiple-loop networks".

Worth it where a window holds much more work than the quarter of a millisecond that a swap takes (two processes, 500
nodes): hundreds of nodes on a wide area network, whose least delay is 20 ms, and not on a local one.
"""

import gc
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf, nextafter, ulp
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

import msgspec

from gossip.errors import LocalError
from gossip.events import Exchanged, News
from p2pnode.errors import UserError
from p2pnode.tasks.faults import TaskFaults
from simulation.agenda import Letter
from simulation.checkers import ViolationError
from simulation.digest import digest_of
from simulation.machines import Host, Observer, Parts
from simulation.processes import begin, ctrl_c_held_back
from simulation.scenario import Scenario
from simulation.seeds import Seeds
from simulation.signatures import Signatures
from simulation.varied import geography_of, links_of
from simulation.world import World

Answer = TypeVar("Answer")

# How long a process has to end when the run is over before it is ended; it has nothing to save.
END_S = 5.0
# Narrower windows are told of. A guess between what was measured with 500 nodes: 0.1 ms (`lan`) takes 1.4 times as long
# with two processes as with one, 20 ms (`wan`) less long than with one.
WORTH_S = 0.005

# What ends another process with a word to the first one; anything else is a bug, and its traceback is seen.
_TOLD = (ViolationError, LocalError, UserError)
# What reading from or writing to a process meets that has ended, in the middle of a message or before.
_GONE = (EOFError, OSError)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[float, list[Letter]]).decode


class SignedParts(Parts, Protocol):
    """What each process makes for the machines that live there."""

    @property
    def signatures(self) -> Signatures: ...


def why_not(scenario: Scenario) -> str:
    """Why a world cannot be divided; empty: it can be."""
    if scenario.adversaries.share:
        return "adversaries know what everybody has said (adversaries.share)"
    if scenario.network.downlink_bytes_s:
        return "frames of all senders queue for the downlink of a node (network.downlink_bytes_s)"
    if width_s(scenario) <= ulp(scenario.duration_s):
        return "what is sent may arrive at once (the least delay of [network], or faults.silence_s)"
    return ""


def width_s(scenario: Scenario) -> float:
    """Of a window: nothing reaches another machine sooner."""
    seeds = Seeds(0)
    links = links_of(scenario, seeds, (), geography_of(scenario, seeds))
    return min(links.least_s(), scenario.faults.silence_s)


def home_of(index: int, processes: int) -> int:
    """The process in which machine `index` lives."""
    return index % processes


@dataclass(frozen=True, slots=True)
class _Here(Container[int]):
    """The machines of one process."""

    number: int
    processes: int

    def __contains__(self, index: object) -> bool:
        assert isinstance(index, int)
        return home_of(index, self.processes) == self.number


@dataclass(slots=True)
class Notebook(Observer):
    """Writes down what an observer in another process wants to know."""

    pages: list[tuple[float, int, News | str]] = field(default_factory=list)  # (date, machine, news or kind)

    def news(self, host: Host, news: News, now: float) -> None:
        if type(news) is Exchanged and news.role == "initiator":
            self.pages.append((now, host.index, news))

    def power(self, host: Host, kind: str, now: float) -> None:
        self.pages.append((now, host.index, kind))


@dataclass(frozen=True, slots=True)
class _Status:
    """What a process tells after each order: everything since the beginning, but for the pages."""

    events: int
    messages: int
    bytes_sent: int
    exchanges: int
    node_updates: int
    checks: int
    refused: dict[str, int]
    faults: dict[str, int]
    up: list[int]  # machines
    pages: list[tuple[float, int, News | str]]


@dataclass(frozen=True, slots=True)
class _Order:
    """Of the first process to another one. Exactly one of the first three is set, or none: then it ends."""

    until: float | None = None
    question: Callable[[Host], Any] | None = None
    settle: bool = False
    of: tuple[int, ...] = ()  # the question is about these machines


class _LineError(Exception):
    """Whoever is at the other end of a line has ended."""


def _send(line: Connection, what: Any) -> None:
    try:
        line.send(what)
    except _GONE as error:
        raise _LineError from error


def _receive(line: Connection) -> Any:
    try:
        return line.recv()
    except _GONE as error:
        raise _LineError from error


class _Post:
    """Swaps letters with all other processes.

    Args:
        number: Of this process.
        lines: Number of another process -> connection with it.
    """

    def __init__(self, number: int, lines: dict[int, Connection]) -> None:
        self._number = number
        self._processes = len(lines) + 1
        # In ascending order everywhere, the smaller number speaks first: nobody waits for somebody who waits for him.
        self._lines = dict(sorted(lines.items()))

    def swap(self, letters: list[Letter], soonest: float) -> tuple[list[Letter], float]:
        """Letters to this process, and the earliest date anywhere.

        Args:
            soonest: The earliest date that this process knows of, its letters included.
        """
        bags: dict[int, list[Letter]] = {other: [] for other in self._lines}
        for letter in letters:
            bags[home_of(letter[4], self._processes)].append(letter)
        arrived: list[Letter] = []
        begin_s = soonest
        for other, line in self._lines.items():
            theirs, found = _decode(self._swap_with(other, line, _encode((soonest, bags[other]))))
            begin_s = min(begin_s, theirs)
            arrived += found
        return arrived, begin_s

    def _swap_with(self, other: int, line: Connection, bag: bytes) -> bytes:
        try:
            if self._number < other:
                line.send_bytes(bag)
            theirs = line.recv_bytes()
            if self._number > other:
                line.send_bytes(bag)
        except _GONE as error:
            raise _LineError from error
        return theirs

    def close(self) -> None:
        for line in self._lines.values():
            line.close()


def _advance(world: World, post: _Post, width: float, until: float) -> None:
    """Carries out what has a date before or at `until`, here and in all other processes."""
    ended = world.now
    while True:
        letters, world.agenda.letters = world.agenda.letters, []
        soonest = min(world.agenda.next, min((letter[0] for letter in letters), default=inf))
        arrived, start = post.swap(letters, soonest)
        assert all(letter[0] > ended for letter in arrived), "nothing travels faster than a window is wide"
        world.post(arrived)
        if start > until:
            break
        ended = min(until, nextafter(start + width, 0.0))
        world.run(ended)
    world.now = until


# --- the other processes -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    """What a process is started with."""

    scenario: Scenario
    seed: int
    make: Callable[[Scenario, Seeds], SignedParts]
    replay: str
    check: bool
    observed: bool
    number: int
    processes: int


def _serve(task: _Task, orders: Connection, lines: dict[int, Connection]) -> None:
    """What another process does until it is told to end."""
    begin()
    try:
        with TaskFaults(task.scenario.task.name):
            notes = Notebook() if task.observed else None
            world = _world(task, task.make(task.scenario, Seeds(task.seed)), notes)
            _send(orders, None)
            try:
                _obey(world, notes, _Post(task.number, lines), orders)
            finally:
                world.close()
    except _TOLD as error:
        with suppress(_LineError):
            _send(orders, error)
    except _LineError:
        pass  # the first process has ended, or another one, which says why


def _world(task: _Task, parts: SignedParts, notes: Notebook | None) -> World:
    return World(
        task.scenario,
        Seeds(task.seed),
        parts,
        replay=task.replay,
        check=task.check,
        observer=notes,
        signatures=parts.signatures,
        here=_Here(task.number, task.processes),
    )


def _obey(world: World, notes: Notebook | None, post: _Post, orders: Connection) -> None:
    width = width_s(world.scenario)
    # As in the first process: see `simulation.experiments.run`.
    gc.collect()
    gc.disable()
    while True:
        order: _Order = _receive(orders)
        if order.until is not None:
            _advance(world, post, width, order.until)
            gc.collect(0)
            _send(orders, _status(world, notes))
        elif order.question is not None:
            _send(orders, [order.question(world.hosts[index]) for index in order.of])
        elif order.settle:
            world.settle()
            _send(orders, [host.digest.digest() for host in world.hosts if host.here])
        else:
            return


def _status(world: World, notes: Notebook | None) -> _Status:
    pages: list[tuple[float, int, News | str]] = []
    if notes is not None:
        pages, notes.pages = notes.pages, []
    return _Status(
        events=world.events,
        messages=world.messages,
        bytes_sent=world.bytes_sent,
        exchanges=world.exchanges,
        node_updates=world.node_updates,
        checks=world.checks,
        refused=dict(world.refused),
        faults=world.faults,
        up=[host.index for host in world.hosts if host.core is not None],
        pages=pages,
    )


# --- the first process -------------------------------------------------------------------------------


class Windows:
    """A world over several processes, of which this one is the first. What people ask of a `World` it answers, too.

    Args:
        scenario: What is simulated; `why_not` finds nothing against it.
        seed: Of the run.
        parts: For the machines that live here.
        make: Makes the same for those that live in the other processes; importable there.
        processes: How many, at least 2.
        replay: The command that repeats this run; part of every violation's message.
        check: Whether the checkers watch.
        observer: Told of programs that begin and end, and of exchanges that their initiator has applied; in the order
            of dates, when a stretch of the run has ended everywhere.

    Raises:
        LocalError: a process has ended that should not.
        UserError: another process could not make its parts.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        parts: SignedParts,
        *,
        make: Callable[[Scenario, Seeds], SignedParts],
        processes: int,
        replay: str = "",
        check: bool = True,
        observer: Observer | None = None,
    ) -> None:
        assert not why_not(scenario), "the caller has asked"
        self.scenario = scenario
        self._observer = observer
        self._processes = processes
        self._notes = Notebook() if observer is not None else None
        task = _Task(scenario, seed, make, replay, check, observer is not None, 0, processes)
        self._own = _world(task, parts, self._notes)
        self.hosts = self._own.hosts
        self._width = width_s(scenario)
        self._digests: list[bytes] = []
        context = get_context("spawn")  # forking a process that has threads, as JAX has, may hang
        ends: list[dict[int, Connection]] = [{} for _ in range(processes)]
        for one in range(processes):
            for other in range(one + 1, processes):
                ends[one][other], ends[other][one] = context.Pipe()
        self._post = _Post(0, ends[0])
        self._children: list[tuple[BaseProcess, Connection]] = []
        for number in range(1, processes):
            orders, given = context.Pipe()
            its = replace(task, number=number)
            child = context.Process(target=_serve, args=(its, given, ends[number]), daemon=True)
            with ctrl_c_held_back():
                child.start()
            given.close()
            self._children.append((child, orders))
        for lines in ends[1:]:  # so that the end of a process is seen by those that listen to it
            for line in lines.values():
                line.close()
        try:
            for _, orders in self._children:
                self._answer(orders)
        except _TOLD:
            self.close()
            raise
        self._take(_status(self._own, None))

    # --- what people ask ------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """As of a `World`."""
        return self._own.now

    @property
    def digest(self) -> str:
        """As of a `World`: the same number as in one process."""
        self.settle()
        return digest_of(self._digests)

    def up(self) -> list[Host]:
        """As of a `World`."""
        return [self.hosts[index] for index in self._up]

    honest = up  # a world with adversaries is not divided

    def ask(self, hosts: Sequence[Host], question: Callable[[Host], Answer]) -> list[Answer]:
        """As of a `World`; the question is asked where the machine lives."""
        wanted: list[list[int]] = [[] for _ in range(self._processes)]
        for host in hosts:
            wanted[home_of(host.index, self._processes)].append(host.index)
        for (_, orders), indices in zip(self._children, wanted[1:], strict=True):
            self._order(orders, _Order(question=question, of=tuple(indices)))
        found = {index: question(self.hosts[index]) for index in wanted[0]}
        for (_, orders), indices in zip(self._children, wanted[1:], strict=True):
            found |= zip(indices, self._answer(orders), strict=True)
        return [found[host.index] for host in hosts]

    # --- what happens ---------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """As of a `World`."""
        for _, orders in self._children:
            self._order(orders, _Order(until=until))
        try:
            _advance(self._own, self._post, self._width, until)
        except _LineError as error:
            raise self._why() from error
        self._take(_status(self._own, self._notes), *(self._answer(orders) for _, orders in self._children))

    def settle(self) -> None:
        """As of a `World`."""
        for _, orders in self._children:
            self._order(orders, _Order(settle=True))
        self._own.settle()
        self._digests = [host.digest.digest() if host.here else b"" for host in self.hosts]
        for number, (_, orders) in enumerate(self._children, 1):
            self._digests[number :: self._processes] = self._answer(orders)

    def close(self) -> None:
        """Ends the other processes, and what the world here has begun."""
        self._own.close()
        for _, orders in self._children:
            with suppress(_LineError):
                _send(orders, _Order())
            orders.close()
        self._post.close()
        for child, _ in self._children:
            child.join(END_S)
            if child.is_alive():
                child.terminate()
                child.join()

    def _order(self, orders: Connection, order: _Order) -> None:
        try:
            _send(orders, order)
        except _LineError as error:
            raise self._why() from error

    def _answer(self, orders: Connection) -> Any:
        try:
            found = _receive(orders)
        except _LineError as error:
            raise self._why() from error
        if isinstance(found, _TOLD):
            raise found
        return found

    def _why(self) -> Exception:
        """What ended another process, or that one has ended."""
        waiting = [orders for _, orders in self._children]
        while waiting and (ready := wait(waiting, END_S)):
            for orders in ready:
                assert isinstance(orders, Connection)
                try:
                    found = _receive(orders)
                except _LineError:
                    waiting.remove(orders)
                    continue
                if isinstance(found, _TOLD):
                    return found
        self._post.close()  # whoever still waits for us ends, too
        for child, _ in self._children:
            child.join(END_S)
        codes = [child.exitcode for child, _ in self._children]
        return LocalError(f"a process of this world has ended before its time (exit codes {codes})")

    def _take(self, *found: _Status) -> None:
        """Adds up what all processes have told."""
        self.events = sum(one.events for one in found)
        self.messages = sum(one.messages for one in found)
        self.bytes_sent = sum(one.bytes_sent for one in found)
        self.exchanges = sum(one.exchanges for one in found)
        self.node_updates = sum(one.node_updates for one in found)
        self.checks = sum(one.checks for one in found)
        self.refused = _added(one.refused for one in found)
        self.faults = _added(one.faults for one in found)
        self._up = sorted(index for one in found for index in one.up)
        if self._observer is None:
            return
        pages = [page for one in found for page in one.pages]
        for date, index, what in sorted(pages, key=lambda page: page[:2]):
            if isinstance(what, str):
                self._observer.power(self.hosts[index], what, date)
            else:
                self._observer.news(self.hosts[index], what, date)


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sums, sorted by name."""
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
