"""Results in files: what is written can be read, what is torn is dropped, what is foreign is one sentence."""

import csv
import importlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from simulation.experiments import sources
from simulation.experiments.results import (
    Result,
    ResultsError,
    appending,
    csv_row,
    figure,
    flat,
    read,
    result,
    run_key,
    write_csv,
)
from simulation.experiments.sources import digest, program, sources_of


def one(seed: int, **report: Any) -> Result:
    return result({"name": "x", "network": {"loss": 0.1}}, seed, f"p2psim run x --seed {seed}", report=report)


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for seed in (1, 2):
        with appending(path) as file:
            file.append(one(seed, accuracy={"mean": 0.5, "central": float("nan")}))
    assert [entry.seed for entry in read(path)] == [1, 2]
    assert figure(read(path)[0].report, "accuracy.mean") == 0.5
    assert figure(read(path)[0].report, "accuracy.central") != figure(
        read(path)[0].report, "accuracy.central"
    )


def test_the_last_of_equal_runs_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with appending(path) as file:
        for mean in (0.1, 0.2):
            file.append(one(1, accuracy={"mean": mean}))
    (found,) = read(path)
    assert found.report["accuracy"]["mean"] == 0.2


def test_a_key_tells_scenarios_and_seeds_apart_and_not_the_order_of_names() -> None:
    assert run_key({"a": 1, "b": {"c": 2, "d": 3}}, 1) == run_key({"b": {"d": 3, "c": 2}, "a": 1}, 1)
    keys = {run_key({"a": 1}, 1), run_key({"a": 1}, 2), run_key({"a": 2}, 1)}
    assert len(keys) == 3


def test_a_key_goes_by_the_values_of_a_preset_and_not_by_its_name() -> None:
    plain = run_key({"network": {"loss": 0.1}}, 1)
    assert run_key({"network": {"preset": "lan", "loss": 0.1}}, 1) == plain
    assert run_key({"network": {"preset": "lan", "loss": 0.2}}, 1) != plain


def test_a_file_that_a_scenario_names_is_part_of_its_key(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,1")
    before = run_key({"network": {"trace": str(trace)}}, 1)
    assert run_key({"network": {"trace": str(trace)}}, 1) == before
    trace.write_text("0,2")
    assert run_key({"network": {"trace": str(trace)}}, 1) != before
    assert run_key({"a": "\0", "b": str(tmp_path), "c": ""}, 1)


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_a_torn_last_line_is_dropped_by_who_appends_and_refused_by_who_reads(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "r.jsonl"
    with appending(path) as file:
        file.append(one(1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    with pytest.raises(ResultsError, match="line 2: is torn"):
        read(path)
    with appending(path) as file:
        assert file.dropped_bytes == len(whole[:cut])
        file.append(one(2))
    assert [entry.seed for entry in read(path)] == [1, 2]


def test_a_file_of_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"format":1,"version":"'.ljust(200_000, b"x"))
    with appending(path) as file:
        assert file.dropped_bytes == 200_000
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b'{"format": 1}',
        b"\xff\xfe",
        b'{"format":1,"version":"1","key":"k","scenario":[],"seed":1,"command":"","machine":{}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_result_is_one_sentence_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "r.jsonl"
    with appending(path) as file:
        file.append(one(1))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ResultsError, match=r"r\.jsonl: line 2: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(one(1), format=99)) + b"\n")
    with pytest.raises(ResultsError, match="expected format 1, found 99"):
        read(path)
    with pytest.raises(ResultsError, match="cannot be read"):
        read(tmp_path / "nothing.jsonl")


def test_two_do_not_append_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with appending(path), pytest.raises(ResultsError, match="another process"), appending(path):
        pass
    assert path.exists()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with (
        pytest.raises(ResultsError, match="cannot be written: No space left on device"),
        appending(Path("/dev/full")) as file,
    ):
        file.append(one(1))


def test_a_table_has_dotted_names_and_nothing_that_a_spreadsheet_runs(tmp_path: Path) -> None:
    first = result({"name": "=1+1", "list": [1]}, 1, "c", report={"faults": {"loss": 3}, "curve": {"a": 1}})
    second = result({"name": "y"}, 2, "c", failed="it broke")
    path = tmp_path / "r.csv"
    write_csv(path, [first, second])
    rows = list(csv.DictReader(path.open(newline="")))
    assert rows[0]["scenario.name"] == "'=1+1"
    assert rows[0]["scenario.list"] == "[1]"
    assert (rows[0]["report.faults.loss"], rows[1]["report.faults.loss"]) == ("3", "")
    assert rows[1]["failed"] == "it broke"
    assert not any("curve" in name for name in rows[0])
    with pytest.raises(ResultsError, match="cannot be written"):
        write_csv(tmp_path / "no" / "r.csv", [first])


def test_a_tree_is_flattened_by_dots() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": [2]}) == {"a.b.c": 1, "a.d": {}, "e": [2]}
    assert csv_row(one(1, partial=False))["report.partial"] is False


def test_a_program_is_another_once_one_of_its_sources_was_edited_or_renamed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    source = tmp_path / "a" / "b" / "c.py"
    source.write_text("x = 1")
    (tmp_path / "a" / "notes.txt").write_text("not a source")
    before = digest([tmp_path])
    (tmp_path / "a" / "notes.txt").write_text("still none")
    assert digest([tmp_path]) == before
    source.write_text("x = 2")
    edited = digest([tmp_path])
    source.rename(tmp_path / "a" / "c.py")
    assert len({before, edited, digest([tmp_path]), program()}) == 4
    assert len(program()) == 16
    assert digest([tmp_path], {"jax": "0.1"}) != digest([tmp_path], {"jax": "0.2"})


@pytest.mark.parametrize("name", ["jax", "jaxlib", "numpy"])
def test_a_program_is_another_with_another_version_of_what_computes(
    name: str, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    before = program()
    forget()
    monkeypatch.setattr(
        sources, "version", lambda one: "99" if one == name else importlib.metadata.version(one)
    )
    assert program() != before


def forget() -> None:
    """What was read is read again."""
    sources.program.cache_clear()
    sources._ours.cache_clear()


@pytest.fixture
def forgetful() -> Iterator[None]:
    forget()
    yield
    forget()


def test_a_task_of_somebody_s_own_is_part_of_the_program_with_what_it_imports_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "own_of_a_test"
    files = {
        package / "__init__.py": "",
        package / "task.py": "import numpy.linalg\nfrom .model import layers\nfrom gossip import config\n",
        package / "model" / "__init__.py": "",
        package / "model" / "layers.py": "def late():\n    import beside_of_a_test\n",
        tmp_path / "beside_of_a_test.py": "import own_of_a_test.task\nfrom .... import nowhere\n",
        package / "unread.py": "this is no Python",
    }
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()
    names = ["own_of_a_test", "own_of_a_test.task", "own_of_a_test.model", "own_of_a_test.model.layers"]
    assert sorted(sources_of("own_of_a_test.task")) == sorted([*names, "beside_of_a_test"])
    spec = "own_of_a_test.task:make"
    programs = [program(), program(spec)]
    for path in files:
        forget()
        path.write_text(path.read_text() + "# edited\n")
        programs.append(program(spec))
    assert len(set(programs)) == len(programs) - 1
    assert programs[-2] == programs[-1], "only that file is none of its sources"
    assert program("digits") == program() == programs[0]
    line = result({"task": {"name": spec}}, 1, "p2psim run x")
    assert line.program == programs[-1]


def test_a_line_of_a_program_that_did_not_say_so_is_read(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    line = msgspec.json.encode(result({"a": 1}, 1, "p2psim run x"))
    out.write_bytes(line.replace(f'"program":"{program()}",'.encode(), b"") + b"\n")
    assert [one.program for one in read(out)] == [""]
