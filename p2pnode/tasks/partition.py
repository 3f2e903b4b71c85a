"""How one data set is divided among n machines that in truth would each bring their own.

Pure functions `(labels, n, seed=..., ...) -> n index arrays`, under the names that users know from other
frameworks. Parts are disjoint, complete, sorted, the same for the same arguments, and have at least
`rows_min` rows each: which is arranged by moving rows from the largest parts, not by drawing again until it
happens to hold, for that may never end. One kind, `file`, reads who has which rows; rows that nobody is given stay
unused there.
"""

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gossip.errors import LocalError
from p2pnode.values import nearest

Labels: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = npt.NDArray[np.int64]

KINDS = ("iid", "dirichlet", "shards", "quantity", "file")

# What a task's factory takes besides part, parts and seed to say how rows are divided. Whoever has all rows in one
# place leaves these out.
ARGUMENTS = ("partition", "alpha", "sigma", "labels_each", "rows_min", "rows_file")

# A partition file names each row once: room for ten million rows.
_FILE_BYTES_MAX = 2**28
# Sizes of which one is e**20 times another are no sizes.
_SIGMA_MAX = 5.0


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
    if not 1 <= labels_each <= len(labels):
        raise LocalError(
            f"expected labels_each from 1 to {len(labels)}, the number of rows, got {labels_each}"
        )
    rng = np.random.default_rng(seed)
    # Shuffled before the stable sort, so that runs of one label are not runs of the file.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    runs = np.array_split(order, n * labels_each)
    dealt = rng.permutation(n * labels_each).reshape(n, labels_each)
    return _sorted(_levelled([np.concatenate([runs[k] for k in row]) for row in dealt], rows_min))


def quantity(
    labels: Labels,
    n: int,
    *,
    seed: int,
    alpha: float | None = None,
    sigma: float | None = None,
    rows_min: int = 1,
) -> list[Part]:
    """Divide at random into parts of unequal sizes: labels alike.

    Args:
        alpha: Sizes are drawn from Dirichlet(alpha); default 0.5, unless sigma is given.
        sigma: Sizes are log-normal with this sigma: at 1 a large part (one in six) has e times the rows of the median.
    """
    _check(labels, n, rows_min)
    if alpha is not None and sigma is not None:
        raise LocalError(f"expected alpha or sigma for the sizes of parts, got both ({alpha} and {sigma})")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    if sigma is None:
        alpha = 0.5 if alpha is None else alpha
        _check_alpha(alpha)
        shares = rng.dirichlet(np.full(n, alpha))
    else:
        if not 0 <= sigma <= _SIGMA_MAX:
            raise LocalError(f"expected sigma between 0 and {_SIGMA_MAX:g}, got {sigma}")
        sizes = rng.lognormal(0.0, sigma, n)
        shares = sizes / sizes.sum()
    cuts = np.cumsum(shares)[:-1] * len(labels)
    return _sorted(_levelled(np.split(order, cuts.round().astype(np.int64)), rows_min))


def from_file(
    labels: Labels, n: int, *, rows_file: str, numbers: npt.NDArray[np.int64] | None = None, rows_min: int = 1
) -> list[Part]:
    """Divide as a file says: a CSV with the header `part,row`, one line for each row that somebody has.

    Args:
        rows_file: Parts count from 0 to n - 1, rows from 0 in the order of the data set. A row that is not
            in `numbers` (it is for testing) is passed over; a row that is not in the file belongs to nobody.
        numbers: The number in the data set of each of our rows; default: 0, 1, 2, ...

    Raises:
        LocalError: the file cannot be understood, gives one row twice, or leaves a part with less than `rows_min` rows.
    """
    _check(labels, n, rows_min)
    file = Path(rows_file)
    state = file.stat()
    if state.st_size > _FILE_BYTES_MAX:
        raise LocalError(f"{rows_file} has {state.st_size} bytes, the limit is {_FILE_BYTES_MAX}")
    # Date and size are part of the key, so that a file that changed is read again.
    parts, rows = _read_assignment(rows_file, state.st_mtime_ns, state.st_size)
    if (most := int(parts.max())) >= n:
        raise LocalError(f"{rows_file}: expected parts from 0 to {n - 1}, got part {most}")
    numbers = np.arange(len(labels)) if numbers is None else numbers
    places = {number: place for place, number in enumerate(numbers.tolist())}
    found: list[list[int]] = [[] for _ in range(n)]
    for part, row in zip(parts.tolist(), rows.tolist(), strict=True):
        if row in places:
            found[part].append(places[row])
    for index, part_rows in enumerate(found):
        if len(part_rows) < rows_min:
            raise LocalError(
                f"{rows_file}: expected at least {rows_min} training rows for part {index}, got {len(part_rows)}; "
                f"training rows have numbers from {numbers.min()} to {numbers.max()}"
            )
    return _sorted([np.array(part_rows, np.int64) for part_rows in found])


@lru_cache(maxsize=4)
def _read_assignment(
    path: str, changed_ns: int, size_bytes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    parts, rows = [], []
    seen: dict[int, int] = {}  # row -> line
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        if [cell.strip() for cell in next(lines, [])] != ["part", "row"]:
            raise LocalError(f"{path}: expected the header part,row in its first line")
        for line in lines:
            if not line:
                continue
            if len(line) != 2 or not all(cell.strip().isascii() and cell.strip().isdigit() for cell in line):
                raise LocalError(
                    f"{path}: line {lines.line_num}: expected two whole numbers, got {','.join(line)[:60]!r}"
                )
            part, row = (int(cell) for cell in line)
            if max(part, row) > 2**40:
                raise LocalError(
                    f"{path}: line {lines.line_num}: expected numbers of parts and rows, got {part},{row}"
                )
            if row in seen:
                raise LocalError(
                    f"{path}: line {lines.line_num}: row {row} is given in line {seen[row]}, too"
                )
            seen[row] = lines.line_num
            parts.append(part)
            rows.append(row)
    if not rows:
        raise LocalError(f"{path}: expected at least one row, got none")
    return np.array(parts, np.int64), np.array(rows, np.int64)


def divide(kind: str, labels: Labels, n: int, *, seed: int, **more: Any) -> list[Part]:
    """Call the partitioner of this name (KINDS).

    Raises:
        LocalError: no such partitioner, an argument that it has no use for, or what it refuses.
    """
    uses: dict[str, tuple[Any, tuple[str, ...]]] = {
        "iid": (iid, ()),
        "dirichlet": (dirichlet, ("alpha",)),
        "shards": (shards, ("labels_each",)),
        "quantity": (quantity, ("alpha", "sigma")),
        "file": (from_file, ("rows_file", "numbers")),
    }
    if kind not in uses:
        raise LocalError(
            f"expected a partition of kind {', '.join(KINDS)}, got {kind!r}{nearest(kind, KINDS)}"
        )
    partitioner, own = uses[kind]
    for name in more:
        if name not in (*own, "rows_min"):
            takes = f"takes {' and '.join(own)}" if own else "takes none"
            raise LocalError(f"{name} has no meaning for a partition of kind {kind}, which {takes}")
    if kind == "file" and not more.get("rows_file"):
        raise LocalError(
            "expected rows_file, the path of a partition file, for a partition of kind file, got none"
        )
    given = more if kind == "file" else {"seed": seed, **more}
    parts: list[Part] = partitioner(labels, n, **given)
    return parts


def divided(
    labels: Labels,
    parts: int,
    *,
    seed: int,
    numbers: npt.NDArray[np.int64] | None = None,
    partition: str = "",
    alpha: float | None = None,
    sigma: float | None = None,
    labels_each: int | None = None,
    rows_min: int = 1,
    rows_file: str = "",
) -> list[Part]:
    """Divide as the arguments of a built-in task say (ARGUMENTS), of which most are left out.

    Args:
        labels: Of the training rows.
        parts: How many.
        seed: Of the division; the same on all nodes. A file needs none.
        numbers: Of the training rows in the data set, for `file`.
        partition: One of KINDS; default: the one that the others speak of, else iid.
        alpha, sigma, labels_each, rows_min, rows_file: As of the partitioners.

    Raises:
        LocalError: as `divide`.
    """
    given = {"alpha": alpha, "sigma": sigma, "labels_each": labels_each}
    more: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if rows_file:
        more["rows_file"] = rows_file
    speaks = {"rows_file": "file", "labels_each": "shards", "sigma": "quantity", "alpha": "dirichlet"}
    kind = partition or next((speaks[name] for name in speaks if name in more), "iid")
    if kind == "file":
        more["numbers"] = numbers
    return divide(kind, labels, parts, seed=seed, rows_min=rows_min, **more)


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
