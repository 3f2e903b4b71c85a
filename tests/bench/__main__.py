"""`make bench`: every figure in one table, and build/bench.json.

`make bench ARGS="codec crypto"` runs some files only; `--brief` tries all of them on small cases, in about a minute,
and writes build/bench-brief.json. Exit status 1 if a benchmark could not be run; a bad figure is no failure, but is
there for all to see.
"""

import json
import os
import platform
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure

ROOT = Path(__file__).resolve().parents[2]
FILES = ("crypto", "codec", "commands", "memory", "exchange", "world", "swarm", "fleet")

BRIEF = "--brief"
# What a benchmark that cannot be run raises; the others go on, and the exit status tells.
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    subprocess.SubprocessError,
)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(figures: list[Figure], *, brief: bool) -> Table:
    head = f"{os.cpu_count()} cores, Python {platform.python_version()}; unit /s: more is better, else less"
    title = (
        "p2pnode benchmarks, tried on small cases: the figures say nothing" if brief else "p2pnode benchmarks"
    )
    result = Table(title=title, caption=head)
    for title, justify in (("what", "left"), ("value", "right"), ("unit", "left"), ("reference", "right")):
        result.add_column(title, justify=justify)  # type: ignore[arg-type]
    result.add_column("ratio", justify="right")
    result.add_column("against", justify="left")
    for figure in figures:
        mark = " (recorded)" if figure.recorded else ""
        style = "green" if figure.better else "yellow"
        ratio = f"[{style}]{figure.ratio:.3g}[/]"
        cells = (figure.name, number(figure.value), figure.unit, number(figure.reference), ratio)
        result.add_row(*cells, figure.against + mark)
    return result


def main(arguments: list[str], *, folder: Path = ROOT / "build") -> int:
    brief = BRIEF in arguments
    names = [name for name in arguments if name != BRIEF]
    wrong = [name for name in names if name not in FILES]
    if wrong:
        print(
            f"There is no benchmark {wrong[0]!r}; there are: {', '.join(FILES)}; and {BRIEF}.",
            file=sys.stderr,
        )
        return 2
    figures: list[Figure] = []
    failed = []
    for name in names or FILES:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        module = import_module(f"tests.bench.bench_{name}")
        for benchmark in module.BENCHMARKS:
            try:
                figures += benchmark(brief)
            except FAULTS as error:
                failed.append(f"{name}.{benchmark.__name__}: {type(error).__name__}: {error}")
    # Wide enough for a line to stay a line when the output goes to a file.
    Console(width=None if sys.stdout.isatty() else 160).print(table(figures, brief=brief))
    out = folder / ("bench-brief.json" if brief else "bench.json")
    folder.mkdir(exist_ok=True)
    out.write_text(json.dumps([figure.entry() for figure in figures], indent=1) + "\n")
    print(f"Written to {os.path.relpath(out)}.")
    for line in failed:
        print(f"NOT MEASURED: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
