"""The gate: own yardsticks that liars cannot widen, and none that would shut out an honest latecomer for ever."""

import math
import random
import statistics

import numpy as np
import pytest

from gossip.config import ExchangeConfig
from gossip.learning.gate import Floats, change_limit, clip_limit, distance_limit, remembered, state_limit

CONFIG = ExchangeConfig()


class Gate:
    """The history of one node, and what it allows."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count, self.usual = 0, 0.0

    def clip_limit(self, own: float) -> float:
        limit: float = clip_limit(Floats, CONFIG, count=self.count, usual=self.usual, own=own)
        return limit

    def state(self, own: float, offered: float) -> bool:
        return bool(offered <= state_limit(Floats, CONFIG, size=self.size, own=own))

    def distance(self, own: float, distance: float) -> bool:
        limit = distance_limit(Floats, CONFIG, count=self.count, usual=self.usual, own=own)
        return bool(distance <= limit)

    def change(self, own: float, norm: float, declared: float) -> bool:
        return bool(norm <= change_limit(Floats, CONFIG, size=self.size, own=own, declared=declared))

    def accepted(self, norm: float) -> None:
        self.count, self.usual = remembered(Floats, count=self.count, usual=self.usual, norm=norm)


def seasoned(distance: float = 1.0, contacts: int = 50) -> Gate:
    gate = Gate(100)
    for _ in range(contacts):
        gate.accepted(distance)
    return gate


def test_without_history_our_own_way_from_the_reference_is_the_yardstick() -> None:
    gate = Gate(100)
    assert gate.clip_limit(5.0) == CONFIG.clip_factor * 5.0
    # Who has learned nothing has nothing to lose; with a limit of zero it would stay where it is for ever.
    assert gate.clip_limit(0.0) == math.inf
    assert gate.distance(5.0, 1e9)
    assert gate.state(5.0, 50.0)
    assert not gate.state(5.0, 1e9)


def test_a_newcomer_at_the_reference_may_take_over_a_trained_model() -> None:
    # Its own distance is zero; a trained model is about as far away as its weights are large.
    assert Gate(4810).state(0.0, 15.0)
    assert not Gate(4810).state(0.0, 1000.0)


def test_limits_are_multiples_of_what_changes_usually_measure() -> None:
    gate = seasoned(2.0)
    usual = gate.usual
    assert usual == pytest.approx(2.0, rel=0.2)
    assert gate.clip_limit(1.0) == pytest.approx(CONFIG.clip_factor * usual)
    assert gate.distance(1.0, CONFIG.distance_factor * usual * 0.99)
    assert not gate.distance(1.0, CONFIG.distance_factor * usual * 1.01)


def test_agreement_does_not_shut_out_one_who_was_away() -> None:
    # Training stopped, everybody agrees to the last bit; one comes back whose model is half-way to the
    # reference.
    gate = seasoned(1e-6, 1000)
    assert gate.distance(8.0, 4.0)
    # It is drawn in by bounded steps.
    assert 0 < gate.clip_limit(8.0) <= 4.0
    assert not gate.distance(8.0, 8.1)


def test_one_wild_contact_cannot_tear_the_limits_open() -> None:
    gate = seasoned(1.0)
    usual = gate.usual
    gate.accepted(gate.clip_limit(1.0))
    assert gate.usual <= 1.1 * usual


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4])
def test_liars_can_only_choose_which_honest_distance_is_the_usual_one(share: float) -> None:
    # All of them as large as the clip allows, or nothing at all. With a clipped mean for a yardstick the limit would
    # grow without end from a share of 1 / clip_factor on.
    for lie in (1.0, 1e-6):
        rng = random.Random(3)
        gate = Gate(100)
        found = []
        for contact in range(2000):
            limit = gate.clip_limit(1.0)
            honest = rng.uniform(0.5, 1.5)
            gate.accepted(lie * limit if rng.random() < share else min(honest, limit))
            if contact >= 100:
                found.append(gate.usual)
        assert 0.4 < statistics.median(found) < 1.6
        assert max(found) < 6.0


def test_plain_floats_and_a_whole_network_remember_alike() -> None:
    gate = Gate(100)
    count, usual = np.float64(0), np.float64(0)
    for norm in (0.0, 2.0, 3.0, 3.5, 1.0, 0.0, 0.7, 2.2, 9.0, 2.0, 2.0, 2.1):
        gate.accepted(norm)
        count, usual = remembered(np, count=count, usual=usual, norm=np.float64(norm))
        assert gate.count == count
        assert gate.usual == pytest.approx(usual)


def test_a_reply_must_keep_the_limit_that_was_declared() -> None:
    gate = seasoned(1.0)
    assert gate.change(1.0, 2.0, 2.0)
    assert not gate.change(1.0, 2.1, 2.0)
    assert not gate.change(1.0, 1e9, math.inf)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_a_number_is_never_accepted(bad: float) -> None:
    gate = seasoned(1.0)
    assert not gate.state(1.0, bad)
    assert not gate.distance(1.0, bad)
    assert not gate.change(1.0, bad, 1.0)
