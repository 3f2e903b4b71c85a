"""The measure of a connection: pieces as long as a link allows, and a stall told from a slow link."""

from math import inf

import pytest

from gossip.net.lanes import PIECE_BYTES_MAX, PIECE_BYTES_MIN
from gossip.net.pace import METER_S, WINDOW_S, WRITE_BYTES_MAX, WRITE_BYTES_START, WRITE_S, Meter, Pace, Watch


def settled(rate: float, *, seconds: float = 20.0) -> Pace:
    """A pace after some time on a link of `rate` bytes a second, which takes the first 16 KiB in no time."""
    pace, free, now = Pace(), 16_384, 0.0
    while now < seconds:
        size = pace.write_bytes
        took = max(0, size - free) / rate
        free = max(0, free - size)
        pace.took(size, took)
        now += took
    return pace


@pytest.mark.parametrize("rate", [32e3, 125e3, 400e3])
def test_on_a_slow_link_a_write_takes_its_share_of_a_second(rate: float) -> None:
    pace = settled(rate)
    assert pace.rate == pytest.approx(rate, rel=0.01)
    assert pace.write_bytes == pytest.approx(rate * WRITE_S, rel=0.01)
    assert pace.piece_bytes == pace.write_bytes


def test_a_piece_has_a_least_size_however_slow_the_link_is() -> None:
    assert settled(1000.0, seconds=60.0).piece_bytes == PIECE_BYTES_MIN


def test_where_nothing_takes_time_writes_grow_to_their_limit_in_a_few_steps() -> None:
    pace = Pace()
    sizes = [pace.write_bytes]
    for _ in range(6):
        pace.took(pace.write_bytes, 0.0)
        sizes.append(pace.write_bytes)
    assert sizes[:3] == [WRITE_BYTES_START, 2 * WRITE_BYTES_START, 4 * WRITE_BYTES_START]
    assert sizes[-1] == WRITE_BYTES_MAX
    assert pace.piece_bytes == PIECE_BYTES_MAX
    assert pace.rate == inf


def test_a_link_that_becomes_slow_is_noticed_within_seconds() -> None:
    pace = settled(400e3)
    now = 0.0
    while pace.write_bytes > 1.5 * 20e3 * WRITE_S:
        took = pace.write_bytes / 20e3
        pace.took(pace.write_bytes, took)
        now += took
    assert now < 5.0


def test_nothing_is_known_before_something_was_sent() -> None:
    assert Pace().rate == 0.0


def test_a_meter_follows_the_rate_from_the_beginning() -> None:
    meter = Meter()
    assert meter.rate(7.0) == 0.0
    meter.begin(7.0)
    for second in range(8, 68):
        meter.moved(1000, float(second))
        assert meter.rate(float(second)) == pytest.approx(1000, rel=0.15)
    assert meter.rate(67.0 + METER_S) == pytest.approx(1000 / 2.718, rel=0.15), "nothing comes any more"
    meter.begin(100.0)
    meter.moved(5000, 101.0)
    assert meter.rate(101.0) == pytest.approx(5000, rel=0.15), "the pause does not count"


def test_what_moves_faster_than_the_floor_lives_for_ever() -> None:
    watch = Watch(100.0 * WINDOW_S)
    watch.begin(0.0)
    for window in range(1, 100):
        watch.moved(1000)
        assert watch.deadline == window * WINDOW_S
        assert not watch.stalled(watch.deadline)


def test_what_moves_more_slowly_has_stalled() -> None:
    watch = Watch(100.0 * WINDOW_S)
    watch.begin(0.0)
    watch.moved(5000)
    assert not watch.stalled(WINDOW_S)
    watch.moved(999)  # what moved before does not count
    assert watch.stalled(2 * WINDOW_S)


def test_a_pause_between_two_transfers_is_no_stall() -> None:
    watch = Watch(100.0 * WINDOW_S)
    watch.begin(0.0)
    watch.end()
    assert watch.deadline == inf
    watch.begin(1000.0)
    watch.begin(1005.0)  # goes on
    assert watch.deadline == 1000.0 + WINDOW_S


def test_without_a_floor_one_byte_is_enough_and_none_is_not() -> None:
    watch = Watch(0.0)
    watch.begin(0.0)
    watch.moved(1)
    assert not watch.stalled(WINDOW_S)
    assert watch.stalled(2 * WINDOW_S)
