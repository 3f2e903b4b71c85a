"""Two nodes that offer to each other, at every distance in time: nobody may apply half an exchange."""

from typing import Any

import numpy as np
import pytest

from gossip.events import Compute, Done, Refused

# As long as two deliveries: the wire of these tests takes 10 ms.
JOB_S = 0.02


@pytest.fixture
def slow(net: Any) -> Any:
    """Jobs of exchanges take time, as they do on the thread of a daemon."""

    def compute(peer: Any, order: Compute) -> None:
        net.post(JOB_S, peer.id, Done(order.ticket, peer.learner.run(order.job)))

    net._compute = compute
    return net


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("later_ms", range(0, 100, 5))
def test_crossed_offers_keep_the_sum_and_make_nobody_wait(
    slow: Any, quiet: Any, first: int, later_ms: int
) -> None:
    peers = [slow.add(config=quiet, weight=1.0), slow.add(config=quiet, weight=3.0)]
    slow.run(5.0)

    def begin(source: int) -> None:
        slow.initiate(peers[source], peers[1 - source])

    begin(first)
    slow.run(later_ms / 1000)
    begin(1 - first)
    slow.run(10.0)

    np.testing.assert_allclose(sum(peer.learner.weights() for peer in peers), 4.0, rtol=1e-4)
    assert not any(isinstance(news, Refused) for peer in peers for news in peer.news)
