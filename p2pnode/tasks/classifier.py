"""A small classifier on rows of numbers: what the built-in tasks `digits` and `table` are made of.

One hidden layer (or none: logistic regression), cross-entropy, SGD. JAX is imported when a model is built,
not when this file is: commands that only name a task stay fast.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gossip.errors import LocalError
from gossip.learning.task import Split
from gossip.run.manifest import Scaling
from p2pnode.values import nearest

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int32]

# Rows are gathered for so many batches at once: a batch then costs a slice (0.5 us) instead of a gather (5
# us), and the copy stays small beside the data.
_BATCHES_AHEAD = 64
# Test rows in one batch. 4,096 rows of 1,000 features are 16 MB.
_TEST_ROWS_MAX = 4096


# A batch may have so many rows even where the data set has fewer, because machines with small files share one setting
# with machines that have large ones, and repeating a few rows up to here costs milliseconds.
BATCH_FREE = 1024
MODELS = ("mlp", "logistic")


class Rows(Struct, frozen=True):
    """Examples: features float32 of shape (rows, features), labels int32 of shape (rows,), from 0 up."""

    x: FloatArray
    y: IntArray

    def take(self, rows: npt.NDArray[np.int64]) -> "Rows":
        return Rows(self.x[rows], self.y[rows])

    def __len__(self) -> int:
        return len(self.y)


def check_model(model: str) -> None:
    """Raises LocalError where there is no model of this name."""
    if model not in MODELS:
        raise LocalError(f"expected model to be {' or '.join(MODELS)}, got {model!r}{nearest(model, MODELS)}")


def check_batch(batch: int, rows: int) -> None:
    """Raises LocalError where a batch is larger than the training rows of the whole data set.

    It would hold each of them several times: the same step as with all of them once, only slower, and at 100,000 rows
    so slow that nothing seems to happen.
    """
    largest = max(rows, BATCH_FREE)
    if batch > largest:
        raise LocalError(
            f"expected batch to be at most {largest}, there are {rows} training rows; got {batch}"
        )


class Classifier:
    """A task (gossip/learning/task.py) over rows in memory.

    Args:
        name, version: Part of the run id.
        train: This machine's rows; at least one.
        test: The same on all machines, where the data set is a common one.
        classes: How many labels there are; part of the schema by the width of the output.
        hidden: Width of the hidden layer (ReLU); 0: none.
        batch: Rows in one training batch. Fewer rows than that are repeated.
        rate: Learning rate of SGD.
        cooling_steps: The rate falls in a straight line to zero over so many steps; 0: it stays. Nodes stop at their
            own time, and whoever trains last pulls the average towards its own rows; a cold end has no last word.
        columns: Names of the features, in order; empty: unknown.
        label: Name of the column that is predicted; empty: unknown.
        scaling: How the features were brought to one scale, where peers must agree on it.

    Raises:
        LocalError: no rows, or a number out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        train: Rows,
        test: Rows,
        classes: int,
        hidden: int,
        batch: int,
        rate: float,
        cooling_steps: int = 0,
        columns: tuple[str, ...] = (),
        label: str = "",
        scaling: Scaling | None = None,
    ) -> None:
        if not len(train) or not len(test):
            raise LocalError(f"expected rows to train on and to test on, got {len(train)} and {len(test)}")
        for key, least, number in (
            ("batch", 1, batch),
            ("hidden", 0, hidden),
            ("cooling_steps", 0, cooling_steps),
        ):
            if number < least:
                raise LocalError(f"expected {key} to be at least {least}, got {number}")
        # Factories call it lr. Written so that NaN fails.
        if not 0 < rate < float("inf"):
            raise LocalError(f"expected lr to be a finite number above 0, got {rate}")
        self.name = name
        self.version = version
        self.train = train
        self.test = test
        self.classes = classes
        self.columns = columns
        self.label = label
        self.scaling = scaling
        self._hidden = hidden
        self._batch = batch
        self._rate = rate
        self._cooling_steps = cooling_steps

    def init(self, key: Any) -> dict[str, dict[str, Any]]:
        """Return weights uniform in +-sqrt(6 / inputs) (He et al. 2015), biases zero; the last layer all
        zero.

        Uniform, because those draws are equal bit for bit on every machine; the normal's are not, and peers
        must derive one genesis. The last layer is zero so that a small step at the beginning is not lost in
        noise.
        """
        import jax
        import jax.numpy as jnp

        features = self.train.x.shape[1]
        params = {}
        if self._hidden:
            limit = np.float32((6 / features) ** 0.5)
            draw = jax.random.uniform(key, (features, self._hidden), jnp.float32, -1.0, 1.0)
            params["hidden"] = {"w": draw * limit, "b": jnp.zeros(self._hidden, jnp.float32)}
        inputs = self._hidden or features
        params["output"] = {
            "w": jnp.zeros((inputs, self.classes), jnp.float32),
            "b": jnp.zeros(self.classes, jnp.float32),
        }
        return params

    def loss(self, params: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """Return mean cross-entropy and {"accuracy"} of a batch: x (rows, features), y (rows,)."""
        import jax
        import jax.numpy as jnp

        h = batch["x"]  # (rows, features)
        if self._hidden:
            h = jax.nn.relu(h @ params["hidden"]["w"] + params["hidden"]["b"][None, :])  # (rows, hidden)
        scores = h @ params["output"]["w"] + params["output"]["b"][None, :]  # (rows, classes)
        logs = jax.nn.log_softmax(scores)
        wanted = jnp.take_along_axis(logs, batch["y"][:, None], axis=1)  # (rows, 1)
        right = jnp.argmax(scores, axis=1).astype(jnp.int32) == batch["y"]
        return -jnp.mean(wanted), {"accuracy": jnp.mean(right.astype(jnp.float32))}

    def optimizer(self) -> Any:
        """Return plain SGD: no state that would differ between peers, and nothing to tune but the rate."""
        import optax

        if self._cooling_steps:
            return optax.sgd(optax.linear_schedule(self._rate, 0.0, self._cooling_steps))
        return optax.sgd(self._rate)

    def batches(self, split: Split, seed: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Return batches {"x", "y"}: "train" shuffled epochs without end, "test" all rows once, in order."""
        if split == "train":
            return self._train_batches(seed)
        return iter(
            [
                {"x": self.test.x[at : at + _TEST_ROWS_MAX], "y": self.test.y[at : at + _TEST_ROWS_MAX]}
                for at in range(0, len(self.test), _TEST_ROWS_MAX)
            ]
        )

    def _train_batches(self, seed: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
        rng = np.random.default_rng(seed)
        rows, batch = len(self.train), self._batch
        ahead = batch * _BATCHES_AHEAD
        order = np.empty(0, np.int64)
        while True:
            # Whole epochs, one after the other; a batch may span two.
            while len(order) < ahead:
                order = np.concatenate([order, *(rng.permutation(rows) for _ in range(-(-ahead // rows)))])
            taken, order = self.train.take(order[:ahead]), order[ahead:]
            for at in range(0, ahead, batch):
                yield {"x": taken.x[at : at + batch], "y": taken.y[at : at + batch]}
