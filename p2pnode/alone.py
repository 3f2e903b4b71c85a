"""What the swarm of `p2pnode demo` is measured against: each node by itself, and all data in one place.

A process of its own (`python -m p2pnode.alone`), so that it runs beside the swarm and the demo itself never imports
JAX. The same task, steps, optimiser and read-out as in the swarm: only the exchanges are missing. One JSON line for
each result, so that half the answers are there if the rest is cut off.
"""

import json
import os
import sys
import threading
from dataclasses import replace
from typing import Any

from msgspec import Struct

from gossip.config import LearningConfig
from p2pnode.tasks import load_task


class Comparison(Struct, frozen=True, kw_only=True):
    """What to train: given to the process as JSON, answered with one `Trained` a line."""

    task: str
    args: dict[str, Any]  # of the task's factory, without `part` and `parts`
    parts: int
    rounds: int
    local_steps: int


def main(text: str) -> None:
    """Train centrally first (part -1 in the answers), then each part alone.

    Args:
        text: A Comparison as JSON.
    """
    import msgspec

    from gossip.learning.trainer import train_alone

    threading.Thread(target=_end_with_parent, daemon=True).start()
    what = msgspec.json.decode(text, type=Comparison)
    learning = replace(LearningConfig(), local_steps=what.local_steps)
    for part in range(-1, what.parts):
        place = {"part": part, "parts": what.parts} if part >= 0 else {"part": 0, "parts": 1}
        task = load_task(what.task, {**what.args, **place})
        found = train_alone(task, rounds=what.rounds, learning=learning, seed=max(part, 0))
        rows = len(task.train) if hasattr(task, "train") else None
        print(json.dumps({"part": part, "accuracy": found["accuracy"], "rows": rows}), flush=True)


def _end_with_parent() -> None:
    """Standard input ends when the demo does, however it does."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
