"""A home remembers what it learns, for starts that name no task; for all others nothing is remembered."""

import stat
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from p2pnode import home as homes
from p2pnode import settings
from p2pnode.home import Home
from p2pnode.launch import SHARED_SETTINGS
from p2pnode.remembered import remember
from p2pnode.settings import Settings

FIRST = (
    "task.factory=table",
    "task.args.path=/a.csv",
    'task.args.classes=["no","y\\"es"]',
    "network.name=lab",
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    homes.create(made)
    made.state.mkdir()
    return made


def load(home: Home, *assignments: str, environ: dict[str, str] | None = None) -> Settings:
    flags = [("--set", *settings.parse_assignment(text)) for text in assignments]
    return settings.load(file=home.config, environ=environ, flags=flags, remembered=home.run)


def started(home: Home, *assignments: str, **more: Any) -> Settings:
    found = load(home, *assignments, **more)
    remember(home, found, SHARED_SETTINGS)
    return found


def test_a_plain_start_goes_on_with_what_the_first_began(home: Home) -> None:
    first = started(home, *FIRST, "node.listen=127.0.0.1:1", "dht.k=3")
    for _ in range(2):
        again = started(home)
        assert again.value("task.factory") == "table"
        assert again.task_args == first.task_args == {"path": "/a.csv", "classes": ["no", 'y"es']}
        assert again.value("network.name") == "lab"
        assert again.origins["network.name"] == str(home.run)
    # Of the day, or of no importance to the model.
    assert again.value("node.listen") == settings.TABLE["node.listen"].default
    assert again.value("dht.k") == settings.TABLE["dht.k"].default
    assert stat.S_IMODE(home.run.stat().st_mode) == 0o600


def test_what_is_said_anew_counts_and_is_remembered(home: Home) -> None:
    started(home, *FIRST)
    assert started(home, "task.args.path=/b.csv").task_args["path"] == "/b.csv"
    environ = {"P2PNODE_TASK__ARGS__LABEL": "ill"}
    assert started(home, environ=environ).task_args["label"] == "ill"
    assert load(home).task_args == {"path": "/b.csv", "label": "ill", "classes": ["no", 'y"es']}


def test_a_start_that_names_a_task_says_all_about_it(home: Home) -> None:
    """No argument of an earlier start gets into one that was spelt out."""
    started(home, *FIRST)
    for task in ("table", "digits"):
        named = load(home, f"task.factory={task}")
        assert (named.task_args, named.value("network.name")) == ({}, "main")


def test_a_task_in_the_settings_file_is_the_task(home: Home) -> None:
    started(home, *FIRST)
    home.config.write_text('[task]\nfactory = "digits"\n[task.args]\nparts = 5\n')
    assert started(home, "task.args.part=1").task_args == {"parts": 5, "part": 1}
    assert not home.run.exists()


def test_what_stands_in_the_settings_file_is_not_remembered_beside_it(home: Home) -> None:
    """So that a line which is taken out of the file is out."""
    home.config.write_text("[task.args]\nlr = 0.5\n")
    assert started(home, *FIRST).task_args["lr"] == 0.5
    home.config.write_text("")
    assert "lr" not in load(home).task_args


def test_what_cannot_be_written_costs_a_line_in_the_log_and_what_was_there_stays(home: Home) -> None:
    started(home, *FIRST)
    with structlog.testing.capture_logs() as events:
        started(Home(home.path / "absent"), *FIRST)
    assert [event["event"] for event in events] == ["not_remembered"]
    assert load(home).task_args["path"] == "/a.csv"
