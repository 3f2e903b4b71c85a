"""Every setting of the pure core: meaning, unit, reason.

Frozen; changed with `dataclasses.replace`. The names are those of the TOML file, section by section, and the comments
are written into it by `p2pnode init`: they speak to whoever runs a node.

The range beside a field is what may come from a person; daemon and simulator check it where they read their files.
"""

from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

from msgspec import Meta

# Names of the wire codecs; gossip/learning/codec.py has them.
CODECS = ("f32", "int8", "int4")
# Names of the exchange rules; gossip/learning/strategies has them.
STRATEGIES = ("shard-pair", "push")

# Durations: from nothing, or from so much that a node does not spin; infinity says never, where that makes sense.
Duration: TypeAlias = Annotated[float, Meta(ge=0)]
Interval: TypeAlias = Annotated[float, Meta(ge=0.1)]
Timeout: TypeAlias = Annotated[float, Meta(ge=0.01, le=3600)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**31)]
# A factor times zero must be zero, so infinity is none.
Factor: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtConfig:
    # Nodes in one bucket of the routing table, and nodes that a lookup looks for: so many that all of them are very
    # unlikely to fail within an hour. 20 in the Kademlia paper (Maymounkov and Mazieres 2002) and in libp2p.
    k: Annotated[int, Meta(ge=1, le=64)] = 20
    # Queries under way at the same time in one lookup. 3 in the Kademlia paper.
    alpha: Annotated[int, Meta(ge=1, le=16)] = 3
    # A request that got no answer in this time after it was sent has failed. Two round trips of a slow link, and a busy
    # machine.
    request_timeout_s: Timeout = 3.0
    # Look for new nodes in a part of the routing table that was not used for so long. An hour, as in the Kademlia
    # paper; each part costs some ten messages, most of them a few kilobytes of records.
    refresh_interval_s: Interval = 3600.0
    # Keep records of other nodes so long at most, by our own clock, unless they are published again. Two hours, as in
    # BEP 44: twice the publishing interval.
    record_ttl_s_max: Annotated[float, Meta(ge=1, le=7200)] = 7200.0
    # Publish our own records again so often (give or take 20 %). Half the life of a record, so that one may be missed.
    publish_interval_s: Interval = 3600.0
    # Records kept for other nodes. At most 2,000 bytes each: 8 MB. A quarter of them may be of kinds that
    # this version does not know.
    records_max: Annotated[int, Meta(ge=1, le=2**31)] = 4096
    # Of these, kept for one part of one model ("I hold this shard"). An answer names at most 20 of them, drawn at
    # random.
    providers_per_key_max: Annotated[int, Meta(ge=1, le=2**31)] = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipConfig:
    # Nodes of our run remembered, from which partners are drawn at random. About 400 bytes each: 0.4 MB.
    pool_max: Annotated[int, Meta(ge=1, le=2**20)] = 1024
    # Look for more nodes of our run so often. After the start sooner: at first after a sixteenth, then doubling.
    walk_interval_s: Interval = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    # How weights travel: f32 (exact), int8 or int4 (blocks of 64 values with one scale each; about 4 and 7 times fewer
    # bytes than f32). Nodes with different codecs understand each other.
    codec: Annotated[str, Meta(extra={"choices": CODECS})] = "int8"
    # Give up an exchange in which nothing has moved for so long. While its weights travel it may take longer, however
    # slow the connection is (network.floor_bytes_s). A guess: room for a busy machine to answer.
    timeout_s: Timeout = 10.0
    # Replies kept in case that a request comes again because the reply was lost. Without it, such an exchange would
    # count on one side only.
    reply_cache_max: Annotated[int, Meta(ge=1, le=2**16)] = 64
    # A new node waits so long for somebody whose model it can take over, before it begins from the initial weights; not
    # counting the time in which a model is on its way.
    join_patience_s: Duration = 10.0
    # Refuse weights that are further from the initial weights than so many times our own distance plus 0.3 per value
    # (root mean square; it lets a new node take over a trained model).
    norm_factor: Annotated[float, Meta(ge=1, le=1e9)] = 10.0
    # Shorten a change to so many times what exchanges usually change (their median). Smaller: a hostile peer moves us
    # less at each contact, and honest nodes agree more slowly; at 1 and below they would stop to agree.
    clip_factor: Factor = 2.0
    # Refuse weights that are further from ours than so many times what exchanges usually change.
    distance_factor: Factor = 16.0
    # Offers taken from one peer per second, on average; four times as many in a burst. Checking a signature takes about
    # 0.1 ms, so one peer can cost us half a percent of a core by this.
    offers_per_peer_s: Annotated[float, Meta(ge=0.001, le=1e9)] = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    # Training steps between two exchanges. More: fewer bytes, and nodes drift further apart in between.
    local_steps: Annotated[int, Meta(ge=0, le=2**20)] = 4
    # Least time between the starts of two rounds (train, then one exchange), give or take 10 %. Larger leaves more of
    # the machine to others, and sends less.
    round_interval_s: Annotated[float, Meta(ge=0.001)] = 0.05
    # Stop training after so many rounds and only exchange from then on; 0: never.
    rounds_max: Count = 0
    # What `eval` and `export` show is a running mean of the weights, y <- decay * y + (1 - decay) * x once a round:
    # better than the weights of any one moment. 0: the weights as they are.
    readout_decay: Annotated[float, Meta(ge=0, le=1)] = 0.9
    # A larger model is cut into shards of at most so many values, of which one is exchanged at a time. 2**20 values are
    # 4 MiB, the largest message there is. All nodes of a run need the same.
    shard_values_max: Annotated[int, Meta(ge=1, le=2**20)] = 2**20
    # How models meet. shard-pair: two nodes move to each other, which keeps the mean of all; push: a node sends its
    # weights, and averages what others sent once a round, with half the bytes. All nodes of a run need the same.
    strategy: Annotated[str, Meta(extra={"choices": STRATEGIES})] = "shard-pair"
    # Seed of the initial weights. All nodes of a run need the same.
    genesis_seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    # Write the model to the disk so often. A node that is killed loses at most so much of its training.
    save_interval_s: Interval = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    # What the model is for, in a sentence. It stands in the run's manifest. All nodes of a run need the same.
    purpose: Annotated[str, Meta(max_length=1000)] = ""
    # The licence of the model, an SPDX expression such as CC-BY-4.0. It stands in the run's manifest. All nodes of a
    # run need the same.
    licence: Annotated[str, Meta(max_length=200)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    # Name of the network. Nodes of another network cannot connect to ours.
    network: Annotated[str, Meta(max_length=200)] = "main"
    # Connections open at the same time; the one that was idle for longest goes first. At most 64 of them may be opened
    # by others.
    connections_max: Annotated[int, Meta(ge=1, le=4096)] = 96
    # A connection that carries less than so many bytes per second, while something is under way, is given up, and the
    # peer is left alone for some minutes. A guess: 4 MB take a quarter of an hour at this rate, and a
    # megabit per second can be shared by thirty connections.
    floor_bytes_s: Annotated[float, Meta(ge=1, le=1e9)] = 4096.0
    dht: DhtConfig = field(default_factory=DhtConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    run: RunConfig = field(default_factory=RunConfig)
