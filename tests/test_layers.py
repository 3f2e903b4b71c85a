"""Four packages in a straight line, and a pure core: the structure of docs/architecture.md as a test.

simulation -> p2pnode -> gossip -> crypto: a package imports to its right, never to its left. What is below
p2pnode decides and computes, but touches nothing: time, randomness and entropy are arguments. The rules read
the syntax trees, so that an import inside a function counts as well.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the right end of the line to the left: each may import itself and what stands before it.
LINE = ["crypto", "gossip", "p2pnode", "simulation"]

# The pure packages and all that they may import besides each other and the standard library.
PURE = {
    "crypto": {"nacl"},
    "gossip": {"msgpack", "msgspec", "numpy"},
}

# Modules of the standard library that read the world or wait for it.
IMPURE = {
    *(
        "asyncio",
        "concurrent",
        "ctypes",
        "datetime",
        "fcntl",
        "getpass",
        "glob",
        "http",
        "importlib",
        "logging",
    ),
    *(
        "mmap",
        "multiprocessing",
        "os",
        "pathlib",
        "platform",
        "queue",
        "resource",
        "sched",
        "secrets",
        "select",
    ),
    *(
        "selectors",
        "shutil",
        "signal",
        "socket",
        "socketserver",
        "sqlite3",
        "ssl",
        "subprocess",
        "sys",
        "syslog",
    ),
    *("tempfile", "threading", "time", "urllib", "uuid", "_thread"),
}

# `simulation.memory`, `simulation/memory.py`: a module of the simulator, by its name or by its file.
SIMULATION_NAMED = re.compile(
    r"\bsimulation[./](?:{})\b".format(
        "|".join(sorted(path.stem for path in (ROOT / "simulation").iterdir() if path.stem[0] != "_"))
    )
)

JAX = {"jax", "jaxlib", "optax"}
# Importing JAX costs seconds and 220 MB: only what trains may do it, and the files are named here.
JAX_ALLOWED = ("gossip/learning/trainer.py", "p2pnode/tasks/", "simulation/")

# What of numpy.random works from a seed that is given.
SEEDED = ("default_rng", "Generator", "SeedSequence", "PCG64", "Philox")

# Sub-machines of the node: each is fed by gossip/node.py and knows none of the others.
SUB_MACHINES = ("gossip.dht.lookup", "gossip.run.exchange", "gossip.net.sampling")

# What stands on the world of the simulator, side by side: each may import the top of the package, and none another.
SIDE_BY_SIDE = ("experiments", "fleet", "swarm")

# Commands that a person waits for must not import JAX; nor may what they stand on.
FREE_OF_JAX = [
    "crypto.channel",
    "gossip.node",
    "gossip.learning.learner",
    "p2pnode.cli",
    "p2pnode.daemon",
    "simulation.cli",
]

Rule = Callable[[Path, ast.AST], Iterator[str]]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            # `from gossip import wire` imports the module gossip.wire, as far as we are concerned.
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imports_to_the_left(path: Path, tree: ast.AST) -> Iterator[str]:
    allowed = LINE[: LINE.index(path.relative_to(ROOT).parts[0]) + 1]
    for line, name in imports(path, tree):
        top = name.partition(".")[0]
        if top in LINE and top not in allowed:
            yield f"{line}: imports {name}, to the left of its package; move the thing down, or pass it in"


def simulator_named(path: Path, tree: ast.AST) -> Iterator[str]:
    """Modules of the simulator that are named below it: in a string, where no import tells, or in a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for name in SIMULATION_NAMED.findall(node.value):
                yield f"{node.lineno}: names {name}; let the simulator pass in what it is named for"


def foreign_imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """What a pure package must not import: the world, global randomness, other libraries than its own."""
    file = path.relative_to(ROOT)
    libraries = PURE[file.parts[0]] | (JAX if file.as_posix().startswith(JAX_ALLOWED) else set())
    for line, name in imports(path, tree):
        top, _, rest = name.partition(".")
        if top in IMPURE:
            yield f"{line}: imports {name}; time, entropy and I/O are arguments below p2pnode"
        elif top == "random" and rest not in ("", "Random"):
            yield f"{line}: imports {name}; take a random.Random as an argument"
        elif top not in sys.stdlib_module_names and top not in LINE and top not in libraries:
            yield f"{line}: imports {name}; the libraries of {file.parts[0]} are {sorted(libraries)}"


def impure_calls(path: Path, tree: ast.AST) -> Iterator[str]:
    """What a pure package must not call or reach for, where no import tells."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).replace("numpy.", "np.")
            if name in ("open", "input", "print"):
                yield f"{node.lineno}: calls {name}(); return an effect instead"
            elif name in ("hash", "id"):
                yield f"{node.lineno}: calls {name}(), which differs between processes; use hashlib or a key"
            elif name == "np.random.default_rng" and not node.args and not node.keywords:
                yield f"{node.lineno}: default_rng() without a seed reads the system's entropy; pass a seed"
            elif name == "nacl.utils.random":
                yield f"{node.lineno}: nacl.utils.random reads the system's entropy; take `entropy`"
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).replace("numpy.", "np.")
            if owner == "random" and node.attr != "Random":
                yield f"{node.lineno}: random.{node.attr} is global randomness; take a random.Random"
            elif owner == "np.random" and node.attr not in SEEDED:
                yield f"{node.lineno}: np.random.{node.attr} is global randomness; use default_rng(seed)"


def iterated_sets(tree: ast.AST) -> Iterator[str]:
    """Loops over something that is visibly a set: its order differs from process to process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            over = node.iter
            named = isinstance(over, ast.Call) and ast.unparse(over.func) in ("set", "frozenset")
            if named or isinstance(over, ast.Set | ast.SetComp):
                yield f"{over.lineno}: iterates a set; use a dict as an ordered set, or sorted(...)"


def findings(packages: list[str], rule: Rule) -> list[str]:
    found = []
    for package in packages:
        for path in sources(package):
            tree = ast.parse(path.read_text(), str(path))
            found += [f"{path.relative_to(ROOT)}:{text}" for text in rule(path, tree)]
    return found


def test_every_package_imports_to_the_right_only() -> None:
    assert findings(LINE, imports_to_the_left) == []


def test_nothing_below_the_simulator_names_its_modules() -> None:
    assert findings(LINE[:-1], simulator_named) == []


def test_the_parts_of_the_simulator_stand_side_by_side() -> None:
    def rule(path: Path, tree: ast.AST) -> Iterator[str]:
        own = path.relative_to(ROOT).parts[1]
        for line, name in imports(path, tree):
            other = name.split(".")[1] if name.startswith("simulation.") else ""
            if other in SIDE_BY_SIDE and other != own and own not in ("cli.py", "__main__.py"):
                yield f"{line}: imports {name}; move what both need to the top of simulation"

    assert findings(["simulation"], rule) == []


def test_the_pure_packages_touch_nothing() -> None:
    assert findings(list(PURE), foreign_imports) == []
    assert findings(list(PURE), impure_calls) == []


def test_no_loop_runs_over_a_set_where_the_order_would_count() -> None:
    assert findings(["gossip", "simulation"], lambda path, tree: iterated_sets(tree)) == []


def test_jax_is_imported_in_the_files_that_train_and_nowhere_else() -> None:
    def rule(path: Path, tree: ast.AST) -> Iterator[str]:
        if not path.relative_to(ROOT).as_posix().startswith(JAX_ALLOWED):
            for line, name in imports(path, tree):
                if name.partition(".")[0] in JAX:
                    yield f"{line}: imports {name}; only {', '.join(JAX_ALLOWED)} may"

    assert findings(LINE, rule) == []


def test_asyncio_is_nowhere() -> None:
    def rule(path: Path, tree: ast.AST) -> Iterator[str]:
        for line, name in imports(path, tree):
            if name.partition(".")[0] in ("asyncio", "anyio"):
                yield f"{line}: imports {name}; the daemon runs on trio"

    assert findings(LINE, rule) == []


def test_sub_machines_do_not_know_one_another() -> None:
    def rule(path: Path, tree: ast.AST) -> Iterator[str]:
        if (own := module_name(path)) in SUB_MACHINES:
            for line, name in imports(path, tree):
                if any(f"{name}.".startswith(f"{other}.") for other in SUB_MACHINES if other != own):
                    yield f"{line}: imports {name}; let gossip/node.py carry what one tells the other"

    assert findings(["gossip"], rule) == []


@pytest.mark.parametrize("module", FREE_OF_JAX)
def test_importing_what_needs_no_jax_does_not_import_it(module: str) -> None:
    if not (ROOT / f"{module.replace('.', '/')}.py").exists():
        pytest.fail(f"{module} is named in FREE_OF_JAX but is not there: mend the list.")
    program = (
        f"import sys, {module}; print(sorted({{'jax', 'jaxlib', 'optax', 'sklearn'}} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (answer.stdout.strip(), answer.returncode) == ("[]", 0), answer.stderr


BREACHES = {
    "crypto/x.py": ("from gossip import wire", imports_to_the_left),
    "gossip/dht/x.py": ("from ...p2pnode import cli", imports_to_the_left),
    "gossip/a.py": ("import trio", foreign_imports),
    "gossip/s.py": ("def f():\n    return 'simulation.memory.MemoryLink'", simulator_named),
    "p2pnode/s.py": ('"""As in `simulation/fleet`."""', simulator_named),
    "gossip/b.py": ("def f():\n    from os import urandom", foreign_imports),
    "gossip/c.py": ("import random\nrandom.choice([])", impure_calls),
    "gossip/d.py": ("from random import choice", foreign_imports),
    "gossip/e.py": ("import numpy as np\nnp.random.shuffle([])", impure_calls),
    "gossip/f.py": ("import numpy as np\nnp.random.default_rng()", impure_calls),
    "gossip/g.py": ("open('x')", impure_calls),
    "gossip/h.py": ("import jax", foreign_imports),
    "crypto/i.py": ("import numpy", foreign_imports),
    "crypto/j.py": ("nacl.utils.random(32)", impure_calls),
}


@pytest.mark.parametrize("file", BREACHES)
def test_the_rules_see_a_breach(file: str) -> None:
    source, rule = BREACHES[file]
    assert len(list(rule(ROOT / file, ast.parse(source)))) == 1


def test_the_rules_let_the_allowed_pass() -> None:
    source = (
        "import random, numpy as np\nfrom gossip.dht import ids\nrng: random.Random\nnp.random.default_rng(7)"
    )
    tree = ast.parse(source)
    path = ROOT / "gossip" / "dht" / "x.py"
    assert [*imports_to_the_left(path, tree), *foreign_imports(path, tree), *impure_calls(path, tree)] == []
    packages = ast.parse('"""docs/simulation.md"""\nPACKAGES = ("gossip", "simulation")')
    assert list(simulator_named(path, packages)) == []
    assert list(iterated_sets(ast.parse("for x in {1, 2}: pass"))) != []
