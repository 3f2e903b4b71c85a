"""The fleet: learning only, the whole network as one XLA program, 10^4 nodes on two cores and 10^6 on an accelerator.

The second engine of the simulator. The world runs the whole protocol of some hundred nodes; here there is no message,
no signature, no clock: a round trains every node and deals all of them into pairs twice (`network`). What a
node computes is the same in both: `Trainer.train_one`, `meeting` with its strategy and gate, and `codec`.

Layout. A node is a row. Weights are one array (2 * slots, values), read-outs another. A small fleet is one chunk, whose
rows stay where they are. In a larger one a round reads the rows of one half in random order and writes the other half
in order, so that partners lie together and a row moves through memory once: nodes have no place of their own; each slot
knows whom it holds. Chunks of `lanes` pairs bound what lies between (batches, gradients), which fits into a cache, or
into an accelerator. What is dealt to them are runs of some rows, or the memory's page tables would cost more than the
arithmetic (`layout.shape`).

Devices. Slots are divided among the devices of a mesh; once a round they are dealt anew over all of them (one
all-to-all), and then everybody meets partners on the own device. Whether the devices belong to one process or to
several is JAX's business.

Randomness: keys by fold_in of round and device. Same settings, seed and number of devices: the same figures.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, nan
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gossip.config import CODECS, LearningConfig
from gossip.errors import LocalError
from gossip.learning.meeting import Rules, Shard
from gossip.learning.strategies import strategy
from gossip.learning.strategies.interface import State
from gossip.learning.trainer import Trainer, train_alone
from simulation.fleet.data import Rows, batch_size, batches, divided, made_task
from simulation.fleet.layout import shape
from simulation.fleet.measuring import AXIS, Measured, consensus, measured, total
from simulation.fleet.network import (
    Crowd,
    End,
    Leaves,
    Outcome,
    adoptable,
    crowd,
    deal,
    exchange,
    in_runs,
    lies,
    present_first,
    shuffled,
)
from simulation.fleet.pace import duration, enough, first_wait, starts
from simulation.fleet.room import check_room
from simulation.fleet.rows import chosen, take, turned, write
from simulation.fleet.settings import FleetSettings, Point, check
from simulation.seeds import Seeds

# Nodes in one step of an evaluation: 128 nodes x 360 test rows x 10 classes are 1.8 MB.
_EVALUATED_AT_ONCE = 128

# Nodes measured at the end; of more, a sample of so many, drawn by the dealing.
MEASURED_MAX = 65536

_SHARED_OUT = PartitionSpec(AXIS)  # type: ignore[no-untyped-call]  # a part for each device
_EVERYWHERE = PartitionSpec()  # type: ignore[no-untyped-call]  # the same on all devices
# Instead of the number of newcomers that a node has asked: it is none itself any more.
_BEGUN = np.int32(2**30)

Key: TypeAlias = jax.Array
# In the order of the schema; float32, a leaf as one row: (..., size), which is read and written in one piece.
_Leaves: TypeAlias = Leaves


class _State(NamedTuple):
    """One device's share: m slots, of which some may be empty."""

    # Leaves of the weights, of what the strategy keeps besides, of the read-out, and of the optimiser's state, in this
    # order; each (2 m, ...), and odd rounds begin in the second half. With one chunk (m, ...): there is nothing left to
    # read when it is written.
    slabs: tuple[jax.Array, ...]
    node: jax.Array  # (m,) int32: whom the slot holds; from `nodes` up: nobody
    jobs: jax.Array  # (m,) uint32: training jobs that it has done
    up: jax.Array  # (m,) bool
    met: jax.Array  # (m,) float32: history of its gate
    usual: jax.Array  # (m,) float32
    noted: tuple[jax.Array, ...]  # numbers of the strategy, each (m,) float32
    # With a pace of its own: rounds until it is due; newcomers that it has asked, -1 before its start, _BEGUN at last.
    wait: jax.Array  # (m,) float32
    asked: jax.Array  # (m,) int32


class _Ends(NamedTuple):
    """The nodes at one end of a wave of exchanges, in the order of their pairs; each (lanes, ...)."""

    held: _Leaves  # weights, and what the strategy keeps besides
    before: _Leaves  # the weights that a late offer tells
    active: jax.Array
    present: jax.Array
    node: jax.Array
    met: jax.Array
    usual: jax.Array
    noted: tuple[jax.Array, ...]
    asked: jax.Array
    need: jax.Array
    answered: jax.Array


class _Counts(NamedTuple):
    """Of one round, over all devices; () int32 each."""

    trained: jax.Array
    finished: jax.Array
    halves: jax.Array
    refused: jax.Array


# What `Fleet.advance` counts.
COUNTS = _Counts._fields


class Fleet:
    """A network ready to run.

    Args:
        settings: What is simulated.
        devices: Over which it is sharded, of all processes; default: the first one.

    Raises:
        LocalError: the task keeps no rows in memory, an argument is out of range, or it cannot fit into memory.
        UserError: there is no such task.
    """

    def __init__(self, settings: FleetSettings, *, devices: Sequence[jax.Device] | None = None) -> None:
        if settings.codec not in CODECS:
            raise LocalError(f"expected one of the codecs {', '.join(CODECS)}, got {settings.codec!r}")
        check(settings)
        self.settings = settings
        seeds = Seeds(settings.seed)
        chosen = list(devices) if devices is not None else jax.devices()[:1]
        self.devices = len(chosen)
        self._mesh = Mesh(np.array(chosen), (AXIS,))
        self._lanes, self._chunks, self._run_rows = shape(settings, self.devices, chosen[0].platform)
        self._slots = 2 * self._lanes * self._chunks  # of one device
        self._halves = 1 if self._chunks == 1 else 2
        self._task = made_task(settings)
        check_room(self._task, settings, chosen)
        self._trainer = Trainer(self._task, seed=settings.genesis_seed)
        self.values = self._trainer.schema.values
        self._shapes = [leaf.shape for leaf in self._trainer.schema.leaves]
        self._ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])[:-1].tolist()
        self._rows = self._put(divided(self._task, settings, seeds), _EVERYWHERE)
        self._genesis: _Leaves = self._put(tuple(np.split(self._trainer.genesis, self._ends)), _EVERYWHERE)
        self._batch = batch_size(self._task, settings)
        gated = settings.gate if settings.gate is not None else settings.attackers > 0
        self._strategy = strategy(settings.strategy)
        self._rules = Rules(strategy=self._strategy, gate=settings.exchange if gated else None)
        # Slabs of the strategy's state: its weights, and what it keeps besides.
        self._held = len(self._shapes) * (1 + len(self._strategy.init(np, np.zeros(1, np.float32)).kept))
        self._key = seeds.integer("fleet") % 2**32
        self._shuffle_seed = seeds.integer("batches") % 2**32
        self._bad = round(settings.attackers * settings.nodes)
        self._lying = self._bad > 0 and settings.attack != "labels"
        self._slow = round(settings.stragglers * settings.nodes)
        self._everybody = self._slots * self.devices == settings.nodes and not settings.churn
        self._spec: Any = _State(*[_SHARED_OUT] * len(_State._fields))  # type: ignore[arg-type]
        self._pace = settings.pace
        self._ticks = self._pace.ticks if self._pace else 1
        self.round = 0

    # --- for callers -----------------------------------------------------------------------------------

    def compile(self) -> float:
        """Make the programs; return the seconds it took, with the beginning of the state."""
        begun = perf_counter()
        spec = self._spec
        begin = jax.jit(self._mapped(self._begin, (_EVERYWHERE,), spec))
        self._state: _State = begin(self._genesis)
        whole = (spec, _EVERYWHERE, _EVERYWHERE, _EVERYWHERE, _EVERYWHERE)
        rounds = jax.jit(self._mapped(self._run, whole, (spec, _EVERYWHERE, _EVERYWHERE)), donate_argnums=0)
        one = self._number(1)
        self._rounds = rounds.lower(self._state, self._rows, self._genesis, one, one).compile()
        jax.block_until_ready(self._state)  # type: ignore[no-untyped-call]
        return perf_counter() - begun

    def advance(self, rounds: int) -> tuple[Point, dict[str, int]]:
        """Run so many rounds and measure a sample; one call of the device. After `compile`."""
        self._state, counts, found = self._rounds(
            self._state, self._rows, self._genesis, self._now(), self._number(rounds * self._ticks)
        )
        self.round += rounds
        counts, found = jax.device_get((counts, found))  # waits for the device
        return self._point(found), {name: int(count) for name, count in counts._asdict().items()}

    def measure(self) -> tuple[Point, int]:
        """Measure all nodes, or MEASURED_MAX of them; return how many, too."""
        number = self._now()
        wanted = self._sample(MEASURED_MAX)
        if self._sample(self.settings.sample) == wanted:
            # The program at hand looks at everybody: no rounds, and a look.
            self._state, _, found = self._rounds(
                self._state, self._rows, self._genesis, number, self._number(0)
            )
        else:
            look = self._mapped(
                partial(self._measure, sample=wanted), (self._spec, _EVERYWHERE, _EVERYWHERE), _EVERYWHERE
            )
            found = jax.jit(look)(self._state, self._rows, number)
        found = jax.device_get(found)
        return self._point(found), int(found.nodes)

    def _point(self, found: Measured) -> Point:
        return Point(
            round=self.round,
            mean=float(found.accuracy),
            worst=float(found.worst),
            quantiles=tuple(float(value) for value in found.quantiles),
            consensus=float(found.consensus),
        )

    def weights(self) -> npt.NDArray[np.float32]:
        """Return the weights of all nodes, by node: shape (nodes, values). Copies them from the device."""
        half = self.round * self._ticks % self._halves
        node = np.asarray(self._state.node)
        real = node < self.settings.nodes
        leaves = []
        for slab in self._state.slabs[: len(self._shapes)]:
            rows = np.asarray(slab).reshape(self.devices, self._halves, self._slots, -1)[:, half]
            found = np.empty((self.settings.nodes, rows.shape[-1]), np.float32)
            found[node[real]] = rows.reshape(len(node), -1)[real]
            leaves.append(found)
        return np.concatenate(leaves, axis=1)

    def central(self) -> float:
        """Accuracy of one learner with all rows, after as many rounds: same steps, optimiser and read-out."""
        learning = LearningConfig(
            local_steps=self.settings.local_steps,
            readout_decay=self.settings.readout_decay,
            genesis_seed=self.settings.genesis_seed,
        )
        return train_alone(self._task, rounds=self.round, learning=learning).get("accuracy", nan)

    def place(self, weights: npt.NDArray[np.float32]) -> None:
        """Give every node weights of its own, shape (nodes, values); after `compile`, in one process."""
        node = np.asarray(self._state.node)
        rows = np.zeros((self._slots * self.devices, self.values), np.float32)
        rows[node < len(weights)] = weights[node[node < len(weights)]]
        slabs = []
        for leaf in np.split(rows, self._ends, axis=1):
            slab = np.zeros((self.devices, self._halves, self._slots, *leaf.shape[1:]), np.float32)
            slab[:, self.round * self._ticks % self._halves] = leaf.reshape(
                self.devices, self._slots, *leaf.shape[1:]
            )
            slabs.append(slab.reshape(-1, *leaf.shape[1:]))
        placed = self._put(tuple(slabs), _SHARED_OUT)
        blank = [jnp.zeros_like(slab) for slab in self._state.slabs[len(placed) : self._held]]
        noted = tuple(jnp.zeros_like(numbers) for numbers in self._state.noted)
        self._state = self._state._replace(
            slabs=(*placed, *blank, *self._state.slabs[self._held :]), noted=noted
        )

    # --- the beginning -----------------------------------------------------------------------------------

    def _mapped(self, run: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        mapped: Callable[..., Any] = jax.shard_map(
            run, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return mapped

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(self._mesh, spec)

        def put(array: Any) -> jax.Array:
            # From a callback, because a device may belong to another process.
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree_util.tree_map(put, tree)

    def _number(self, number: int) -> jax.Array:
        placed: jax.Array = self._put(np.int32(number), _EVERYWHERE)
        return placed

    def _now(self) -> jax.Array:
        """The number of the next tick: of the next round, where all are in step."""
        return self._number(self.round * self._ticks)

    def _sample(self, wanted: int) -> int:
        """Slots of each device that hold about `wanted` nodes in all."""
        return min(ceil(wanted / self.devices), self._slots)

    def _begin(self, genesis: _Leaves) -> _State:
        m = self._slots
        rows = self._halves * m
        blank = [jnp.zeros((rows, *leaf.shape), leaf.dtype) for leaf in self._trainer.blank_state]
        states = [self._strategy.init(jnp, leaf) for leaf in genesis]
        everywhere = [jnp.broadcast_to(leaf, (rows, *leaf.shape)) for leaf in _leaves_of(states)]
        readout = everywhere[: len(genesis)]
        device = jax.lax.axis_index(AXIS).astype(jnp.int32)
        # In any order, because a sample are the first slots, and attackers and stragglers go by number.
        node = m * device + shuffled(jax.random.fold_in(jax.random.key(self._key ^ 1), device), m)
        return _State(
            slabs=(*everywhere, *readout, *blank),
            node=node,
            jobs=jnp.zeros(m, jnp.uint32),
            up=jnp.ones(m, bool),
            met=jnp.zeros(m, jnp.float32),
            usual=jnp.zeros(m, jnp.float32),
            noted=tuple(jnp.broadcast_to(number, (m,)) for number in states[0].noted),
            wait=first_wait(self._pace, self._key, node) if self._pace else jnp.zeros(m, jnp.float32),
            asked=jnp.full(m, -1 if self._pace else 0, jnp.int32),
        )

    # --- rounds, on one device of the mesh --------------------------------------------------------------------

    def _run(
        self, state: _State, rows: Rows, genesis: _Leaves, first: jax.Array, count: jax.Array
    ) -> tuple[_State, _Counts, Measured]:
        """`count` rounds, or ticks, from number `first` on, and a look at a sample."""

        def body(number: jax.Array, carry: tuple[_State, _Counts]) -> tuple[_State, _Counts]:
            state, counts = carry
            state, more = self._round(state, rows, genesis, number)
            return state, jax.tree_util.tree_map(jnp.add, counts, more)

        none = _Counts(*[jnp.int32(0)] * 4)
        state, counts = jax.lax.fori_loop(first, first + count, body, (state, none))
        counts = total(counts)
        return (
            state,
            counts,
            self._measure(state, rows, first + count, sample=self._sample(self.settings.sample)),
        )

    def _round(
        self, state: _State, rows: Rows, genesis: _Leaves, number: jax.Array
    ) -> tuple[_State, _Counts]:
        """Everybody trains, asks one and answers one; with a pace this is a tick: only who is due trains and asks."""
        m, width = self._slots, 2 * self._lanes
        key = jax.random.fold_in(jax.random.key(self._key), number)
        keys = jax.random.split(jax.random.fold_in(key, jax.lax.axis_index(AXIS)), 4)
        source = self._half(number)
        target = self._slots * ((number + 1) % self._halves)
        if self.devices > 1:
            state = self._dealt(keys[0], state, source)
        if self.settings.churn:
            draw = jax.random.uniform(keys[1], (m,))
            gone, back = self.settings.churn / self._ticks, 1 / (self.settings.away_rounds * self._ticks)
            up = jnp.where(state.up, draw >= gone, draw < back)
            state = state._replace(up=up)
        order = in_runs(keys[2], chunks=self._chunks, lanes=self._lanes, run=self._run_rows)
        # (chunks, width): each chunk's askers of the first wave, then those of the second
        need = state.asked
        if self._pace:
            now = number / self._ticks
            there = self._present(state.node, state.up) & (starts(self._pace, self._key, state.node) <= now)
            order = present_first(order, there, run=self._run_rows)
            others = total(jnp.sum(there)) - 1
            need = jnp.where(there, enough(self._pace, self._key, state.node, now=now, others=others), -1)
        small = (*state[1:], need)
        if self._chunks == 1:
            # All fit into a cache: who meets need not lie together.
            dealt, kept, small, counts = self._chunk(keys[3], state.slabs, small, rows, genesis, order[0])
            in_place = jnp.argsort(order[0])
            weights = tuple(take(jnp.concatenate(both), in_place) for both in zip(*dealt, strict=True))
            return _State((*weights, *kept), *small), counts
        items = (
            jnp.arange(self._chunks, dtype=jnp.int32),
            jax.random.split(keys[3], self._chunks),
            order,
            jax.tree_util.tree_map(lambda array: array[order], small),
        )

        def chunk(slabs: tuple[jax.Array, ...], item: Any) -> Any:
            k, key, slots, small = item
            moved = tuple(take(slab, source + slots) for slab in slabs)
            halves, others, small, counts = self._chunk(key, moved, small, rows, genesis)
            start = target + k * width
            written = [
                write(write(slab, a, start), b, start + self._lanes)
                for slab, a, b in zip(slabs[: self._held], *halves, strict=True)
            ]
            kept = [write(slab, new, start) for slab, new in zip(slabs[self._held :], others, strict=True)]
            slabs = (*written, *kept)
            return slabs, (small, counts)

        slabs, (small, counts) = jax.lax.scan(chunk, state.slabs, items)
        return _State(slabs, *jax.tree_util.tree_map(lambda array: array.reshape(m), small)), _Counts(
            *(jnp.sum(count) for count in counts)
        )

    def _chunk(
        self,
        key: Key,
        slabs: tuple[jax.Array, ...],
        small: Any,
        rows: Rows,
        genesis: _Leaves,
        order: jax.Array | None = None,
    ) -> tuple[tuple[_Leaves, _Leaves], _Leaves, Any, _Counts]:
        """One round of the nodes of a chunk.

        Args:
            slabs: As in _State, each (width, ...).
            small: The other fields of _State, each (width,), and `pace.enough`; -1: it has not started.
            order: The order in which they were dealt, (width,); None: they lie in it.

        Returns:
            Weights, and what the strategy keeps besides, of both halves as they were dealt, (lanes, ...): joined, they
            would cost a pass of their own; then the other slabs and `small` as they came, and counts.
        """
        settings, lanes = self.settings, self._lanes
        k_busy, k_first, k_second, k_turn = jax.random.split(key, 4)
        n = len(self._shapes)
        held, readout, optimiser = slabs[: self._held], slabs[self._held :][:n], slabs[self._held + n :]
        x = held[:n]
        node, jobs, up, met, usual, noted, wait, asked, need = small
        asking, active, trains = self._active(k_busy, node, up, jobs, wait, asked)  # (width,) each
        trained, optimiser = self._trained(x, optimiser, trains, node, jobs, rows)
        # As the learner: the read-out sees the weights as the exchanges left them, not as training makes them.
        decay = np.float32(settings.readout_decay)
        states = self._states(held, noted)
        used = [jax.vmap(partial(self._strategy.readout, jnp))(state) for state in states]
        readout = tuple(chosen(active, x + decay * (y - x), y) for x, y in zip(used, readout, strict=True))
        local = jax.vmap(partial(self._strategy.local, jnp))
        after = [local(state._replace(x=leaf)) for state, leaf in zip(states, trained, strict=True)]
        trained = _leaves_of(after)
        if self._held > n:  # weights alone stay those who were not trained
            trained = tuple(chosen(active, *both) for both in zip(trained, held, strict=True))
            noted = tuple(chosen(active, *both) for both in zip(after[0].noted, noted, strict=True))
        # XLA would repeat the last step of training in each of the four places that read its result.
        trained = jax.lax.optimization_barrier(trained)  # type: ignore[no-untyped-call]
        present = self._present(node, up)
        if self._pace:
            present &= need >= 0

        def ends(part: slice) -> _Ends:
            def those(array: jax.Array) -> jax.Array:
                return array[part] if order is None else take(array, order[part])

            whole = _Ends(trained, x, asking, present, node, met, usual, noted, asked, need, answered=asking)
            some: _Ends = jax.tree_util.tree_map(those, whole)
            return some

        asks, answers = ends(slice(0, lanes)), ends(slice(lanes, 2 * lanes))
        # Attackers know those with whom they lie in one chunk.
        known = crowd(trained[:n], present & (node >= self._bad)) if self._lying else None
        a, b, first = self._wave(k_first, asks, answers, genesis, known)
        # The second wave: somebody else's partner of the first asks, so nobody meets the same one twice. Where rows
        # come one by one the next one's is as good as any other; in runs, neighbours know the same.
        turn: int | jax.Array = 1
        # With a pace, those who are there lie first in both halves, and meet each other again.
        among = jnp.minimum(jnp.sum(asks.present), jnp.sum(answers.present)) if self._pace else lanes
        if self._run_rows > 1:
            turn = jax.random.randint(k_turn, (), 1, jnp.maximum(among, 2), jnp.int32)
        there, back = (turned(lanes, by, among=among) for by in (turn, among - turn))
        b = jax.tree_util.tree_map(lambda array: take(array, there), b._replace(before=answers.held[:n]))
        b, a, second = self._wave(k_second, b, a, genesis, known)
        b = jax.tree_util.tree_map(lambda array: take(array, back), b)
        counts = _Counts(
            jnp.sum(trains).astype(jnp.int32),
            *(one + other for one, other in zip(first, second, strict=True)),
        )

        def joined(both: tuple[jax.Array, jax.Array]) -> jax.Array:
            array = jnp.concatenate(both)
            return array if order is None else take(array, jnp.argsort(order))

        met, usual, now_asked, answered = (
            joined(both)
            for both in ((a.met, b.met), (a.usual, b.usual), (a.asked, b.asked), (a.answered, b.answered))
        )
        noted = tuple(joined(both) for both in zip(a.noted, b.noted, strict=True))
        if self._pace:
            took = self._took(k_busy, node, trains=trains, answered=answered)
            wait = jnp.where(asking, wait + took, wait) - 1 / self._ticks
            # What was read out until now belongs to a model that was left.
            begins = (now_asked == _BEGUN) & (asked != _BEGUN)
            x = tuple(joined(both) for both in zip(a.held[:n], b.held[:n], strict=True))
            readout = tuple(chosen(begins, x, y) for x, y in zip(x, readout, strict=True))
        small = (node, jobs + trains.astype(jnp.uint32), up, met, usual, noted, wait, now_asked)
        return (a.held, b.held), (*readout, *optimiser), small, counts

    def _trained(
        self, x: _Leaves, optimiser: _Leaves, active: jax.Array, node: jax.Array, jobs: jax.Array, rows: Rows
    ) -> tuple[_Leaves, _Leaves]:
        """Weights and optimiser states after one job of those that are active; all (width, ...)."""

        def one(x: _Leaves, *more: Any) -> Any:
            trained, optimiser, _ = self._trainer.train_leaves(self._tree(x), *more)
            leaves = jax.tree_util.tree_leaves(trained)
            return tuple(leaf.astype(jnp.float32).reshape(-1) for leaf in leaves), optimiser

        taken = batches(
            rows, node, jobs, steps=self.settings.local_steps, size=self._batch, seed=self._shuffle_seed
        )
        if (
            self._bad and self.settings.attack == "labels"
        ):  # an honest node with false labels: the last for the first
            wrong = jnp.max(rows.train["y"]) - taken["y"]
            taken = {**taken, "y": chosen(node < self._bad, wrong, taken["y"])}
        stepped = jax.vmap(one)(
            x,
            optimiser,
            jobs == 0,
            taken,
            node.astype(jnp.uint32),
            jobs * jnp.uint32(self.settings.local_steps),
        )
        done: tuple[_Leaves, _Leaves] = jax.tree_util.tree_map(
            lambda new, old: chosen(active, new, old), stepped, (x, optimiser)
        )
        return done

    def _tree(self, x: _Leaves) -> Any:
        """The task's parameters of one node."""
        return self._trainer.tree_of(
            [leaf.reshape(shape) for leaf, shape in zip(x, self._shapes, strict=True)]
        )

    def _wave(
        self, key: Key, i: _Ends, j: _Ends, genesis: _Leaves, known: Crowd | None
    ) -> tuple[_Ends, _Ends, list[jax.Array]]:
        """Each of i asks its partner of j; return both as they are then, and what _Counts counts from `finished` on."""
        settings, lanes = self.settings, self._lanes
        k_late, k_legs = jax.random.split(key)
        n = len(self._shapes)
        shown_i, shown_j = i.held[:n], j.held[:n]
        if settings.late:
            late = jax.random.uniform(k_late, (lanes,)) < settings.late
            shown_i = tuple(chosen(late, *pair) for pair in zip(i.before, shown_i, strict=True))
        if known is not None:
            k_i, k_j = jax.random.split(jax.random.fold_in(key, 2))
            shown_i = self._lies(k_i, i.node, shown_i, genesis, known)
            shown_j = self._lies(k_j, j.node, shown_j, genesis, known)
        asks, replies = i.active & j.present, jnp.ones(lanes, bool)
        if settings.loss:
            # With a pace an offer without an answer is repeated once, and an answer comes again for that.
            arrives = jax.random.uniform(k_legs, (4 if self._pace else 2, lanes)) >= settings.loss
            replies = arrives[1]
            asks &= arrives[0] & (replies | ~(arrives[2] & arrives[3])) if self._pace else arrives[0]
        answered = asks & replies
        if self._pace:
            begun = i.asked == _BEGUN, j.asked == _BEGUN
            met_newcomer = asks & ~(begun[0] & begun[1])
            asks &= ~met_newcomer
        # One vector for the whole model where blocks or norms run over all of it; else one for each leaf, which is the
        # same arithmetic without the copies.
        whole = settings.codec != "f32" or self._rules.gate is not None
        keys = None
        if self._strategy.dithered and settings.codec != "f32":
            keys = jax.random.split(jax.random.fold_in(key, 3), lanes)

        def parts(leaves: _Leaves) -> list[jax.Array]:
            return [jnp.concatenate(leaves, axis=-1)] if whole else list(leaves)

        def ends(end: _Ends, shown: _Leaves) -> list[End]:
            groups = [parts(end.held[at : at + n]) for at in range(0, self._held, n)]
            return [
                End(Shard(State(x, tuple(kept), end.noted), end.met, end.usual), told)
                for (x, *kept), told in zip(zip(*groups, strict=True), parts(shown), strict=True)
            ]

        outs: list[Outcome] = [
            jax.vmap(partial(exchange, self._rules, settings.codec), in_axes=(None, 0, 0, 0, 0, 0))(
                reference, one, other, asks, replies, keys
            )
            for reference, one, other in zip(parts(genesis), ends(i, shown_i), ends(j, shown_j), strict=True)
        ]
        out = outs[0]
        counts = [
            jnp.sum(flags).astype(jnp.int32)
            for flags in (out.finished & out.answered, out.answered ^ out.finished, out.refused)
        ]

        def after(end: _Ends, at: int) -> _Ends:
            held = _leaves_of([out.ends[at].state for out in outs])
            if whole:
                held = tuple(leaf for vector in held for leaf in jnp.split(vector, self._ends, axis=1))
            shard = out.ends[at]
            return end._replace(held=held, met=shard.count, usual=shard.usual, noted=shard.state.noted)

        i, j = after(i, 0)._replace(answered=answered), after(j, 1)
        if self._pace:
            near = partial(adoptable, genesis=genesis, config=settings.exchange)
            taken = met_newcomer & answered & ~begun[0] & begun[1] & near(shown_j)
            given = met_newcomer & begun[0] & ~begun[1] & near(shown_i)
            asked = jnp.where(i.active, jnp.maximum(i.asked, 0), i.asked) + (
                met_newcomer & answered & ~begun[0] & ~begun[1]
            )
            alone = i.active & ~begun[0] & (asked >= i.need)
            i = self._adopted(i, taken, shown_j)._replace(asked=jnp.where(taken | alone, _BEGUN, asked))
            j = self._adopted(j, given, shown_i)._replace(asked=jnp.where(given, _BEGUN, j.asked))
        return i, j, counts

    def _adopted(self, end: _Ends, flags: jax.Array, offered: _Leaves) -> _Ends:
        """Those who take over what they were offered, (lanes, ...), where flags say so."""
        adopt = jax.vmap(partial(self._strategy.adopt, jnp))
        states = [
            adopt(state, leaf) for state, leaf in zip(self._states(end.held, end.noted), offered, strict=True)
        ]
        return end._replace(
            held=tuple(chosen(flags, *both) for both in zip(_leaves_of(states), end.held, strict=True)),
            noted=tuple(chosen(flags, *both) for both in zip(states[0].noted, end.noted, strict=True)),
        )

    def _states(self, held: _Leaves, noted: tuple[jax.Array, ...]) -> list[State]:
        """The strategy's state, leaf by leaf, of nodes in the first axis."""
        n = len(self._shapes)
        return [State(held[leaf], tuple(held[leaf + n :: n]), noted) for leaf in range(n)]

    def _lies(self, key: Key, node: jax.Array, x: _Leaves, genesis: _Leaves, known: Crowd) -> _Leaves:
        told = lies(key, self.settings.attack, x, genesis, known)
        return tuple(chosen(node < self._bad, lie, leaf) for lie, leaf in zip(told, x, strict=True))

    def _half(self, number: jax.Array) -> jax.Array:
        """Where in the slabs the nodes lie when round `number` begins."""
        return self._slots * (number % self._halves)

    # --- nodes ---------------------------------------------------------------------------------------------------

    def _present(self, node: jax.Array, up: jax.Array) -> jax.Array:
        if self._everybody:
            return jnp.ones(node.shape, bool)
        return up & (node < self.settings.nodes)

    def _active(
        self, key: Key, node: jax.Array, up: jax.Array, jobs: jax.Array, wait: jax.Array, asked: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Who asks in this round or tick; whose read-out takes in the weights; and who trains."""
        asking = self._present(node, up)
        if self._pace:
            asking &= wait <= 0
        elif self._slow:
            busy = jax.random.uniform(key, node.shape) >= 1 / self.settings.slowness
            asking &= ~(self._is_slow(node) & busy)
        active = asking & (asked == _BEGUN) if self._pace else asking
        trains = active & (jobs < self.settings.rounds_max) if self.settings.rounds_max else active
        return asking, active, trains

    def _is_slow(self, node: jax.Array) -> jax.Array:
        # Attackers have the smallest numbers, stragglers the largest.
        return (node >= self.settings.nodes - self._slow) & (node < self.settings.nodes)

    def _took(self, key: Key, node: jax.Array, *, trains: jax.Array, answered: jax.Array) -> jax.Array:
        assert self._pace is not None, "in step a round takes a round"
        slower = jnp.where(self._is_slow(node), np.float32(self.settings.slowness), np.float32(1))
        return duration(self._pace, key, node, slower=slower, trains=trains, answered=answered)

    def _dealt(self, key: Key, state: _State, source: jax.Array) -> _State:
        m = self._slots
        here = tuple(jax.lax.dynamic_slice_in_dim(slab, source, m) for slab in state.slabs)
        slabs, *small = deal(key, (here, *state[1:]), axis=AXIS)
        return _State(
            tuple(write(slab, new, source) for slab, new in zip(state.slabs, slabs, strict=True)), *small
        )

    # --- measuring, on one device of the mesh -----------------------------------------------------------------------

    def _measure(self, state: _State, rows: Rows, number: jax.Array, *, sample: int) -> Measured:
        """Accuracy of the first `sample` slots, whoever lies there; consensus of all."""
        honest = (state.node >= self._bad) & self._present(state.node, state.up)  # (m,)
        taken = honest[:sample]
        source = self._half(number)
        count = sum(len(next(iter(batch.values()))) for batch in rows.test)

        def accuracy(slot: jax.Array) -> jax.Array:
            n = len(self._shapes)
            y = self._tree(tuple(slab[source + slot] for slab in state.slabs[self._held : self._held + n]))
            right: jax.Array = jnp.float32(0)
            for batch in rows.test:
                metrics: dict[str, jax.Array] = self._trainer.evaluate_leaves(y, batch)[1]
                if "accuracy" not in metrics:
                    raise LocalError(
                        f"expected a metric called accuracy of the task {self.settings.task!r}, found none"
                    )
                right += metrics["accuracy"] * np.float32(len(next(iter(batch.values()))) / count)
            return right

        found = jax.lax.map(
            accuracy, jnp.arange(sample, dtype=jnp.int32), batch_size=min(_EVALUATED_AT_ONCE, sample)
        )  # (sample,)
        return measured(
            found,
            taken,
            consensus(
                state.slabs[: len(self._shapes)], source, honest, chunks=self._chunks, width=2 * self._lanes
            ),
        )


def _leaves_of(states: Sequence[State]) -> _Leaves:
    """Weights of all leaves, then what the strategy keeps besides, vector by vector."""
    return tuple(
        leaf
        for vectors in zip(*((state.x, *state.kept) for state in states), strict=True)
        for leaf in vectors
    )
