"""Every setting of the pure core: meaning, unit, formula, source. `Config.simulated()` etc. are presets.

Frozen; changed with `dataclasses.replace`. The names are those of the TOML file, section by section.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtConfig:
    # Bucket size and result size; Maymounkov and Mazieres 2002: "k such that any k nodes are very unlikely to fail
    # within an hour"; 20 there and in libp2p.
    k: int = 20
    # Queries in flight in one lookup; same source.
    alpha: int = 3
    # A request that got no answer in this time has failed. Two round trips of a slow link (wan: 0.3 s) and a dial.
    request_timeout_s: float = 3.0
    # Refresh a bucket nobody looked into for so long. threats.md section 4.
    refresh_interval_s: float = 600.0
    # Records live so long by the receiver's clock, at most. threats.md section 4.
    record_ttl_s_max: float = 7200.0
    # Publish own records anew so often, jittered by +-20 %.
    publish_interval_s: float = 3600.0
    # Total records stored for others. threats.md section 3.
    records_max: int = 4096
    # Provider records stored under one key. 100 x 300 B fit into two frames of answers.
    providers_per_key_max: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipConfig:
    # Holders of our shards remembered, from which partners are drawn (a bottom-k sample, membership.py).
    # 1024 x ~400 B = 0.4 MB.
    pool_max: int = 1024
    # Look for providers so often in steady state; at start the interval begins at a 16th and doubles.
    walk_interval_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    # Wire codec for both legs: f32, int8 or int4 (block-wise, learning/codec.py).
    codec: str = "int8"
    # Give up an exchange after so long. Wild guess; covers a dial, two legs of a 4 MiB shard at 2 MB/s.
    timeout_s: float = 10.0
    # Replies kept for repeated requests, so that a lost reply costs no half exchange.
    reply_cache_max: int = 64
    # A newcomer waits so long for somebody to adopt from before it trains from genesis alone.
    join_patience_s: float = 10.0
    # Norm limit for what arrives, as a multiple of our own distance from the reference (plus `norm_floor`).
    norm_factor: float = 10.0
    # Clip limit, as a multiple of the running mean of accepted distances. gate.py.
    clip_factor: float = 4.0
    # A model further from ours than this multiple of the running mean of accepted distances is refused.
    distance_factor: float = 16.0
    # Answers to offers per peer and second, on average; burst of four times that. threats.md section 3 (verify 50/s).
    offers_per_peer_s: float = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    # Optimiser steps of one local training job (H in algorithms.md).
    local_steps: int = 4
    # Least time between the starts of two rounds (train, then one exchange), jittered by +-10 %. A daemon that shares
    # its machine is polite at 0.05; the simulator sets it from the scenario.
    round_interval_s: float = 0.05
    # Stop training after so many rounds and only exchange from then on; 0: never.
    rounds_max: int = 0
    # Read-out y <- decay * y + (1 - decay) * x once a round. algorithms.md section 1.4.
    readout_decay: float = 0.9
    # Values in one shard at most. 2**20 float32 are 4 MiB: a frame of bounded size and a pause of bounded length.
    shard_values_max: int = 2**20
    # Seed of the genesis weights; part of the run id.
    genesis_seed: int = 0
    # Order a snapshot of the weights so often.
    save_interval_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    network: str = "main"  # name of the network; nodes of other networks do not get through the handshake
    # Connections open at the same time; the least recently used idle one goes first. threats.md section 3.
    connections_max: int = 96
    dht: DhtConfig = field(default_factory=DhtConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
