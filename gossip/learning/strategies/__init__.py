"""How models meet: each file is one exchange rule (`interface.Strategy`), and this one finds them by name."""

from typing import cast

from gossip.errors import LocalError
from gossip.learning.strategies import push, shard_pair
from gossip.learning.strategies.interface import Strategy

_STRATEGIES = {"shard-pair": cast(Strategy, shard_pair), "push": cast(Strategy, push)}
# Name and version of the rules, part of the run id: peers with other arithmetic must not average with us.
VERSIONS = {"shard-pair": "shard-pair/1", "push": "push/1"}


def strategy(name: str) -> Strategy:
    """Return a strategy by its name in the settings.

    Raises:
        LocalError: there is none of this name.
    """
    if name not in _STRATEGIES:
        raise LocalError(f"expected one of the strategies {', '.join(_STRATEGIES)}, got {name!r}")
    return _STRATEGIES[name]
