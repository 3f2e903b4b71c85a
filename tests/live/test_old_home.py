"""Homes of 0.1, as files in tests/golden/home-0.1: a daemon of today goes on where they ended."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.live.test_cli_run import Running, asked

pytestmark = pytest.mark.live

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "home-0.1"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def home(name: str, tmp_path: Path) -> Path:
    """A copy of a golden home, closed to others as git cannot keep it."""
    copy = tmp_path / name
    shutil.copytree(GOLDEN / name, copy)
    copy.chmod(0o700)
    (copy / "identity.key").chmod(0o600)
    return copy


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_home_of_0_1_goes_on_as_the_same_node_with_its_numbers_and_its_model(name: str, home: Path) -> None:
    """Two lives: the first takes over what 0.1 left, the second what the first wrote."""
    expected = EXPECTED[name]
    steps = expected["steps"]
    rounds = int(expected["entries"]["rounds"], 16)
    for _ in range(2):
        daemon = Running(home)
        try:
            daemon.ready()
            status = daemon.until(lambda status, past=rounds: status["round"] > past, "trained")
            assert status["id"] == expected["id"]
            assert status["steps"] > steps
            assert all(age > 0 for age in status["ages"]), "it has a model and is no newcomer"
            asked(home, "stop")
        finally:
            daemon.end()
        log = daemon.log.read_text()
        assert '"restored": true' in log
        assert "numbers_lost" not in log
        steps, rounds = status["steps"], status["round"]
