"""The benchmarks' own arithmetic: a figure that is wrong about which side is better misleads for years."""

import json
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import bench_codec
from tests.bench.figures import Figure, medians, times


def figure(value: float, unit: str, *, recorded: bool = False) -> Figure:
    return Figure(name="x", value=value, unit=unit, reference=2.0, against="y", recorded=recorded)


def test_the_ratio_is_value_over_reference_and_the_unit_says_which_way_is_better() -> None:
    assert figure(6.0, "MB/s").ratio == 3.0
    assert figure(6.0, "MB/s").better
    assert not figure(6.0, "s").better
    assert figure(1.0, "MB").better


def test_an_entry_has_the_five_fields_and_says_what_was_recorded_elsewhere() -> None:
    entry = figure(6.0, "1/s", recorded=True).entry()
    assert list(entry) == ["name", "value", "unit", "reference", "ratio"]
    assert "recorded" in str(entry["name"])
    assert json.loads(json.dumps(entry))["ratio"] == 3.0


def test_ours_and_the_reference_are_measured_in_turns() -> None:
    calls: list[str] = []
    medians(times(2, lambda: calls.append("a")), lambda: calls.append("b"), repeats=2)
    assert calls == ["a", "a", "b"] * 3


def test_every_benchmark_file_can_be_run_and_an_unknown_one_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = sorted(
        path.stem.removeprefix("bench_") for path in (bench.ROOT / "tests/bench").glob("bench_*.py")
    )
    assert files == sorted(bench.FILES)
    assert bench.main(["nothing"]) == 2
    assert "there are: crypto" in capsys.readouterr().err


@pytest.mark.parametrize("fault", bench.FAULTS)
def test_a_benchmark_that_raises_fails_the_run_and_the_others_go_on(
    fault: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(brief: bool) -> list[Figure]:
        raise fault("an interval of 0 is refused")

    monkeypatch.setattr(bench_codec, "BENCHMARKS", (broken, bench_codec.codecs))
    assert bench.main(["codec", "--brief"], folder=tmp_path) == 1
    assert f"NOT MEASURED: codec.broken: {fault.__name__}: an interval of 0" in capsys.readouterr().err
    written = json.loads((tmp_path / "bench-brief.json").read_text())
    assert len(written) == 6  # three codecs, there and back
    # What a trial measures never takes the place of figures.
    assert not (tmp_path / "bench.json").exists()


def test_ci_tries_every_benchmark() -> None:
    assert "make bench ARGS=--brief || status=1" in (bench.ROOT / ".ci" / "run").read_text()
