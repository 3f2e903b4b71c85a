"""Partitions: disjoint, complete, the same every time, nobody left without rows; and as unequal as asked."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import LocalError
from p2pnode.tasks.partition import KINDS, divide

LABELS = np.random.default_rng(0).integers(0, 10, 1437).astype(np.int32)


@given(data=st.data(), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_every_partition_is_disjoint_complete_and_repeatable(
    data: st.DataObject, kind: str, seed: int
) -> None:
    rows = data.draw(st.integers(1, 300))
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows)))
    n = data.draw(st.integers(1, rows))
    rows_min = data.draw(st.integers(0, rows // n))
    more: dict[str, Any] = {"rows_min": rows_min}
    if kind in ("dirichlet", "quantity"):
        more["alpha"] = data.draw(st.floats(1e-3, 1e6))
    parts = divide(kind, labels, n, seed=seed, **more)
    assert len(parts) == n
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert all(len(part) >= rows_min for part in parts)
    again = divide(kind, labels, n, seed=seed, **more)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_partition(kind: str) -> None:
    one, other = (divide(kind, LABELS, 20, seed=seed) for seed in (1, 2))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), 1e-9])
def test_an_alpha_without_meaning_is_refused(alpha: float) -> None:
    with pytest.raises(LocalError, match="alpha"):
        divide("dirichlet", LABELS, 5, seed=0, alpha=alpha)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LocalError, match="iid, dirichlet, shards, quantity"):
        divide("random", LABELS, 5, seed=0)
