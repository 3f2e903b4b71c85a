"""Sweeps: every combination once, the same figures however many processes, and a file that survives interruptions."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.experiments.results import Result, read, result
from simulation.experiments.run import run
from simulation.experiments.sources import program
from simulation.experiments.sweep import Job, Made, SweepError, jobs_of, values_of
from simulation.experiments.sweep_command import table
from simulation.scenario import ScenarioError, describe, load

ROOT = Path(__file__).resolve().parents[3]
FOREGROUND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from simulation.cli import main\n"
    "if __name__ == '__main__': main()"
)
# A second of virtual time beyond the start: enough to train once, and to differ by seed.
TINY = [
    *("nodes=4", "duration_s=3.0", "start_s=0.5", "compute.lanes=4"),
    *("faults.churn=0", "faults.crash=0", "faults.partitions=[]", "task.args.model=logistic"),
]
SET = [argument for change in TINY for argument in ("--set", change)]
# A task that breaks when the environment says so.
BREAKABLE = """
import os
from p2pnode.tasks.digits import make as digits

class Breakable:
    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)

    def batches(self, split, seed):
        if os.environ.get("BREAK") == "exit":
            os._exit(1)
        if os.environ.get("BREAK") == "raise":
            raise ArithmeticError("it broke")
        return self.task.batches(split, seed)

def make(**arguments):
    kind = Odd if os.environ.get("BREAK") == "odd" else Breakable
    return kind(digits(**arguments))

# Code without a file, asked for its version where nobody expects it to raise, with an error that cannot be sent.
exec('''
class OddError(Exception):
    def __init__(self, one, two):
        super().__init__("it broke oddly")

class Odd(Breakable):
    @property
    def version(self):
        raise OddError(1, 2)
''')
"""


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("network.loss=0,0.1", ["0", "0.1"]),
        ("network.loss=0:0.4:0.1", ["0.0", "0.1", "0.2", "0.3"]),
        ("nodes=10:31:10", ["10", "20", "30"]),
        ("nodes=10:30:10", ["10", "20"]),
        ('config.exchange.codec="int8",f32', ['"int8"', "f32"]),
        ("faults.partitions=[],[{share=0.3,start_s=1,end_s=2}]", ["[]", "[{share=0.3,start_s=1,end_s=2}]"]),
        ("task.name=a:b", ["a:b"]),
    ],
)
def test_values_are_read_as_people_write_them(text: str, values: list[str]) -> None:
    assert values_of(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize(
    "text", ["loss", "=1", "a=", "a=3:1:1", "a=1:2:0", "a=1:2:-1", "a=0:1e9:1", "a=1..2:3:1"]
)
def test_values_that_make_no_sense_are_one_sentence(text: str) -> None:
    with pytest.raises(SweepError, match="--vary"):
        values_of(text)


def test_jobs_are_all_combinations_with_all_seeds() -> None:
    jobs = jobs_of("smoke-20", ("start_s=1",), ("network.loss=0,0.1", "nodes=5,6"), range(3, 5))
    assert len(jobs) == 8
    assert [job.seed for job in jobs] == [3, 4] * 4
    assert len({job.changes for job in jobs}) == 4
    assert jobs[0].command() == (
        "p2psim run smoke-20 --seed 3 --set=start_s=1 --set=network.loss=0 --set=nodes=5"
    )
    with pytest.raises(ScenarioError, match="did you mean loss"):
        jobs_of("smoke-20", (), ("network.los=1,2",), range(1))
    with pytest.raises(SweepError, match="varied twice"):
        jobs_of("smoke-20", (), ("nodes=3,4", "nodes=5,6"), range(1))
    with pytest.raises(SweepError, match="leave one of the two out"):
        jobs_of("smoke-20", ("nodes=4",), ("nodes=5,6",), range(1))
    with pytest.raises(SweepError, match="at most"):
        jobs_of("smoke-20", (), ("nodes=3:500:1", "duration_s=1:500:1"), range(1))


def made(job: Job, mean: float, failed: str = "") -> Result:
    tree = describe(load(job.scenario, job.changes))
    return result(tree, job.seed, job.command(), report={"accuracy": {"mean": mean}}, failed=failed)


def test_the_table_has_a_row_for_each_combination_named_as_it_was_typed() -> None:
    vary = ("network.preset=lan,mobile", 'task.args={alpha=0.1},{alpha=1, model="logistic"}')
    jobs = jobs_of("smoke-20", (), vary, range(2))
    means = [0.1 * number for number in range(len(jobs))]
    results = [made(job, mean) for job, mean in zip(jobs, means, strict=True)]
    told = table(jobs, results, ["network.preset", "task.args"]).splitlines()
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()][:4] for line in told]
    assert rows[1:5] == [
        ["lan", "{alpha=0.1}", "2", "5.00% ± 63.53%"],
        ["lan", '{alpha=1, model="logistic"}', "2", "25.00% ± 63.53%"],
        ["mobile", "{alpha=0.1}", "2", "45.00% ± 63.53%"],
        ["mobile", '{alpha=1, model="logistic"}', "2", "65.00% ± 63.53%"],
    ]
    assert told[5].startswith("± is half")
    assert len({one.key for one in results}) == 8


def test_the_table_of_a_section_is_narrow_and_one_seed_needs_no_explanation() -> None:
    jobs = jobs_of("smoke-20", (), ('network={preset="lan"},{preset="wan"}',), range(1))
    told = table(jobs, [made(job, 0.5) for job in jobs], ["network"])
    assert [line.split("  ")[0].strip() for line in told.splitlines()[1:]] == [
        '{preset="lan"}',
        '{preset="wan"}',
    ]
    assert "±" not in told


def test_what_failed_is_told_with_its_command_once() -> None:
    (job,) = jobs_of("smoke-20", (), (), range(1))
    for failed in ("it broke", f"at 1 s: it broke; replay with: {job.command()}"):
        assert Made(job, "", failed=failed).told().count(job.command()) == 1


def sweep(out: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", FOREGROUND, "sweep", "smoke-20", *SET, "--out", str(out), *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(out.parent),
            # Of all sweeps here together: they train the same models.
            "JAX_COMPILATION_CACHE_DIR": str(out.parent.parent / "compiled"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_figures_are_the_same_however_many_processes_and_in_a_single_run(tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    done = sweep(one, "--vary", "network.loss=0,0.2", "--seeds", "0:2", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    also = sweep(two, "--vary", "network.loss=0,0.2", "--seeds", "0:2", "--jobs", "2", "--csv", f"{two}.csv")
    assert also.stdout == done.stdout
    digests = [{r.key: (r.report["digest"], r.report["accuracy"]) for r in read(path)} for path in (one, two)]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4
    alone = run(load("smoke-20", (*TINY, "network.loss=0.2")), 1)
    found = next(r for r in read(one) if r.scenario["network"]["loss"] == 0.2 and r.seed == 1)
    assert found.report["digest"] == alone.digest
    assert found.report["accuracy"]["mean"] == alone.accuracy.mean
    assert found.report["curve"]["points"]
    assert "±" in done.stdout
    assert len(Path(f"{two}.csv").read_text().splitlines()) == 5
    assert "4 of 4 runs, 0 failed" in done.stderr

    # Going on: a whole line is kept, a torn one is dropped and its run made again, and so is that of another program.
    lines = one.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(f'"program":"{program()}"'.encode(), b'"program":"0123456789abcdef"')
    one.write_bytes(lines[0] + lines[1] + lines[2][:100])
    again = sweep(one, "--vary", "network.loss=0,0.2", "--seeds", "0:2", "--jobs", "1")
    assert again.returncode == 0
    assert "dropped a torn last line of 100 bytes" in again.stderr
    assert "4 runs, 1 of them" in again.stderr
    assert "p2psim: 1 run was made by another program and is made again\n" in again.stderr
    assert again.stdout == done.stdout
    assert one.read_bytes().startswith(lines[0] + lines[1])
    assert [r.program for r in read(one)] == [program()] * 4


def running(group: int) -> list[Path]:
    """Folders in /proc of the processes for runs of a process group that were not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of = (entry / "stat").read_text().rpartition(") ")[2].split()[:3]
            command = (entry / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if of == str(group) and state != "Z" and "spawn_main" in command:
            found.append(entry)
    return found


def deaf(process: Path) -> bool:
    """Whether a process blocks or ignores Ctrl-C."""
    lines = (process / "status").read_text().splitlines()
    masks = [int(one.split()[1], 16) for one in lines if one.startswith(("SigBlk:", "SigIgn:"))]
    return any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


def test_no_process_goes_on_when_the_one_that_decides_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", FOREGROUND, "sweep", "smoke-20", *SET, "--set", "duration_s=100000"),
            *("--out", str(tmp_path / "r.jsonl"), "--seeds", "0:4", "--jobs", "2"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    while len(running(process.pid)) < 2:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert process.stderr.read() is not None  # until nobody holds it any more
    assert running(process.pid) == []


def test_ctrl_c_leaves_a_good_file_and_no_process(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", FOREGROUND, "sweep", "smoke-20", *SET),
            *("--out", str(out), "--seeds", "0:1000", "--jobs", "2"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    told = ""
    while "2 of 1000 runs" not in told:
        line = process.stderr.readline()
        told += line
        assert line, f"it ended before it was interrupted: {told}"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "the same command goes on" in stderr.splitlines()[-1]
    assert 2 <= len(read(out)) < 1000
    assert running(process.pid) == []


def test_what_fails_is_recorded_with_its_command_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "breakable.py").write_text(BREAKABLE)
    out = tmp_path / "r.jsonl"
    arguments = ("--seeds", "0:2", "--jobs", "1", "--set", "task.name=breakable:make")
    broken = sweep(out, *arguments, BREAK="raise")
    assert broken.returncode == 1, broken.stderr
    assert "2 of 2 runs, 2 failed" in broken.stderr
    assert "repeat with: p2psim run smoke-20 --seed 1" in broken.stderr
    why = "task.name: breakable.py, line 16, in batches: ArithmeticError: it broke"
    assert [one.failed for one in read(out)] == [why] * 2
    odd = sweep(out, *arguments, BREAK="odd")
    assert odd.returncode == 1, odd.stderr
    (why,) = {one.failed for one in read(out)}
    assert why.endswith(
        "breaks its contract, which `p2pnode check-task` tries alone: OddError: it broke oddly"
    )
    died = sweep(out, *arguments, BREAK="exit")
    assert died.returncode == 2
    assert "a process for runs died" in died.stderr.splitlines()[-1]
    assert "Traceback" not in died.stderr
    whole = sweep(out, *arguments)
    assert whole.returncode == 0, whole.stderr
    assert not any(one.failed for one in read(out))
    assert json.loads(out.read_text().splitlines()[-1])["failed"] == ""
    assert "2 of them in" in sweep(out, *arguments, BREAK="exit").stderr, "nothing is made again"
    (tmp_path / "breakable.py").write_text(BREAKABLE + "# edited")
    edited = sweep(out, *arguments, BREAK="exit")
    assert "p2psim: 2 runs were made by another program and are made again\n" in edited.stderr


def test_a_mistake_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "r.jsonl"), "--seeds", "0:1"]
    for arguments, part in [
        (["sweep", "smoke-2", *out], "did you mean smoke-20"),
        (["sweep", "smoke-20", *out, "--vary", "network.los=1,2"], "did you mean loss"),
        (["sweep", "smoke-20", *out, "--vary", "network.loss"], "expected key=v1,v2"),
        (["sweep", "smoke-20", *out, "--vary", "network.loss=0,0.1,0"], "0 is given twice"),
        (["sweep", "smoke-20", *out, "--nodes", "5", "--vary", "nodes=4,6"], "leave one of the two out"),
        (["sweep", "smoke-20", *out, "--nodes", "5", "--set", "nodes = 4"], "leave one of the two out"),
        (["sweep", "smoke-20", *out, "--nodes", "5000"], "fewer parts"),
        (["run", "smoke-20", "--every", "1e-9"], "--every: expected 0, or a number from 0.0003"),
        (["run", "smoke-20", "--every", "nan"], "found nan"),
        (["compare", __file__, "smoke-20"], "expected results, a file ending in .jsonl, or a scenario"),
        (["sweep", "smoke-20", "--seeds", "0:1", "--out", str(tmp_path / "no" / "r")], "cannot be written"),
    ]:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, arguments
        assert part in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["sweep", "swarm"])
def test_ctrl_c_while_processes_begin_shows_no_traceback(command: str, tmp_path: Path) -> None:
    arguments = {
        "sweep": ["sweep", "smoke-20", *SET, "--out", str(tmp_path / "r.jsonl")],
        "swarm": ["swarm", "--nodes", "4"],
    }
    process = subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, *arguments[command], "--seeds", "0:8", "--jobs", "2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while not (found := running(process.pid)):
        assert process.poll() is None
    assert deaf(found[0])  # from its first moment: nothing is imported yet
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("p2psim: interrupted")
    assert running(process.pid) == []
