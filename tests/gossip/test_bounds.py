"""What peers can make a node keep is bounded, in memory and on the disk."""

from typing import Any

import numpy as np
import pytest

from gossip import persisted
from gossip.events import Finish, JobRefused, Offer, Offered, Received, Rescued, Respond
from gossip.run import exchange, reply_cache
from gossip.wire import OfferMessage, ReplyMessage, decode, encode


def replies_of(peer: Any) -> reply_cache.ReplyCache:
    cache: reply_cache.ReplyCache = peer.node.protocol("exchange").exchanges.replies
    return cache


def test_marks_on_the_disk_are_no_more_than_in_memory(
    net: Any, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MARKS_MAX", 2)
    node = net.add(config=quiet, weight=1.0)
    authors = [net.add(config=quiet, weight=1.0) for _ in range(4)]
    net.run(5.0)

    for author in authors:
        net.exchange(author, node)

    kept = [name for name, value in node.store.items() if name.startswith(persisted.MARK_KEY) and value]
    assert kept == [persisted.MARK_KEY + author.identity.public_key.hex() for author in authors[-2:]]


def test_kept_replies_are_bounded_in_bytes(net: Any, quiet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    net.exchange(a, b)
    [(reply, _)] = replies_of(b)._replies.values()
    monkeypatch.setattr(reply_cache, "REPLIES_BYTES_MAX", 3 * len(reply.frame))
    monkeypatch.setattr(reply_cache, "REPLIES_SHARE", 1)

    for _ in range(6):
        net.exchange(a, b)

    kept = [len(reply.frame) for reply, _ in replies_of(b)._replies.values()]
    assert len(kept) in (2, 3)
    assert sum(kept) == replies_of(b)._bytes <= 3 * len(reply.frame)


def test_a_reply_is_kept_for_as_long_as_somebody_may_ask_again(net: Any, quiet: Any) -> None:
    a, b = net.add(config=quiet, weight=1.0), net.add(config=quiet, weight=2.0)
    net.run(5.0)
    net.exchange(a, b)
    replies = replies_of(b)._replies
    [old] = replies
    net.run(quiet.exchange.timeout_s / 3)
    net.exchange(a, b)
    assert old in replies

    net.run(quiet.exchange.timeout_s)
    net.exchange(a, b)

    assert old not in replies
    assert len(replies) == 1


def test_a_flood_of_refused_offers_does_not_push_out_the_reply_of_another(net: Any, quiet: Any) -> None:
    a, b, flooder = (net.add(config=quiet, weight=weight) for weight in (1.0, 3.0, 2.0))
    net.run(5.0)
    lost: list[bytes] = []

    def wire_with_one_loss(source: Any, target: Any, frame: bytes) -> list[bytes]:
        if source is not b or target is not a or lost or not isinstance(decode(frame), ReplyMessage):
            return [frame]
        lost.append(frame)
        for number in range(100):  # cheap ones: nothing in them is true
            header = b"header %d" % number
            net.post(0.0, b.id, Received(flooder.id, encode(OfferMessage(header, b"", bytes(64)))))
        return []

    net.wire = wire_with_one_loss
    net.exchange(a, b)
    net.run(10.0)

    assert lost
    np.testing.assert_allclose(a.learner.weights() + b.learner.weights(), 4.0, rtol=1e-4)


def test_a_peer_that_always_pushes_cannot_drive_the_weights_out_of_float32(net: Any, quiet: Any) -> None:
    """Each accepted push widens the next limit. Infinite weights would be a fault of our own, and end the daemon."""
    learner = net.add(config=quiet, weight=0.1).learner
    refused = False
    for _ in range(600):
        x = learner.weights().astype(np.float64)
        own = float(np.linalg.norm(x))
        gate = learner._shards[0]
        room = 10 * own if gate.count < 4 else 0.99 * 16 * max(gate.usual, own / 16)
        pushed = np.clip(x / own * min(own + room, 9.9 * own), -3.3e38, 3.3e38).astype(np.float32)
        answer = learner.run(Respond(0, "f32", pushed.tobytes(), float("inf")))
        refused |= isinstance(answer, JobRefused | Rescued)
    for sign in (1.0, -1.0):
        change = np.full(x.size, sign * 3.3e38, np.float32)
        assert isinstance(offered := learner.run(Offer(0, "int8")), Offered)
        assert isinstance(learner.run(Finish(0, "f32", change.tobytes(), offered.clip)), JobRefused)

    assert refused
    assert np.isfinite(learner.weights()).all()
    assert float(np.linalg.norm(learner.weights().astype(np.float64))) <= 1e18
