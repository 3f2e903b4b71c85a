"""A stop rule asks for everything it names, of a sample, at dates of its own."""

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.mistakes import ScenarioError
from simulation.scenario import parse
from simulation.stopping import StopRule, StopSettings


def rule(seed: int = 1, **settings: Any) -> StopRule[float]:
    """Over subjects that are their own accuracy; their consensus distance is their range."""

    def accuracies(subjects: Sequence[float]) -> list[float]:
        return [subject for subject in subjects if subject >= 0]

    return StopRule(
        StopSettings(**settings),
        random.Random(seed),
        accuracies=accuracies,
        consensus=lambda subjects: max(subjects) - min(subjects),
    )


def test_a_rule_without_demands_is_not_asked() -> None:
    assert not StopSettings(every_s=1.0, sample=3).asked
    for one in ({"accuracy_mean": 0.1}, {"accuracy_worst": 0.1}, {"consensus": 0.1}):
        assert StopSettings(**one).asked  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "subjects", "holds"),
    [
        ({"accuracy_mean": 0.8}, [0.7, 0.9], True),
        ({"accuracy_mean": 0.8}, [0.7, 0.8], False),
        ({"accuracy_worst": 0.7}, [0.7, 0.9], True),
        ({"accuracy_worst": 0.8}, [0.7, 0.99], False),
        ({"consensus": 0.1}, [0.1, 0.15], True),
        ({"consensus": 0.1}, [0.1, 0.3], False),
        ({"consensus": 0.1, "accuracy_mean": 0.8}, [0.1, 0.15], False),
        ({"consensus": 0.1, "accuracy_mean": 0.8}, [0.85, 0.9], True),
        ({"accuracy_mean": 0.5}, [-1.0, -1.0], False),  # the task measures no accuracy
        ({"accuracy_mean": 0.5}, [0.9], False),  # one node agrees with itself
        ({"accuracy_mean": 0.5, "from_s": 11.0}, [0.9, 0.9], False),
    ],
)
def test_all_that_is_asked_must_hold(settings: dict[str, Any], subjects: list[float], holds: bool) -> None:
    assert rule(**settings).holds(subjects, 10.0) is holds


@pytest.mark.parametrize(
    ("settings", "subjects", "found"),
    [
        ({"accuracy_mean": 0.5}, [0.5, 0.53], "accuracy mean 51.5 % has reached 50 %"),
        ({"accuracy_mean": 0.8, "accuracy_worst": 0.7}, [0.6, 0.9], "accuracy mean 75 % < 80 %"),
        ({"accuracy_mean": 0.7, "accuracy_worst": 0.7}, [0.6, 0.9], "accuracy worst 60 % < 70 %"),
        ({"consensus": 0.0001}, [0.1, 0.31], "consensus 0.21 > 0.0001"),
        (
            {"consensus": 0.5, "accuracy_worst": 0.5},
            [0.6, 0.8],
            "consensus 0.2 is at most 0.5, accuracy worst 60 % has reached 50 %",
        ),
        ({"accuracy_mean": 0.5}, [-1.0, -1.0], "no accuracy could be measured"),
        ({"accuracy_mean": 0.5}, [0.9], "fewer than two honest nodes were up"),
        ({"accuracy_mean": 0.5, "from_s": 11.0}, [0.9, 0.9], "nobody has looked yet"),
    ],
)
def test_a_look_says_what_it_found(settings: dict[str, Any], subjects: list[float], found: str) -> None:
    one = rule(**settings)
    one.holds(subjects, 10.0)
    assert one.found == found


def test_models_that_are_no_numbers_do_not_agree() -> None:
    assert not rule(consensus=1.0).holds([float("nan"), 0.5], 1.0)


def test_a_sample_is_drawn_anew_each_time_and_the_same_for_the_same_seed() -> None:
    looks: list[list[float]] = []

    def watched(seed: int) -> StopRule[float]:
        def accuracies(subjects: Sequence[float]) -> list[float]:
            looks.append(list(subjects))
            return [fmean(subjects)]

        return StopRule(
            StopSettings(accuracy_mean=0.5, sample=5),
            random.Random(seed),
            accuracies=accuracies,
            consensus=lambda subjects: 0.0,
        )

    everybody = [number / 100 for number in range(100)]
    for seed in (1, 1, 2):
        one = watched(seed)
        one.holds(everybody, 1.0)
        one.holds(everybody, 2.0)
    assert all(len(look) == 5 for look in looks)
    assert looks[0] != looks[1]
    assert looks[:2] == looks[2:4] != looks[4:]


def test_the_dates_are_multiples_whoever_pauses_the_run_in_between() -> None:
    one = rule(every_s=2.5, consensus=1.0)
    assert [one.next(now) for now in (0.0, 0.1, 2.4, 2.5, 7.3)] == [2.5, 2.5, 2.5, 5.0, 7.5]


@given(every_s=st.floats(0.01, 1e3), looks=st.integers(1, 1000))
def test_the_next_date_is_always_a_later_one(every_s: float, looks: int) -> None:
    """A multiple of 0.7 divided by 0.7 is less than it was: a run that asks for the next date stood still."""
    one = rule(every_s=every_s, consensus=1.0)
    now = looks * every_s
    assert one.next(now) == (looks + 1) * every_s > now


def test_a_rule_that_would_end_a_run_before_it_has_begun_is_answered() -> None:
    with pytest.raises(ScenarioError, match=r"stop\.from_s: expected a date after start_s \(2\)"):
        parse({"stop": {"consensus": 0.1, "from_s": 2.0}}, "x.toml")
    assert parse({"stop": {"consensus": 0.1, "from_s": 2.1}}, "x.toml").stop.asked
