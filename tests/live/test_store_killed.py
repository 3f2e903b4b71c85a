"""SIGKILL at random moments: what the store acknowledged is there afterwards (docs/security.md, T39)."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gossip.learning.saved import Part, SavedModel, encode
from gossip.learning.task import RunInfo
from p2pnode.home import RUNS
from p2pnode.models import BEFORE, CURRENT, MANIFEST
from p2pnode.store import SqliteStore

KILLS = 30
SHARDS = 4
RUN = RunInfo(b"r" * 32, "", "test/1", b"s" * 32, b"g" * 32, (50_000,) * SHARDS, b"manifest")


def model(number: int) -> SavedModel:
    """One shard changes at a time, as where nodes only exchange; each says which model it is of."""
    parts = {
        f"shard/{shard}": Part(
            b"s" * 32, (np.full(50_000, max(number - (number - shard) % SHARDS, 0), np.float32),)
        )
        for shard in range(SHARDS)
    }
    return SavedModel(RUN.id, number, (), parts)


def write(folder: str) -> None:
    """What the victim does: puts, then says so; a model now and then. Numbers rise over all lives."""
    store = SqliteStore(Path(folder))
    number = int(store.load().get("number", b"0"))
    while True:
        number += 1
        text = b"%d" % number
        store.put([("number", text), (f"mark/{number % 100}", text)], fsync=number % 50 == 0)
        if number % 20 == 0:
            store.write_model(RUN, model(number))
            print("model", number, flush=True)
        print("put", number, flush=True)


@pytest.mark.live
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, root: Path) -> None:
    rng = random.Random(7)
    acknowledged = {"put": 0, "model": 0}
    for life in range(KILLS):
        with subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        ) as writer:
            assert writer.stdout is not None
            line = writer.stdout.readline()  # it is at work
            # The moment of death is what this test is about; nothing waits for it.
            time.sleep(rng.uniform(0.0, 0.05))
            writer.send_signal(signal.SIGKILL)
            for word, number in (text.split() for text in (line, *writer.stdout) if text.endswith("\n")):
                acknowledged[word] = int(number)
        store = SqliteStore(tmp_path)
        entries = store.load()
        kept = store.read_model(RUN)
        found = int(entries["number"])
        # One more than was said may be there: it died between doing and saying.
        assert acknowledged["put"] <= found <= acknowledged["put"] + 1, f"life {life}"
        assert int(entries[f"mark/{found % 100}"]) == found, f"life {life}: half a transaction"
        if acknowledged["model"]:
            assert kept is not None
            assert acknowledged["model"] <= kept.steps <= found, f"life {life}"
        if kept is not None:
            head, contents = encode(kept)
            assert encode(model(kept.steps))[0] == head, f"life {life}: parts of two models"
            # The next write clears up what the death left.
            store.write_model(RUN, kept)
            store.write_model(RUN, kept)
            names = {file.name for file in (tmp_path / RUNS / RUN.id.hex()).iterdir()}
            assert names == {*contents, MANIFEST, CURRENT, BEFORE}
        store.close()
    assert acknowledged["put"] > KILLS


if __name__ == "__main__":
    write(sys.argv[1])
