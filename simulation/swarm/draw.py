"""What a seed of the swarm makes of itself: sizes, rates, and which faults it is going to meet.

Swarm testing (Groce, Zhang, Eide, Chen and Regehr 2012): each seed leaves most kinds of faults out, at random, because
faults hide one another; many different mixtures find more than all kinds at once. Each kind draws from a generator of
its own, so that switching one off leaves the others as they were: that is what makes shrinking work.
"""

from collections.abc import Iterable
from dataclasses import replace

import msgspec
from msgspec import Struct

from gossip.config import Config, DhtConfig, ExchangeConfig, LearningConfig, MembershipConfig
from simulation.network import LinkSettings
from simulation.scenario import ComputeSettings, FaultSettings, Scenario, TaskSettings
from simulation.seeds import Seeds

# Kinds of faults, by what they strike. All of them are counted when they really struck, and not when planned.
FRAME_KINDS = ("loss", "delay", "duplication", "reorder", "corruption", "partition", "one_way", "clog")
MACHINE_KINDS = (
    "churn",
    "crash",
    "power_loss",
    "torn_snapshot",
    "disk_full",
    "io_error",
    "key_change",
    "slow_compute",
    "clock_drift",
    "clock_jump",
    "address_change",
    "rebinding",
    "outer_address",
    "memory_pressure",
    "flash_crowd",
    "mass_leave",
)
HOSTILE_KINDS = (
    "forged",
    "impersonated",
    "replayed",
    "reordered",
    "oversized",
    "junk",
    "equivocation",
    "false_address",
    "flood",
    "poison_nan",
    "poison_huge",
    "poison_flip",
    "other_run",
    "sybil",
    "eclipse",
)
# Of these one person has many keys, and a node for each.
CROWDED_KINDS = ("sybil", "eclipse")
# More than a bucket takes of one subnet (2), and than the fewest connections that others may open to a node (3).
SYBILS = 6
KINDS = FRAME_KINDS + MACHINE_KINDS + HOSTILE_KINDS

# How fast the time of a run goes. `seconds`: every interval is drawn, and short, so that much happens to a node within
# minutes. `hours`: the settings of a daemon that nobody changed, with rounds of minutes, for up to a day: records are
# published again and expire, buckets are refreshed, keys rotate, and whoever was away was away for long.
PACES = ("seconds", "hours")
# Of all seeds. An hour of a node costs a sixth of what it costs at the other pace, and a seed ten times as much.
HOURS_SHARE = 0.1
# What such a run comes to in hours of nodes, villains included, and how long it lasts: more than the life of a record,
# and a day at most.
NODE_HOURS = (20.0, 150.0)
HOURS = (3.0, 24.0)

NODES_MIN = 3
NODES_MAX = 40
# Of those that a person may ask for: what a scenario may have.
NODES_LIMIT = 65536
# Rounds of a safety phase. Each node trains and exchanges so often; enough that everything has happened to somebody.
ROUNDS = (15, 40)


class SwarmOptions(Struct, frozen=True, kw_only=True):
    """Everything about one run but its seed."""

    pace: str  # one of PACES
    nodes: int  # honest ones; the hostile come on top
    safety_s: float  # virtual seconds with faults
    values: int  # of the model
    kinds: tuple[str, ...]  # faults that this run may meet
    corruption: float  # a frame does not authenticate, which ends its connection
    scenario: Scenario  # nodes and villains, link, config

    @property
    def villains(self) -> tuple[str, ...]:
        """What each hostile node does: one of each kind, SYBILS of the crowded ones."""
        return _villains(self.kinds)


def draw(
    seed: int,
    *,
    nodes_max: int = NODES_MAX,
    nodes: int | None = None,
    without: Iterable[str] = (),
    shorten: float = 1.0,
    pace: str | None = None,
) -> SwarmOptions:
    """The options of a seed, and what a person changes of them.

    Args:
        seed: Decides everything.
        nodes_max: At most so many honest nodes.
        nodes: Exactly so many, instead.
        without: Kinds that are switched off.
        shorten: The safety phase lasts this share of what was drawn.
        pace: One of PACES, instead of the drawn one.
    """
    seeds = Seeds(seed)
    hours = seeds.random("swarm", "pace")
    drawn_pace = "hours" if hours.random() < HOURS_SHARE else "seconds"
    pace = pace or drawn_pace
    size = seeds.random("swarm", "size")
    # Log-uniform: small networks find most bugs, and finish first.
    drawn = round(NODES_MIN * (nodes_max / NODES_MIN) ** size.random())
    count = nodes if nodes is not None else max(NODES_MIN, min(nodes_max, drawn))
    off = dict.fromkeys(without)
    share = size.choice((0.1, 0.2, 0.35))
    kinds = tuple(
        kind for kind in KINDS if seeds.random("swarm", "kind", kind).random() < share and kind not in off
    )
    rng = seeds.random("swarm", "settings")
    round_s = 0.2 * 150.0 ** rng.random()  # 0.2 s to 30 s, log-uniform
    link = _link(seeds, kinds)
    config = _config(seeds, round_s)
    safety_s = max(10.0, round_s * rng.randint(*ROUNDS)) * shorten
    if pace == "hours":
        round_s = 60.0 * 10.0 ** hours.random()  # one minute to ten, log-uniform
        lasts = hours.uniform(*NODE_HOURS) / (count + len(_villains(kinds)))
        safety_s = 3600.0 * min(max(lasts, HOURS[0]), HOURS[1]) * shorten
        config = _daemon_config(config, round_s)
    values = rng.choice((8, 40, 64, 130, 300))
    shards = rng.choice((1, 1, 2, 3))
    learning = replace(config.learning, shard_values_max=-(-values // shards))
    villains = _villains(kinds)
    scenario = Scenario(
        name="swarm",
        nodes=count + len(villains),
        duration_s=safety_s,
        start_s=rng.choice((0.0, 1.0, 5.0)),
        join=rng.choice(("first", "random")),
        task=TaskSettings(name="synthetic"),
        network=link,
        compute=ComputeSettings(
            train_s=round_s * rng.choice((0.05, 0.3)),
            spread_sigma=rng.choice((0.0, 0.3, 1.0)),
            exchange_s=rng.choice((0.0, 0.0, 0.01)),
            lanes=16,
        ),
        faults=FaultSettings(silence_s=rng.uniform(1.0, 10.0)),
        config=replace(config, learning=learning),
    )
    return SwarmOptions(
        pace=pace,
        nodes=count,
        safety_s=safety_s,
        values=values,
        kinds=kinds,
        corruption=seeds.random("swarm", "corruption").choice((0.001, 0.01))
        if "corruption" in kinds
        else 0.0,
        scenario=scenario,
    )


def _villains(kinds: tuple[str, ...]) -> tuple[str, ...]:
    present = [kind for kind in HOSTILE_KINDS if kind in kinds]
    return tuple(kind for kind in present for _ in range(SYBILS if kind in CROWDED_KINDS else 1))


def _link(seeds: Seeds, kinds: tuple[str, ...]) -> LinkSettings:
    rng = seeds.random("swarm", "link")
    mean = 0.0005 * 300.0 ** rng.random()  # half a millisecond to 0.15 s
    settings = LinkSettings(
        delay_s_mean=mean,
        delay_s_min=mean * rng.uniform(0.1, 1.0),
        jitter=rng.choice(("lognormal", "exponential", "none")),
        bandwidth_bytes_s=rng.choice((0.0, 125e6, 2.5e5)),
    )
    rates = {"loss": "loss", "delay": "spike", "duplication": "duplication", "reorder": "reorder"}
    for kind, key in rates.items():
        if kind in kinds:
            rate = 0.005 * 60.0 ** seeds.random("swarm", kind).random()  # half a percent to 30 %
            settings = msgspec.structs.replace(settings, **{key: rate})
    return settings


def _config(seeds: Seeds, round_s: float) -> Config:
    rng = seeds.random("swarm", "config")
    walk_s = round_s * rng.uniform(8.0, 30.0)
    publish_s = max(10.0, walk_s * rng.uniform(0.5, 3.0))
    return Config(
        network="swarm",
        connections_max=rng.choice((6, 12, 96)),
        dht=DhtConfig(
            k=rng.choice((4, 8, 20)),
            alpha=rng.choice((1, 3)),
            request_timeout_s=rng.choice((1.0, 3.0)),
            refresh_interval_s=publish_s * 4.0,
            publish_interval_s=publish_s,
            record_ttl_s_max=publish_s * 2.0,
            records_max=rng.choice((256, 4096)),
        ),
        membership=MembershipConfig(walk_interval_s=walk_s),
        exchange=ExchangeConfig(
            codec=rng.choice(("f32", "int8", "int4")),
            timeout_s=rng.choice((3.0, 10.0)),
            reply_cache_max=rng.choice((4, 64)),
            join_patience_s=rng.choice((2.0, 10.0)),
        ),
        learning=LearningConfig(
            local_steps=1,
            round_interval_s=round_s,
            save_interval_s=round_s * rng.choice((2.0, 10.0)),
        ),
    )


def _daemon_config(drawn: Config, round_s: float) -> Config:
    """The defaults, but for the pause between rounds and the codec."""
    return Config(
        network=drawn.network,
        exchange=ExchangeConfig(codec=drawn.exchange.codec),
        learning=LearningConfig(local_steps=1, round_interval_s=round_s),
    )
