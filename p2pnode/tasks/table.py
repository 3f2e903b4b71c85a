"""The built-in task `table`: a CSV or NPZ file with a label column.

What peers must agree on and cannot see in each other's files goes into the run's manifest: the list of classes (by the
task's version), how features are scaled, and the names of the columns in their order, as far as a file has names: equal
positions would mean different things otherwise. By default features are standardised by the mean and deviation of **the
file's own training rows**. That is right where all nodes read the same file (and take a
`part` of it). Where each machine brings its own file, equal values would mean different things on different
machines; give the same `mean` and `deviation` everywhere then, or bring features that are scaled already and
say `scale="none"`.
"""

import csv
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gossip.errors import LocalError
from gossip.run import manifest
from p2pnode.tasks.classifier import Classifier, Rows, check_batch, check_model
from p2pnode.tasks.partition import divided

Numbers: TypeAlias = float | Sequence[float]

TEST_SHARE = 0.2
_SPLIT_SEED = 0
# Read into memory twice or three times over.
_FILE_BYTES_MAX = 2**30
# Models train in float32, where a larger number is infinite.
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_REPAIR = "fill it or drop the row"


def make(
    *,
    path: str,
    label: str | int = -1,
    classes: Sequence[str | int | float] | None = None,
    scale: str = "standard",
    mean: Numbers | None = None,
    deviation: Numbers | None = None,
    test_share: float = TEST_SHARE,
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
    hidden: int = 32,
    batch: int = 32,
    lr: float = 0.05,
) -> Classifier:
    """Return the task of one node.

    Args:
        path: CSV (comma or semicolon; a header is recognised by cells that are no numbers), or NPZ with
            arrays `x` (rows, features) and `y` (rows,). Nothing may be missing: a cell that is empty or
            NaN, and a feature that is infinite or too large for float32, are refused with their place.
        label: The label's column in a CSV file: its name in the header, or its index (-1: the last).
        classes: All labels that occur anywhere, in an agreed order; default: those of this file, sorted.
        scale: standard (subtract a mean, divide by a deviation) or none.
        mean, deviation: One number, or one for each feature; default: those of this file's training rows.
        test_share: Share of the rows that are for testing only, drawn by a fixed seed.
        part, parts, partition, alpha, sigma, labels_each, rows_min, seed: As in the task `digits`.
        rows_file: As there; rows count from 0 in the order of the file, without its header.
        model: mlp (one hidden layer) or logistic.
        hidden: Width of that layer.
        batch: Rows in a training batch; at most the file's training rows, or 1,024 where it has fewer.
        lr: Learning rate of SGD.

    Raises:
        LocalError: a file that cannot be understood, or an argument out of range.
    """
    if not 0 <= part < parts:
        raise LocalError(f"expected part to be from 0 to parts - 1, got part={part} of parts={parts}")
    check_model(model)
    if scale not in ("standard", "none"):
        raise LocalError(f"expected scale to be standard or none, got {scale!r}")
    if scale == "none" and (mean is not None or deviation is not None):
        raise LocalError('mean and deviation have no meaning with scale="none"; leave one or the other out')
    if (mean is None) != (deviation is None):
        raise LocalError("expected mean and deviation together, got one without the other")
    if not 0 < test_share < 1:
        raise LocalError(f"expected test_share between 0 and 1, got {test_share}")
    file = Path(path)
    state = file.stat()
    if state.st_size > _FILE_BYTES_MAX:
        raise LocalError(
            f"{path} has {state.st_size} bytes, the limit is {_FILE_BYTES_MAX}; write a task of your own"
        )
    # Date and size are part of the key, so that a file that changed is read again.
    table = _read(path, label, state.st_mtime_ns, state.st_size)
    known = _names(classes) if classes is not None else sorted(set(table.labels), key=_label_order)
    y = _numbered(table.labels, known)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
    tested = max(1, round(test_share * len(y)))
    train, test = order[tested:], order[:tested]
    if not len(train):
        raise LocalError(f"{path} has {len(y)} rows: too few to train on and to test on")
    check_batch(batch, len(train))
    x, scaling = table.x, manifest.scaling("none")
    if scale == "standard" and mean is not None and deviation is not None:
        middle, width = _vector("mean", mean, x.shape[1]), _vector("deviation", deviation, x.shape[1])
        if not (width > 0).all():
            raise LocalError("every deviation must be above zero")
        x = (x - middle) / width
        scaling = manifest.scaling("given", middle.astype("<f8").tobytes(), width.astype("<f8").tobytes())
    elif scale == "standard":
        width = x[train].std(axis=0)
        # A constant feature carries nothing; it becomes zero.
        x = (x - x[train].mean(axis=0)) / np.where(width > 0, width, 1)
        scaling = manifest.scaling("own")
    divisions = divided(
        y[train],
        parts,
        seed=seed,
        numbers=train,
        partition=partition,
        alpha=alpha,
        sigma=sigma,
        labels_each=labels_each,
        rows_min=rows_min,
        rows_file=rows_file,
    )
    own = train[divisions[part]]
    rows = Rows(x.astype(np.float32), y)
    agreed = hashlib.sha256(msgspec.json.encode(known)).hexdigest()[:12]
    return Classifier(
        name="table",
        version=f"1 {len(known)} classes {agreed}",
        train=rows.take(own),
        test=rows.take(test),
        classes=len(known),
        hidden=hidden if model == "mlp" else 0,
        batch=batch,
        rate=lr,
        # A file without names can be compared with nothing: it is of one run with others without names.
        columns=table.columns,
        label=table.label,
        scaling=scaling,
    )


class _Table(Struct, frozen=True):
    x: npt.NDArray[np.float64]  # (rows, features), finite, also as float32
    labels: list[str]
    columns: tuple[str, ...] = ()  # names of the features; empty: the file has none
    label: str = ""  # name of the label's column


@lru_cache(maxsize=2)
def _read(path: str, label: str | int, changed_ns: int, size_bytes: int) -> _Table:
    return _read_npz(path) if path.endswith(".npz") else _read_csv(path, label)


def _read_npz(path: str) -> _Table:
    with np.load(path, allow_pickle=False) as arrays:
        if "x" not in arrays or "y" not in arrays:
            raise LocalError(f"{path}: expected arrays x and y, got {', '.join(arrays) or 'none'}")
        x, y = arrays["x"], arrays["y"]
    if y.ndim != 1 or len(x) != len(y) or len(y) < 2:
        raise LocalError(
            f"{path}: expected x and y of equally many rows, at least two, got {x.shape} and {y.shape}"
        )
    x = x.reshape(len(x), -1).astype(np.float64)
    _check_numbers(x, lambda row, feature: f"{path}: x, row {row}, feature {feature} (both from 0)")
    for row, cell in enumerate(y.tolist()):
        # A number that is none is no label; a word such as "inf" may be.
        if _is_missing(cell) or cell in (float("inf"), float("-inf")):
            raise LocalError(f"{path}: y, row {row} (from 0): expected a label, got {cell!r}; {_REPAIR}")
    return _Table(x, [_label(cell) for cell in y.tolist()])


def _read_csv(path: str, label: str | int) -> _Table:
    with open(path, newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        separator = ";" if first.count(";") > first.count(",") else ","
        reader = csv.reader(file, delimiter=separator)
        lines, numbers = [], []  # cells, and where they stand in the file
        for line in reader:
            if line:
                lines.append(line)
                numbers.append(reader.line_num)
    if not lines:
        raise LocalError(f"{path} is empty")
    width = len(lines[0])
    header = None
    if isinstance(label, str) or sum(not _is_number(cell) for cell in lines[0]) > 1:
        header = [cell.strip() for cell in lines.pop(0)]
        numbers.pop(0)
    if isinstance(label, str):
        assert header is not None, "a label by name makes the first line a header"
        if label not in header:
            raise LocalError(f"{path} has no column {label!r}; its columns are {', '.join(header[:20])}")
        column = header.index(label)
    elif not -width <= label < width:
        raise LocalError(f"{path} has {width} columns, so there is none with index {label}")
    else:
        column = label % width
    if len(lines) < 2 or width < 2:
        raise LocalError(f"{path}: expected at least two rows and two columns, got {len(lines)} and {width}")
    features = [at for at in range(width) if at != column]

    def place(row: int, at: int) -> str:
        return f"{path}: line {numbers[row]}, column {at + 1 if header is None else repr(header[at])}"

    x = np.empty((len(lines), width - 1))
    labels = []
    for row, line in enumerate(lines):
        if len(line) != width:
            raise LocalError(f"{path}: line {numbers[row]} has {len(line)} cells, the first has {width}")
        if _is_missing(line[column]):
            raise LocalError(f"{place(row, column)}: expected a label, got {line[column]!r}; {_REPAIR}")
        labels.append(_label(line[column]))
        try:
            x[row] = [float(line[at]) for at in features]
        except ValueError as error:
            at = next(at for at in features if not _is_number(line[at]))
            raise LocalError(f"{place(row, at)}: expected a number, got {line[at]!r}; {_REPAIR}") from error
    _check_numbers(x, lambda row, feature: place(row, features[feature]))
    if header is None:
        return _Table(x, labels)
    return _Table(x, labels, tuple(header[at] for at in features), header[column])


def _check_numbers(x: npt.NDArray[np.float64], place: Callable[[int, int], str]) -> None:
    """Refuse what training would turn into NaN: what is not finite, and what float32 cannot hold.

    Args:
        x: Shape (rows, features).
        place: Words for a row and a feature of it, both from 0.

    Raises:
        LocalError: one sentence, for the first.
    """
    bad = np.argwhere(~(np.abs(x) <= _FLOAT32_MAX))  # so written, NaN is bad
    if len(bad):
        row, feature = bad[0].tolist()
        raise LocalError(
            f"{place(row, feature)}: expected a finite number of at most {_FLOAT32_MAX:.2g} in size, "
            f"got {float(x[row, feature])}; {_REPAIR}"
        )


def _is_missing(cell: Any) -> bool:
    """Whether a label is one that nobody wrote: an empty cell, or the NaN that programs write in its place."""
    text = str(cell).strip()
    return not text or text.lower() == "nan"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label(cell: Any) -> str:
    """Return a label as text, equal for 1, 1.0 and "1"."""
    text = str(cell).strip()
    if _is_number(text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def _label_order(label: str) -> tuple[bool, float, str]:
    """Numbers first, by value, then names."""
    number = _is_number(label)
    return (not number, float(label) if number else 0.0, label)


def _names(classes: Sequence[str | int | float]) -> list[str]:
    names = [_label(one) for one in classes]
    if len(set(names)) != len(names):
        raise LocalError(f"expected classes that differ from each other, got {', '.join(names)}")
    return names


def _numbered(labels: list[str], known: list[str]) -> npt.NDArray[np.int32]:
    if len(known) < 2:
        raise LocalError(f"expected at least two classes, got {', '.join(known)}; is it the right column?")
    if len(known) > max(100, len(labels) // 2):
        raise LocalError(f"{len(known)} different labels in {len(labels)} rows: is it the right column?")
    numbers = {name: number for number, name in enumerate(known)}
    unknown = sorted({label for label in labels if label not in numbers})
    if unknown:
        raise LocalError(f"the label {unknown[0]!r} is not among the classes {', '.join(known)}")
    return np.array([numbers[label] for label in labels], np.int32)


def _vector(name: str, given: Numbers, features: int) -> npt.NDArray[np.float64]:
    numbers = np.asarray(given, np.float64)
    if numbers.shape not in ((), (features,)) or not np.isfinite(numbers).all():
        raise LocalError(f"expected {name} to be one finite number or {features}, got {given!r}")
    return np.broadcast_to(numbers, features).copy()
