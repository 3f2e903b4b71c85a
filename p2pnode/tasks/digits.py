"""The built-in task `digits`: 1,797 handwritten digits of 8x8 pixels, as scikit-learn carries them.

For demonstrations and experiments: every node reads the same file and takes its own part of the training
rows; the 360 test rows are the same for all. Data: E. Alpaydin and C. Kaynak, Optical Recognition of
Handwritten Digits, UCI.
"""

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gossip.errors import LocalError
from p2pnode.tasks.classifier import Classifier, Rows, check_batch, check_model
from p2pnode.tasks.partition import Part, divided

CLASSES = 10
HIDDEN = 64
# Of a small sweep with 5 nodes, Dirichlet 0.3, and 4 steps a round: after 300 rounds and 15 of exchange only, the
# worst node is 0.5 points below all data in one place (-0.5 to 1.4, five seeds); with 8 and 0.1, 1.0 (0.3 to 2.0,
# four seeds).
BATCH = 32
RATE = 0.2
TRAIN_ROWS = 1437  # of 1797: four fifths
TEST_ROWS = 360
_SPLIT_SEED = 0
_PIXEL_MAX = 16.0


def make(
    *,
    part: int = 0,
    parts: int = 1,
    partition: str = "",
    alpha: float | None = None,
    sigma: float | None = None,
    labels_each: int | None = None,
    rows_min: int = 1,
    rows_file: str = "",
    seed: int = 0,
    model: str = "mlp",
    hidden: int = HIDDEN,
    batch: int = BATCH,
    lr: float = RATE,
    cooling_steps: int = 0,
) -> Classifier:
    """Return the task of one node.

    Args:
        part: Which part of the training rows is ours, from 0.
        parts: How many there are.
        partition: How they are divided (partition.KINDS); default: dirichlet where alpha is given, quantity where sigma
            is, shards where labels_each is, file where rows_file is, else iid.
        alpha: Of Dirichlet (labels, or sizes with quantity): 100 gives nearly equal parts, 0.1 very unequal ones.
            Default there 0.5.
        sigma: Of the log-normal sizes of quantity.
        labels_each: Of shards: label runs for each part, 2 by default.
        rows_min: Each part has at least so many rows.
        rows_file: A CSV `part,row`: row numbers from 0 to 1796 in the order of scikit-learn, of which the 360
            test rows are passed over.
        seed: Of the division; the same on all nodes.
        model: mlp (64-64-10 unless `hidden` says otherwise) or logistic.
        hidden: Width of the mlp's hidden layer.
        batch: Rows in a training batch; at most 1437, all there are.
        lr: Learning rate of SGD.
        cooling_steps: The rate falls to zero over so many steps; 0: it stays.

    Raises:
        LocalError: an argument out of range, or more parts than rows.
    """
    if not 0 <= part < parts:
        raise LocalError(f"expected part to be from 0 to parts - 1, got part={part} of parts={parts}")
    check_model(model)
    check_batch(batch, TRAIN_ROWS)
    train, test = _rows()
    division = {
        "partition": partition,
        "alpha": alpha,
        "sigma": sigma,
        "labels_each": labels_each,
        "rows_min": rows_min,
        "rows_file": rows_file,
    }
    return Classifier(
        name="digits",
        version="1",
        train=train.take(_parts(parts, seed, **division)[part]),
        test=test,
        classes=CLASSES,
        hidden=hidden if model == "mlp" else 0,
        batch=batch,
        rate=lr,
        cooling_steps=cooling_steps,
    )


# Cached: one process may hold hundreds of nodes.
@lru_cache(maxsize=8)
def _parts(parts: int, seed: int, **division: Any) -> list[Part]:
    numbers = np.random.default_rng(_SPLIT_SEED).permutation(TRAIN_ROWS + TEST_ROWS)[:TRAIN_ROWS]
    return divided(_rows()[0].y, parts, seed=seed, numbers=numbers, **division)


@lru_cache(maxsize=1)
def _rows() -> tuple[Rows, Rows]:
    """Return train and test rows, pixels from 0 to 1."""
    table = _table()  # (1797, 65), the label last
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(table))
    rows = Rows((table[:, :-1] / _PIXEL_MAX).astype(np.float32), table[:, -1].astype(np.int32))
    return rows.take(order[:TRAIN_ROWS]), rows.take(order[TRAIN_ROWS:])


def _table() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    # The file's path inside scikit-learn is private, but reading it takes 0.05 s, and importing scikit-learn
    # 5 s.
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise LocalError(
            "the digits come with scikit-learn, which is not installed; pip install scikit-learn"
        )
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="ascii") as file:
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
