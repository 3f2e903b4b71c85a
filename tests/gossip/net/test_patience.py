"""How long to wait for a peer: learned from its own times, and bounded whatever it does."""

import random
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.dht.ids import NodeId
from gossip.net.patience import PEERS_MAX, SECONDS_MAX, WIDER_MAX, Patience


def peer(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


A, B, C = (peer(number) for number in (1, 2, 3))


def test_nothing_is_known_before_the_first_answer() -> None:
    patience = Patience()
    assert patience.usual_s(A) == patience.late_s(A) == 0.0
    patience.silent(A)
    assert patience.usual_s(A) == 0.0


def test_an_estimate_comes_close_to_the_times_of_the_peer_and_is_seldom_exceeded() -> None:
    patience, rng = Patience(), random.Random(1)
    times = [rng.lognormvariate(-2.0, 0.5) for _ in range(2000)]
    exceeded = 0
    for seconds in times:
        exceeded += patience.late_s(A) < seconds
        patience.answered(A, seconds)
    assert exceeded < 0.03 * len(times)
    assert patience.usual_s(A) < 5.0 * sorted(times)[len(times) // 2]


def test_a_slow_peer_is_waited_for_and_a_fast_one_is_not_waited_for_longer_because_of_it() -> None:
    patience = Patience()
    for _ in range(100):
        patience.answered(A, 0.02)
        patience.answered(B, 8.0)
    assert patience.late_s(A) == pytest.approx(0.04)
    assert patience.late_s(B) == pytest.approx(16.0)
    assert patience.usual_s(A) < 0.03


def test_a_peer_without_times_of_its_own_is_expected_to_answer_as_peers_do() -> None:
    patience = Patience()
    for _ in range(100):
        patience.answered(A, 0.5)
    assert patience.usual_s(C) == patience.usual_s(A)
    assert patience.late_s(C) == pytest.approx(1.0)


def test_silence_widens_what_is_waited_for_and_an_answer_ends_that() -> None:
    """Where the network has become slower than the estimate allows for, the next answer must be able to get through."""
    patience = Patience()
    for seconds in (0.1, 0.2, 0.1, 0.2, 0.1, 0.2):
        patience.answered(A, seconds)
        patience.answered(B, seconds)
    before = patience.usual_s(A)
    patience.silent(A)
    patience.silent(A)
    assert patience.usual_s(A) > 1.4 * before
    assert patience.usual_s(B) == before
    patience.answered(A, 0.2)
    assert patience.usual_s(A) == pytest.approx(before, rel=0.2)


def test_a_peer_that_is_silent_again_and_again_is_late_as_soon_as_ever() -> None:
    """Or each round that drew it would be held up for longer than the one before."""
    patience = Patience()
    for seconds in (0.1, 0.2, 0.1, 0.2):
        patience.answered(A, seconds)
    late = patience.late_s(A)
    for _ in range(100):
        patience.silent(A)
    assert patience.late_s(A) == late
    assert patience.usual_s(A) <= late * WIDER_MAX


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.none() | st.floats(0.0, 1e300)), max_size=200))
def test_whatever_happens_every_time_is_finite_and_bounded(story: list[tuple[NodeId, float | None]]) -> None:
    patience = Patience()
    for who, seconds in story:
        if seconds is None:
            patience.silent(who)
        else:
            patience.answered(who, seconds)
    for who in (A, B, C):
        for time_s in (patience.usual_s(who), patience.late_s(who)):
            assert isfinite(time_s)
            assert 0.0 <= time_s <= SECONDS_MAX * (1.0 + 4.0 * WIDER_MAX)


def test_a_thousand_peers_are_remembered_and_the_one_heard_of_longest_ago_goes_first() -> None:
    patience = Patience()
    for number in range(PEERS_MAX):
        patience.answered(peer(number), 1.0)
    patience.answered(peer(0), 1.0)
    for _ in range(50):
        patience.answered(peer(PEERS_MAX), 9.0)
    assert patience.bounds() == (PEERS_MAX, PEERS_MAX)
    assert patience.late_s(peer(0)) == pytest.approx(2.0, rel=0.5)
    assert patience.late_s(peer(1)) > 9.0, "forgotten: expected to answer as peers do of late"
