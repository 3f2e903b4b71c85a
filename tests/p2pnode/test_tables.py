"""Numbers and tables in plain text."""

from typing import Any

import pytest

from p2pnode import tables


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (185, "3m05s"), (7800, "2h10m"), (356400, "4d03h"), (-1, "–"), (None, "–")],
)
def test_durations_are_short(seconds: Any, text: str) -> None:
    assert tables.duration(seconds) == text


def test_sparkline_spans_from_lowest_to_highest_and_leaves_gaps() -> None:
    assert tables.sparkline([0.0, 7.0], 10) == "▁█"
    assert tables.sparkline([3.0, 3.0], 10) == "▁▁"
    assert tables.sparkline([1.0, float("nan"), 2.0], 10) == "▁ █"
    assert tables.sparkline([9.0, 0.0, 7.0], 2) == "▁█"
    assert tables.sparkline([], 10) == ""
    assert tables.sparkline([float("nan")], 10) == ""
    assert tables.sparkline([1.0], 0) == ""


def test_reasons_come_in_the_order_of_their_weight() -> None:
    assert tables.reasons({"busy": 1, "timeout": 3, "a": 1}) == "timeout 3, a 1, busy 1"
    assert tables.reasons({}) == "none"
    assert tables.reasons(None) == "none"


def test_tables_keep_their_columns_whatever_they_hold() -> None:
    text = tables.peers_text([{"id": "ab" * 32, "address": "a\x1b[2J:1", "exchanges": 5}, {}])
    lines = text.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert lines[0].index("address") == lines[1].index("a\\x1b[2J:1")
    assert tables.peers_text([]) == "no peers"


def test_status_without_anything_is_still_a_table() -> None:
    lines = tables.status_text({}).splitlines()
    assert len(lines) == 14
    assert lines[1].split() == ["state", "–"]


def test_what_is_under_way_is_said_with_how_far_and_how_fast() -> None:
    transfer = {
        "peer": "ab" * 32,
        "direction": "out",
        "kind": "offer",
        "bytes": 400_000,
        "of": 1_100_000,
        "bytes_per_s": 118_000,
    }
    assert tables.transfer_text(transfer) == "offer to abababababab, 0.4 of 1.1 MB, 118 kB/s, 5s left"
    begun = {**transfer, "direction": "in", "bytes": 0, "bytes_per_s": 0}
    assert tables.transfer_text(begun) == "offer from abababababab, 0.0 of 1.1 MB, 0 kB/s"
    assert tables.transfer_text({}) == "–"
    status = tables.status_text({"transfers": [transfer, {**transfer, "kind": "\x1b[2J"}]})
    assert status.count("under way") == 2
    assert all(line.isprintable() for line in status.splitlines())
