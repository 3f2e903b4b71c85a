"""The style of this house as a test, each finding with what to write instead.

Modelled on TigerBeetle's src/tidy.zig. A rule lives here when it can be checked by reading the source; ruff
and mypy have their own. A rule that is wrong is changed here, with a reason, not stepped around.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("crypto", "gossip", "p2pnode", "simulation")

# One idea per file. The largest file of h11, the smallest perfect library we know, has 659 lines; rounded up.
LINES_MAX = 700

# The one place that may catch everything: it logs what nobody expected and stops the daemon in order.
# One for the process, and one between the events of a peer and our own bugs.
SUPERVISORS = ("p2pnode/daemon.py", "gossip/node.py")

# All that may stand beside the packages.
TOP_LEVEL = {
    *PACKAGES,
    *(
        "tests",
        "docs",
        "deploy",
        "examples",
        "README.md",
        "Makefile",
        "Dockerfile",
        "LICENSE",
        "CHANGELOG.md",
    ),
    *("pyproject.toml", "requirements.lock"),
}

TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".lock", ".yaml", ".yml", ".txt", ".sh", ".json", ".csv", ".svg"}
# Made by tools, not by people, and ignored by git.
GENERATED = {"build", "dist", "__pycache__"}


def python_files(*folders: str) -> list[Path]:
    return sorted(
        p for folder in folders for p in (ROOT / folder).rglob("*.py") if not GENERATED & set(p.parts)
    )


def text_files() -> list[Path]:
    tops = [p for p in ROOT.iterdir() if p.name in TOP_LEVEL | {".ci", ".gitignore"}]
    files = [q for p in tops for q in ([p] if p.is_file() else p.rglob("*")) if q.is_file()]
    return sorted(p for p in files if p.suffix in TEXT_SUFFIXES and not GENERATED & set(p.parts))


Finding = tuple[int, str]
Rule = Callable[[str, ast.Module], Iterator[Finding]]

# --- rules over the syntax tree -------------------------------------------------------------------

FORBIDDEN_IMPORTS = {
    "pickle": "runs code when it reads; safetensors for arrays, msgspec for structures",
    "cloudpickle": "runs code when it reads; safetensors for arrays, msgspec for structures",
    "dill": "runs code when it reads; safetensors for arrays, msgspec for structures",
    "joblib": "pickles; safetensors for arrays",
    "marshal": "is not safe with bytes from outside; msgspec",
    "shelve": "pickles; a file written through p2pnode.store",
    "yaml": "tomllib for settings",
    "argparse": "click, which loads subcommands lazily",
}

FORBIDDEN_CALLS = {
    "eval": "parse what you expect, with tomllib, msgspec or ast.literal_eval",
    "exec": "import a module by name (importlib.import_module)",
    "compile": "import a module by name (importlib.import_module)",
    "__import__": "importlib.import_module",
    "os.system": "subprocess.run with a list",
    "os.popen": "subprocess.run with a list",
    "torch.load": "safetensors",
    "jax.export.deserialize": "never load an executable; a schema and arrays are enough",
    "time.time": "trio.current_time() or time.monotonic(); `now` is an argument below p2pnode",
    "datetime.now": "trio.current_time() or time.monotonic(); `now` is an argument below p2pnode",
    "datetime.utcnow": "trio.current_time() or time.monotonic(); `now` is an argument below p2pnode",
}


def forbidden_imports(file: str, tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in names:
            if (top := name.partition(".")[0]) in FORBIDDEN_IMPORTS:
                yield node.lineno, f"import {name}: {FORBIDDEN_IMPORTS[top]}"


def forbidden_calls(file: str, tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if (name := ast.unparse(node.func)) in FORBIDDEN_CALLS:
            yield node.lineno, f"{name}(): {FORBIDDEN_CALLS[name]}"
        for keyword in node.keywords:
            if keyword.arg in ("allow_pickle", "shell") and ast.unparse(keyword.value) != "False":
                yield node.lineno, f"{keyword.arg}: must be False wherever it is named"


def unnamed_encodings(file: str, tree: ast.Module) -> Iterator[Finding]:
    """Without its name the encoding is the locale's, and what one process wrote another cannot read."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        # What is an open mode among the arguments; a file that is called so is opened under another name.
        modes = [
            m for a in given if isinstance(a, ast.Constant) and re.fullmatch(r"[rwxabt+]+", m := str(a.value))
        ]
        binary = any("b" in mode for mode in modes) or (
            name == "gzip.open" and not any("t" in m for m in modes)
        )
        opens = last in ("open", "fdopen") and name != "os.open" and not binary
        pipes = any(k.arg in ("text", "universal_newlines") for k in node.keywords) and "subprocess" in name
        if last in ("read_text", "write_text") or opens or pipes:
            yield node.lineno, f'{name}(): name the encoding, "utf-8"'


def caught(handler: ast.ExceptHandler) -> list[str]:
    if handler.type is None:
        return ["everything"]
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return [ast.unparse(t) for t in types]


def blanket_excepts(file: str, tree: ast.Module) -> Iterator[Finding]:
    """`except Exception` hides our bugs; whoever catches Cancelled breaks every deadline above it."""
    seen = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        for name in caught(node):
            if name in ("trio.Cancelled", "Cancelled", "everything", "BaseException", "BaseExceptionGroup"):
                yield node.lineno, f"catches {name}: use try/finally, or name the errors that you expect"
            elif name in ("Exception", "ExceptionGroup"):
                seen += 1
                if file not in SUPERVISORS or seen > 1:
                    yield (
                        node.lineno,
                        f"catches {name}: name the errors; only {SUPERVISORS} do this, once",
                    )


def stubs(file: str, tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Raise)
            and node.exc is not None
            and "NotImplementedError" in ast.unparse(node.exc)
        ):
            yield node.lineno, "raises NotImplementedError: write it, or leave it out until it is written"


def is_record(node: ast.ClassDef) -> bool:
    """Only fields: names, types and the comments beside them say it all."""
    return all(isinstance(part, ast.AnnAssign | ast.Assign | ast.Pass) for part in node.body)


def missing_docstrings(file: str, tree: ast.Module) -> Iterator[Finding]:
    """Modules; public classes that do something; public functions of more than three statements."""
    if ast.get_docstring(tree) is None:
        yield 1, "the file does not say why it exists: begin with a docstring"
    if not file.startswith(PACKAGES):
        return
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            trivial = is_record(node) if isinstance(node, ast.ClassDef) else len(node.body) <= 3
            if not node.name.startswith("_") and not trivial and ast.get_docstring(node) is None:
                yield (
                    node.lineno,
                    f"{node.name} is public: say shapes, units, errors and source in a docstring",
                )


EMPTY_NAMES = {"util", "utils", "helper", "helpers", "manager", "misc"}


def words(name: str) -> set[str]:
    return {w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def empty_names(file: str, tree: ast.Module) -> Iterator[Finding]:
    for found in sorted(words(Path(file).stem) & EMPTY_NAMES):
        yield 1, f"a file named {found}: name it for the idea that it holds"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for found in sorted(words(node.name) & EMPTY_NAMES):
                yield node.lineno, f"{node.name}: {found} says nothing; name it for what it is or does"


def unnamed_ignores(file: str, source: str) -> Iterator[Finding]:
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(r"#\s*type:\s*ignore(?!\[)", line) or re.search(r"#\s*noqa(?!:)", line):
            yield (
                number,
                "silences everything on the line: name the rule, as in ignore[arg-type] or noqa: E501",
            )


def findings(rule: Rule, *folders: str) -> list[str]:
    found = []
    for path in python_files(*folders):
        file = path.relative_to(ROOT).as_posix()
        found += [f"{file}:{line}: {text}" for line, text in rule(file, ast.parse(path.read_text(), file))]
    return found


CODE = (*PACKAGES, "examples")
RULES: list[tuple[Rule, tuple[str, ...]]] = [
    (forbidden_imports, CODE),
    (forbidden_calls, CODE),
    (unnamed_encodings, CODE),
    (blanket_excepts, CODE),
    (stubs, CODE),
    (missing_docstrings, (*CODE, "tests")),
    (empty_names, (*CODE, "tests")),
]


@pytest.mark.parametrize(("rule", "folders"), RULES, ids=[rule.__name__ for rule, _ in RULES])
def test_the_source_is_tidy(rule: Rule, folders: tuple[str, ...]) -> None:
    assert findings(rule, *folders) == []


BREACHES: list[tuple[Rule, str]] = [
    (forbidden_imports, "import pickle"),
    (forbidden_imports, "def f():\n    from marshal import loads"),
    (forbidden_calls, "eval('1')"),
    (forbidden_calls, "np.load(f, allow_pickle=True)"),
    (forbidden_calls, "import time\ntime.time()"),
    (unnamed_encodings, "path.read_text()"),
    (unnamed_encodings, "with open(path, 'w') as file:\n    pass"),
    (unnamed_encodings, "gzip.open(path, 'rt')"),
    (unnamed_encodings, "subprocess.run(['ls'], text=True)"),
    (blanket_excepts, "try:\n    f()\nexcept Exception:\n    pass"),
    (blanket_excepts, "try:\n    f()\nexcept* (OSError, Exception):\n    pass"),
    (blanket_excepts, "try:\n    f()\nexcept trio.Cancelled:\n    raise"),
    (stubs, "def f():\n    raise NotImplementedError"),
    (missing_docstrings, "x = 1"),
    (missing_docstrings, "'''Why.'''\ndef f():\n    a()\n    b()\n    c()\n    d()"),
    (missing_docstrings, "'''Why.'''\nclass A:\n    def f(self): ..."),
    (empty_names, "class PeerManager: ..."),
    (empty_names, "def sort_helper(): ..."),
]


@pytest.mark.parametrize(("rule", "source"), BREACHES)
def test_the_rules_see_a_breach(rule: Rule, source: str) -> None:
    assert len(list(rule("gossip/x.py", ast.parse(source)))) == 1


def test_the_supervisor_may_catch_everything_once() -> None:
    once = "try:\n    f()\nexcept Exception:\n    stop()\n"
    assert list(blanket_excepts(SUPERVISORS[0], ast.parse(once))) == []
    assert len(list(blanket_excepts(SUPERVISORS[0], ast.parse(once + once)))) == 1


# --- rules over tests ------------------------------------------------------------------------------


def is_check(node: ast.AST, checking: set[str]) -> bool:
    """An assertion, an expected error, or a call of something named for checking or known to check."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    return (
        name in ("pytest.raises", "pytest.fail", "pytest.skip")
        or last in checking
        or last.startswith(("check", "assert"))
    )


def assertionless(file: str, tree: ast.Module) -> Iterator[Finding]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    checking: set[str] = set()
    while True:  # a function checks if it calls one that does: repeat until nothing is added
        more = {f.name for f in functions if any(is_check(n, checking) for n in ast.walk(f))}
        if more == checking:
            break
        checking = more
    for function in functions:
        if function.name.startswith("test") and function.name not in checking:
            yield function.lineno, f"{function.name} asserts nothing: say what must be true at its end"


def sleeping_tests(file: str, tree: ast.Module) -> Iterator[Finding]:
    """Real processes are waited for in tests/live and timed in tests/bench; elsewhere time is virtual."""
    if file.startswith(("tests/live/", "tests/bench/")):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
            yield (
                node.lineno,
                "time.sleep in a test: use trio.testing.MockClock, or wait for the event itself",
            )


def mocks(file: str, tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and "unittest" in ast.unparse(node):
            yield (
                node.lineno,
                "unittest or mock: use plain pytest, and the real part or a small fake of its interface",
            )


TEST_RULES: list[Rule] = [assertionless, sleeping_tests, mocks]


@pytest.mark.parametrize("rule", TEST_RULES, ids=[rule.__name__ for rule in TEST_RULES])
def test_the_tests_are_tidy(rule: Rule) -> None:
    assert findings(rule, "tests") == []


def test_every_test_stands_where_pytest_finds_it() -> None:
    lost = []
    for path in python_files("tests"):
        tests = re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
        if tests and not path.name.startswith("test_") and "contracts" not in path.parts:
            lost.append(f"{path.relative_to(ROOT)}: {tests[0]} would never run; name the file test_...")
    assert lost == []


def test_the_test_rules_see_a_breach() -> None:
    assert len(list(assertionless("tests/x.py", ast.parse("def test_a():\n    f()")))) == 1
    assert (
        list(assertionless("tests/x.py", ast.parse("def f():\n    assert g()\ndef test_a():\n    f()"))) == []
    )
    assert len(list(sleeping_tests("tests/x.py", ast.parse("import time\ntime.sleep(1)")))) == 1
    assert len(list(mocks("tests/x.py", ast.parse("from unittest.mock import Mock")))) == 1


# --- rules over text ---------------------------------------------------------------------------------

# Written in two halves, so that this file passes its own test.
FOREIGN = {
    "/wo" + "rk/": "a path of one machine; use a path relative to the project",
    "/ro" + "ot/": "a path of one machine; use a path relative to the project",
    "/ho" + "me/": "a path of one machine; use a path relative to the project, or ~",
    "py" + "pi.org": "the host of a package index; people configure their own",
    "python" + "hosted": "the host of a package index; people configure their own",
    "index" + "-url": "a package index; people configure their own",
    "far" + "m-studio": "a tool that only some have",
    "cla" + "ude": "who typed it does not matter",
    "anthro" + "pic": "who typed it does not matter",
}
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def foreign_words(text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        for word, why in FOREIGN.items():
            if word in line.lower():
                yield number, f"{word!r}: {why}"
        if UNFINISHED.search(line):
            yield number, "unfinished work: do it, or describe it in an issue"
        if "PYTHONOPTI" + "MIZE" in line or re.search(r"python3? -O", line):
            yield number, "switches assertions off; they stay on"


def test_text_names_no_machine_and_no_unfinished_work() -> None:
    found = []
    for path in text_files():
        found += [f"{path.relative_to(ROOT)}:{n}: {why}" for n, why in foreign_words(path.read_text())]
    assert found == []
    assert len(list(foreign_words("see /wo" + "rk/main\npython -" + "O x\n# TO" + "DO later"))) == 3


def test_no_rule_is_silenced_without_its_name() -> None:
    found = []
    for path in python_files(*CODE, "tests"):
        found += [f"{path.relative_to(ROOT)}:{n}: {why}" for n, why in unnamed_ignores("", path.read_text())]
    assert found == []
    assert len(list(unnamed_ignores("", "x = 1  # no" + "qa\ny = 2  # type: " + "ignore\n"))) == 2


def test_no_file_holds_more_than_one_idea_can_need() -> None:
    lengths = {
        p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in python_files(*CODE, "tests")
    }
    assert {file: lines for file, lines in lengths.items() if lines > LINES_MAX} == {}, "split them by ideas"


def test_nothing_strays_at_the_top() -> None:
    """Hidden folders are tools' own; everything else has a place."""
    there = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    assert sorted(there - TOP_LEVEL - GENERATED) == []
