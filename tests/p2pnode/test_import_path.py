"""Whoever can write to the folder in which a command is typed runs no code by it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.errors import ExitCode
from p2pnode.tasks import BUILT_IN, load_task, own_module, task_names

ROOT = Path(__file__).resolve().parents[2]
# Of what a command imports late, and what looks into the metadata of everything that is installed.
LIBRARIES = ("rich", "msgspec", "optax", "jax_plugins", "trio", "structlog", "nacl")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder full of things that Python would find."""
    folder = tmp_path / "planted"
    for name in (*LIBRARIES, "evil"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(
            f"import os; open(os.path.join({str(tmp_path)!r}, 'ran-{name}'), 'w')\nmake = initialize = print\n"
        )
    (folder / "evil-1.0.dist-info").mkdir()
    (folder / "evil-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"
    )
    (folder / "evil-1.0.dist-info" / "entry_points.txt").write_text(
        "[p2pnode.tasks]\ndigits = evil:make\nevil = evil:make\n\n[jax_plugins]\nevil = evil\n"
    )
    return folder


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("-m", "p2pnode", "doctor"), ExitCode.OK),
        (("-m", "p2pnode", "config", "show"), ExitCode.OK),
        (("-m", "p2pnode", "top", "--once"), ExitCode.NO_DAEMON),
        (("-m", "p2pnode", "check-task"), ExitCode.OK),
        (("-m", "p2pnode", "check-task", "--task", "digits"), ExitCode.OK),
        (("-m", "p2pnode", "check-task", "--task", "evil"), ExitCode.TASK),
        (("-m", "p2pnode", "run", "--listen", "192.0.2.1:7400"), ExitCode.ADDRESS),
        (("-m", "simulation", "list"), 0),
        (("-c", "import sys; del sys.path[0]; import p2pnode.cli as c; sys.exit(c.main(['check-task']))"), 0),
    ],
)
def test_nothing_is_imported_from_the_working_directory(
    planted: Path, words: tuple[str, ...], status: int
) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("P2PNODE_")}
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=planted,
        env={**environ, "PYTHONPATH": str(ROOT), "P2PNODE_HOME": str(planted.parent / "home")},
        capture_output=True,
        text=True,
        timeout=90,
        stdin=subprocess.DEVNULL,
    )
    assert [path.name for path in planted.parent.glob("ran-*")] == []
    assert ended.returncode == status, ended.stderr


def test_no_distribution_takes_the_name_of_a_built_in_task(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the path here, as if installed: its own name counts, ours stay ours."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(planted)])
    assert task_names() == ["digits", "evil", "table"]
    assert (own_module("digits"), own_module("evil")) == ("", "evil")
    assert type(load_task("digits", {})).__module__.startswith("p2pnode.tasks.")


@pytest.mark.parametrize("spec", [*BUILT_IN, *BUILT_IN.values()])
def test_only_a_task_of_somebodys_own_puts_the_working_directory_on_the_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    init = loss = batches = print\n")
    (tmp_path / "rows.csv").write_text("x,label\n1,a\n2,b\n3,a\n4,b\n5,a\n6,b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load_task(spec, {"path": "rows.csv"} if "table" in spec else {})
    assert str(tmp_path) not in sys.path
    load_task("mine:Mine", {})
    assert sys.path[-1] == str(tmp_path)
