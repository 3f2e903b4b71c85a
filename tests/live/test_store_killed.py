"""SIGKILL at random moments: what the store acknowledged is there afterwards (docs/security.md, T39)."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pnode.store import SqliteStore

KILLS = 30

# Puts, then says so; a snapshot now and then. Numbers rise over all lives.
WRITER = """
import sys
from pathlib import Path
from p2pnode.store import SqliteStore

store = SqliteStore(Path(sys.argv[1]))
number = int(store.load().get("number", b"0"))
while True:
    number += 1
    text = b"%d" % number
    store.put([("number", text), (f"mark/{number % 100}", text)], power=number % 50 == 0)
    if number % 20 == 0:
        store.write_snapshot(text + bytes(200_000))
        print("snapshot", number, flush=True)
    print("put", number, flush=True)
"""


@pytest.mark.live
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, root: Path) -> None:
    rng = random.Random(7)
    acknowledged = {"put": 0, "snapshot": 0}
    for life in range(KILLS):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
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
        snapshot = store.read_snapshot()
        store.close()
        found = int(entries["number"])
        # One more than was said may be there: it died between doing and saying.
        assert acknowledged["put"] <= found <= acknowledged["put"] + 1, f"life {life}"
        assert int(entries[f"mark/{found % 100}"]) == found, f"life {life}: half a transaction"
        if acknowledged["snapshot"]:
            assert snapshot is not None
            assert acknowledged["snapshot"] <= int(snapshot.rstrip(b"\0")) <= found, f"life {life}"
    assert acknowledged["put"] > KILLS
