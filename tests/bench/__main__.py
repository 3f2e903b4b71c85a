"""`make bench`: every figure in one table, and build/bench.json.

`make bench ARGS="codec crypto"` runs some files only. Exit status 1 if a benchmark could not be run; a bad figure is
no failure, but is there for all to see.
"""

import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure

ROOT = Path(__file__).resolve().parents[2]
FILES = ("crypto", "codec", "commands", "memory", "exchange", "world", "swarm", "fleet")


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(figures: list[Figure]) -> Table:
    head = f"{os.cpu_count()} cores, Python {platform.python_version()}; unit /s: more is better, else less"
    result = Table(title="p2pnode benchmarks", caption=head)
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


def main(names: list[str]) -> int:
    wrong = [name for name in names if name not in FILES]
    if wrong:
        print(f"There is no benchmark {wrong[0]!r}; there are: {', '.join(FILES)}.", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    failed = []
    for name in names or FILES:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        module = import_module(f"tests.bench.bench_{name}")
        for benchmark in module.BENCHMARKS:
            try:
                figures += benchmark()
            except (ImportError, OSError, RuntimeError, ValueError, AssertionError) as error:
                failed.append(f"{name}.{benchmark.__name__}: {type(error).__name__}: {error}")
    # Wide enough for a line to stay a line when the output goes to a file.
    Console(width=None if sys.stdout.isatty() else 160).print(table(figures))
    out = ROOT / "build" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps([figure.entry() for figure in figures], indent=1) + "\n")
    print(f"Written to {out.relative_to(ROOT)}.")
    for line in failed:
        print(f"NOT MEASURED: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
