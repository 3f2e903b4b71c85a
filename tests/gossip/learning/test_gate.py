"""The gate: own yardsticks, no limits without history, none that would shut out an honest latecomer for ever."""

import math

import pytest

from gossip.config import ExchangeConfig
from gossip.errors import Reason
from gossip.learning.gate import Gate

CONFIG = ExchangeConfig()


def seasoned(distance: float = 1.0, contacts: int = 50) -> Gate:
    gate = Gate(CONFIG, 100)
    for _ in range(contacts):
        gate.accepted(distance)
    return gate


def test_without_history_only_the_norm_counts() -> None:
    gate = Gate(CONFIG, 100)
    assert gate.clip_limit(5.0) == math.inf
    assert gate.distance(5.0, 1e9) is None
    assert gate.state(5.0, 50.0) is None
    refused = gate.state(5.0, 1e9)
    assert refused is not None
    assert refused.reason is Reason.TOO_LARGE_NORM


def test_a_newcomer_at_the_reference_may_take_over_a_trained_model() -> None:
    # Its own distance is zero; a trained model is about as far away as its weights are large.
    assert Gate(CONFIG, 4810).state(0.0, 15.0) is None
    assert Gate(CONFIG, 4810).state(0.0, 1000.0) is not None


def test_limits_are_multiples_of_the_running_mean() -> None:
    gate = seasoned(2.0)
    assert gate.mean == pytest.approx(2.0)
    assert gate.clip_limit(1.0) == pytest.approx(CONFIG.clip_factor * 2.0)
    assert gate.distance(1.0, CONFIG.distance_factor * 1.99) is None
    refused = gate.distance(1.0, CONFIG.distance_factor * 2.01)
    assert refused is not None
    assert refused.reason is Reason.TOO_DISTANT


def test_agreement_does_not_shut_out_one_who_was_away() -> None:
    # Training stopped, everybody agrees to the last bit; one comes back whose model is half-way to the
    # reference.
    gate = seasoned(1e-6, 1000)
    assert gate.distance(8.0, 4.0) is None
    # It is drawn in by bounded steps.
    assert 0 < gate.clip_limit(8.0) <= 4.0
    assert gate.distance(8.0, 8.1) is not None


def test_one_wild_contact_cannot_tear_the_limits_open() -> None:
    # What is remembered is the clipped change: the mean grows by at most 30 % a contact.
    gate = seasoned(1.0)
    gate.accepted(gate.clip_limit(1.0))
    assert gate.mean < 1.31


def test_a_reply_must_keep_the_limit_that_was_declared() -> None:
    gate = seasoned(1.0)
    assert gate.change(1.0, 2.0, 2.0) is None
    refused = gate.change(1.0, 2.1, 2.0)
    assert refused is not None
    assert refused.reason is Reason.TOO_LARGE_NORM
    assert gate.change(1.0, 1e9, math.inf) is not None


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_a_number_is_never_accepted(bad: float) -> None:
    gate = seasoned(1.0)
    assert gate.state(1.0, bad) is not None
    assert gate.distance(1.0, bad) is not None
    assert gate.change(1.0, bad, 1.0) is not None
