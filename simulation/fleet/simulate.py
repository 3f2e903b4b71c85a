"""A fleet from its beginning to its report."""

from collections.abc import Callable, Sequence
from math import nan
from time import perf_counter

import jax

from simulation.fleet.program import COUNTS, Fleet
from simulation.fleet.room import within_memory
from simulation.fleet.settings import FleetAccuracy, FleetReport, FleetSettings, Point

_COUNTED_MAX = 2**31 - 1


def simulate(
    settings: FleetSettings,
    *,
    devices: Sequence[jax.Device] | None = None,
    central: bool = True,
    progress: Callable[[Point], None] | None = None,
) -> FleetReport:
    """Run a fleet to its end and measure.

    Args:
        devices: See Fleet.
        central: Whether to train the central reference, too.
        progress: Called after each measurement on the way.

    Raises:
        LocalError: see Fleet; or the memory did not suffice.
        UserError: see Fleet.
    """
    with within_memory():
        return _simulated(settings, devices=devices, central=central, progress=progress)


def _simulated(
    settings: FleetSettings,
    *,
    devices: Sequence[jax.Device] | None,
    central: bool,
    progress: Callable[[Point], None] | None,
) -> FleetReport:
    fleet = Fleet(settings, devices=devices)
    compile_s = fleet.compile()
    counts = dict.fromkeys(COUNTS, 0)
    curve: list[Point] = []
    # The device counts exchanges of one call in int32: each node asks at most once in a tick.
    ticks = settings.pace.ticks if settings.pace else 1
    at_once = max(1, _COUNTED_MAX // (settings.nodes * ticks))
    begun = perf_counter()
    while fleet.round < settings.rounds:
        until = min(fleet.round + settings.every, settings.rounds)
        while fleet.round < until:
            point, more = fleet.advance(min(at_once, until - fleet.round))
            counts = {name: count + more[name] for name, count in counts.items()}
        curve.append(point)
        if progress is not None:
            progress(point)
    wall_s = perf_counter() - begun
    end, measured = fleet.measure()
    return FleetReport(
        task=settings.task,
        seed=settings.seed,
        nodes=settings.nodes,
        rounds=settings.rounds,
        devices=fleet.devices,
        node_updates=counts["trained"],
        exchanges=counts["finished"],
        halves=counts["halves"],
        refused=counts["refused"],
        wall_s=wall_s,
        compile_s=compile_s,
        accuracy=FleetAccuracy(end.mean, end.worst, fleet.central() if central else nan),
        measured=measured,
        consensus=end.consensus,
        curve=curve,
    )
