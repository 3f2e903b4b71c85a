"""A node as this house composes it: identity and connections, and the protocols that it speaks.

The list in `make_node` is where a protocol is registered: one line each.
"""

import random
from collections.abc import Callable, Mapping, Sequence

from crypto.identity import Signer, Verify, verify
from gossip.config import Config
from gossip.dht.service import Dht
from gossip.learning.task import RunInfo
from gossip.net.bootstrap import Bootstrap
from gossip.net.greeting import Greeting
from gossip.node import Make, Node
from gossip.run.manifests import Runs
from gossip.run.service import Exchange

AGENT = "p2pnode/0.2.0"


def make_node(
    identity: Signer,
    config: Config,
    runs: RunInfo | Sequence[tuple[RunInfo, bool]],
    *,
    addresses: tuple[str, ...],
    rng: random.Random,
    entropy: Callable[[int], bytes],
    store: Mapping[str, bytes],
    has_model: bool = False,
    now: float,
    verify: Verify = verify,
    isolate: bool = True,
    more: Sequence[Make] = (),
) -> Node:
    """Return a node that takes part in one run, or in several.

    Args:
        identity: Who signs.
        config: Settings, see gossip/config.py.
        runs: What is trained; several: each with whether the learner restored a snapshot of its weights.
        addresses: Where others can reach us, "host:port"; empty: only outbound.
        rng: For choices that need not be secret.
        entropy: entropy(n) -> n secret random bytes.
        store: What `Persist` kept in the last life; empty for a new node.
        has_model: Of a single run, whether the learner restored a snapshot; without one the node is a newcomer.
        now: Seconds on a clock that never goes back.
        verify: Checks signatures. Only the simulator gives another one.
        isolate: As for `Node`.
        more: Protocols besides the usual ones.
    """
    held = [(runs, has_model)] if isinstance(runs, RunInfo) else list(runs)
    protocols: list[Make] = [
        lambda context: Greeting(context, agent=AGENT),
        Bootstrap,
        Dht,
        lambda context: Runs(context, runs=[info for info, _ in held]),
        lambda context: Exchange(context, runs=held, now=now),
        *more,
    ]
    return Node(
        protocols,
        identity=identity,
        config=config,
        addresses=addresses,
        rng=rng,
        entropy=entropy,
        store=store,
        used=any(known for _, known in held),
        now=now,
        verify=verify,
        isolate=isolate,
    )
