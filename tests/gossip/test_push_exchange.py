"""A push between two nodes: one leg with weights, a word in return, and the same guards as for a change."""

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from crypto.signing import Purpose, network_id
from gossip import wire
from gossip.config import Config
from gossip.events import Exchanged, Train


@pytest.fixture
def pushing(quiet: Config) -> Config:
    return replace(quiet, learning=replace(quiet.learning, strategy="push"))


@pytest.fixture
def pair(net: Any, pushing: Config) -> Any:
    """Two nodes whose weights are 1 and 3, connected."""
    a, b = net.add(config=pushing, weight=1.0), net.add(config=pushing, weight=3.0)
    net.run(5.0)
    a.news.clear()
    b.news.clear()
    net.frames.clear()
    return a, b


def roles(peer: Any) -> list[str]:
    return [news.role for news in peer.news if isinstance(news, Exchanged)]


def next_round(*peers: Any) -> list[float]:
    for peer in peers:
        peer.learner.run(Train(0))
    return [float(peer.learner.weights()[0]) for peer in peers]


def test_a_push_moves_the_responder_in_its_next_round_and_brings_nothing_back(net: Any, pair: Any) -> None:
    a, b = pair
    net.exchange(a, b)
    assert (roles(a), roles(b)) == (["initiator"], ["responder"])
    replies = [
        message for _, _, frame in net.frames if isinstance(message := wire.decode(frame), wire.ReplyMessage)
    ]
    assert [reply.payload for reply in replies] == [b""]
    assert wire.decode_reply_header(replies[0].header).verdict == "taken"
    assert next_round(a, b) == pytest.approx([1.0, 2.0], rel=0.02)
    assert not a.refused()
    assert not b.refused()


def test_a_push_whose_reply_was_lost_is_repeated_and_counts_once(net: Any, pair: Any) -> None:
    a, b = pair
    lost: list[bytes] = []

    def wire_with_one_loss(source: Any, target: Any, frame: bytes) -> list[bytes]:
        if source is b and not lost and isinstance(wire.decode(frame), wire.ReplyMessage):
            lost.append(frame)
            return []
        return [frame]

    net.wire = wire_with_one_loss
    net.exchange(a, b)
    net.run(15.0)
    assert lost
    assert (roles(a), roles(b)) == (["initiator"], ["responder"])
    assert next_round(a, b) == pytest.approx([1.0, 2.0], rel=0.02)


def test_a_change_in_reply_to_a_push_is_refused(net: Any, pair: Any) -> None:
    a, b = pair
    payload = np.full(200, 9.0, "<f4").tobytes()

    def wire_that_answers_with_a_change(source: Any, target: Any, frame: bytes) -> list[bytes]:
        message = wire.decode(frame)
        if source is not b or not isinstance(message, wire.ReplyMessage):
            return [frame]
        header = wire.encode_header(
            msgspec.structs.replace(
                wire.decode_reply_header(message.header),
                verdict="change",
                codec="f32",
                hash=hashlib.sha256(payload).digest(),
            )
        )
        signature = b.identity.sign(Purpose.REPLY, network_id("main"), header)
        return [wire.encode(wire.ReplyMessage(header, payload, signature))]

    net.wire = wire_that_answers_with_a_change
    net.exchange(a, b)
    assert a.refused() == {"unexpected": 1}
    assert roles(a) == []
    assert next_round(a) == pytest.approx([1.0])
