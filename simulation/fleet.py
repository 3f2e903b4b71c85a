"""The fleet: learning only, the whole network as one XLA program, 10^4 nodes on two cores and 10^6 on an accelerator.

The second engine of the simulator. The world runs the whole protocol of some hundred nodes; here there is no message,
no signature, no clock: a round trains every node and deals all of them into pairs twice (fleet_network.py). What a
node computes is the same in both: `Trainer.train_one`, `pair`, `codec` and `gate`.

Layout. A node is a row. Weights are one array (2 * slots, values): a wave reads rows of one half in random order and
writes the other half in order, so that every pair lies together and a row moves through memory once. Nodes have no
place of their own; each slot knows whom it holds. Read-outs and optimiser states move in the first wave only. Chunks
of `lanes` pairs bound what lies between (batches, gradients), which fits into a cache, or into an accelerator.

Devices. Slots are divided among the devices of a mesh; once a round they are dealt anew over all of them (one
all-to-all), and then everybody meets partners on the own device. Whether the devices belong to one process or to
several is JAX's business.

Randomness: keys by fold_in of round and device. Same settings, seed and number of devices: the same figures.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, nan
from time import perf_counter
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from msgspec import Meta, Struct

from gossip.config import ExchangeConfig, LearningConfig
from gossip.errors import LocalError
from gossip.learning.codec import CODECS
from gossip.learning.trainer import Trainer, train_alone
from p2pnode.tasks import load_task
from p2pnode.tasks.partition import divide
from simulation.fleet_network import Attack, End, Outcome, Rules, deal, exchange, lie, shuffled
from simulation.network import Probability
from simulation.seeds import Seeds

# Pairs in one chunk. 256 pairs of logistic regressions are 1.3 MB of weights: they stay in a cache of the processor
# between reading and writing. An accelerator wants work for all its lanes.
LANES_CPU = 256
LANES_ACCELERATOR = 16384

# A node has at least so many rows; where there are more nodes than that allows, several hold the same rows.
_ROWS_EACH_MIN = 2

# Nodes in one step of an evaluation: 128 nodes x 360 test rows x 10 classes are 1.8 MB.
_EVALUATED_AT_ONCE = 128

# The order of a node's rows changes with every epoch: a random offset, and one of so many strides.
_STRIDES = 8

# Nodes measured at the end; of more, a sample of so many, drawn by the dealing.
MEASURED_MAX = 65536

_AXIS = "nodes"
_QUANTILES = (0.1, 0.5, 0.9)

Key: TypeAlias = jax.Array
Count: TypeAlias = Annotated[int, Meta(ge=1)]


class FleetSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment of the fleet. Probabilities are per node and round, or per leg of an exchange."""

    nodes: Annotated[int, Meta(ge=2, le=2**30)] = 500
    rounds: Count = 500
    task: str = "digits"
    # Of the task's factory. `partition`, `alpha` and `seed` of it divide the rows, as in the world.
    args: dict[str, Any] = {}
    local_steps: Count = 1
    readout_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    codec: str = "f32"
    # None: a gate stands wherever there are attackers. Among honest nodes it refuses nobody and seldom clips.
    gate: bool | None = None
    exchange: ExchangeConfig = ExchangeConfig()
    loss: Probability = 0.0  # of one leg
    # An offer is late: it tells the weights as they were one training (first wave) or one exchange (second) ago.
    late: Probability = 0.0
    churn: Probability = 0.0  # a node leaves
    away_rounds: Annotated[float, Meta(ge=1)] = 10.0  # how long on average
    stragglers: Probability = 0.0  # share of nodes that are slow
    slowness: Annotated[float, Meta(ge=1)] = 4.0  # how many rounds one of their rounds takes, on average
    attackers: Probability = 0.0  # share of nodes that lie about their weights
    attack: Attack = "flip"
    # Measure after so many rounds, and at the end.
    every: Count = 50
    sample: Count = 256  # nodes measured on the way
    seed: Annotated[int, Meta(ge=0)] = 0
    genesis_seed: Annotated[int, Meta(ge=0)] = 0
    lanes: Annotated[int, Meta(ge=0)] = 0  # pairs in a chunk; 0: as fits the device


class FleetAccuracy(Struct, frozen=True):
    """On the test rows, in [0, 1], of the read-outs of honest nodes that are up."""

    mean: float
    worst: float
    central: float  # one learner with all rows, as many rounds; nan if not measured


class Point(Struct, frozen=True):
    """What was measured on the way, on a sample of the nodes."""

    round: int
    mean: float
    worst: float
    quantiles: tuple[float, ...]  # 10 %, 50 %, 90 %
    consensus: float


class FleetReport(Struct, frozen=True):
    """What one run came to; `p2psim fleet --json` prints it."""

    task: str
    seed: int
    nodes: int
    rounds: int
    devices: int
    node_updates: int  # local training jobs, each with the exchange that its node initiates
    exchanges: int  # applied by both ends
    halves: int  # applied by the responder only: the answer was lost or refused
    refused: int
    wall_s: float  # of the rounds and the measurements on the way; without compiling and those at the end
    compile_s: float
    accuracy: FleetAccuracy
    measured: int  # nodes behind `accuracy`
    consensus: float  # of all honest nodes that are up
    curve: list[Point]


class _State(NamedTuple):
    """One device's share; see the module's docstring. m slots, of which some may be empty."""

    x: jax.Array  # (2 m, values) float32; between rounds the weights are in the first half
    slow: tuple[jax.Array, ...]  # each (2 m, ...): read-out, leaves of the optimiser's state
    at: jax.Array  # (m,) int32: where the slot's node has its row in `slow`
    node: jax.Array  # (m,) int32: whom the slot holds; from `nodes` up: nobody
    jobs: jax.Array  # (m,) uint32: training jobs that it has done
    up: jax.Array  # (m,) bool
    count: jax.Array  # (m,) float32: history of its gate
    mean: jax.Array  # (m,) float32


class _Rows(NamedTuple):
    """The data set and who holds which rows; the same on all devices."""

    train: dict[str, jax.Array]  # each (rows, ...)
    test: tuple[dict[str, jax.Array], ...]
    table: jax.Array  # (parts, most rows) int32: rows of each part, then zeros
    sizes: jax.Array  # (parts,) uint32
    strides: jax.Array  # (parts, _STRIDES) uint32, coprime to the size


class _Counts(NamedTuple):
    """Of one round, over all devices; () int32 each."""

    trained: jax.Array
    finished: jax.Array
    halves: jax.Array
    refused: jax.Array


class _Measured(NamedTuple):
    accuracy: jax.Array  # () mean
    worst: jax.Array
    quantiles: jax.Array
    consensus: jax.Array
    nodes: jax.Array  # () int32: how many


class Fleet:
    """A network ready to run.

    Args:
        settings: What is simulated.
        devices: Over which it is sharded, of all processes; default: the first one.

    Raises:
        LocalError: the task keeps no rows in memory, or an argument is out of range.
        UserError: there is no such task.
    """

    def __init__(self, settings: FleetSettings, *, devices: Sequence[jax.Device] | None = None) -> None:
        if settings.codec not in CODECS:
            raise LocalError(f"expected one of the codecs {', '.join(CODECS)}, got {settings.codec!r}")
        self.settings = settings
        seeds = Seeds(settings.seed)
        chosen = list(devices) if devices is not None else jax.devices()[:1]
        self.devices = len(chosen)
        self._mesh = Mesh(np.array(chosen), (_AXIS,))
        self._lanes, self._chunks = _shape(settings, self.devices, chosen[0].platform)
        self._slots = 2 * self._lanes * self._chunks  # of one device
        division = {"partition", "alpha"} & set(settings.args)
        args = {name: given for name, given in settings.args.items() if name not in division}
        self._task = load_task(settings.task, args)
        self._trainer = Trainer(self._task, seed=settings.genesis_seed)
        self.values = self._trainer.schema.values
        if self.values > LearningConfig().shard_values_max:
            raise LocalError(f"a model of {self.values} values has several shards; the fleet exchanges whole models")
        self._rows = self._put(_rows(self._task, settings, seeds), P())
        self._genesis = self._put(np.asarray(self._trainer.genesis), P())
        self._batch = len(next(iter(next(self._task.batches("train", 0)).values())))
        gated = settings.gate if settings.gate is not None else settings.attackers > 0
        self._rules = Rules(codec=settings.codec, config=settings.exchange if gated else None)
        self._key = seeds.integer("fleet") % 2**32
        self._shuffle_seed = np.uint32(seeds.integer("batches") % 2**32)
        self._bad = round(settings.attackers * settings.nodes)
        self._slow = round(settings.stragglers * settings.nodes)
        self._everybody = self._slots * self.devices == settings.nodes and not settings.churn
        self.round = 0

    # --- for callers -----------------------------------------------------------------------------------

    def compile(self) -> float:
        """Make the programs; return the seconds it took, with the beginning of the state."""
        begun = perf_counter()
        spec = _State(*[P(_AXIS)] * len(_State._fields))
        begin = jax.jit(self._mapped(self._begin, (P(),), spec))
        self._state: _State = begin(self._genesis)
        whole = (spec, P(), P(), P(), P())
        rounds = jax.jit(self._mapped(self._run, whole, (spec, P(), P())), donate_argnums=0)
        measure = jax.jit(self._mapped(partial(self._measure, sample=self._sample(MEASURED_MAX)), whole[:2], P()))
        one = jnp.int32(1)
        self._rounds = rounds.lower(self._state, self._rows, self._genesis, one, one).compile()
        self._final = measure.lower(self._state, self._rows).compile()
        jax.block_until_ready(self._state)
        return perf_counter() - begun

    def advance(self, rounds: int) -> tuple[Point, dict[str, int]]:
        """Run so many rounds and measure a sample; one call of the device. After `compile`."""
        # Committed nowhere: every process gives the same numbers.
        self._state, counts, found = self._rounds(
            self._state, self._rows, self._genesis, jnp.int32(self.round), jnp.int32(rounds)
        )
        self.round += rounds
        counts, found = jax.device_get((counts, found))  # waits for the device
        point = Point(
            round=self.round,
            mean=float(found.accuracy),
            worst=float(found.worst),
            quantiles=tuple(float(value) for value in found.quantiles),
            consensus=float(found.consensus),
        )
        return point, {name: int(count) for name, count in counts._asdict().items()}

    def measure(self) -> tuple[Point, int]:
        """Measure all nodes, or MEASURED_MAX of them; return how many, too."""
        found = jax.device_get(self._final(self._state, self._rows))
        point = Point(
            round=self.round,
            mean=float(found.accuracy),
            worst=float(found.worst),
            quantiles=tuple(float(value) for value in found.quantiles),
            consensus=float(found.consensus),
        )
        return point, int(found.nodes)

    def weights(self) -> npt.NDArray[np.float32]:
        """Return the weights of all nodes, by node: shape (nodes, values). Copies them from the device."""
        return self._by_node(self._state.x)

    def _by_node(self, slab: jax.Array) -> npt.NDArray[np.float32]:
        rows = np.asarray(slab).reshape(self.devices, 2, self._slots, -1)[:, 0].reshape(-1, self.values)
        node = np.asarray(self._state.node)
        found = np.empty((self.settings.nodes, self.values), np.float32)
        real = node < self.settings.nodes
        found[node[real]] = rows[real]
        return found

    def place(self, weights: npt.NDArray[np.float32]) -> None:
        """Give every node weights of its own, shape (nodes, values); after `compile`, before the first round."""
        assert self.round == 0
        slots = self._slots * self.devices
        rows = np.zeros((slots, self.values), np.float32)
        rows[: len(weights)] = weights
        slab = np.zeros((self.devices, 2, self._slots, self.values), np.float32)
        slab[:, 0] = rows.reshape(self.devices, self._slots, self.values)
        self._state = self._state._replace(x=self._put(slab.reshape(-1, self.values), P(_AXIS)))

    # --- the beginning -----------------------------------------------------------------------------------

    def _mapped(self, run: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        mapped: Callable[..., Any] = jax.shard_map(
            run, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return mapped

    def _put(self, tree: Any, spec: P) -> Any:
        sharding = NamedSharding(self._mesh, spec)

        def put(array: Any) -> jax.Array:
            # From a callback, because a device may belong to another process.
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree_util.tree_map(put, tree)

    def _sample(self, wanted: int) -> int:
        """Slots of each device that hold about `wanted` nodes in all."""
        return min(ceil(wanted / self.devices), self._slots)

    def _begin(self, genesis: jax.Array) -> _State:
        m = self._slots
        blank = [jnp.zeros((2 * m, *leaf.shape), leaf.dtype) for leaf in self._trainer.blank_state]
        everywhere = jnp.broadcast_to(genesis, (2 * m, self.values))
        return _State(
            x=everywhere,
            slow=(everywhere, *blank),
            at=jnp.arange(m, dtype=jnp.int32),
            node=jnp.arange(m, dtype=jnp.int32) + m * jax.lax.axis_index(_AXIS).astype(jnp.int32),
            jobs=jnp.zeros(m, jnp.uint32),
            up=jnp.ones(m, bool),
            count=jnp.zeros(m, jnp.float32),
            mean=jnp.zeros(m, jnp.float32),
        )

    # --- rounds, on one device of the mesh --------------------------------------------------------------------

    def _run(
        self, state: _State, rows: _Rows, genesis: jax.Array, first: jax.Array, count: jax.Array
    ) -> tuple[_State, _Counts, _Measured]:
        def body(number: jax.Array, carry: tuple[_State, _Counts]) -> tuple[_State, _Counts]:
            state, counts = carry
            state, more = self._round(state, rows, genesis, number)
            return state, jax.tree_util.tree_map(jnp.add, counts, more)

        none = _Counts(*[jnp.int32(0)] * 4)
        state, counts = jax.lax.fori_loop(first, first + count, body, (state, none))
        counts = jax.lax.psum(counts, _AXIS)
        return state, counts, self._measure(state, rows, sample=self._sample(self.settings.sample))

    def _round(
        self, state: _State, rows: _Rows, genesis: jax.Array, number: jax.Array
    ) -> tuple[_State, _Counts]:
        settings, m = self.settings, self._slots
        key = jax.random.fold_in(jax.random.key(self._key), number)
        keys = jax.random.split(jax.random.fold_in(key, jax.lax.axis_index(_AXIS)), 5)
        # Of `slow`, this round reads one half and writes the other.
        target = jnp.where(number % 2 == 0, m, 0).astype(jnp.int32)
        if self.devices > 1:
            state = self._dealt(keys[0], state, m - target)
        state = self._moved(keys[1], state)
        state, first = self._first_wave(keys[2], state, rows, genesis, shuffled(keys[3], m), target)
        state, second = self._second_wave(keys[4], state, genesis, first)
        counts = jax.tree_util.tree_map(lambda a, b: jnp.sum(a) + jnp.sum(b), first.counts, second)
        return state, counts
