"""The link model does what its settings say, counts what it does, and does it again for the same seed."""

import random
from dataclasses import dataclass
from statistics import fmean

import msgspec
import pytest

from simulation.network import PRESETS, RETRANSMIT_S, LinkModel, LinkSettings, Partition


def model(seed: int = 1, **settings: object) -> LinkModel:
    return LinkModel(LinkSettings(**settings), random.Random(seed))  # type: ignore[arg-type]


@dataclass
class Frames:
    """What became of many frames, sent one second apart so that they do not queue behind each other."""

    fates: list[list[float]]

    @classmethod
    def through(cls, link: LinkModel, count: int = 20_000) -> "Frames":
        return cls([link.fates(0, 1, 100, float(second)) for second in range(count)])

    @property
    def delays(self) -> list[float]:
        return [delay for copies in self.fates for delay in copies]


def test_the_ideal_network_delivers_at_once() -> None:
    assert model().fates(0, 1, 10**9, 5.0) == [0.0]


@pytest.mark.parametrize("jitter", ["lognormal", "exponential"])
def test_the_mean_delay_is_the_mean_and_none_is_below_the_minimum(jitter: str) -> None:
    frames = Frames.through(model(delay_s_mean=0.1, delay_s_min=0.02, jitter=jitter))
    assert fmean(frames.delays) == pytest.approx(0.1, rel=0.03)
    assert min(frames.delays) >= 0.02
    assert max(frames.delays) > 0.2


def test_without_jitter_every_frame_takes_the_mean() -> None:
    assert set(Frames.through(model(delay_s_mean=0.1, jitter="none"), 10).delays) == {0.1}


def test_lost_and_duplicated_frames_are_as_many_as_ordered_and_are_counted() -> None:
    link = model(delay_s_mean=0.1, loss=0.2, duplication=0.1)
    frames = Frames.through(link)
    lost = sum(not copies for copies in frames.fates)
    double = sum(len(copies) == 2 for copies in frames.fates)
    assert lost / len(frames.fates) == pytest.approx(0.2, rel=0.05)
    assert double / (len(frames.fates) - lost) == pytest.approx(0.1, rel=0.07)
    assert link.counts == {"loss": lost, "duplication": double}


def test_frames_of_one_direction_arrive_in_order() -> None:
    link = model(delay_s_mean=0.1, delay_s_min=0.0)
    arrivals = [now + link.fates(0, 1, 100, now)[0] for now in (n * 1e-3 for n in range(5_000))]
    assert arrivals == sorted(arrivals)


def test_reordered_frames_overtake_and_are_counted() -> None:
    link = model(delay_s_mean=0.1, delay_s_min=0.0, reorder=0.1)
    arrivals = [now + link.fates(0, 1, 100, now)[0] for now in (n * 1e-3 for n in range(5_000))]
    assert arrivals != sorted(arrivals)
    assert link.counts["reorder"] == pytest.approx(500, rel=0.15)


def test_spikes_delay_and_are_counted() -> None:
    link = model(delay_s_mean=0.1, jitter="none", spike=0.1, spike_s_max=2.0)
    frames = Frames.through(link, 5_000)
    assert max(frames.delays) > 1.9
    assert link.counts["delay"] == pytest.approx(500, rel=0.15)


def test_frames_queue_for_the_uplink_of_their_source_only() -> None:
    link = model(bandwidth_bytes_s=1000.0)
    assert link.fates(0, 1, 500, 0.0) == [0.5]
    assert link.fates(0, 2, 500, 0.0) == [1.0], "the second frame waits for the first"
    assert link.fates(3, 1, 500, 0.0) == [0.5], "another source has its own uplink"
    assert link.fates(0, 1, 500, 10.0) == [0.5], "an idle uplink has no memory"


def test_a_partition_cuts_both_ways_between_groups_and_only_in_its_time() -> None:
    link = model()
    link.partition(Partition([[0, 1], [2, 3]], start_s=10.0, end_s=20.0))
    for source, target, reaches in [(0, 1, True), (2, 3, True), (0, 2, False), (2, 0, False)]:
        assert bool(link.fates(source, target, 1, 15.0)) is reaches
    assert not link.fates(4, 0, 1, 15.0), "whoever is in no group is in the group of the others"
    assert link.fates(4, 5, 1, 15.0)
    assert link.fates(0, 2, 1, 9.9)
    assert link.fates(0, 2, 1, 20.0), "the end is not part of it"
    assert link.handshake(0, 2, 15.0) is None
    assert link.counts == {"partition": 4}


def test_a_dial_takes_one_and_a_half_round_trips() -> None:
    assert model(delay_s_mean=0.1, jitter="none").handshake(0, 1, 0.0) == pytest.approx(0.3)


def test_a_lost_leg_of_a_dial_is_sent_again() -> None:
    link = model(delay_s_mean=0.1, jitter="none", loss=0.3)
    times = [link.handshake(0, 1, 100.0 * n) for n in range(2_000)]
    done = [time for time in times if time is not None]
    repeats = [round((time - 0.3) / RETRANSMIT_S) for time in done]
    assert len(done) / len(times) > 0.98, "0.3 ** 5 of the legs are given up"
    assert fmean(repeats) == pytest.approx(3 * 0.3 / 0.7, rel=0.1)


def test_everything_is_lost_and_no_dial_succeeds_at_full_loss() -> None:
    link = model(loss=1.0)
    assert link.fates(0, 1, 1, 0.0) == []
    assert link.handshake(0, 1, 0.0) is None


def test_the_same_seed_gives_the_same_fates_whatever_others_send() -> None:
    wan = msgspec.structs.replace(PRESETS["wan"], loss=0.1, duplication=0.1, reorder=0.1)
    for one, other in ((0, 1), (b"one", b"other")):
        alone, together = (LinkModel(wan, random.Random(3)) for _ in range(2))
        fates = [alone.fates(one, other, 1000, n * 0.01) for n in range(500)]
        crowd = []
        for n in range(500):
            together.fates(other, one, 10, n * 0.01)
            crowd.append(together.fates(one, other, 1000, n * 0.01))
        assert fates == crowd
        assert fates != [
            LinkModel(wan, random.Random(4)).fates(one, other, 1000, n * 0.01) for n in range(500)
        ]
        assert fates != [together.fates(other, one, 1000, 10 + n * 0.01) for n in range(500)]


def test_what_one_sender_draws_is_not_what_another_draws() -> None:
    link = model(**msgspec.structs.asdict(PRESETS["wan"]))
    assert len({link.delay(sender) for sender in range(50)}) == 50


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_frame_is_quicker_than_the_least(preset: str) -> None:
    link = model(**{**msgspec.structs.asdict(PRESETS[preset]), "trace": ""})
    delays = [delay for n in range(2_000) for delay in link.fates(0, n % 7, 10, n * 1.0)]
    assert min(delays) >= link.least_s()
    assert link.least_s() == (0.0 if preset in ("ideal", "trace") else PRESETS[preset].delay_s_min)
