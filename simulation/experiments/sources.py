"""Which program makes a result: a digest of its sources, since a version says nothing of what was edited today.

Everything counts that may decide a figure: the nodes, what is below them, the simulator and the built-in tasks. A
comment that changed makes another program, too: that costs runs that need not have been made, and no wrong result.
"""

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("crypto", "gossip", "simulation", "p2pnode.tasks")


@cache
def program() -> str:
    """Of the sources as they are now, 16 hexadecimal digits; read once."""
    folders = []
    for name in PACKAGES:
        found = find_spec(name)
        assert found is not None, "these are packages of ours"
        assert found.submodule_search_locations, "and none of them is a file"
        folders.append(Path(found.submodule_search_locations[0]))
    return digest(folders)


def digest(folders: Iterable[Path]) -> str:
    """Of all `.py` files below some folders: their names there, and what they hold."""
    running = sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            running.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return running.hexdigest()[:16]
