"""Training and evaluation of a task: the only file of this package that imports JAX.

A task is compiled once per process, for a fixed number of lanes: one call trains up to that many learners, as
one `vmap` over a `scan` of optimiser steps. A call of fewer is padded, so nothing is compiled twice and a
job's numbers do not depend on the jobs beside it. Randomness comes from `fold_in(fold_in(key, node), step)`,
never from call order.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from gossip.config import ExchangeConfig, LearningConfig
from gossip.errors import LocalError
from gossip.learning.codec import FloatArray
from gossip.learning.learner import Learner, TrainInput, TrainOutput
from gossip.learning.optimiser import StateLeaf, optimiser_id
from gossip.learning.task import Leaf, Schema, Task, run_info

Pytree: TypeAlias = Any
Metrics: TypeAlias = dict[str, float]

# Of the default optimiser, plain SGD: fits small networks on digits. Tasks should bring their own.
_SGD_RATE = 0.1


class Trainer:
    """The compiled task.

    Args:
        task: Its `init`, `loss` and `optimizer` are used for training, its test batches for evaluation;
            training batches come with each job, so learners with different data share one trainer.
        lanes: Jobs in one call.
        seed: Of the genesis and of all keys given to `loss`.

    Raises:
        LocalError: the parameters have no float leaf.
    """

    def __init__(self, task: Task, *, lanes: int = 1, seed: int = 0) -> None:
        if lanes < 1:
            raise LocalError(f"expected at least one lane, got {lanes}")
        self.task = task
        self.lanes = lanes
        self._key = jax.random.key(seed)
        flat, self._tree = jax.tree_util.tree_flatten_with_path(task.init(jax.random.fold_in(self._key, 0)))
        self._leaves = [jnp.asarray(leaf) for _, leaf in flat]
        self._shared = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in self._leaves]
        if not any(self._shared):
            raise LocalError("the task's parameters have no float leaf: there is nothing to share")
        names = [_name(path) for path, _ in flat]
        self.schema = Schema(
            tuple(
                Leaf(name, tuple(leaf.shape), str(leaf.dtype))
                for name, leaf, shared in zip(names, self._leaves, self._shared, strict=True)
                if shared
            )
        )
        # The initial vector: the same on every peer of a run, and the reference of every exchange.
        self.genesis: FloatArray = np.concatenate(
            [
                np.asarray(leaf, dtype=np.float32).reshape(-1)
                for leaf, shared in zip(self._leaves, self._shared, strict=True)
                if shared
            ]
        )
        self.genesis.flags.writeable = False
        self._optimizer: optax.GradientTransformation = (
            task.optimizer() if hasattr(task, "optimizer") else optax.sgd(_SGD_RATE)
        )
        state = jax.eval_shape(lambda: self._optimizer.init(self._floats(jnp.asarray(self.genesis))))
        blank, self._state_tree = jax.tree_util.tree_flatten_with_path(state)
        # Where a learner has no optimiser state yet: zeros, which the compiled function replaces.
        self.blank_state = tuple(np.zeros(leaf.shape, leaf.dtype) for _, leaf in blank)
        # For `Learner`: a saved state of another optimiser is not for this one.
        self.optimiser = optimiser_id(
            self._optimizer.update,
            self._state_tree,
            [StateLeaf(_name(path), tuple(leaf.shape), str(leaf.dtype)) for path, leaf in blank],
        )
        self._train = jax.jit(jax.vmap(self.train_one))
        self._evaluate = jax.jit(jax.vmap(self.evaluate_one, in_axes=(0, None)))

    # --- for one learner, under jit ------------------------------------------------------------------

    def train_one(
        self,
        vector: jax.Array,  # (values,) float32
        state: tuple[jax.Array, ...],
        fresh: jax.Array,  # () bool: there is no state yet
        batches: dict[str, jax.Array],  # each (steps, rows, ...)
        node: jax.Array,  # () uint32
        step: jax.Array,  # () uint32
    ) -> tuple[jax.Array, tuple[jax.Array, ...], jax.Array]:
        """Return (change of the vector, new state, mean loss)."""
        floats, end, loss = self.train_leaves(self._floats(vector), state, fresh, batches, node, step)
        return self._vector(floats) - vector, end, loss

    def train_leaves(
        self,
        floats: Pytree,
        state: tuple[jax.Array, ...],
        fresh: jax.Array,
        batches: dict[str, jax.Array],
        node: jax.Array,
        step: jax.Array,
    ) -> tuple[Pytree, tuple[jax.Array, ...], jax.Array]:
        """The same on a tree as `tree_of` makes it, which is returned trained; the fleet maps over it."""
        started = jax.tree_util.tree_leaves(self._optimizer.init(floats))
        leaves = [jnp.where(fresh, new, old) for new, old in zip(started, state, strict=True)]
        key = jax.random.fold_in(self._key, node)

        def loss(floats: Pytree, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
            value: jax.Array = self.task.loss(self._whole(floats), batch, key)[0]
            return value

        def body(carry: tuple[Pytree, Pytree, jax.Array], batch: dict[str, jax.Array]) -> Any:
            floats, state, step = carry
            value, gradient = jax.value_and_grad(loss)(floats, batch, jax.random.fold_in(key, step))
            updates, state = self._optimizer.update(gradient, state, floats)
            return (optax.apply_updates(floats, updates), state, step + jnp.uint32(1)), value

        begin = (floats, jax.tree_util.tree_unflatten(self._state_tree, leaves), step)
        (floats, end, _), losses = jax.lax.scan(body, begin, batches)  # losses: (steps,)
        return floats, tuple(jax.tree_util.tree_leaves(end)), jnp.mean(losses.astype(jnp.float32))

    def evaluate_one(
        self, vector: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.evaluate_leaves(self._floats(vector), batch)

    def evaluate_leaves(
        self, floats: Pytree, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return loss and metrics of a tree as `tree_of` makes it."""
        loss, metrics = self.task.loss(self._whole(floats), batch, self._key)
        return loss, metrics

    def tree_of(self, leaves: Sequence[jax.Array]) -> Pytree:
        """Return the tree of parameters with these float32 arrays as its float leaves, and None for the others.

        Args:
            leaves: In the order and the shapes of `schema.leaves`; they are cast to the user's types.
        """
        given = iter(leaves)
        placed = [
            next(given).astype(leaf.dtype) if shared else None
            for leaf, shared in zip(self._leaves, self._shared, strict=True)
        ]
        return jax.tree_util.tree_unflatten(self._tree, placed)

    def _floats(self, vector: jax.Array) -> Pytree:
        """Return the tree of parameters with its float leaves from the vector, and None for the others.

        None is an empty subtree to JAX: gradients and optimisers pass it by, masks by name still fit.
        """
        leaves: list[jax.Array | None] = []
        start = 0
        for leaf, shared in zip(self._leaves, self._shared, strict=True):
            if shared:
                leaves.append(vector[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
                start += leaf.size
            else:
                leaves.append(None)
        return jax.tree_util.tree_unflatten(self._tree, leaves)

    def _whole(self, floats: Pytree) -> Pytree:
        """Return the parameters as the task made them: the other leaves stay as in `init`."""
        given = iter(jax.tree_util.tree_leaves(floats))
        leaves = [
            next(given) if shared else leaf for leaf, shared in zip(self._leaves, self._shared, strict=True)
        ]
        return jax.tree_util.tree_unflatten(self._tree, leaves)

    def _vector(self, floats: Pytree) -> jax.Array:
        leaves = jax.tree_util.tree_leaves(floats)
        return jnp.concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in leaves])

    # --- for the drivers -----------------------------------------------------------------------------

    def params(self, vector: FloatArray) -> Pytree:
        """Return the task's parameters with the values of a shared vector, shape (schema.values,)."""
        return self._whole(self._floats(jnp.asarray(vector)))

    def run(self, inputs: Sequence[TrainInput]) -> list[TrainOutput]:
        """Carry out training jobs of equal numbers of steps; outputs in the order of the inputs.

        More inputs than lanes are run in several calls.

        Raises:
            LocalError: jobs of different numbers of steps.
        """
        if len({given.steps for given in inputs}) > 1:
            raise LocalError("the jobs of one call must have equally many steps")
        outputs: list[TrainOutput] = []
        for start in range(0, len(inputs), self.lanes):
            outputs += self._run_lanes(inputs[start : start + self.lanes])
        return outputs

    def _run_lanes(self, inputs: Sequence[TrainInput]) -> list[TrainOutput]:
        lanes = [*inputs, *[inputs[0]] * (self.lanes - len(inputs))]
        states = [self.blank_state if given.optimiser is None else given.optimiser for given in lanes]
        change, state, losses = self._train(
            _stack([given.params for given in lanes]),  # (lanes, values)
            tuple(_stack(leaves) for leaves in zip(*states, strict=True)),
            np.array([given.optimiser is None for given in lanes]),
            {name: _stack([given.batches[name] for given in lanes]) for name in lanes[0].batches},
            np.array([given.node for given in lanes], np.uint32),
            np.array([given.step % 2**32 for given in lanes], np.uint32),
        )
        # np.asarray waits for the device.
        changes = np.asarray(change)
        leaves = [np.asarray(leaf) for leaf in state]
        lost = np.asarray(losses).tolist()
        return [
            TrainOutput(
                change=changes[lane],
                optimiser=tuple(leaf[lane] for leaf in leaves),
                loss=lost[lane],
                steps=given.steps,
            )
            for lane, given in enumerate(inputs)
        ]

    def evaluate(self, vectors: Sequence[FloatArray]) -> list[Metrics]:
        """Measure shared vectors on the test split.

        Returns:
            For each vector the task's metrics, "loss", and "rows" (how many test rows), means over the rows.

        Raises:
            LocalError: the task has no test rows.
        """
        batches = [dict(batch) for batch in self.task.batches("test", 0)]
        rows = [len(next(iter(batch.values()))) for batch in batches]
        if not sum(rows):
            raise LocalError('the task\'s batches("test", 0) gave no rows')
        found: list[Metrics] = []
        for start in range(0, len(vectors), self.lanes):
            some = list(vectors[start : start + self.lanes])
            lanes = _stack([*some, *[some[0]] * (self.lanes - len(some))])
            sums: dict[str, npt.NDArray[np.float64]] = {}
            for batch, count in zip(batches, rows, strict=True):
                loss, metrics = self._evaluate(lanes, batch)
                for name, lane_values in {**metrics, "loss": loss}.items():
                    sums[name] = sums.get(name, 0.0) + count * np.asarray(lane_values, np.float64)
            found += [
                {**{name: float(total[lane]) / sum(rows) for name, total in sums.items()}, "rows": sum(rows)}
                for lane in range(len(some))
            ]
        return found


def train_alone(task: Task, *, rounds: int, learning: LearningConfig, seed: int = 0) -> Metrics:
    """Train one learner that never meets anybody, and measure its read-out on the test split.

    Given a task that holds all data this is "all data in one place"; given a node's part, "each node alone":
    same optimiser, steps and read-out as in the swarm, so that only the exchanges differ.
    """
    trainer = Trainer(task, seed=learning.genesis_seed)
    run = run_info(network="", task=task, schema=trainer.schema, genesis=trainer.genesis, learning=learning)
    learner = Learner(
        run,
        trainer.genesis,
        exchange=ExchangeConfig(),
        learning=learning,
        batches=lambda seed: task.batches("train", seed),
        seed=seed,
    )
    for _ in range(rounds):
        learner.trained(trainer.run([learner.train_input(learning.local_steps)])[0])
    return trainer.evaluate([learner.readout()])[0]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _stack(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the arrays along a new first axis; one array without a copy."""
    # Not np.stack, which makes a view of each array first: 256 small ones take it eight times as long.
    return arrays[0][None] if len(arrays) == 1 else np.array(arrays)
