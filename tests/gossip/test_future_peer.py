"""A peer from the future and one from the past, written by hand as bytes: both go on exchanging with a node of today.

Nothing that they say is encoded by our own code, and nothing in our own code knows of them.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossip.config import Config
from gossip.events import Received
from tests.support.by_hand import Stranger, message

FUTURE = {"connection": [1, 2], "dht": [1], "exchange": [1, 2], "run": [1], "weather": [9]}
PAST = {"connection": [1], "dht": [0], "exchange": [0, 1]}
EXTRA = {"relay": b"\x01\x02", "zone": b"eu-west"}


@pytest.fixture
def today(net: Any, quiet: Config) -> Any:
    """A node of ours, all of whose weights are 1. It offers as f32, which is easily read by hand."""
    return net.add(config=replace(quiet, exchange=replace(quiet.exchange, codec="f32")), weight=1.0)


def meet(net: Any, today: Any, protocols: dict[str, list[int]], extra: dict[str, bytes]) -> Stranger:
    stranger = Stranger(today, protocols=protocols, extra=extra)
    net.peers[stranger.id] = stranger
    net.connect(stranger, today)
    net.run(2.0)
    return stranger


@pytest.fixture(params=["future", "past"])
def stranger(request: pytest.FixtureRequest, net: Any, today: Any) -> Stranger:
    protocols, extra = (FUTURE, EXTRA) if request.param == "future" else (PAST, {})
    return meet(net, today, protocols, extra)


@pytest.fixture
def future(net: Any, today: Any) -> Stranger:
    return meet(net, today, FUTURE, EXTRA)


@pytest.fixture
def past(net: Any, today: Any) -> Stranger:
    return meet(net, today, PAST, {})


def say(net: Any, stranger: Stranger, *frames: bytes) -> None:
    """The node of today hears these, in one moment; then let everything end."""
    for frame in frames:
        net.post(0.0, stranger.target.id, Received(stranger.id, frame))
    net.run(1.0)


def exchange_both_ways(net: Any, stranger: Stranger) -> None:
    """One exchange that each of the two begins. Both end in the middle, and the sum stays."""
    today = stranger.target
    for begin in (
        lambda: say(net, stranger, stranger.offer()),
        lambda: net.exchange(today, stranger),
    ):
        stranger.weights = stranger.weights + np.float32(0.2)  # little enough not to be shortened
        both = stranger.weights + today.learner.weights()
        begin()
        np.testing.assert_allclose(stranger.weights, both / 2, rtol=1e-5)
        np.testing.assert_allclose(today.learner.weights(), both / 2, rtol=1e-5)


def assert_welcome(net: Any, stranger: Stranger) -> None:
    today = stranger.target
    assert (stranger.id, today.id) in net.links
    assert "bye" not in stranger.tags()
    [shown] = today.node.snapshot(net.now).peers
    assert shown.faults == 0


# Of no version that we know, and not even of the types that we allow.
FORECAST = message("forecast", celsius=-3.5, place="Oslo", sure=True)
OFFER_2 = message("offer_2", lanes=[{"deep": [[[[[[[[[[[[]]]]]]]]]]]]}, None])


def test_both_go_on_exchanging(net: Any, stranger: Stranger) -> None:
    exchange_both_ways(net, stranger)
    say(net, stranger, FORECAST, OFFER_2, FORECAST)
    exchange_both_ways(net, stranger)

    assert stranger.target.node.snapshot(net.now).exchanges == 4
    assert_welcome(net, stranger)


def test_the_highest_version_that_both_name_is_spoken(net: Any, future: Stranger) -> None:
    [shown] = future.target.node.snapshot(net.now).peers
    assert shown.protocols == {"connection": 1, "dht": 1, "exchange": 1, "run": 1}
    assert future.id in future.target.pool
    assert future.tags()["hello"] == future.tags()["holds"] == 1


def test_the_past_hears_nothing_that_it_does_not_speak(net: Any, past: Stranger) -> None:
    exchange_both_ways(net, past)
    net.run(300.0)
    [shown] = past.target.node.snapshot(net.now).peers
    assert shown.protocols == {"connection": 1, "exchange": 1}
    assert set(past.tags()) == {"hello", "offer", "reply"}


def test_what_is_not_known_is_said_once_for_each_tag_and_connection(net: Any, stranger: Stranger) -> None:
    say(net, stranger, FORECAST, OFFER_2, FORECAST)
    say(net, stranger, OFFER_2)
    assert stranger.unsupported() == ["forecast", "offer_2"]
    assert stranger.target.refused() == {"unsupported": 2}

    net.cut(stranger, stranger.target, "cable")
    net.run(1.0)
    net.connect(stranger, stranger.target)
    net.run(1.0)
    say(net, stranger, FORECAST, FORECAST)
    assert stranger.unsupported() == ["forecast", "offer_2", "forecast"]
    assert_welcome(net, stranger)


def test_messages_of_a_version_that_was_not_agreed_on_are_harmless_whatever_they_look_like(
    net: Any, past: Stranger
) -> None:
    """The tag is one of ours; what stands behind it was another thing in version 0."""
    of_today = message("find_node", n=1, target=bytes(32))
    of_its_time = message("find_node", id=bytes(20), token=None)
    say(net, past, of_its_time, of_today, of_its_time)
    say(net, past, message("holds", runs={"all": True}))

    assert past.unsupported() == ["find_node", "holds"]
    exchange_both_ways(net, past)
    assert_welcome(net, past)


def test_frames_that_come_before_the_hello_are_harmless(net: Any, today: Any) -> None:
    stranger = Stranger(today, protocols=FUTURE, extra=EXTRA)
    net.peers[stranger.id] = stranger
    frames = [message("find_node", n=1, target=bytes(32)), FORECAST, stranger.hello()]
    stranger.hello = frames.pop  # type: ignore[method-assign]
    net.connect(stranger, today)
    net.post(0.015, today.id, Received(stranger.id, frames[0]))
    net.post(0.015, today.id, Received(stranger.id, frames[1]))
    net.run(2.0)

    assert stranger.unsupported() == ["find_node", "forecast"]
    exchange_both_ways(net, stranger)
    assert_welcome(net, stranger)


def test_unsupported_is_never_answered(net: Any, stranger: Stranger) -> None:
    before = len(stranger.heard)
    frames = [message("unsupported", tag=tag) for tag in ("find_node", "offer", "unsupported", "hello")]
    say(net, stranger, *frames, *frames)

    assert len(stranger.heard) == before
    assert stranger.target.refused() == {}
    assert stranger.target.refused(by_us=False) == {"unsupported": 8}
    exchange_both_ways(net, stranger)
    assert_welcome(net, stranger)


def test_frames_that_are_not_known_cost_budget_and_nothing_else(net: Any, future: Stranger) -> None:
    question = message("find_node", n=7, target=bytes(32))
    say(net, future, *[FORECAST] * 1000, question)
    assert future.unsupported() == ["forecast"]
    assert future.tags()["nodes"] == 0
    assert future.target.refused() == {"unsupported": 1, "rate_limited": 1}

    net.run(1.0)
    say(net, future, question)
    assert future.tags()["nodes"] == 1
    net.run(10.0)  # offers have less in one burst than questions
    exchange_both_ways(net, future)
    assert_welcome(net, future)


def test_a_flood_of_ever_other_tags_is_answered_a_bounded_number_of_times(
    net: Any, stranger: Stranger
) -> None:
    for start in range(0, 1000, 100):
        say(net, stranger, *[message(f"tag_{start + n}") for n in range(100)])
        net.run(10.0)

    assert stranger.unsupported() == [f"tag_{n}" for n in range(64)]
    exchange_both_ways(net, stranger)
    assert_welcome(net, stranger)


def test_without_a_common_version_of_the_exchange_there_is_none_and_nobody_is_to_blame(
    net: Any, today: Any
) -> None:
    stranger = meet(net, today, {**FUTURE, "exchange": [2, 3]}, EXTRA)
    weights = today.learner.weights().copy()
    say(net, stranger, stranger.offer())
    net.exchange(today, stranger)

    assert stranger.id not in today.pool
    assert stranger.unsupported() == ["offer"]
    assert stranger.tags()["offer"] == 0
    np.testing.assert_array_equal(today.learner.weights(), weights)
    assert_welcome(net, stranger)


def test_extra_beyond_its_limit_is_no_matter_of_versions(net: Any, today: Any) -> None:
    stranger = meet(net, today, FUTURE, {"a": bytes(512), "b": bytes(512)})
    assert today.refused()["oversized"] == 1
    assert (stranger.id, today.id) not in net.links
