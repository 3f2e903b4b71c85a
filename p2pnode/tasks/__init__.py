"""Where tasks come from: the built-in ones and a user's own enter by the same door.

A task is named by an entry point of the group `p2pnode.tasks` ("digits", "table", or one that an installed
package offers) or as `module:factory`; the factory's keyword arguments are the settings `task.args`.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gossip.errors import LocalError
from gossip.learning.task import Task
from p2pnode.errors import ExitCode, UserError

# What a person's own task may raise, anywhere. Not the ways out of a program: those are meant.
TASK_FAULTS = (
    LocalError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    OSError,
    RuntimeError,
    NameError,
    ImportError,
    SyntaxError,
    MemoryError,
)

GROUP = "p2pnode.tasks"

# Known even where the distribution is not installed and has no entry points: a checkout on the Python path.
BUILT_IN = {"digits": "p2pnode.tasks.digits:make", "table": "p2pnode.tasks.table:make"}


def load_task(spec: str, args: Mapping[str, Any]) -> Task:
    """Make the task that `spec` names. Runs the user's code; never call it with anything from a peer.

    Args:
        spec: "digits", "table", the name of another entry point, or "module:factory"; a module of somebody's own is
            searched in the current directory too, after everything installed. For all others that is never looked at:
            whoever can write there could run code (`import_path`).
        args: Keyword arguments of the factory.

    Raises:
        UserError: status TASK and one sentence: no such task, no such module, wrong arguments, not a task.
    """
    factory = task_factory(spec)
    try:
        task = factory(**args)
    except UserError:
        raise
    except TASK_FAULTS as error:
        given = ", ".join(f"{name}={value!r}" for name, value in args.items()) or "no arguments"
        raise _error(f"the task {spec!r} cannot be made with {given}: {error}{_at(spec, error)}") from error
    lacking = [name for name in ("init", "loss", "batches") if not callable(getattr(task, name, None))]
    if lacking:
        raise _error(
            f"the factory {spec!r} returned a {type(task).__name__} without {', '.join(lacking)}; a task has"
            " init(key), loss(params, batch, key) and batches(split, seed)"
        )
    made: Task = task
    return made


def task_names() -> list[str]:
    """Names under which tasks can be had without `module:factory`, sorted."""
    return sorted({*BUILT_IN, *_installed()})


def own_module(spec: str) -> str:
    """Name of the module that a task of somebody's own comes from; empty for ours, and where no task is named so."""
    module = _target(spec).partition(":")[0]
    return "" if module in (target.partition(":")[0] for target in BUILT_IN.values()) else module


def task_factory(spec: str) -> Callable[..., Any]:
    """The function that makes the task `spec`. Imports the user's module.

    Raises:
        UserError: status TASK and one sentence: no such task, no such module, no such function.
    """
    target = _target(spec)
    if not target:
        names = ", ".join(task_names())
        raise _error(
            f"no task is named {spec!r}; expected one of {names}, or module:factory for one of your own"
        )
    module_name, _, factory_name = target.partition(":")
    here = str(Path.cwd())
    if ":" in spec and target not in BUILT_IN.values() and here not in sys.path:
        sys.path.append(here)
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise _error(
            f"{module_name!r} is no module name; expected package.module:factory, as in an import, not a path"
        )
    try:
        module = importlib.import_module(module_name)
    except TASK_FAULTS as error:
        raise _error(
            f"the module of task {spec!r} cannot be imported ({type(error).__name__}: {error}){_at(spec, error)}; "
            f"is it installed, or in {here}?"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise _error(
            f"the module {module_name} has no factory {factory_name!r}; expected a function that returns a task"
        )
    made: Callable[..., Any] = factory
    return made


def _target(spec: str) -> str:
    """What a task's name stands for, as module:factory; empty where there is none. No other distribution can take the
    name of one of ours."""
    return spec if ":" in spec else BUILT_IN.get(spec) or _installed().get(spec, "")


def _installed() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}


def _at(spec: str, error: BaseException) -> str:
    """Where in the person's own code it was, in brackets; empty where it was not there."""
    from p2pnode.tasks.faults import place  # it asks this module whose a task is

    where = place(spec, error)
    return f" ({where})" if where else ""


def _error(sentence: str) -> UserError:
    return UserError(ExitCode.TASK, " ".join(sentence.split()))  # errors of other people may have many lines
