"""No file of the user is lost to a slip in the name of an output."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.experiments.outputs import check_outputs, write_whole
from simulation.experiments.page import page
from simulation.experiments.results import ResultsError, appending, read, result, write_csv

SCENARIO = 'nodes = 3\nduration_s = 2.0\n[task]\nargs = { model = "logistic" }\n'


@pytest.mark.parametrize("option", ["--out", "--csv", "--report"])
@pytest.mark.parametrize("victim", ["mine.toml", "delays.csv"])
def test_a_run_does_not_write_into_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, victim: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(SCENARIO + '[network]\ntrace = "delays.csv"\n')
    Path("delays.csv").write_text("time_s,delay_s,loss\n0,0.1,0\n")
    before = Path(victim).read_text()
    result = CliRunner().invoke(main, ["run", "mine.toml", option, str(tmp_path / victim)])
    assert result.exit_code == 2
    assert f"{option} {tmp_path / victim}: expected a file of its own" in result.stderr
    assert Path(victim).read_text() == before


def test_a_sweep_does_not_write_into_what_it_reads(tmp_path: Path) -> None:
    scenario = tmp_path / "mine.toml"
    scenario.write_text(SCENARIO)
    arguments = ["sweep", str(scenario), "--seeds", "0:1", "--out", str(tmp_path / "r.jsonl")]
    result = CliRunner().invoke(main, [*arguments, "--csv", str(scenario)])
    assert result.exit_code == 2
    assert "expected a file of its own" in result.stderr
    assert scenario.read_text() == SCENARIO


def test_a_page_does_not_replace_the_results_it_is_made_of(tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    results.write_text("{}\n")
    result = CliRunner().invoke(main, ["report", f"{results}?nodes=3", "--report", str(results)])
    assert result.exit_code == 2
    assert "the command reads it" in result.stderr
    assert results.read_text() == "{}\n"


@pytest.mark.parametrize(("option", "what"), [("--csv", "a table"), ("--report", "a page")])
@pytest.mark.parametrize(
    "mine", ["my notes\n", "a,b\n1,2\n", "<!DOCTYPE html>\n<title>My thesis</title>\n", "\0"]
)
def test_a_run_replaces_only_what_is_ours(tmp_path: Path, option: str, what: str, mine: str) -> None:
    scenario, notes = tmp_path / "mine.toml", tmp_path / "notes.html"
    scenario.write_text(SCENARIO)
    notes.write_text(mine)
    done = CliRunner().invoke(main, ["run", str(scenario), option, str(notes)])
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        f"p2psim: {option} {notes}: expected {what} of p2psim to replace, or no file; found another file"
    ]
    assert notes.read_text() == mine


def test_a_sweep_and_a_page_of_results_replace_only_what_is_ours(tmp_path: Path) -> None:
    notes, results = tmp_path / "notes", tmp_path / "r.jsonl"
    notes.write_text("mine")
    with appending(results) as file:
        file.append(result({"name": "x"}, 1, "p2psim run x", report={}))
    sweep = ["sweep", "smoke-20", "--seeds", "0:1", "--out", str(tmp_path / "new.jsonl"), "--csv", str(notes)]
    for arguments in (sweep, ["report", str(results), "--report", str(notes)]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert "found another file" in done.stderr
    assert notes.read_text() == "mine"
    assert not (tmp_path / "new.jsonl").exists()


def test_our_own_tables_and_pages_are_known_and_replaced(tmp_path: Path) -> None:
    one = result({"name": "<" * 3000}, 1, "p2psim run x", report={})
    table, written, empty = tmp_path / "t.csv", tmp_path / "p.html", tmp_path / "empty"
    write_csv(table, [one])
    written.write_text(page(one), encoding="utf-8")
    empty.write_text("")
    check_outputs({"--csv": table, "--report": written}, [])
    check_outputs({"--csv": empty}, [])
    check_outputs({"--report": empty}, [])
    for outputs in ({"--csv": written}, {"--report": table}):
        with pytest.raises(ResultsError, match="found another file"):
            check_outputs(dict(outputs), [])


def test_two_outputs_need_two_files(tmp_path: Path) -> None:
    one, link = tmp_path / "r", tmp_path / "link"
    one.write_text("")
    link.symlink_to(one)
    with pytest.raises(ResultsError, match="--out names it, too"):
        check_outputs({"--out": one, "--csv": link}, [])
    with pytest.raises(ResultsError, match="--out names it, too"):
        check_outputs({"--out": tmp_path / "new", "--csv": tmp_path / "." / "new"}, [])
    check_outputs({"--out": Path("/dev/null"), "--csv": Path("/dev/null"), "--report": None}, [])


def test_a_missing_folder_is_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="No such file or directory"):
        check_outputs({"--csv": tmp_path / "none" / "r.csv"}, [])
    check_outputs({"--csv": tmp_path / "r.csv"}, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"nodes = 3\n",
        b"\x00\x01 no end of a line",
        b'{"other": 1}\n{"torn',
        b'{"format":1,"points":[1,2]}',
        b'{"format":garbage',
    ],
)
def test_results_are_not_added_to_somebody_elses_file(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "model.safetensors"
    other.write_bytes(content)
    with pytest.raises(ResultsError, match="found another file"), appending(other):
        pass
    assert other.read_bytes() == content
    with pytest.raises(ResultsError, match="line 1: is no result of p2psim"):
        read(other)


@pytest.mark.parametrize("torn", [b"", b'{"fo', b'{"format":1,"version"'])
def test_a_torn_first_line_is_still_ours(tmp_path: Path, torn: bytes) -> None:
    results = tmp_path / "r.jsonl"
    results.write_bytes(torn)
    with appending(results) as file:
        assert file.dropped_bytes == len(torn)


def test_a_page_follows_links_and_leaves_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "page.html", tmp_path / "link.html"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    write_whole(Path("/dev/null"), "nothing")
    assert not Path("/dev/null").is_file()
    assert sorted(tmp_path.iterdir()) == [link, target]
