"""Who is there when: as many, for as long, and at the hours that a scenario says."""

import random
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.churn import Attendance, ChurnSettings, attendance
from simulation.faults import Fault, comings_and_goings, plan
from simulation.mistakes import ScenarioError
from simulation.scenario import Scenario, parse
from simulation.seeds import Seeds


def drawn(
    nodes: int = 400, end_s: float = 1e5, seed: int = 1, longitude: float = 0.0, **settings: Any
) -> Attendance:
    return attendance(
        ChurnSettings(**settings),
        nodes,
        begin_s=0.0,
        end_s=end_s,
        rng=random.Random(seed),
        longitude=lambda node: longitude,
    )


def away(found: Attendance, date: float) -> int:
    late = sum(start > date for start in found.starts.values())
    return late + sum(span.start_s <= date < span.end_s for span in found.spans)


def test_without_a_model_nobody_goes() -> None:
    assert drawn() == Attendance((), {})


def test_sessions_and_absences_last_as_long_as_they_should_from_the_first_moment_on() -> None:
    found = drawn(model="sessions", session_s_mean=900.0, absence_s_mean=300.0)
    assert fmean(span.end_s - span.start_s for span in found.spans) == pytest.approx(300, rel=0.03)
    per_node = len(found.spans) / 399
    assert per_node == pytest.approx(1e5 / 1200, rel=0.03)
    for date in (1.0, 500.0, 5e4, 9.9e4):
        assert away(found, date) / 400 == pytest.approx(0.25, abs=0.09), "in balance, with three sigma"


def test_a_share_of_the_nodes_stays_and_the_first_one_always() -> None:
    found = drawn(model="sessions", share=0.25, session_s_mean=100.0, absence_s_mean=100.0)
    restless = {span.node for span in found.spans}
    assert len(restless) == 100
    assert 0 not in restless
    everybody = drawn(model="sessions", session_s_mean=100.0, absence_s_mean=100.0)
    assert {span.node for span in everybody.spans} == set(range(1, 400))


def test_a_share_of_the_departures_are_kills() -> None:
    found = drawn(model="sessions", kills=0.3, session_s_mean=900.0, absence_s_mean=300.0)
    assert fmean(span.killed for span in found.spans) == pytest.approx(0.3, abs=0.02)


def test_from_a_date_on_everybody_is_back() -> None:
    found = drawn(model="sessions", session_s_mean=50.0, absence_s_mean=500.0, stop_s=1000.0, end_s=5000.0)
    assert max(span.end_s for span in found.spans) == 1000.0
    assert max(found.starts.values()) <= 1000.0
    assert away(found, 999.0) > 200
    assert away(found, 1000.0) == 0


@given(seed=st.integers(0, 10**6), model=st.sampled_from(["sessions", "diurnal"]))
def test_nobody_goes_before_it_came_and_the_same_seed_draws_the_same(seed: int, model: str) -> None:
    settings: dict[str, Any] = {"model": model, "session_s_mean": 5.0, "absence_s_mean": 2.0, "day_s": 30.0}
    found = drawn(nodes=6, end_s=60.0, seed=seed, **settings)
    assert found == drawn(nodes=6, end_s=60.0, seed=seed, **settings)
    for node in range(6):
        back = found.starts.get(node, 0.0)
        for span in (span for span in found.spans if span.node == node):
            assert back + 0.5 <= span.start_s < span.end_s
            back = span.end_s


@pytest.mark.parametrize(("longitude", "peak_s"), [(0.0, 43_200.0), (90.0, 21_600.0), (-180.0, 0.0)])
def test_most_are_there_by_day_and_the_sun_is_in_the_east_first(longitude: float, peak_s: float) -> None:
    found = drawn(
        model="diurnal", session_s_mean=3600.0, absence_s_mean=3600.0, end_s=4 * 86_400.0, longitude=longitude
    )
    # Who is there follows the rates with a delay of some of a session.
    by_day = fmean(away(found, day * 86_400 + peak_s + 3600) for day in (1, 2))
    by_night = fmean(away(found, day * 86_400 + peak_s + 43_200 + 3600) for day in (1, 2))
    assert by_day < 0.25 * 400
    assert by_night > 0.75 * 400


def test_without_amplitude_a_day_is_like_a_night() -> None:
    rates: dict[str, Any] = {"session_s_mean": 900.0, "absence_s_mean": 300.0}
    flat = drawn(model="diurnal", amplitude=0.0, **rates)
    assert len(flat.spans) == pytest.approx(399 * 1e5 / 1200, rel=0.03)


# --- traces ------------------------------------------------------------------------------------------


def scenario(path: Path, text: str) -> Scenario:
    path.write_text(text)
    return parse({"nodes": 4, "churn": {"model": "trace", "file": str(path)}}, "x.toml")


def test_a_trace_says_who_is_there_when(tmp_path: Path) -> None:
    settings = scenario(tmp_path / "t.csv", "node,up_s,down_s\n1,0,5\n2,4,\n1,7,9.5\n3,1,8\n")
    present = comings_and_goings(settings, random.Random(1), None)
    faults = plan(settings, random.Random(1), present)
    assert faults.starts == {2: 4.0, 3: 1.0}
    assert [(one.node, one.start_s, one.end_s) for one in faults.absences] == [
        (1, 5.0, 7.0),
        (1, 9.5, inf),
        (3, 8.0, inf),
    ]
    assert {one.kind for one in faults.absences} == {Fault.CHURN}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected node,up_s,down_s in the first line"),
        ("node,up_s,down_s\n1,2\n", "line 2: expected three cells, found 2"),
        ("node,up_s,down_s\n4,2,3\n", "line 2: node: expected a node from 0 to 3, found '4'"),
        ("node,up_s,down_s\n-1,2,3\n", "line 2: node"),
        ("node,up_s,down_s\n1,x,3\n", "line 2: up_s: expected a number at least 0, found 'x'"),
        ("node,up_s,down_s\n1,,3\n", "line 2: up_s"),
        ("node,up_s,down_s\n1,nan,3\n", "line 2: up_s"),
        ("node,up_s,down_s\n1,2,inf\n", "line 2: down_s"),
        ("node,up_s,down_s\n1,2,2.1\n", "line 2: down_s: expected at least 0.5 s after"),
        ("node,up_s,down_s\n1,2,3\n1,3.5,9\n", "line 3: up_s: expected at least a second after node 1 went"),
        (
            "node,up_s,down_s\n1,2,\n1,5,9\n",
            "line 3: up_s: expected no further session of node 1, whose last one has an empty down_s and "
            "goes on to the end, found 5",
        ),
    ],
)
def test_a_trace_that_cannot_be_is_answered_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said) as caught:
        scenario(tmp_path / "t.csv", text)
    assert str(caught.value).startswith("x.toml: churn.file: ")


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        ({"churn": {"model": "session"}}, ["churn.model", "did you mean sessions?"]),
        ({"churn": {"model": "trace"}}, ["churn.file", "the path of a CSV file"]),
        (
            {"churn": {"model": "sessions"}, "faults": {"churn": 0.1}},
            ["faults.churn", "0, because churn.model"],
        ),
        (
            {"churn": {"model": "sessions"}, "faults": {"crash": 0.1}},
            ["faults.crash", "0, because churn.model"],
        ),
        (
            {"duration_s": 1e9, "churn": {"model": "sessions", "session_s_mean": 1, "absence_s_mean": 1}},
            ["churn.session_s_mean", "2000000 sessions"],
        ),
    ],
)
def test_what_does_not_go_together_is_answered(tree: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(tree, "x.toml")
    for part in parts:
        assert part in str(caught.value)


def test_kills_are_crashes_in_the_plan() -> None:
    settings = parse(
        {"churn": {"model": "sessions", "kills": 1, "session_s_mean": 5.0, "absence_s_mean": 5.0}}, "x.toml"
    )
    present = comings_and_goings(settings, Seeds(1).random("churn"), None)
    assert {one.kind for one in plan(settings, random.Random(1), present).absences} == {Fault.CRASH}
