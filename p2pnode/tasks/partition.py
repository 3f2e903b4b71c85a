"""How one data set is divided among n machines that in truth would each bring their own.

Pure functions `(labels, n, seed=..., ...) -> n index arrays`, under the names that users know from other
frameworks. Parts are disjoint, complete, sorted, the same for the same arguments, and have at least
`rows_min` rows each: which is arranged by moving rows from the largest parts, not by drawing again until it
happens to hold, for that may never end.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gossip.errors import LocalError

Labels: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = npt.NDArray[np.int64]

KINDS = ("iid", "dirichlet", "shards", "quantity")


def iid(labels: Labels, n: int, *, seed: int, rows_min: int = 1) -> list[Part]:
    """Divide at random into parts whose sizes differ by one at most."""
    _check(labels, n, rows_min)
    order = np.random.default_rng(seed).permutation(len(labels))
    return _sorted(np.array_split(order, n))


def dirichlet(labels: Labels, n: int, *, seed: int, alpha: float = 0.5, rows_min: int = 1) -> list[Part]:
    """Divide each label's rows in proportions drawn from Dirichlet(alpha): small alpha, unequal labels and
    sizes.

    Source: Hsu, Qi and Brown 2019 (arXiv 1909.06335), in the form by label of Yurochkin et al. 2019.
    """
    _check(labels, n, rows_min)
    _check_alpha(alpha)
    rng = np.random.default_rng(seed)
    parts: list[list[Part]] = [[] for _ in range(n)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(rng.dirichlet(np.full(n, alpha)))[:-1] * len(rows)
        for part, piece in zip(parts, np.split(rows, cuts.round().astype(np.int64)), strict=True):
            part.append(piece)
    return _sorted(_levelled([np.concatenate(part) for part in parts], rows_min))


def shards(labels: Labels, n: int, *, seed: int, labels_each: int = 2, rows_min: int = 1) -> list[Part]:
    """Sort by label, cut into n * labels_each equal runs, deal `labels_each` runs to each part.

    A part holds about `labels_each` labels. Source: McMahan et al. 2017 (arXiv 1602.05629), section 3.
    """
    _check(labels, n, rows_min)
    if labels_each < 1:
        raise LocalError(f"expected at least one label for each part, got {labels_each}")
    rng = np.random.default_rng(seed)
    # Shuffled before the stable sort, so that runs of one label are not runs of the file.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    runs = np.array_split(order, n * labels_each)
    dealt = rng.permutation(n * labels_each).reshape(n, labels_each)
    return _sorted(_levelled([np.concatenate([runs[k] for k in row]) for row in dealt], rows_min))


def quantity(labels: Labels, n: int, *, seed: int, alpha: float = 0.5, rows_min: int = 1) -> list[Part]:
    """Divide at random into parts of sizes drawn from Dirichlet(alpha): labels alike, sizes unequal."""
    _check(labels, n, rows_min)
    _check_alpha(alpha)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    cuts = np.cumsum(rng.dirichlet(np.full(n, alpha)))[:-1] * len(labels)
    return _sorted(_levelled(np.split(order, cuts.round().astype(np.int64)), rows_min))


def divide(kind: str, labels: Labels, n: int, *, seed: int, **more: Any) -> list[Part]:
    """Call the partitioner of this name (KINDS).

    Raises:
        LocalError: no such partitioner, or what it refuses.
    """
    partitioners = {"iid": iid, "dirichlet": dirichlet, "shards": shards, "quantity": quantity}
    if kind not in partitioners:
        raise LocalError(f"expected a partition of kind {', '.join(KINDS)}, got {kind!r}")
    parts: list[Part] = partitioners[kind](labels, n, seed=seed, **more)
    return parts


def _check(labels: Labels, n: int, rows_min: int) -> None:
    if labels.ndim != 1:
        raise LocalError(f"expected one label per row, got an array of shape {labels.shape}")
    if n < 1 or rows_min < 0:
        raise LocalError(f"expected n >= 1 parts of rows_min >= 0 rows, got {n} and {rows_min}")
    if n * rows_min > len(labels):
        raise LocalError(
            f"{len(labels)} rows cannot be divided into {n} parts of at least {rows_min}; take fewer parts"
        )


def _check_alpha(alpha: float) -> None:
    # Below 1e-3 all draws underflow to zero, and proportions are not numbers.
    if not 1e-3 <= alpha <= 1e6:
        raise LocalError(f"expected alpha between 0.001 and 1e6, got {alpha}")


def _levelled(parts: Sequence[Part], rows_min: int) -> list[Part]:
    """Move rows from the largest part, one by one, to the parts that have too few."""
    sizes = np.array([len(part) for part in parts])
    levelled = [part.tolist() for part in parts]
    for poor in np.flatnonzero(sizes < rows_min).tolist():
        while len(levelled[poor]) < rows_min:
            rich = int(np.argmax(sizes))
            levelled[poor].append(levelled[rich].pop())
            sizes[rich] -= 1
            sizes[poor] += 1
    return [np.array(part, np.int64) for part in levelled]


def _sorted(parts: Sequence[Part]) -> list[Part]:
    return [np.sort(part).astype(np.int64) for part in parts]
