"""Links that differ from each other: far and near, slow down and fast up, measured ones, and nodes behind NATs.

`LinkModel` knows one kind of link, which is what a run that asks for nothing else gets, at no cost.
"""

import hashlib
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gossip.net.lanes import PIECE_BYTES_MAX, PIECE_BYTES_MIN, Lane
from gossip.net.pace import WRITE_S
from simulation.geography import Geography
from simulation.nat import Nat
from simulation.network import Endpoint, LinkModel, LinkSettings, Partition, Sender
from simulation.seeds import Seeds
from simulation.trace import Pair, Steps, read_trace

if TYPE_CHECKING:
    from simulation.scenario import Scenario

EVERY_LINK: Pair = ("", "")


class VariedLinks(LinkModel):
    """Fates of frames on links that are not alike.

    Args:
        settings, rng, partitions: As of a LinkModel.
        geography: Adds the delay of the distance.
        nat: Decides which dials come through.
        salt: What is drawn once for each link (which way is the slow one, where in the trace it begins) is
            drawn from this and the two ends.
    """

    def __init__(
        self,
        settings: LinkSettings,
        rng: random.Random,
        partitions: Iterable[Partition] = (),
        *,
        geography: Geography | None = None,
        nat: Nat | None = None,
        salt: bytes = b"",
    ) -> None:
        super().__init__(settings, rng, partitions)
        self.nat = nat
        self._geography = geography
        self._salt = salt
        self._trace: dict[Pair, Steps] = read_trace(settings.trace) if settings.trace else {}
        # node -> (date, bytes that wait at its downlink: of control, of bulk)
        self._backlog: dict[Endpoint, tuple[float, float, float]] = {}
        # Of the frame that is being looked at.
        self._more_s = 0.0
        self._factor = 1.0

    def least_s(self) -> float:
        least = super().least_s()
        if self._geography is not None:
            least += self._geography.least_s
        return least * (1 - self.settings.asymmetry)

    def _delay(self, sender: Sender) -> float:
        """One draw of the one-way delay of the link that was entered last."""
        return (super()._delay(sender) + self._more_s) * self._factor

    def fates(
        self, source: Endpoint, target: Endpoint, size_bytes: int, now: float, *, lane: Lane | None = None
    ) -> list[float]:
        self._enter(source, target, now)
        delays = super().fates(source, target, size_bytes, now, lane=lane)
        if self.settings.downlink_bytes_s and delays:
            delays = [
                self._through_downlink(source, target, size_bytes, delay, now, lane) for delay in delays
            ]
        return delays

    def reliable(self, source: Endpoint, target: Endpoint, now: float) -> float | None:
        self._enter(source, target, now)
        return super().reliable(source, target, now)

    def knock(self, source: Endpoint, target: Endpoint, now: float) -> float | None:
        if self.nat is not None:
            self.nat.dials(source, target, now)
        return super().knock(source, target, now)

    def admits(self, source: Endpoint, target: Endpoint, now: float) -> bool:
        if self.nat is None or self.nat.admits(source, target, now):
            return True
        self._count("nat")
        return False

    def _enter(self, source: Endpoint, target: Endpoint, now: float) -> None:
        """Sets what `delay` and `fates` go by to what this way of this link is like now."""
        settings, geography = self.settings, self._geography
        self._more_s = geography.delay_s(source, target) if geography is not None else 0.0
        if settings.asymmetry:
            share = 2 * self._drawn(source, target) - 1  # the same for both ways, with opposite signs
            forth = repr(source) < repr(target)
            self._factor = 1 + settings.asymmetry * (share if forth else -share)
        if self._trace:
            delay, loss = self._measured(source, target, now)
            self._more_s += delay
            self._loss = 1 - (1 - settings.loss) * (1 - loss)
            self._duplication = self._loss + (1 - self._loss) * settings.duplication

    def _measured(self, source: Endpoint, target: Endpoint, now: float) -> tuple[float, float]:
        steps = self._trace.get(EVERY_LINK)
        if steps is not None:
            # Links do not all have their bad minute at the same time.
            return steps.at(now + self._drawn(source, target) * steps.period_s)
        assert self._geography is not None, "scenarios with such a trace have regions"
        regions, region = self._geography.regions, self._geography.region
        steps = self._trace.get((regions[region(source)].name, regions[region(target)].name))
        return steps.at(now) if steps is not None else (0.0, 0.0)

    def _through_downlink(
        self,
        source: Endpoint,
        target: Endpoint,
        size_bytes: int,
        delay: float,
        now: float,
        lane: Lane | None,
    ) -> float:
        """Frames queue for the downlink of their target: a leaky bucket, filled at the date of arrival.

        Control waits for one piece of bulk at most: senders do not send more than the downlink takes, or TCP would not
        let the small overtake.
        Frames are looked at when they are sent. One that arrives before another that was sent before it finds the bytes
        of that one in the bucket, and waits a little too long.
        """
        rate = self.settings.downlink_bytes_s
        arrival = now + delay
        last, control, bulk = self._backlog.get(target, (arrival, 0.0, 0.0))
        if arrival > last:
            drained = (arrival - last) * rate
            bulk = max(0.0, bulk - max(0.0, drained - control))
            control = max(0.0, control - drained)
            last = arrival
        if lane is Lane.CONTROL:
            control += size_bytes
            waiting = control + min(bulk, PIECE_BYTES_MAX, max(PIECE_BYTES_MIN, rate * WRITE_S))
        else:
            bulk += size_bytes
            waiting = control + bulk
        self._backlog[target] = (last, control, bulk)
        sender = self._senders[source]
        queued = sender.last.get(target) == arrival  # it keeps its place behind those before it
        delay += waiting / rate
        return self._in_order(sender, target, delay, now) if queued else delay

    def _drawn(self, source: Endpoint, target: Endpoint) -> float:
        """A number in [0, 1) that belongs to the link between the two, both ways."""
        ends = sorted((repr(source), repr(target)))
        digest = hashlib.blake2b("/".join(ends).encode(), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big") / 2**64


def links_of(
    scenario: "Scenario", seeds: Seeds, partitions: Iterable[Partition], geography: Geography | None
) -> LinkModel:
    """The links of a scenario between the endpoints 0, 1, 2, ...: of the plain kind where that is all it asks for."""
    rng = seeds.random("network")
    if geography is None and not scenario.nat.used and not scenario.network.varied:
        return LinkModel(scenario.network, rng, partitions)
    nodes: list[Endpoint] = list(range(scenario.nodes))
    return VariedLinks(
        scenario.network,
        rng,
        partitions,
        geography=geography,
        nat=Nat(scenario.nat, nodes, seeds.random("nat")) if scenario.nat.used else None,
        salt=seeds.entropy("links")(16),
    )


def geography_of(scenario: "Scenario", seeds: Seeds) -> Geography | None:
    """Where the nodes 0, 1, 2, ... of a scenario are; None: nowhere."""
    if not scenario.geography.regions:
        return None
    nodes: list[Endpoint] = list(range(scenario.nodes))
    return Geography(scenario.geography, nodes, seeds.random("geography"))
