"""Partitions: disjoint, complete, the same every time, nobody left without rows; and as unequal as asked."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import LocalError
from p2pnode.tasks import load_task
from p2pnode.tasks.digits import _table
from p2pnode.tasks.partition import KINDS, divide, divided

LABELS = np.random.default_rng(0).integers(0, 10, 1437).astype(np.int32)


DRAWN = tuple(kind for kind in KINDS if kind != "file")


@given(data=st.data(), kind=st.sampled_from(DRAWN), seed=st.integers(0, 2**32 - 1))
def test_every_partition_is_disjoint_complete_and_repeatable(
    data: st.DataObject, kind: str, seed: int
) -> None:
    rows = data.draw(st.integers(1, 300))
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows)))
    n = data.draw(st.integers(1, rows))
    rows_min = data.draw(st.integers(0, rows // n))
    more: dict[str, Any] = {"rows_min": rows_min}
    if kind == "dirichlet" or (kind == "quantity" and data.draw(st.booleans())):
        more["alpha"] = data.draw(st.floats(1e-3, 1e6))
    elif kind == "quantity":
        more["sigma"] = data.draw(st.floats(0, 5))
    elif kind == "shards":
        more["labels_each"] = data.draw(st.integers(1, min(8, len(labels))))
    parts = divide(kind, labels, n, seed=seed, **more)
    assert len(parts) == n
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert all(len(part) >= rows_min for part in parts)
    again = divide(kind, labels, n, seed=seed, **more)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", DRAWN)
def test_another_seed_is_another_partition(kind: str) -> None:
    one, other = (divide(kind, LABELS, 20, seed=seed) for seed in (1, 2))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", DRAWN)
def test_a_partition_that_cannot_be_is_refused_at_once(kind: str) -> None:
    with pytest.raises(LocalError, match="take fewer parts"):
        divide(kind, LABELS, 300, seed=0, rows_min=5)
    with pytest.raises(LocalError):
        divide(kind, LABELS, 0, seed=0)
    # The hardest that can be: every part exactly the minimum.
    assert {len(part) for part in divide(kind, LABELS[:1400], 200, seed=0, rows_min=7)} == {7}


def labels_in(parts: list[np.ndarray]) -> float:
    return float(np.mean([len(np.unique(LABELS[part])) for part in parts]))


def test_small_alpha_makes_labels_unequal() -> None:
    by_alpha = [labels_in(divide("dirichlet", LABELS, 20, seed=0, alpha=alpha)) for alpha in (0.05, 0.5, 100)]
    assert by_alpha[0] < 3.5 < by_alpha[1] < 9 < by_alpha[2]


def test_shards_give_each_part_about_so_many_labels() -> None:
    for part in divide("shards", LABELS, 50, seed=0, labels_each=2):
        assert len(np.unique(LABELS[part])) <= 4


def test_quantity_makes_sizes_unequal_and_labels_alike() -> None:
    sizes = sorted(len(part) for part in divide("quantity", LABELS, 10, seed=0, alpha=0.5))
    assert sizes[-1] > 5 * sizes[0]
    assert {len(part) for part in divide("iid", LABELS, 10, seed=0)} == {143, 144}


def test_sigma_makes_sizes_log_normal() -> None:
    sizes = np.log([len(part) for part in divide("quantity", LABELS, 100, seed=0, sigma=0.8)])
    assert np.std(sizes) == pytest.approx(0.8, rel=0.25)
    assert {len(part) for part in divide("quantity", LABELS, 10, seed=0, sigma=0.0)} == {143, 144}


def test_the_kind_follows_from_what_is_said_of_it() -> None:
    for more, kind in [
        ({}, "iid"),
        ({"alpha": 0.5}, "dirichlet"),
        ({"sigma": 1.0}, "quantity"),
        ({"labels_each": 1}, "shards"),
    ]:
        here, there = divided(LABELS, 7, seed=3, **more), divide(kind, LABELS, 7, seed=3, **more)  # type: ignore[arg-type]
        assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))
    assert all(len(part) >= 9 for part in divided(LABELS, 100, seed=3, alpha=0.1, rows_min=9))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"partition": "iid", "alpha": 0.5},
            "alpha has no meaning for a partition of kind iid, which takes none",
        ),
        ({"partition": "shards", "sigma": 0.5}, "which takes labels_each"),
        ({"alpha": 0.5, "rows_file": "x.csv"}, "alpha has no meaning for a partition of kind file"),
        ({"partition": "quantity", "alpha": 0.5, "sigma": 1.0}, "alpha or sigma"),
        ({"sigma": -1.0}, "expected sigma between 0 and 5"),
        ({"sigma": float("nan")}, "expected sigma between 0 and 5"),
        ({"labels_each": 0}, "expected labels_each from 1"),
        ({"labels_each": 10**7}, "the number of rows"),
        ({"partition": "file"}, "expected rows_file"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError, match=said):
        divided(LABELS, 5, seed=0, **arguments)


@given(data=st.data(), rows=st.integers(1, 60))
def test_a_file_gives_every_row_that_it_names_to_its_part_and_no_other(
    data: st.DataObject, rows: int
) -> None:
    n = data.draw(st.integers(1, rows))
    # Each part has one row at least, the others go anywhere or to nobody; half of the numbers are test rows, which the
    # file may name as well.
    owners = list(range(n)) + data.draw(
        st.lists(st.integers(-1, n - 1), min_size=rows - n, max_size=rows - n)
    )
    order = data.draw(st.permutations(range(rows)))
    numbers = np.array([2 * row + 1 for row in order])
    lines = [
        f"{owner},{number}" for owner, number in zip(owners, numbers.tolist(), strict=True) if owner >= 0
    ]
    lines += [f"0,{2 * row}" for row in range(data.draw(st.integers(0, rows)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        path.write_text("\n".join(["part,row", *data.draw(st.permutations(lines)), ""]))
        parts = divided(np.zeros(rows, np.int32), n, seed=0, rows_file=str(path), numbers=numbers)
    assert len(parts) == n
    for index, part in enumerate(parts):
        assert part.tolist() == [place for place, owner in enumerate(owners) if owner == index]


def test_the_rows_of_a_file_are_those_of_the_data_set_in_its_own_order(tmp_path: Path) -> None:
    path, data = tmp_path / "rows.csv", tmp_path / "data.csv"
    path.write_text("part,row\n" + "".join(f"{row % 3},{row}\n" for row in range(90)))
    data.write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(100)))
    found: list[float] = []
    for part in range(3):
        task = load_task(
            "table",
            {"path": str(data), "label": "y", "part": part, "parts": 3, "scale": "none"}
            | {"rows_file": str(path)},
        )
        rows = task.train.x[:, 0].tolist()  # type: ignore[attr-defined]
        assert all(row % 3 == part for row in rows)
        found += rows
    tested = task.test.x[:, 0].tolist()  # type: ignore[attr-defined]
    assert sorted(found) == [row for row in range(90) if row not in tested]

    digits = load_task("digits", {"part": 1, "parts": 3, "rows_file": str(path)})
    table = _table()[1:90:3]
    pixels = {tuple(row) for row in (table[:, :-1] / 16).astype(np.float32).tolist()}
    assert {tuple(row) for row in digits.train.x.tolist()} <= pixels  # type: ignore[attr-defined]
    assert len(digits.train.x) > 15  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the header part,row"),
        ("0,1\n", "the header part,row"),
        ("part,row\n", "at least one row"),
        ("part,row\n0,1,2\n", "line 2: expected two whole numbers"),
        ("part,row\n0,x\n", "line 2: expected two whole numbers"),
        ("part,row\n0,-1\n", "line 2: expected two whole numbers"),
        ("part,row\n0,99999999999999999999\n", "line 2: expected numbers of parts and rows"),
        ("part,row\n0,1\n\n1,1\n", "line 4: row 1 is given in line 2, too"),
        ("part,row\n0,1\n5,2\n", "expected parts from 0 to 1, got part 5"),
        ("part,row\n0,1\n", "at least 1 training rows for part 1, got 0"),
        ("part,row\n0,1\n1,5000\n", "at least 1 training rows for part 1, got 0"),
    ],
)
def test_a_partition_file_that_cannot_be_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(LocalError, match=said):
        divided(LABELS, 2, seed=0, rows_file=str(path))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), 1e-9])
def test_an_alpha_without_meaning_is_refused(alpha: float) -> None:
    with pytest.raises(LocalError, match="alpha"):
        divide("dirichlet", LABELS, 5, seed=0, alpha=alpha)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LocalError, match="iid, dirichlet, shards, quantity"):
        divide("random", LABELS, 5, seed=0)
