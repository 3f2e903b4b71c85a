"""The simulated disk keeps what it promised, and loses no more than a real one may."""

import random

import pytest

from p2pnode.errors import UserError
from simulation.swarm.disk import PowerLoss, SimulatedDisk


def test_power_loss_takes_a_tail_of_what_was_not_synced_and_nothing_else() -> None:
    seen = set()
    for seed in range(40):
        disk = SimulatedDisk()
        disk.put([("a", b"1")], power=False)
        disk.put([("b", b"1")], power=True)
        for name in ("c", "d", "e"):
            disk.put([(name, b"1"), ("last", name.encode())], power=False)
        lost = dict(disk.lose_power(random.Random(seed)))
        kept = "".join(name for name in disk.load() if name != "last")
        assert kept in ("ab", "abc", "abcd", "abcde")
        assert disk.load().get("last", b"") == (kept[2:][-1:] or "").encode()
        assert "".join(name for name in lost if name != "last") == "abcde"[len(kept) :]
        seen.add(kept)
    assert len(seen) == 4


def test_what_is_left_after_power_loss_survives_the_next_one() -> None:
    disk = SimulatedDisk()
    disk.put([("a", b"1")], power=False)
    rng = random.Random(1)
    disk.lose_power(rng)
    once = disk.load()
    assert disk.lose_power(rng) == []
    assert disk.load() == once


def test_torn_snapshot_leaves_the_old_one() -> None:
    disk = SimulatedDisk()
    disk.write_snapshot(b"first")
    disk.tear = True
    with pytest.raises(PowerLoss):
        disk.write_snapshot(b"second")
    assert disk.off
    assert disk.read_snapshot() == b"first"
    disk.write_snapshot(b"third")
    assert disk.read_snapshot() == b"third"


@pytest.mark.parametrize("fault", ["full", "broken"])
def test_disk_that_refuses_keeps_nothing_of_what_it_refused(fault: str) -> None:
    disk = SimulatedDisk()
    disk.put([("a", b"1")], power=True)
    disk.write_snapshot(b"first")
    setattr(disk, fault, True)
    with pytest.raises(UserError):
        disk.put([("a", b"2"), ("b", b"2")], power=False)
    with pytest.raises(OSError):
        disk.write_snapshot(b"second")
    setattr(disk, fault, False)
    assert disk.load() == {"a": b"1"}
    assert disk.read_snapshot() == b"first"


def test_another_disk_is_empty() -> None:
    disk = SimulatedDisk()
    disk.put([("a", b"1")], power=True)
    disk.write_snapshot(b"first")
    disk.wipe()
    assert disk.load() == {}
    assert disk.read_snapshot() is None
