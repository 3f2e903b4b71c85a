"""`make catch`: which planted faults the swarm finds, and how soon; writes docs/catch-table.md.

Each fault is one line of the packages changed by text, in a temporary copy. Seeds from 0 on are run until one fails.
What is not caught is in the table too: that is where the simulator is blind.

    python -m tests.catch              all faults, 200 seeds each
    python -m tests.catch 20 walk      20 seeds each, only faults whose name contains a word
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.catch.planted import FAULTS, Planted

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("crypto", "gossip", "p2pnode", "simulation")
SEEDS = 200
# Small networks at the fast pace: most faults show in the smallest, and 200 seeds of them take two minutes.
NODES_MAX = 6
PACE = "seconds"
TABLE = ROOT / "docs" / "catch-table.md"
HEAD = """# Catch table

Written by `make catch` on {date} from commit {commit}: do not edit. Each line is one fault that was planted in a copy
of the code, and what the [swarm](simulation.md#swarm) said to it, with at most {seeds} seeds of at most {nodes} nodes
at the pace of {pace}. A seed counts only where it holds without the fault. Seconds are of wall time on the machine at
hand, from the first seed on. Faults that were not caught show where the swarm is blind.

{caught} of {all} caught.

| planted | in | caught by | after | what was seen |
|---|---|---|---|---|
"""


class Outcome(NamedTuple):
    seed: int | None  # None: not caught
    seen: str
    wall_s: float


def failures(folder: Path, seeds: str) -> list[str]:
    """What the swarm of the packages in `folder` says, up to the first seeds that fail."""
    words = ["swarm", "--seeds", seeds, "--nodes-max", str(NODES_MAX), "--pace", PACE, "--first", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "simulation", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    failed: list[str] = json.loads(done.stdout)["failed"]
    return failed


def search(fault: Planted, seeds: int) -> Outcome:
    """Plant a fault in a copy of the packages, and run seeds until one fails."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, Path(folder) / package, ignore=ignored)
        path = Path(folder) / fault.path
        text = path.read_text()
        assert text.count(fault.old) == 1, f"{fault.name}: {text.count(fault.old)} places in {fault.path}"
        path.write_text(text.replace(fault.old, fault.new))
        failed = failures(Path(folder), f"0:{seeds}")
    if not failed:
        return Outcome(None, fault.why_not, time.perf_counter() - begun)
    wall_s = time.perf_counter() - begun
    found = re.fullmatch(r"seed (\d+): (.*); replay with: .*", failed[0], re.DOTALL)
    assert found is not None, failed[0]
    seed = int(found[1])
    assert not failures(ROOT, f"{seed}:{seed + 1}"), f"seed {seed} fails without the fault: mend that first"
    return Outcome(seed, re.sub(r"\b[0-9a-f]{8}\b", "...", found[2])[:160].replace("|", "/"), wall_s)


def main() -> None:
    words = sys.argv[1:]
    seeds = int(words.pop(0)) if words and words[0].isdigit() else SEEDS
    faults = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    rows = []
    caught = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for fault, outcome in zip(faults, pool.map(lambda fault: search(fault, seeds), faults), strict=True):
            caught += outcome.seed is not None
            by = "**not caught**" if outcome.seed is None else f"seed {outcome.seed}"
            rows.append(f"| {fault.name} | `{fault.path}` | {by} | {outcome.wall_s:.0f} s | {outcome.seen} |")
            print(rows[-1], flush=True)
    if not words:
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        head = HEAD.format(
            date=time.strftime("%Y-%m-%d"),
            commit=subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown",
            seeds=seeds,
            nodes=NODES_MAX,
            pace=PACE,
            caught=caught,
            all=len(faults),
        )
        TABLE.write_text(head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
