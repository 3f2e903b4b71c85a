"""Whose fault it was: a person's own task that raises ends a run with a sentence, what is ours keeps its traceback.

What an exception passed through says it. A task's functions are called by JAX, from several places, on several threads,
and may raise whatever Python can; so nothing is caught by its kind. The simulator and the daemon share it.
"""

import sys
import sysconfig
import traceback
from pathlib import Path
from types import CodeType, TracebackType

from p2pnode.errors import ExitCode, UserError
from p2pnode.printable import printable
from p2pnode.tasks import own_module

OUR_PACKAGES = ("crypto", "gossip", "p2pnode", "simulation")
# Where what a task returned is used for the first time: what is wrong with it is seen there.
FIRST_USES = (
    "gossip.learning.task.",
    "gossip.learning.trainer.",
    "gossip.learning.learner.Learner.train_input",
)
_LIBRARIES = ("site-packages", "dist-packages")


class TaskFaultError(UserError):
    """A task of somebody's own raised, or gave what nobody can work with; one sentence, the cause beside it."""


class TaskFaults:
    """A context in which a person's own task is called; its exceptions leave as TaskFaultError, all others as they are.

    Args:
        spec: The task, as `p2pnode.tasks.load_task` takes it.
        key: What the sentence begins with.
        first_uses: How the names of our functions begin that use first what the task returned: what goes wrong there is
            its fault, too. Empty where the caller has words of its own for that.
    """

    def __init__(
        self, spec: str, *, key: str = "task.name", first_uses: tuple[str, ...] = FIRST_USES
    ) -> None:
        self._spec = spec
        self._key = key
        self._first_uses = first_uses

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        sentence = _sentence(self._spec, error, first_uses=self._first_uses)
        if sentence:
            raise TaskFaultError(
                ExitCode.TASK, f"{self._key}: {sentence}" if self._key else sentence
            ) from error


def what_came(error: BaseException) -> str:
    """Kind and message of an exception, on one line."""
    # JAX's messages are essays; their first lines say what.
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {printable(first)}" if first else type(error).__name__


def place(spec: str, error: BaseException) -> str:
    """`file.py, line 3, in loss`: the last place in the task's own code that an exception passed; else empty."""
    return _walked(spec, error)[0] if own_module(spec) else ""


def _sentence(spec: str, error: Exception, *, first_uses: tuple[str, ...]) -> str:
    """Empty where it is no fault of the task; one of ours is our own fault."""
    if not own_module(spec):
        return ""
    what = what_came(error)
    where, last = _walked(spec, error)
    if where:
        return f"{where}: {what}"
    if last.startswith(first_uses):
        return f"{printable(spec)} breaks its contract, which `p2pnode check-task` tries alone: {what}"
    return ""


def _walked(spec: str, error: BaseException) -> tuple[str, str]:
    """The last place in the task's own code, and the last function of ours, that an exception passed through."""
    own = _own_files(spec)
    code: CodeType | None = None
    at, last = 0, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if _is_theirs(Path(frame.f_code.co_filename), module, own):
            code, at = frame.f_code, line
        if module.partition(".")[0] in OUR_PACKAGES:
            last = f"{module}.{frame.f_code.co_qualname}"
    return _place(code, at) if code is not None else "", last


def _own_files(spec: str) -> tuple[Path, ...]:
    """The file, and the folder of the package, that a task not built in was taken from."""
    module = sys.modules.get(own_module(spec))
    if module is None:
        return ()
    top = module.__name__.partition(".")[0]
    folders = [] if top in OUR_PACKAGES else list(getattr(sys.modules.get(top), "__path__", []))
    return tuple(Path(one) for one in (getattr(module, "__file__", None), *folders) if one)


def _is_theirs(path: Path, module: str, own: tuple[Path, ...]) -> bool:
    """Whether code is neither ours nor a library's, or is of the task's own package."""
    if any(path == one or one in path.parents for one in own):
        return True
    if module.partition(".")[0] in OUR_PACKAGES or path.name.startswith("<"):
        return False
    return not is_library(path)


def is_library(path: Path) -> bool:
    """Whether a file belongs to Python, or to what is installed beside it."""
    standard = (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platstdlib")))
    return any(one in path.parents for one in standard) or any(one in path.parts for one in _LIBRARIES)


def _place(code: CodeType, line: int) -> str:
    path = Path(code.co_filename)
    # As it is imported, since results travel, and where somebody's files are is nobody's business.
    roots = [one for one in (Path.cwd(), *map(Path, sys.path)) if one in path.parents]
    shown = path.relative_to(roots[0]) if roots else path
    return f"{printable(str(shown))}, line {line}, in {code.co_name}"
