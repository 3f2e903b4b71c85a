"""`make catch`: which planted faults the swarm finds, and how soon; writes docs/catch-table.md.

Each fault is one line of the packages changed by text, in a temporary copy. Seeds from 0 on are run until one fails.
What is not caught is in the table too: that is where the simulator is blind.

    python -m tests.catch              all faults, 200 seeds each
    python -m tests.catch walk         only faults whose name contains a word; the other rows stay as they are
    python -m tests.catch 20           20 seeds each; writes nothing
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
# Small networks: most faults show in the smallest, and 200 seeds of them take two minutes at the fast pace. What shows
# only when hours pass gets some seeds more, of ten seconds each.
NODES_MAX = 6
SEEDS_OF_HOURS = 25
TABLE = ROOT / "docs" / "catch-table.md"
HEAD = """# Catch table

Written by `make catch`: do not edit. Each line is one fault that was planted in a copy of the code, and what the
[swarm](simulation.md#swarm) said to it, with {seeds} seeds of at most {nodes} honest nodes and rounds of seconds, and
then {hours} seeds of hours. A seed counts only where it holds without the fault. "After" is wall time, with as
many faults at a time as the machine has cores. Faults that were not caught show where the swarm is blind.

{caught} of {all} caught.

| planted | in | caught by | after | date, commit | what was seen |
|---|---|---|---|---|---|
"""


class Outcome(NamedTuple):
    by: str  # the seed; empty: not caught
    seen: str
    wall_s: float


def failures(folder: Path, seeds: str, pace: str) -> list[str]:
    """What the swarm of the packages in `folder` says, up to the first seeds that fail."""
    words = ["swarm", "--seeds", seeds, "--nodes-max", str(NODES_MAX), "--pace", pace, "--first", "--json"]
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


def search(fault: Planted, seeds: int, seeds_of_hours: int = SEEDS_OF_HOURS) -> Outcome:
    """Plant a fault in a copy of the packages, and run seeds until one fails."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, folder / package, ignore=ignored)
        path = folder / fault.path
        sound = path.read_text()
        assert sound.count(fault.old) == 1, f"{fault.name}: {sound.count(fault.old)} places in {fault.path}"
        path.write_text(sound.replace(fault.old, fault.new))
        for pace, last in (("seconds", seeds), ("hours", seeds_of_hours)):
            failed = failures(folder, f"0:{last}", pace) if last else []
            if failed:
                break
        wall_s = time.perf_counter() - begun
        if not failed:
            return Outcome("", fault.why_not, wall_s)
        found = re.fullmatch(r"seed (\d+): (.*); replay with: .*", failed[0], re.DOTALL)
        assert found is not None, failed[0]
        seed = int(found[1])
        path.write_text(sound)
        again = failures(folder, f"{seed}:{seed + 1}", pace)
        assert not again, f"seed {seed} fails without the fault: mend that first. {again}"
    seen = re.sub(r"\b[0-9a-f]{8}\b", "...", found[2])[:160].replace("|", "/")
    return Outcome(f"seed {seed}" + (" of hours" if pace == "hours" else ""), seen, wall_s)


def known() -> dict[str, str]:
    """Rows of the present table, by the name of the fault."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return {line.split(" | ")[0][2:]: line for line in lines if line.count(" | ") >= 4}


def main() -> None:
    words = sys.argv[1:]
    seeds = int(words.pop(0)) if words and words[0].isdigit() else SEEDS
    faults = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    rows = known()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for fault, outcome in zip(faults, pool.map(lambda fault: search(fault, seeds), faults), strict=True):
            rows[fault.name] = (
                f"| {fault.name} | `{fault.path}` | {outcome.by or '**not caught**'} | {outcome.wall_s:.0f} s "
                f"| {time.strftime('%Y-%m-%d')}, {commit} | {outcome.seen} |"
            )
            print(rows[fault.name], flush=True)
    if seeds >= SEEDS:
        table = [rows[fault.name] for fault in FAULTS if fault.name in rows]
        caught = sum("**not caught**" not in row for row in table)
        head = HEAD.format(seeds=SEEDS, nodes=NODES_MAX, hours=SEEDS_OF_HOURS, caught=caught, all=len(table))
        TABLE.write_text(head + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
