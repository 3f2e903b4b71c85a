"""Clocks that drift and jump, and never wake a node before its time."""

import random
from math import inf

from gossip.events import Effect, Event, Woken
from simulation.swarm.clock import Clock, Clocked


def test_a_date_of_the_world_is_never_too_early_by_a_hair() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        clock = Clock(rng.uniform(0.9, 1.1), rng.uniform(0.0, 1e5))
        local = clock.local(rng.uniform(0.0, 1e6)) + rng.random()
        date = clock.world(local)
        assert clock.local(date) >= local
        assert abs(clock.local(date) - local) < 1e-6
    assert Clock(1.1).world(inf) == inf


def test_a_core_lives_by_its_own_clock() -> None:
    class Sleeper:
        deadline = 22.0
        seen = 0.0

        def handle(self, event: Event, now: float) -> list[Effect]:
            self.seen = now
            return []

    core, clock = Sleeper(), Clock(1.1, 5.5)
    clocked = Clocked(core, clock)
    assert abs(clocked.deadline - 15.0) < 1e-9
    clocked.handle(Woken(), 10.0)
    assert core.seen == 16.5
    clock.jump(5.5)
    assert abs(clocked.deadline - 10.0) < 1e-9
