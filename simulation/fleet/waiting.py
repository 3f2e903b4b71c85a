"""How long a node of the world waits for answers, as figures that a fleet can be told.

gossip/exchange.py learns from the answers how long to wait for the next one. Here that rule meets the links of a
scenario: the first exchanges of some nodes, drawn with a fixed seed. Later ones would wait longer on a link that
loses: every answer to a repeated offer teaches patience.
"""

from math import exp, log
from random import Random

from msgspec import Struct

from gossip.config import ExchangeConfig
from simulation.network import RETRANSMIT_S, LinkSettings

# Enough for means within a few percent; 10 ms. A node has made so many exchanges after its first half minute.
_NODES, _EXCHANGES = 100, 50

# Share of exchanges that have to open a connection: all at first, and none where everybody keeps one with everybody.
# A quarter is fitted to one run: 100 nodes on a lossy link, whose median patience in the world was 1.6 s after 40 s.
_NEW_CONNECTIONS = 0.25

# Times to an answer that are told apart. A quarter of them with a new connection are two.
_QUANTILES = 8

# As in gossip/exchange.py: the least patience on a fast network.
_PATIENCE_S_MIN = 0.25


class Waiting(Struct, frozen=True):
    """What came out of many exchanges."""

    # Until an answer, where it comes before patience ends: quantiles, the middles of equal shares, in rising order.
    answers_s: tuple[float, ...]
    patience_s: float  # how long was waited where none did, on average
    answered: float  # share of the rounds in which it did


def waiting(link: LinkSettings, config: ExchangeConfig, *, work_s: float) -> Waiting:
    """Return what the links and rules come to.

    Args:
        work_s: What answering takes at the other end, and applying the answer at this one.
    """
    rng = Random(0)
    spread = max(0.0, link.delay_s_mean - link.delay_s_min)
    mu = log(spread) - link.jitter_sigma**2 / 2 if spread else 0.0

    def leg_s() -> float:
        if not spread or link.jitter == "none":
            return link.delay_s_mean
        if link.jitter == "exponential":
            return link.delay_s_min + rng.expovariate(1 / spread)
        return link.delay_s_min + exp(rng.gauss(mu, link.jitter_sigma))

    def lost() -> bool:
        return rng.random() < link.loss

    limit_s = config.timeout_s / 3
    answers: list[float] = []
    waits: list[float] = []
    for number in range(_NODES * _EXCHANGES):
        if number % _EXCHANGES == 0:
            mean_s = deviation_s = 0.0
        patience_s = limit_s
        if mean_s:
            patience_s = min(limit_s, max(_PATIENCE_S_MIN, mean_s + 4 * deviation_s))
        needed_s = leg_s() + leg_s() + work_s
        if rng.random() < _NEW_CONNECTIONS:
            needed_s += sum(leg_s() + RETRANSMIT_S * lost() for _ in range(3))
        gone = lost() or lost()
        if not gone and needed_s <= patience_s:
            answers.append(needed_s)
        else:
            waits.append(patience_s)
            if gone:  # the offer is repeated once
                needed_s = patience_s + leg_s() + leg_s() + work_s
                gone = lost() or lost()
            if gone or needed_s > 3 * patience_s:
                deviation_s *= 1.5
                continue
        if not mean_s:
            mean_s, deviation_s = needed_s, needed_s / 2
            continue
        error = needed_s - mean_s
        mean_s += error / 8
        deviation_s += (abs(error) - deviation_s) / 4
    answers = sorted(answers) or [limit_s]
    return Waiting(
        answers_s=tuple(answers[len(answers) * (2 * k + 1) // (2 * _QUANTILES)] for k in range(_QUANTILES)),
        patience_s=sum(waits) / len(waits) if waits else limit_s,
        answered=len(answers) / (_NODES * _EXCHANGES),
    )
