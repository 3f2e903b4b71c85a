"""The files that a command is about to write: asked about before a run that may take hours, and never at the cost of
another file that the same command reads or writes, or that somebody else wrote.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from simulation.experiments.results import CSV_BEGIN, ResultsError, flat

# How a page of ours begins, and how its title ends.
PAGE_BEGIN = '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
PAGE_TITLE_END = " – p2psim</title>"
# So far into a file its marks are looked for: a title of 2,000 signs may be six times as long when it is escaped.
_HEAD_BYTES = 65536


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Before anything is made.

    Args:
        outputs: Option -> the file that it names; None where it was not given.
        inputs: Files that the command reads.

    Raises:
        ResultsError: one of them cannot be written, is one of the others, is read, or holds what is not ours. Of --out
            the last is asked by who appends.
    """
    taken = [("the command reads it", path) for path in inputs]
    for option, path in outputs.items():
        if path is None:
            continue
        for why, other in taken:
            if _same(path, other):
                raise ResultsError(f"{option} {path}: expected a file of its own, but {why}")
        taken.append((f"{option} names it, too", path))
        _check_writable(path)
        _check_ours(option, path)


def files_of(scenario: str, tree: Mapping[str, Any]) -> list[Path]:
    """The files that a scenario is made of: its own, and those that its settings name."""
    texts = [scenario, *(value for value in flat(tree).values() if isinstance(value, str))]
    return [Path(text) for text in texts if text and "\0" not in text]


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all, following links. What is no plain file (`/dev/stdout`) is written as it is.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    target = Path(os.path.realpath(path))
    beside = _beside(target)
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _check_writable(path: Path) -> None:
    try:
        if path.exists():
            if not os.access(path, os.W_OK):
                raise ResultsError(f"{path}: cannot be written: it is not yours")
            return
        beside = _beside(Path(os.path.realpath(path)))
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error


def _check_ours(option: str, path: Path) -> None:
    """Refuses to replace somebody's notes; an empty file is nobody's loss."""
    ours = _OURS.get(option)
    if ours is None or not path.is_file():
        return
    what, is_ours = ours
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    if head and not is_ours(head):
        raise ResultsError(
            f"{option} {path}: expected {what} of p2psim to replace, or no file; found another file"
        )


def _is_table(head: str) -> bool:
    return head.startswith(CSV_BEGIN)


def _is_page(head: str) -> bool:
    return head.startswith(PAGE_BEGIN) and PAGE_TITLE_END in head


# Option -> what it writes, and whether a file that begins so is one.
_OURS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "--csv": ("a table", _is_table),
    "--report": ("a page", _is_page),
}


def _beside(path: Path) -> Path:
    """A name of our own in the same folder. Short, since that of the file may be as long as names can be."""
    return path.with_name(f".p2psim.{os.getpid()}")


def _same(one: Path, other: Path) -> bool:
    try:
        if one.exists() and not one.is_file():  # two texts may go to one terminal
            return False
        return os.path.realpath(one) == os.path.realpath(other) or one.samefile(other)
    except OSError:  # one of them is not there
        return False
