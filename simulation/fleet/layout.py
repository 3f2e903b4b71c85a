"""How the rows of a fleet lie in memory: pairs in a chunk, chunks, and rows that are dealt together."""

from math import ceil

from simulation.fleet.settings import FleetSettings

# Pairs in one chunk. 512 pairs of logistic regressions are 2.7 MB of weights: they stay in a cache of the processor
# between reading and writing; with 64 pairs the start of 30 small kernels costs more than their work.
# An accelerator wants work for all its lanes.
LANES_CPU = 512
LANES_ACCELERATOR = 16384

# Rows that are dealt together where there are several chunks: 16 logistic regressions are 40 KB, ten pages of memory.
RUN_MAX = 16

# Runs in a chunk, at least: whoever shares a run today meets the other's partner's neighbours, not each other.
_RUNS_MIN = 32


def shape(settings: FleetSettings, devices: int, platform: str) -> tuple[int, int, int]:
    """Return (pairs in a chunk, chunks, rows in a run) of one device; if need be with a few more places than nodes.

    A run is what lies together in memory and is dealt as one. Rows of some KB drawn one by one from a GB cost twice
    the whole arithmetic, because each lies in another page of memory.
    """
    pairs = ceil(settings.nodes / (2 * devices))
    wanted = settings.lanes or (LANES_CPU if platform == "cpu" else LANES_ACCELERATOR)
    chunks = ceil(pairs / wanted)
    lanes = ceil(pairs / chunks)
    if devices > 1:  # every device gives each as many
        lanes = ceil(lanes / devices) * devices
    if chunks == 1:
        return lanes, 1, 1
    lanes = max(lanes, 2)  # the second wave needs another partner
    if devices == 1 and not settings.lanes:
        # Somewhat smaller chunks that leave no place empty and divide into longer runs, where there are any.
        fitting = [some for some in range(lanes // 2, wanted + 1) if pairs % some == 0]
        lanes = max(fitting, key=lambda some: (_run(some), some), default=lanes)
        chunks = ceil(pairs / lanes)
    return lanes, chunks, _run(lanes)


def _run(lanes: int) -> int:
    """Rows in a run: a power of two, and enough runs in a chunk that these are drawn, not their rows."""
    run = RUN_MAX
    while run > 1 and ((2 * lanes) % run or 2 * lanes < _RUNS_MIN * run):
        run //= 2
    return run
