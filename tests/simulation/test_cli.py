"""`p2psim` on the command line."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.experiments.results import read
from simulation.experiments.run_command import replay_command
from simulation.scenario import shipped
from simulation.world import World

ROOT = Path(__file__).resolve().parents[2]
# Where tests run in the background, Ctrl-C is ignored, and that is inherited.
FOREGROUND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from simulation.cli import main; main()"
)
SMALL = [
    "run",
    "smoke-20",
    "--seed",
    "3",
    "--nodes",
    "6",
    "--set",
    "duration_s=6.0",
    "--set",
    "faults.churn=0",
]
SMALL += ["--set", "faults.crash=0", "--set", "faults.partitions=[]", "--set", "task.args.model=logistic"]


def test_list_names_every_scenario() -> None:
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == shipped()
    as_json = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)
    assert [entry["name"] for entry in as_json] == shipped()


def test_a_mistake_is_one_sentence_and_status_2() -> None:
    for arguments, part in [
        (["run", "smoke-2"], "did you mean smoke-20"),
        (["run", "smoke-20", "--set", "network.los=1"], "did you mean loss"),
        (["run", "smoke-20", "--set", "task.name=nothing"], "nothing"),
        (["run", "smoke-20", "--nodes", "5000"], "fewer parts"),
    ]:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, arguments
        assert part in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_json_is_one_object_with_the_promised_fields() -> None:
    result = CliRunner().invoke(main, [*SMALL, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    promised = "scenario seed nodes digest virtual_s wall_s events exchanges node_updates accuracy consensus bytes_sent"
    assert set(promised.split()) <= set(found)
    assert set(found["accuracy"]) == {"mean", "worst", "central"}
    assert isinstance(found["faults"], dict)
    assert isinstance(found["refused"], dict)
    assert (found["scenario"], found["seed"], found["nodes"]) == ("smoke-20", 3, 6)
    assert result.stderr.startswith("seed 3; repeat with: p2psim run smoke-20 --seed 3")


def test_people_get_seed_and_options_first_and_the_digest_last() -> None:
    result = CliRunner().invoke(main, SMALL)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("seed 3; repeat with: p2psim run smoke-20 --seed 3")
    assert json.loads(lines[1].removeprefix("options "))["nodes"] == 6
    assert lines[-1].startswith("digest")
    assert "all data in one place" in result.stdout


def test_people_read_what_the_stop_rule_saw() -> None:
    met = CliRunner().invoke(
        main, [*SMALL, "--set", "stop.accuracy_mean=0.01", "--set", "stop.every_s=2", "--no-curve"]
    )
    lines = dict(line.split("  ", 1) for line in met.stdout.splitlines() if "  " in line)
    assert re.fullmatch(
        r"at 2\.0 virtual s: accuracy mean [\d.]+ % has reached 1 %", lines["stopped"].strip()
    )
    assert lines["speed"].strip() == "not measured, there was no second half"
    unmet = CliRunner().invoke(
        main, [*SMALL, "--set", "stop.consensus=1e-4", "--set", "stop.from_s=3", "--no-curve"]
    )
    assert re.search(r"^stop rule +not met: consensus [\d.]+ > 0\.0001$", unmet.stdout, re.MULTILINE)


def test_listing_imports_no_jax() -> None:
    code = (
        "import sys; sys.argv = ['p2psim', 'list']\n"
        "from simulation.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('jax', 'numpy', 'trio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "expected SCENARIO, found nothing; `p2psim run --help` tells more"),
        (["--foo"], "expected an option that exists, found --foo; `p2psim --help` tells more"),
        (["run", "smoke-20", "a\nb"], "expected nothing more, found a b; `p2psim run --help` tells more"),
        (["run", "smoke-20", "--seed", "-1"], "--seed: expected a whole number at least 0, found -1; "),
        (["run", "smoke-20", "--sedd", "1"], "found --sedd; did you mean --seed"),
        (["run", "smoke-20", "--seed"], "--seed: expected a value, found nothing; "),
        (["sweep", "smoke-20"], "expected --seeds A:B, found nothing; `p2psim sweep --help` tells more"),
        (["swarm", "--seeds", "x"], "--seeds: expected two numbers as in 0:100, found 'x'; "),
        (["swarm", "--seeds", "1", "--pace", "second"], "found 'second'; did you mean seconds; "),
        (["swarm", "--seeds", "1", "--shorten", "2"], "expected a number above 0 and at most 1, found 2.0; "),
        (
            ["swarm", "--seeds", "1", "--nodes", "100000000"],
            "--nodes: expected a whole number between 3 and 65536, found 100000000; ",
        ),
        (
            ["shrink", "--seed", "1", "--nodes-max", "65537"],
            "--nodes-max: expected a whole number between 3 and 65536, found 65537; ",
        ),
        (["fleet", "--lr", "x"], "--lr: expected a number, found 'x'; "),
        (["fleet", "--set", "a=1"], "expected task.args.NAME=VALUE, found a=1; `p2psim fleet --help` "),
    ],
)
def test_a_wrong_command_line_is_one_sentence_too(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="p2psim")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("p2psim: ")
    assert sentence in line


def test_no_command_at_all_shows_the_help() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert "p2psim: " not in result.stderr


def test_a_misspelt_command_is_told_the_nearest() -> None:
    result = CliRunner().invoke(main, ["swep"])
    assert result.exit_code == 2
    assert "found swep; did you mean sweep;" in result.stderr


@pytest.mark.parametrize("where", ["/dev/full", "closed"])
def test_an_output_that_takes_nothing_is_one_sentence_and_status_1(where: str) -> None:
    command = shlex.join([sys.executable, "-m", "simulation", "list"])
    to = {"/dev/full": "> /dev/full", "closed": ">&-"}[where]
    done = subprocess.run(["bash", "-c", f"{command} {to}"], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.returncode == 1
    assert done.stderr.startswith("p2psim: the output cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["list"], "stdout"),
        (["--help"], "stdout"),
        (["sweep", "--help"], "stdout"),
        (SMALL, "stdout"),
        ([*SMALL, "--json"], "both"),
        (["swarm", "--seeds", "0:4", "--jobs", "2"], "stdout"),
        (["sweep", "smoke-2", "--seeds", "0:1", "--out", "/dev/null"], "both"),
        (["swep"], "both"),
        (["fleet", "--nodes", "4", "--rounds", "1"], "both"),
    ],
)
def test_a_reader_that_has_enough_ends_a_command_quietly(arguments: list[str], gone: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "simulation", *arguments],
        cwd=ROOT,
        stdout=write_end,
        stderr=write_end if gone == "both" else subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write_end)
    assert done.returncode == 141
    assert not done.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_a_run_with_a_partial_report_and_status_130(tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ["run", "smoke-20", "--set", "duration_s=3000", "--every", "1", "--json", "--out", str(out)]
    arguments += ["--jobs", str(jobs)]
    process = subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    told = ""
    while " s of 3000 s" not in told:
        told = process.stderr.readline()
        assert told, "it ended before it was interrupted"
    # As a terminal does: to the process that checks signatures, too, which by now has begun.
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    report = json.loads(stdout)
    assert report["partial"] is True
    assert 0 < report["virtual_s"] < 3000
    assert report["curve"]["points"]
    assert "Traceback" not in stderr
    assert out.read_bytes() == b""
    assert "partial run is not added" in stderr


def test_ctrl_c_while_the_program_is_read_ends_it_at_once_and_quietly(tmp_path: Path) -> None:
    # In the place of a library: Ctrl-C comes while it is imported.
    (tmp_path / "click.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "simulation", "list"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["hostile-50", "--jobs", "2"], "expected 1, found 2: adversaries know what everybody has said"),
        (
            ["smoke-20", "--jobs", "2", "--set", "network.preset=mobile"],
            "expected 1, found 2: frames of all senders queue",
        ),
        (["smoke-20", "--jobs", "21"], "expected at most one for each of 20 nodes, found 21"),
    ],
)
def test_a_run_that_cannot_be_divided_says_why(arguments: list[str], found: str) -> None:
    result = CliRunner().invoke(main, ["run", *arguments])
    assert result.exit_code == 2
    assert f"p2psim: --jobs: {found}" in result.stderr


def test_results_are_appended_and_tabled(tmp_path: Path) -> None:
    out, table = tmp_path / "r.jsonl", tmp_path / "r.csv"
    result = CliRunner().invoke(main, [*SMALL, "--json", "--out", str(out), "--csv", str(table)])
    assert result.exit_code == 0, result.stderr
    (saved,) = read(out)
    assert saved.report == json.loads(result.stdout)
    assert saved.scenario["nodes"] == 6
    assert len(saved.report["curve"]["points"]) == 20
    assert len(table.read_text().splitlines()) == 2
    again = CliRunner().invoke(main, [*SMALL, "--json", "--no-curve", "--out", str(out)])
    assert json.loads(again.stdout)["curve"] is None
    assert json.loads(again.stdout)["digest"] == saved.report["digest"]
    assert len(out.read_text().splitlines()) == 2
    unwritable = CliRunner().invoke(main, [*SMALL, "--out", str(tmp_path / "no" / "r.jsonl")])
    assert unwritable.exit_code == 2
    assert "cannot be written" in unwritable.stderr.splitlines()[-1]


def test_a_run_that_ends_in_a_violation_is_a_line_of_the_results_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The sequence numbers on the disk go back: what was signed before is signed again.
    first = (1).to_bytes(8, "big")
    monkeypatch.setattr(World, "_persist", lambda self, host, order: host.disk.update(sequence=first))
    out, table, page = tmp_path / "r.jsonl", tmp_path / "r.csv", tmp_path / "r.html"
    arguments = [
        "run",
        "smoke-20",
        "--seed",
        "7",
        "--set",
        "task.args.model=logistic",
        "--set",
        "faults.crash=0.5",
    ]
    result = CliRunner().invoke(
        main, [*arguments, "--json", "--out", str(out), "--csv", str(table), "--report", str(page)]
    )
    assert result.exit_code == 1
    assert "a checker saw what must never happen: " in result.stderr
    (saved,) = read(out)
    assert saved.failed in result.stderr
    assert (saved.seed, saved.report) == (7, {})
    assert saved.command.startswith("p2psim run smoke-20 --seed 7 --set=task.args.model=logistic")
    assert saved.failed.endswith(f"replay with: {saved.command}")
    assert len(table.read_text().splitlines()) == 2
    assert not page.exists()


def test_the_command_that_repeats_a_run_has_all_that_changes_its_result(tmp_path: Path) -> None:
    first, again = tmp_path / "1.html", tmp_path / "2.html"
    more = ["--every", "0.75", "--no-checks", "--set", "about=a 'b' & c"]
    result = CliRunner().invoke(main, [*SMALL, *more, "--report", str(first)])
    assert result.exit_code == 0, result.stderr
    command = result.stdout.splitlines()[0].partition("repeat with: ")[2]
    assert escape(command) in first.read_text()
    words = shlex.split(command)
    assert words[0] == "p2psim"
    assert {"--every=0.75", "--no-checks"} <= set(words)
    repeated = CliRunner().invoke(main, [*words[1:], "--report", str(again)])
    assert repeated.exit_code == 0, repeated.stderr

    def timeless(page: Path) -> list[str]:
        return [line for line in page.read_text().splitlines() if "wall_s" not in line]

    assert timeless(first) == timeless(again)
    assert replay_command("a", 1, (), curve=False) == "p2psim run a --seed 1 --no-curve"
    assert replay_command("a", 1, (), every_s=2.0) == "p2psim run a --seed 1 --every=2"
