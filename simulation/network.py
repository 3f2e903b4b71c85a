"""The links between simulated nodes: how late, how often and whether at all a frame arrives.

Pure: a function of its settings, its seed and the calls made so far. The heap world and the in-memory transport of
the real daemon ask the same object, so that one scenario means one thing under both drivers. The one options struct is
modelled on TigerBeetle's packet simulator.

What becomes of a frame is drawn from a generator of its sender, and depends on what this sender has sent before and on
nobody else. So a world may be divided over processes (`simulation.windows`), each with the senders that live there.
"""

import math
import random
from collections.abc import Hashable, Iterable
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from gossip.net.lanes import Lane

Endpoint: TypeAlias = (
    Hashable  # the index of a node in the world, its NodeId, or its address: the caller's choice
)

Probability: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
# Thirty years. Numbers whose square is none are nobody's experiment.
SECONDS_MAX = 1e9
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
# From a modem's byte a second to more than there is.
Rate: TypeAlias = Annotated[float, Meta(ge=0, le=1e15)]

# A lost leg of a handshake is sent again after so long: the initial retransmission timeout of TCP, RFC 6298
# (2.1).
RETRANSMIT_S = 1.0
# ... and so often before the dial is given up: Linux's default of 6 would outlast every timeout of ours.
RETRANSMITS_MAX = 4
# Forget when the last frame to a target arrived once a source has spoken to so many; only past dates are
# dropped.
LINKS_REMEMBERED = 512


class LinkSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one way of every link is like. Times in seconds, probabilities per frame."""

    # The one of `PRESETS` that the others come from where nobody changed them: a name, to choose runs by.
    preset: Literal["ideal", "lan", "wan", "mobile", "trace"] = "ideal"
    # One-way delay: minimum, plus a random part so that the mean is the mean.
    delay_s_mean: Seconds = 0.0
    delay_s_min: Seconds = 0.0
    # Shape of the random part. Log-normal has the heavy tail of the internet; exponential is memoryless.
    jitter: Literal["lognormal", "exponential", "none"] = "lognormal"
    # Sigma of the log-normal: 0.5 puts one frame in a hundred at 2.8 times the mean of the random part.
    jitter_sigma: Annotated[float, Meta(ge=0, le=3)] = 0.5
    loss: Probability = 0.0
    duplication: Probability = 0.0
    # A reordered frame does not queue behind the frames sent before it, and takes up to `reorder_s_max`
    # longer.
    reorder: Probability = 0.0
    reorder_s_max: Seconds = 0.5
    # A spike: the frame (and all behind it) hangs for up to `spike_s_max`, as behind a full buffer.
    spike: Probability = 0.0
    spike_s_max: Seconds = 2.0
    # Uplink of a node; frames queue for it. 0: unlimited.
    bandwidth_bytes_s: Rate = 0.0
    # Downlink of a node, the same way.
    downlink_bytes_s: Rate = 0.0
    # How much longer one way takes than half of the round trip, at most, as a share; the other way that much less.
    # Each link draws its own.
    asymmetry: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    # A CSV file of delay and loss over time, on top of the above (simulation/trace.py).
    trace: str = ""

    @property
    def varied(self) -> bool:
        """Whether links differ from each other, which `LinkModel` alone knows nothing of."""
        return bool(self.downlink_bytes_s or self.asymmetry or self.trace)


# Presets are whole settings; a scenario changes single fields of one of them.
PRESETS: dict[str, LinkSettings] = {
    "ideal": LinkSettings(),
    # One switch: half a millisecond, a gigabit.
    "lan": LinkSettings(preset="lan", delay_s_mean=0.0005, delay_s_min=0.0001, bandwidth_bytes_s=125e6),
    # Homes and data centres of two continents: 160 ms there and back on average, 20 Mbit/s up.
    "wan": LinkSettings(preset="wan", delay_s_mean=0.08, delay_s_min=0.02, bandwidth_bytes_s=2.5e6),
    # Telephones on 4G: 120 ms there and back, a long tail, 8 Mbit/s up and 24 down, now and then two seconds of nothing
    # while the cell changes. A guess, in the middle of what speed tests of the 2020s report.
    "mobile": LinkSettings(
        preset="mobile",
        delay_s_mean=0.06,
        delay_s_min=0.025,
        jitter_sigma=0.9,
        loss=0.005,
        spike=0.002,
        bandwidth_bytes_s=1e6,
        downlink_bytes_s=3e6,
        asymmetry=0.3,
    ),
    # Nothing but what a trace file says.
    "trace": LinkSettings(preset="trace", jitter="none"),
}


class Partition:
    """From `start_s` until before `end_s`, nodes of different groups do not reach each other.

    Symmetric. A node in none of the groups belongs to one more group, made of all such nodes.
    """

    __slots__ = ("_group", "end_s", "start_s")

    def __init__(self, groups: Iterable[Iterable[Endpoint]], *, start_s: float, end_s: float) -> None:
        self.start_s = start_s
        self.end_s = end_s
        self._group = {node: number for number, group in enumerate(groups, 1) for node in group}

    def cuts(self, source: Endpoint, target: Endpoint, now: float) -> bool:
        if not self.start_s <= now < self.end_s:
            return False
        return self._group.get(source, 0) != self._group.get(target, 0)


class Sender:
    """What the fates of one node's frames depend on."""

    __slots__ = ("free_at", "gauss", "last", "random", "rng")

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.random = rng.random
        self.gauss = rng.gauss
        self.free_at = 0.0  # when its uplink has sent all it was given
        self.last: dict[Endpoint, float] = {}  # target -> last arrival


class LinkModel:
    """Fates of frames. Frames of one direction of one link arrive in order unless `reorder` strikes.

    Args:
        settings: The same for every link.
        rng: Its own generator, which seeds those of the senders; nobody else draws from it.
        partitions: Cuts, known in advance; more may be added with `partition`.
    """

    def __init__(
        self, settings: LinkSettings, rng: random.Random, partitions: Iterable[Partition] = ()
    ) -> None:
        self.settings = settings
        self.counts: dict[str, int] = {}  # faults that really struck, by kind
        self._seed = rng.getrandbits(64)
        self._senders: dict[Endpoint, Sender] = {}
        self._partitions = list(partitions)
        spread = max(0.0, settings.delay_s_mean - settings.delay_s_min)
        self._spread = spread if settings.jitter != "none" else 0.0
        self._fixed = settings.delay_s_min if settings.jitter != "none" else settings.delay_s_mean
        self._mu = math.log(spread) - settings.jitter_sigma**2 / 2 if spread > 0 else 0.0
        # Thresholds of one uniform draw: rare fates share it, so that a clean frame costs one draw.
        self._loss = settings.loss
        self._duplication = self._loss + (1 - self._loss) * settings.duplication

    def partition(self, cut: Partition) -> None:
        """Adds a cut, planned or just decided."""
        self._partitions.append(cut)

    def cut(self, source: Endpoint, target: Endpoint, now: float) -> bool:
        """Whether a partition stands between the two now."""
        return any(cut.cuts(source, target, now) for cut in self._partitions)

    def least_s(self) -> float:
        """No frame ever takes less, whoever sends it to whom; seconds."""
        return self._fixed

    def delay(self, source: Endpoint) -> float:
        """One draw of the one-way delay, seconds."""
        return self._delay(self._sender_of(source))

    def _delay(self, sender: Sender) -> float:
        if self._spread == 0.0:
            return self._fixed
        if self.settings.jitter == "lognormal":
            return self._fixed + math.exp(sender.gauss(self._mu, self.settings.jitter_sigma))
        return self._fixed + sender.rng.expovariate(1.0 / self._spread)

    def fates(
        self, source: Endpoint, target: Endpoint, size_bytes: int, now: float, *, lane: Lane | None = None
    ) -> list[float]:
        """What becomes of a frame sent now.

        Args:
            lane: In which it has left its source, at `now`. None: it queues for the uplink first.

        Returns:
            The delays in seconds after which copies arrive: empty where it is lost, two where it is
            duplicated.
        """
        settings = self.settings
        sender = self._senders.get(source) or self._sender_of(source)
        delay = self._delay(sender)
        if settings.bandwidth_bytes_s and lane is None:
            start = sender.free_at
            if start < now:
                start = now
            sender.free_at = free = start + size_bytes / settings.bandwidth_bytes_s
            delay += free - now
        draw = sender.random()
        if draw < self._loss:
            self._count("loss")
            return []
        if self._partitions and self.cut(source, target, now):
            self._count("partition")
            return []
        if settings.spike and sender.random() < settings.spike:
            self._count("delay")
            delay += sender.random() * settings.spike_s_max
        if settings.reorder and sender.random() < settings.reorder:
            self._count("reorder")
            delay += sender.random() * settings.reorder_s_max
        else:
            delay = self._in_order(sender, target, delay, now)
        if draw < self._duplication:
            self._count("duplication")
            return [delay, delay + self._delay(sender)]
        return [delay]

    def _in_order(self, sender: Sender, target: Endpoint, delay: float, now: float) -> float:
        links = sender.last
        arrival = now + delay
        before = links.get(target, 0.0)
        if before > arrival:
            delay = before - now
            while now + delay < before:  # rounding must not turn two frames around
                delay = math.nextafter(delay, math.inf)
            arrival = now + delay
        elif len(links) > LINKS_REMEMBERED:
            links = sender.last = {other: date for other, date in links.items() if date > now}
        links[target] = arrival
        return delay

    def reliable(self, source: Endpoint, target: Endpoint, now: float) -> float | None:
        """Seconds for one leg of what TCP itself sends: repeated when lost, behind what was sent before.

        None where a partition, or bad luck RETRANSMITS_MAX times over, lets nothing through.
        """
        if self._partitions and self.cut(source, target, now):
            self._count("partition")
            return None
        sender = self._senders.get(source) or self._sender_of(source)
        total = self._delay(sender)
        for _attempt in range(RETRANSMITS_MAX + 1):
            if sender.random() >= self._loss:
                return self._in_order(sender, target, total, now)
            self._count("loss")
            total += RETRANSMIT_S
        return None

    def knock(self, source: Endpoint, target: Endpoint, now: float) -> float | None:
        """Seconds for the first leg of a dial; None where it is lost."""
        return self.reliable(source, target, now)

    def admits(self, source: Endpoint, target: Endpoint, now: float) -> bool:
        """Whether what is in front of `target` lets a dial of `source` in that arrives now."""
        return True

    def handshake(self, source: Endpoint, target: Endpoint, now: float) -> float | None:
        """Seconds until a dial has become a connection: one and a half round trips; None where it cannot."""
        total = self.knock(source, target, now)
        if total is None or not self.admits(source, target, now + total):
            return None
        for sender, receiver in ((target, source), (source, target)):
            leg = self.reliable(sender, receiver, now + total)
            if leg is None:
                return None
            total += leg
        return total

    def _sender_of(self, source: Endpoint) -> Sender:
        found = self._senders.get(source)
        if found is None:
            found = self._senders[source] = Sender(random.Random(f"{self._seed}/{source!r}"))
        return found

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
