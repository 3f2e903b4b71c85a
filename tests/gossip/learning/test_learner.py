"""The owner of the weights: jobs succeed or change nothing; what it saves it can load, and nothing else."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gossip.config import ExchangeConfig, LearningConfig
from gossip.errors import LocalError, Reason
from gossip.events import (
    Adopt,
    Adopted,
    Finish,
    Finished,
    Job,
    JobRefused,
    Offer,
    Offered,
    Rescued,
    Respond,
    Responded,
    Save,
    Train,
    Trained,
)
from gossip.learning import saved
from gossip.learning.codec import encode
from gossip.learning.learner import Learner, TrainOutput
from gossip.learning.saved import SnapshotError
from gossip.learning.task import Leaf, RunInfo, Schema, run_info

VALUES = 300
INFINITY = float("inf")


class Named:
    name = "vectors"
    version = "1"


LEARNING = LearningConfig(shard_values_max=100, readout_decay=0.5)
GENESIS = np.random.default_rng(0).standard_normal(VALUES).astype(np.float32)


def info(learning: LearningConfig = LEARNING, network: str = "", leaf: str = "x") -> RunInfo:
    schema = Schema((Leaf(leaf, (VALUES,), "float32"),))
    task: Any = Named()
    return run_info(network=network, task=task, schema=schema, genesis=GENESIS, learning=learning)


def counting(seed: int) -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield {"x": np.full((2, 3), seed, np.float32), "y": np.zeros(2, np.int32)}
        seed += 1


def learner(seed: int | None = None, run: RunInfo | None = None) -> Learner:
    """A learner at genesis, or with a seed one that has trained a little."""
    made = Learner(run or info(), GENESIS, exchange=ExchangeConfig(), learning=LEARNING, batches=counting)
    if seed is not None:
        made.trained(output(0.1 * np.random.default_rng(seed).standard_normal(VALUES)))
    return made


def output(change: np.ndarray | float, **more: object) -> TrainOutput:
    given: dict[str, Any] = {"optimiser": (), "loss": 0.5, "steps": 4, **more}
    return TrainOutput(change=np.broadcast_to(np.float32(change), VALUES).copy(), **given)


def fingerprint(one: Learner) -> bytes:
    return saved.encode(one.dump())[0]  # it names every part by its hash


# --- exchanges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["f32", "int8", "int4"])
def test_two_learners_meet_in_the_middle(codec: str) -> None:
    i, j = learner(1), learner(2)
    shard = slice(100, 200)
    middle = (i.weights()[shard] + j.weights()[shard]) / 2
    others = np.delete(i.weights(), np.r_[shard])
    apart = float(np.linalg.norm(i.weights()[shard] - j.weights()[shard]))
    offered = i.run(Offer(1, codec))
    assert isinstance(offered, Offered)
    responded = j.run(Respond(1, codec, offered.payload, offered.clip))
    assert isinstance(responded, Responded)
    finished = i.run(Finish(1, codec, responded.payload, offered.clip))
    assert isinstance(finished, Finished)
    coarse = {"f32": 1e-6, "int8": 4e-3, "int4": 6e-2}[codec]
    assert np.allclose(i.weights()[shard], middle, atol=coarse)
    assert np.allclose(j.weights()[shard], middle, atol=coarse)
    assert np.array_equal(np.delete(i.weights(), np.r_[shard]), others)
    assert responded.distance == pytest.approx(apart, rel=0.1)
    assert finished.norm == pytest.approx(responded.norm, rel=1e-6)


def test_who_learns_nothing_is_drawn_to_those_who_do() -> None:
    """A node without training, a relay for instance, stands at the reference: a limit of our own way would be zero."""
    relay, trained = learner(), learner(1)
    before = trained.weights().copy()
    for asking, answering in ((trained, relay), (relay, trained)) * 2:
        offered = asking.run(Offer(0, "f32"))
        assert isinstance(offered, Offered)
        responded = answering.run(Respond(0, "f32", offered.payload, offered.clip))
        assert isinstance(responded, Responded)
        assert isinstance(asking.run(Finish(0, "f32", responded.payload, offered.clip)), Finished)
    middle = (GENESIS[:100] + before[:100]) / 2
    assert np.allclose(relay.weights()[:100], middle, atol=1e-5)


def test_a_newcomer_adopts_weights_and_read_out() -> None:
    donor, newcomer = learner(1), learner()
    for shard in range(3):
        offered = donor.run(Offer(shard, "f32"))
        assert isinstance(offered, Offered)
        assert isinstance(newcomer.run(Adopt(shard, "f32", offered.payload)), Adopted)
    assert np.allclose(newcomer.weights(), donor.weights(), atol=1e-6)
    assert np.array_equal(newcomer.readout(), newcomer.weights())


def test_the_smaller_of_two_clip_limits_counts() -> None:
    i, j = learner(1), learner(2)
    offered = i.run(Offer(0, "int8"))
    assert isinstance(offered, Offered)
    assert offered.clip > 0.25
    responded = j.run(Respond(0, "int8", offered.payload, 0.25))
    assert isinstance(responded, Responded)
    assert responded.norm == pytest.approx(0.25, rel=1e-4)
    assert responded.distance > 0.5


def settled() -> tuple[Learner, Learner]:
    """Two learners with a history of small distances in shard 0."""
    i, j = learner(1), learner(2)
    for _ in range(30):
        offered = i.run(Offer(0, "f32"))
        assert isinstance(offered, Offered)
        responded = j.run(Respond(0, "f32", offered.payload, offered.clip))
        assert isinstance(responded, Responded)
        assert isinstance(i.run(Finish(0, "f32", responded.payload, offered.clip)), Finished)
    return i, j


BAD_PAYLOADS = [
    ("f32", b"", Reason.WRONG_LENGTH),
    ("f32", bytes(401), Reason.WRONG_LENGTH),
    ("f32", np.full(100, np.nan, "<f4").tobytes(), Reason.NOT_FINITE),
    ("f32", np.full(100, np.inf, "<f4").tobytes(), Reason.NOT_FINITE),
    ("f32", np.full(100, 1e30, "<f4").tobytes(), Reason.TOO_LARGE_NORM),
    ("int8", encode("int8", np.full(100, 1e30, np.float32)), Reason.TOO_LARGE_NORM),
    ("int8", bytes(8) + b"\x80" * 100, Reason.MALFORMED),
    ("int4", np.full(2, np.nan, "<f4").tobytes() + bytes(50), Reason.NOT_FINITE),
    ("int2", bytes(100), Reason.UNKNOWN_CODEC),
]


@pytest.mark.parametrize(("codec", "payload", "reason"), BAD_PAYLOADS)
def test_a_bad_payload_is_refused_and_changes_nothing(codec: str, payload: bytes, reason: Reason) -> None:
    victim = learner(1)
    assert isinstance(victim.run(Offer(0, "f32")), Offered)
    before = fingerprint(victim)
    jobs: list[Job] = [
        Respond(0, codec, payload, INFINITY),
        Finish(0, codec, payload, INFINITY),
        Adopt(0, codec, payload),
    ]
    for job in jobs:
        refused = victim.run(job)
        assert isinstance(refused, JobRefused)
        assert refused.reason is reason
        assert fingerprint(victim) == before


def test_a_distant_state_is_not_followed_once_there_is_history() -> None:
    _, j = settled()
    before = fingerprint(j)
    assert isinstance(j.run(Respond(0, "f32", np.full(100, 2.0, "<f4").tobytes(), INFINITY)), Rescued)
    assert fingerprint(j) == before


def test_a_reply_beyond_the_declared_clip_is_refused() -> None:
    i, _ = settled()
    offered = i.run(Offer(0, "f32"))
    assert isinstance(offered, Offered)
    assert offered.clip < INFINITY
    before = fingerprint(i)
    each = offered.clip / 10  # times sqrt(100) makes the norm of the limit
    assert isinstance(
        i.run(Finish(0, "f32", np.full(100, 1.01 * each, "<f4").tobytes(), offered.clip)), JobRefused
    )
    assert fingerprint(i) == before
    assert isinstance(i.run(Finish(0, "f32", np.full(100, each, "<f4").tobytes(), offered.clip)), Finished)


@pytest.mark.parametrize("clip", [float("nan"), -1.0])
def test_a_senseless_clip_limit_is_refused(clip: float) -> None:
    refused = learner(1).run(Respond(0, "f32", bytes(400), clip))
    assert isinstance(refused, JobRefused)
    assert refused.reason is Reason.MALFORMED


@pytest.mark.parametrize("job", [Train(4), Save(), Offer(3, "f32"), Offer(-1, "f32"), Offer(0, "int2")])
def test_a_job_that_makes_no_sense_is_our_own_mistake(job: Job) -> None:
    with pytest.raises(LocalError):
        learner().run(job)


def test_another_genesis_is_our_own_mistake() -> None:
    for genesis in (GENESIS + 1, GENESIS[:-1], GENESIS.astype(np.float64)):
        with pytest.raises(LocalError, match="genesis"):
            Learner(info(), genesis, exchange=ExchangeConfig(), learning=LEARNING)


# --- training ----------------------------------------------------------------------------------------


def test_a_training_job_captures_its_input() -> None:
    one = learner(1)
    captured = one.train_input(3)
    before = one.weights().copy()
    one.trained(output(1.0))
    assert np.array_equal(captured.params, before)
    assert captured.batches["x"].shape == (3, 2, 3)
    assert captured.batches["x"][:, 0, 0].tolist() == [4.0, 5.0, 6.0]  # opened at the step it had reached
    assert (captured.step, captured.steps) == (4, 3)


def test_the_change_is_added_to_the_weights_as_they_are_now() -> None:
    i, j = learner(1), learner(2)
    captured = i.train_input(1)
    offered = j.run(Offer(0, "f32"))
    assert isinstance(offered, Offered)
    assert isinstance(i.run(Respond(0, "f32", offered.payload, INFINITY)), Responded)
    exchanged = i.weights().copy()
    assert not np.array_equal(exchanged, captured.params)
    assert i.trained(output(0.5)) == Trained(steps=4, loss=0.5)
    assert np.array_equal(i.weights(), exchanged + np.float32(0.5))
    assert i.steps == 8


def test_the_read_out_is_a_running_mean_taken_before_the_local_change() -> None:
    one = learner()
    one.trained(output(8.0))
    assert np.array_equal(one.readout(), GENESIS)
    one.trained(output(0.0))
    assert np.allclose(one.readout(), GENESIS + 4, atol=1e-5)
    # A round without training refreshes it too.
    done = one.run(Train(0))
    assert isinstance(done, Trained)
    assert done.steps == 0
    assert np.allclose(one.readout(), GENESIS + 6, atol=1e-5)
    assert one.steps == 8


def test_the_read_out_is_the_mean_over_all_rounds_whenever_somebody_looks() -> None:
    watched, one, other = learner(), learner(), learner(1)
    expected = one.weights().astype(np.float64)
    for number in range(12):
        shard = number % 3  # one of them is never exchanged
        if shard < 2:
            offered = other.run(Offer(shard, "f32"))
            assert isinstance(offered, Offered)
            for receiver in (watched, one):
                assert isinstance(receiver.run(Respond(shard, "f32", offered.payload, INFINITY)), Responded)
        for receiver in (watched, one):
            receiver.run(Train(0))
        expected = 0.5 * expected + 0.5 * one.weights()
        assert np.allclose(watched.readout(), expected, atol=1e-6)
    restored = learner()
    restored.load(one.dump())
    for late in (one, restored):
        assert np.allclose(late.readout(), expected, atol=1e-6)


def test_a_training_job_that_diverged_changes_no_weight() -> None:
    one = learner(1)
    before = one.weights().copy()
    change = np.zeros(VALUES, np.float32)
    change[7] = np.nan
    # The loss may be finite: it is of the weights before the step.
    done = one.trained(output(change, optimiser=(np.ones(3, np.float32),), loss=0.7))
    assert done == Trained(steps=4, loss=0.7, dropped=True)
    assert np.array_equal(one.weights(), before)
    assert one.train_input(1).optimiser is None


def test_a_task_whose_training_batches_end_is_told_so() -> None:
    ending = Learner(
        info(),
        GENESIS,
        exchange=ExchangeConfig(),
        learning=LEARNING,
        batches=lambda seed: iter([{"x": np.zeros(1)}]),
    )
    with pytest.raises(LocalError, match="for ever"):
        ending.train_input(2)


def test_weights_are_shown_and_not_given_away() -> None:
    one = learner(1)
    for view in (one.weights(), one.readout()):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1.0


# --- snapshots ---------------------------------------------------------------------------------------


def trained_learner() -> Learner:
    one, _ = settled()
    state = (np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int32))
    one.trained(output(0.01, optimiser=state))
    return one


def test_a_snapshot_brings_everything_back() -> None:
    one = trained_learner()
    other = learner(3)
    other.load(one.dump())
    assert fingerprint(other) == fingerprint(one)
    assert np.array_equal(other.weights(), one.weights())
    assert np.array_equal(other.readout(), one.readout())
    captured = other.train_input(1)
    assert captured.step == one.steps
    assert captured.optimiser is not None
    assert [leaf.tolist() for leaf in captured.optimiser] == [[[0, 1, 2], [3, 4, 5]], 7]
    # The gate remembers: limits are as they were.
    ours, theirs = one.run(Offer(0, "int8")), other.run(Offer(0, "int8"))
    assert ours == theirs


def test_a_snapshot_is_a_copy() -> None:
    one = trained_learner()
    model = one.dump()
    before = saved.encode(model)
    one.trained(output(0.5, optimiser=(np.ones(3, np.float32),)))
    one.run(Train(0))
    assert saved.encode(model) == before
    assert fingerprint(one) != before[0]


def test_only_the_shard_that_an_exchange_moved_has_another_content() -> None:
    one, other = trained_learner(), learner(3)
    before = saved.encode(one.dump())[1]
    offered = one.run(Offer(1, "f32"))
    assert isinstance(offered, Offered)
    assert isinstance(one.run(Adopt(1, "f32", other.run(Offer(1, "f32")).payload)), Adopted)  # type: ignore[union-attr]
    after = saved.encode(one.dump())[1]
    assert len(set(before) - set(after)) == len(set(after) - set(before)) == 1


def test_a_state_of_another_optimiser_is_left_behind_and_the_weights_are_kept() -> None:
    def with_optimiser(name: bytes) -> Learner:
        return Learner(info(), GENESIS, exchange=ExchangeConfig(), learning=LEARNING, optimiser=name)

    one = with_optimiser(b"adam")
    one.trained(output(0.25, optimiser=(np.ones(3, np.float32),)))
    for name, kept in ((b"adam", True), (b"momentum", False)):
        other = with_optimiser(name)
        assert other.load(one.dump()) is kept
        assert np.array_equal(other.weights(), one.weights())
        assert ("optimiser" in other.dump().parts) is kept
    bare = with_optimiser(b"adam")
    bare.trained(output(0.25))
    assert with_optimiser(b"sgd").load(bare.dump()), "a state without arrays has nothing to lose"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (info(leaf="y"), "another task"),
        (info(network="other"), "network"),
        (info(LearningConfig(shard_values_max=150)), "shard size"),
    ],
)
def test_a_snapshot_of_another_model_is_refused(run: RunInfo, said: str) -> None:
    with pytest.raises(SnapshotError, match=said):
        learner(run=run).load(trained_learner().dump())
