"""Where nodes are, and what that costs: regions with coordinates or a table of delays between them.

Distance comes on top of what [network] says of a link, which then speaks of the last mile alone.
"""

import random
from math import asin, cos, radians, sin, sqrt
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from simulation.network import Endpoint, Seconds

EARTH_KM = 6371.0
# One way, per kilometre of the great circle: 2.1 times the way, at the speed of light in fibre (two thirds of that in
# vacuum). The rule of thumb of measurements of the internet; Bozkurt et al. 2018 (arXiv 1811.10737) quote it.
SECONDS_PER_KM = 2.1 / 199_862.0

Latitude: TypeAlias = Annotated[float, Meta(ge=-90, le=90)]
Longitude: TypeAlias = Annotated[float, Meta(ge=-180, le=180)]


class RegionSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place, or a country seen as one."""

    name: str
    # Nodes are dealt out in proportion to these.
    share: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    # Degrees, north and east.
    latitude: Latitude = 0.0
    longitude: Longitude = 0.0


class GeographySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the nodes are; without regions, nowhere."""

    regions: list[RegionSettings] = []
    # One way, in seconds, from region (row) to region (column), instead of the coordinates.
    delay_s: list[list[Seconds]] = []


class Geography:
    """Who is where.

    Args:
        settings: With at least one region.
        nodes: Endpoints, dealt out at random so that every region has its share, rounded.
        rng: Deals.
    """

    def __init__(self, settings: GeographySettings, nodes: list[Endpoint], rng: random.Random) -> None:
        self.regions = settings.regions
        total = sum(region.share for region in self.regions)
        # Largest remainders: the numbers add up, and none is off by one or more.
        exact = [len(nodes) * region.share / total for region in self.regions]
        counts = [int(count) for count in exact]
        order = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
        for index in order[: len(nodes) - sum(counts)]:
            counts[index] += 1
        dealt = [index for index, count in enumerate(counts) for _ in range(count)]
        rng.shuffle(dealt)
        self._region = dict(zip(nodes, dealt, strict=True))
        self._delays = settings.delay_s or [
            [distance_km(one, other) * SECONDS_PER_KM for other in self.regions] for one in self.regions
        ]

    @property
    def least_s(self) -> float:
        """The smallest delay between any two regions, or within one."""
        return min(min(row) for row in self._delays)

    def region(self, node: Endpoint) -> int:
        """The index of a node's region; the first one, for whoever was not dealt one."""
        return self._region.get(node, 0)

    def delay_s(self, source: Endpoint, target: Endpoint) -> float:
        """One way between the regions of the two."""
        return self._delays[self.region(source)][self.region(target)]


def distance_km(one: RegionSettings, other: RegionSettings) -> float:
    """Of the great circle, on a ball (haversine)."""
    north, south = radians(one.latitude), radians(other.latitude)
    across = radians(other.longitude - one.longitude)
    half = sin((south - north) / 2) ** 2 + cos(north) * cos(south) * sin(across / 2) ** 2
    return 2 * EARTH_KM * asin(min(1.0, sqrt(half)))
