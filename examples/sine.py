"""Your own model and your own data, in one file: a worked example of a p2pnode task.

Each machine has measured a sine wave, but only a narrow stretch of it. None of them can draw the whole curve;
the swarm can, and no measurement leaves its machine. Try it, from this directory's parent:

    p2pnode check-task --task examples.sine:make --set task.args.stretch=0
    p2pnode run --task examples.sine:make --set task.args.stretch=0      # on the first machine
    p2pnode run --task examples.sine:make --set task.args.stretch=1 ...  # on the next

A task is any object with three functions (`init`, `loss`, `batches`) and, if you like, `optimizer`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STRETCHES = 4  # the curve from -pi to pi, in so many pieces, one for each machine
HIDDEN = 32
BATCH = 16


class Sine:
    # Both are part of the run id: peers with another name or version are refused. Raise the version when the
    # same weights would mean something else, for example after a change of `loss` or of how inputs are
    # scaled.
    name = "sine"
    version = "1"

    def __init__(self, stretch: int, rows: int) -> None:
        # In real life: read your own file here. The data stay in this object; only weights are exchanged.
        rng = np.random.default_rng(stretch)
        width = 2 * np.pi / STRETCHES
        self._x = (-np.pi + width * (stretch + rng.random((rows, 1)))).astype(np.float32)  # (rows, 1)
        self._y = (np.sin(self._x) + 0.05 * rng.standard_normal((rows, 1))).astype(np.float32)

    def init(self, key: Any) -> dict[str, Any]:
        # Any tree of arrays; leaves of a float type are shared. Every machine must get the same numbers from
        # the same key: take all randomness from it. Uniform draws are equal on all kinds of machines.
        first, second = jax.random.split(key)
        return {
            "w1": jax.random.uniform(first, (1, HIDDEN), jnp.float32, -2.0, 2.0),
            "b1": jnp.zeros(HIDDEN, jnp.float32),
            "w2": jax.random.uniform(second, (HIDDEN, 1), jnp.float32, -0.3, 0.3),
            "b2": jnp.zeros(1, jnp.float32),
        }

    def loss(self, params: Any, batch: Any, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        # Pure and jit-able. Returns what is minimised, and any number of metrics to show. One called "accuracy", in
        # [0, 1], would be what p2psim plots and stops at; a regression has none, so it shows the loss.
        hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"][None, :])  # (rows, HIDDEN)
        error = hidden @ params["w2"] + params["b2"][None, :] - batch["y"]  # (rows, 1)
        square = jnp.mean(error**2)
        return square, {"rms_error": jnp.sqrt(square)}

    def batches(self, split: str, seed: int) -> Iterator[dict[str, np.ndarray]]:
        # Fixed shapes: each new shape is compiled anew, which takes seconds.
        if split == "train":
            rng = np.random.default_rng(seed)
            while True:  # "train" never ends
                rows = rng.integers(len(self._x), size=BATCH)
                yield {"x": self._x[rows], "y": self._y[rows]}
        # "test" ends, and is the same everywhere: here the true curve, from end to end.
        x = np.linspace(-np.pi, np.pi, 100, dtype=np.float32)[:, None]
        yield {"x": x, "y": np.sin(x)}

    def optimizer(self) -> optax.GradientTransformation:
        # Optional. Its state stays on this machine.
        return optax.adam(0.01)


def make(stretch: int = 0, rows: int = 200) -> Sine:
    """Return the task; the settings under [task.args] arrive here as keyword arguments."""
    if not 0 <= stretch < STRETCHES:
        # Becomes one sentence for whoever started the daemon.
        raise ValueError(f"stretch must be from 0 to {STRETCHES - 1}, got {stretch}")
    return Sine(stretch, rows)
