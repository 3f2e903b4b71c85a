"""Results in files: one JSON line for each run, appended whole, so that a crash costs at most the last line.

A line carries what is needed to repeat the run and to compare it: the scenario complete with defaults, the seed, the
command, the version, some facts about the machine, and the report. Lines are read as what they are, text from
somewhere: checked, with one sentence naming file and line where something is wrong.
"""

import csv
import fcntl
import os
import platform
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from importlib.metadata import version
from math import isfinite, nan
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from p2pnode import __version__
from simulation.experiments.sources import program

# Raised when a field changes its meaning.
FORMAT = 1
# A line longer than this is not one of ours: a run of 65,536 nodes with its curve takes less than one MB.
LINE_BYTES_MAX = 64 * 2**20
# How every line begins. A file that begins otherwise is somebody else's: nothing is cut off or added there.
_BEGIN = b'{"format":'
# How a torn line of ours begins where it is all that a file has: another program's JSON may begin as above.
_BEGIN_TORN = f'{{"format":{FORMAT},"version":"'.encode()
# How a table of ours begins (`csv_row`); another file is not replaced by one.
CSV_BEGIN = "seed,version,failed,command,"


class ResultsError(Exception):
    """A results file cannot be used; one sentence for the person who named it."""


class Result(Struct, frozen=True, kw_only=True):
    """One line: a run that was made, or that failed."""

    format: int = FORMAT
    version: str
    program: str = ""  # which sources made it (simulation/experiments/sources.py); empty: nobody knows
    key: str  # of the scenario, version and seed: of two lines with the same key the later counts
    scenario: dict[str, Any]
    seed: int
    command: str  # repeats the run
    machine: dict[str, Any]
    failed: str = ""  # why there is no report
    report: dict[str, Any] = {}


def result(
    scenario: Mapping[str, Any], seed: int, command: str, *, report: Any = None, failed: str = ""
) -> Result:
    """Makes a line.

    Args:
        scenario: As `scenario.describe` returns it.
        report: A `simulation.experiments.run.Report`; None where the run failed.
    """
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(report)) if report is not None else {}
    return Result(
        version=__version__,
        program=program(_task_of(scenario)),
        key=run_key(scenario, seed),
        scenario=dict(scenario),
        seed=seed,
        command=command,
        machine=machine(),
        failed=failed,
        report=tree,
    )


def _task_of(scenario: Mapping[str, Any]) -> str:
    task = scenario.get("task")
    return str(task.get("name", "")) if isinstance(task, Mapping) else ""


def run_key(scenario: Mapping[str, Any], seed: int) -> str:
    """What tells a run from others: the scenario to its last key, the files it names, the seed, the version.

    But for the name of the network's preset: its values are there, and decide.
    """
    network = scenario.get("network")
    if isinstance(network, Mapping):
        scenario = {**scenario, "network": {key: network[key] for key in network if key != "preset"}}
    files = {key: _content(value) for key, value in flat(scenario).items() if isinstance(value, str)}
    named = {key: digest for key, digest in files.items() if digest}
    encoded = msgspec.json.encode([FORMAT, __version__, dict(scenario), named, seed], order="sorted")
    return sha256(encoded).hexdigest()[:32]


def _content(text: str) -> str:
    """SHA-256 of the file that a setting names; empty where it names none."""
    try:
        if not Path(text).is_file():  # a pipe or a device would never end
            return ""
        with open(text, "rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # no file, or no name for one
        return ""


def machine() -> dict[str, Any]:
    """What may change speed, and the last bits of numbers. No name of the machine or of its owner."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "numpy")},
    }


def figure(tree: Mapping[str, Any], key: str) -> float:
    """The number under a dotted key; nan where there is none."""
    found: Any = tree
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else nan


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves of a tree under dotted keys; lists and empty tables are leaves."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{key}.")
        else:
            leaves[key] = value
    return leaves


# --- JSON lines ---------------------------------------------------------------------------------------


def read(path: Path, *, curves: bool = True) -> list[Result]:
    """All results of a file, in its order. Of lines with the same key the last counts, at the place of the first.

    Args:
        curves: Whether they are wanted; they are nine tenths of a line, and files may have a hundred thousand.

    Raises:
        ResultsError: the file cannot be read, or a line is no result.
    """
    try:
        with path.open("rb") as file:
            found: dict[str, Result] = {}
            for one in _lines(path, file):
                if not curves:
                    one.report.pop("curve", None)
                found[one.key] = one
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    return list(found.values())


def _lines(path: Path, file: IO[bytes]) -> Iterator[Result]:
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise ResultsError(f"{path}: line {number}: is longer than {LINE_BYTES_MAX} bytes")
        begin = _BEGIN_TORN if number == 1 else _BEGIN
        if not line.endswith(b"\n") and begin.startswith(line[: len(begin)]):
            raise ResultsError(
                f"{path}: line {number}: is torn, a run was interrupted while it was written; "
                f"`p2psim sweep` with the same --out drops it and makes the run again"
            )
        try:
            one = msgspec.json.decode(line, type=Result)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ResultsError(f"{path}: line {number}: is no result of p2psim: {error}") from error
        if one.format != FORMAT:
            raise ResultsError(f"{path}: line {number}: expected format {FORMAT}, found {one.format}")
        yield one


class ResultsFile:
    """An open results file that lines are appended to; nobody else may append meanwhile. Made by `appending`."""

    def __init__(self, path: Path, file: IO[bytes], dropped: int) -> None:
        self.dropped_bytes = dropped  # of a torn last line that was there
        self._path = path
        self._file = file

    def append(self, one: Result) -> None:
        """Writes one line, whole, and waits for the disk.

        Raises:
            ResultsError: it cannot be written; what was there before is still good.
        """
        place = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(msgspec.json.encode(one) + b"\n")
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # a device; what is torn is dropped by the next who appends
                os.ftruncate(self._file.fileno(), place)
            raise ResultsError(f"{self._path}: cannot be written: {error.strerror}") from error


@contextmanager
def appending(path: Path, *, wait: bool = False) -> Iterator[ResultsFile]:
    """Opens a results file for appending; makes it if there is none, drops a torn last line.

    Args:
        wait: Until nobody else appends, instead of an error.

    Raises:
        ResultsError: it cannot be opened, is no results file, or another process appends to it.
    """
    try:
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be opened: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise ResultsError(f"{path}: another process is writing results to it") from error
        except OSError:
            pass  # devices and some network file systems know no locks
        _check_ours(path, file)
        yield ResultsFile(path, file, _drop_torn_line(file))


def _check_ours(path: Path, file: IO[bytes]) -> None:
    """Refuses a file that holds something else, before a byte of it is changed."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    file.seek(0)
    begin = file.read(len(_BEGIN_TORN))
    ours = _BEGIN.startswith(begin[: len(_BEGIN)])
    if ours and not _BEGIN_TORN.startswith(begin):  # of another format, or torn, or neither
        file.seek(0)
        ours = file.readline(LINE_BYTES_MAX).endswith(b"\n")
    if not ours:
        raise ResultsError(f"{path}: expected a results file of p2psim, or none; found another file")


def _drop_torn_line(file: IO[bytes]) -> int:
    """Cuts what follows the last end of a line; returns how many bytes that was."""
    if not file.seekable():
        return 0
    end = place = file.seek(0, os.SEEK_END)
    while place > 0:
        begin = max(0, place - 65536)
        file.seek(begin)
        newline = file.read(place - begin).rfind(b"\n")
        if newline >= 0:
            place = begin + newline + 1
            break
        place = begin
    if place < end:
        file.truncate(place)
    return end - place


# --- CSV ----------------------------------------------------------------------------------------------

_SCALARS = str | int | float | bool


def csv_row(one: Result) -> dict[str, Any]:
    """One run as a row: scenario.* and report.* under dotted keys, without curves and lists."""
    report = {key: value for key, value in one.report.items() if key != "curve"}
    leaves = {
        "seed": one.seed,
        "version": one.version,
        "failed": one.failed,
        "command": one.command,
        **flat(one.scenario, "scenario."),
        **flat(report, "report."),
    }
    row = {}
    for key, value in leaves.items():
        if isinstance(value, float) and not isfinite(value):
            value = None
        # Whoever opens it in a spreadsheet must not run what a scenario's author wrote.
        if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
            value = "'" + value
        row[key] = (
            value if isinstance(value, _SCALARS) or value is None else msgspec.json.encode(value).decode()
        )
    return row


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """Writes a table anew: a column for every key that any run has, an empty cell where a run has it not.

    Raises:
        ResultsError: it cannot be written.
    """
    rows = [csv_row(one) for one in results]
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, names, restval="")
            table.writeheader()
            table.writerows(rows)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
