"""What a home learns, so that a plain `p2pnode run` goes on with it.

A home has one model, which fits one task. After a start that succeeded, `state/run.toml` has the task, its arguments
and what else decides about the run, as far as flags and environment said so; `settings.load` reads it at a start that
names no task anywhere. Addresses are not among it: where to listen and whom to join is of the day.
"""

import json
import os
from collections.abc import Iterable

import structlog

from p2pnode.home import Home
from p2pnode.settings import TASK_ARGS, Settings, to_toml

log = structlog.get_logger(__name__)


def remember(home: Home, settings: Settings, shared: Iterable[str]) -> None:
    """Write down how `home` was started. A disk that does not take it is logged.

    Args:
        home: Whose `state` there is.
        settings: With which the daemon runs.
        shared: Names of the settings that decide about the run, `task.factory` among them.
    """
    in_config = {name for name, origin in settings.origins.items() if origin == str(home.config)}
    try:
        if "task.factory" in in_config:
            home.run.unlink(missing_ok=True)  # the file names the task, so what flags once said is over
            return
        names = [
            name
            for name in (*shared, *(TASK_ARGS + argument for argument in settings.task_args))
            if name == "task.factory" or (name in settings.origins and name not in in_config)
        ]
        fresh = home.run.with_suffix(".new")
        # Data paths stand there: for our eyes only, as all of the home.
        with open(
            os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            file.write(_toml(settings, names))
        os.replace(fresh, home.run)
    except OSError as error:
        log.warning("not_remembered", file=str(home.run), detail=str(error))


def _toml(settings: Settings, names: Iterable[str]) -> str:
    """Dotted keys, which need no order."""
    lines = [
        "# How this home was started last. Read by a start that names no task; written by every start that succeeds."
    ]
    for name in names:
        if name.startswith(TASK_ARGS):
            argument = name.removeprefix(TASK_ARGS)
            lines.append(f"task.args.{json.dumps(argument)} = {to_toml(settings.task_args[argument])}")
        else:
            lines.append(f"{name} = {to_toml(settings.value(name))}")
    return "\n".join(lines) + "\n"
