"""Which program makes a result: a digest of its sources, since a version says nothing of what was edited today.

Everything counts that may decide a figure: the nodes, what is below them, the simulator, the built-in tasks, versions
of the libraries that compute, and a task of somebody's own with what it imports of theirs. A comment that changed makes
another program, too: that costs runs that need not have been made, and no wrong result.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec, resolve_name
from pathlib import Path

from p2pnode.tasks import own_module
from p2pnode.tasks.faults import OUR_PACKAGES, is_library

PACKAGES = ("crypto", "gossip", "simulation", "p2pnode.tasks")
# What computes; another version may round otherwise.
LIBRARIES = ("jax", "jaxlib", "numpy", "optax")


@cache
def program(task: str = "") -> str:
    """Of the sources as they are now, 16 hexadecimal digits; read once.

    Args:
        task: As in a scenario; a built-in one is among the sources.
    """
    running = sha256(_ours().encode())
    for name, path in sorted(sources_of(own_module(task)).items()):
        content = path.read_bytes()
        running.update(f"{name}\0{len(content)}\0".encode() + content)
    return running.hexdigest()[:16]


@cache
def _ours() -> str:
    folders = []
    for name in PACKAGES:
        found = find_spec(name)
        assert found is not None, "these are packages of ours"
        assert found.submodule_search_locations, "and none of them is a file"
        folders.append(Path(found.submodule_search_locations[0]))
    return digest(folders, {name: version(name) for name in LIBRARIES})


def digest(folders: Iterable[Path], libraries: Mapping[str, str] | None = None) -> str:
    """Of all `.py` files below some folders, their names there, and what they hold; and of versions of libraries."""
    running = sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            running.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    for name, number in sorted((libraries or {}).items()):
        running.update(f"{name}=={number}\0".encode())
    return running.hexdigest()[:16]


# --- a task of somebody's own -------------------------------------------------------------------------


def sources_of(module: str) -> dict[str, Path]:
    """The modules of a person's own program that a module of theirs imports, and itself: name -> file.

    Found by reading, nothing is run: what is imported by a name that the program makes up is not among them.

    Args:
        module: Its name; empty: of nobody's.
    """
    found: dict[str, Path] = {}
    left = [module] if module else []
    while left:
        name = left.pop()
        path = _file(name, module.partition(".")[0])
        if path is None or name in found:
            continue
        found[name] = path
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # then nobody imports it, either
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        left += [part for one in _imported(tree, package) for part in _with_parents(one)]
    return found


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Names of modules that may be meant; some are those of values in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # beyond its package
                continue
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> list[str]:
    """`a.b.c` imports `a` and `a.b`, too."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _file(name: str, own: str) -> Path | None:
    """Where a module lies, unless it is ours or a library's; of the package `own` even then."""
    top, *rest = name.split(".")
    if top in OUR_PACKAGES and top != own:
        return None
    try:
        spec = find_spec(top)  # of a name without dots it imports nothing
    except ValueError:  # it was not imported, but made
        return None
    if spec is None:
        return None
    places = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    paths = [path for place in places for path in (place.with_suffix(".py"), place / "__init__.py")]
    if not rest and spec.origin is not None:
        paths.append(Path(spec.origin))
    return next(
        (
            path
            for path in paths
            if path.suffix == ".py" and path.is_file() and (top == own or not is_library(path))
        ),
        None,
    )
