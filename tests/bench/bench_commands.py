"""How long a person waits for a command: its start, the question to the daemon, the answer.

The target is 0.3 s. The reference is the interpreter that does nothing.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.figures import Figure, medians
from tests.bench.processes import BIN, answer, running, wait_until_up

COMMANDS = ("version", "id", "status", "peers")


def starts(brief: bool) -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder) / "node", Path(folder) / "log"
        answer(BIN / "p2pnode", "init", "--home", home, "--json")
        with running(BIN / "p2pnode", "run", "--home", home, "--listen", "127.0.0.1:0", log=log) as process:
            wait_until_up(home, process, log)
            for name in COMMANDS:
                arguments = [name] if name == "version" else [name, "--home", str(home)]
                ours, reference = medians(
                    lambda arguments=arguments: run(BIN / "p2pnode", *arguments),
                    lambda: run(sys.executable, "-c", "pass"),
                    repeats=1 if brief else 5,
                )
                figures.append(
                    Figure(
                        name=f"p2pnode {name}",
                        value=ours,
                        unit="s",
                        reference=reference,
                        against="python -c pass",
                    )
                )
    return figures


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


BENCHMARKS = (starts,)
