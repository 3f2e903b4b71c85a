"""The simulated disk keeps what it promised, and loses no more than a real one may."""

import random

import numpy as np
import pytest

from gossip.learning.saved import Part, SavedModel
from gossip.learning.task import RunInfo
from p2pnode.errors import UserError
from simulation.swarm.disk import TORN_STEPS, PowerLoss, SimulatedDisk

RUN = RunInfo(b"r" * 32, "", "test/1", b"s" * 32, b"g" * 32, (4,))


def model(steps: int) -> SavedModel:
    parts = {
        "shard/0": Part(b"s" * 32, (np.full(4, steps, np.float32),)),
        "optimiser": Part(b"o" * 32, (np.int32(steps),)),
    }
    return SavedModel(RUN.id, steps, (), parts)


def steps(disk: SimulatedDisk) -> int:
    found = disk.read_model(RUN)
    assert found is not None
    assert found.parts["shard/0"].arrays[0].tolist() == [found.steps] * 4
    return found.steps


def test_power_loss_takes_a_tail_of_what_was_not_synced_and_nothing_else() -> None:
    seen = set()
    for seed in range(40):
        disk = SimulatedDisk()
        disk.put([("a", b"1")], fsync=False)
        disk.put([("b", b"1")], fsync=True)
        for name in ("c", "d", "e"):
            disk.put([(name, b"1"), ("last", name.encode())], fsync=False)
        lost = dict(disk.lose_power(random.Random(seed)))
        kept = "".join(name for name in disk.load() if name != "last")
        assert kept in ("ab", "abc", "abcd", "abcde")
        assert disk.load().get("last", b"") == (kept[2:][-1:] or "").encode()
        assert "".join(name for name in lost if name != "last") == "abcde"[len(kept) :]
        seen.add(kept)
    assert len(seen) == 4


def test_what_is_left_after_power_loss_survives_the_next_one() -> None:
    disk = SimulatedDisk()
    disk.put([("a", b"1")], fsync=False)
    rng = random.Random(1)
    disk.lose_power(rng)
    once = disk.load()
    assert disk.lose_power(rng) == []
    assert disk.load() == once


def test_power_lost_at_any_step_leaves_the_model_before_or_the_new_one() -> None:
    """Step by step through three writes, with every choice of the names that were not yet durable."""
    for seed in range(8):
        rng = random.Random(seed)
        disk = SimulatedDisk()
        disk.write_model(RUN, model(0))
        last = 0
        for number in range(1, 3 * TORN_STEPS):
            disk.tear = True
            try:
                disk.write_model(RUN, model(number))
            except PowerLoss:
                assert disk.off
                assert disk.torn
                disk.off = disk.torn = False
            disk.lose_power(rng)
            found = steps(disk)
            assert found in (last, number)
            last = found
    disk.tear = False
    disk.write_model(RUN, model(99))
    assert steps(disk) == 99


@pytest.mark.parametrize("fault", ["full", "broken"])
def test_disk_that_refuses_keeps_nothing_of_what_it_refused(fault: str) -> None:
    disk = SimulatedDisk()
    disk.put([("a", b"1")], fsync=True)
    disk.write_model(RUN, model(1))
    setattr(disk, fault, True)
    with pytest.raises(UserError):
        disk.put([("a", b"2"), ("b", b"2")], fsync=False)
    with pytest.raises(OSError):
        disk.write_model(RUN, model(2))
    setattr(disk, fault, False)
    assert disk.load() == {"a": b"1"}
    assert steps(disk) == 1


def test_another_disk_is_empty() -> None:
    disk = SimulatedDisk()
    disk.put([("a", b"1")], fsync=True)
    disk.write_model(RUN, model(1))
    disk.wipe()
    assert disk.load() == {}
    assert disk.read_model(RUN) is None
