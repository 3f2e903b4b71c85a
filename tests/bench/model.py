"""A task with nothing to learn and much to carry: one vector, for measuring exchanges."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class Vector:
    """`values` float32 parameters; its loss pulls them to zero."""

    name = "bench-vector"
    version = "1"

    def __init__(self, values: int) -> None:
        self._values = values

    def init(self, key: Any) -> Any:
        """Normal values: what codecs are made for."""
        import jax

        return {"w": jax.random.normal(key, (self._values,))}

    def loss(self, params: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """A thousandth of the vector, so that a step, if one is asked for, costs next to nothing."""
        loss = (params["w"][:1000] ** 2).mean() + batch["x"].mean()
        return loss, {"loss": loss}

    def batches(self, split: str, seed: int) -> Iterator[dict[str, np.ndarray]]:
        """The same row of zeros, for ever when training."""
        row = {"x": np.zeros((1, 1), np.float32)}
        while split == "train":
            yield row
        yield row


def make(values: int = 10_000_000) -> Vector:
    """The factory: `--task tests.bench.model:make --set task.args.values=N`."""
    return Vector(values)
