"""Links that differ: distance, downlinks, two ways that are not alike, measured traces, and who can be dialled."""

import random
from math import inf, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from simulation.geography import Geography, GeographySettings, RegionSettings, distance_km
from simulation.memory import MemoryNetwork
from simulation.mistakes import ScenarioError
from simulation.nat import KINDS, Nat, NatSettings
from simulation.network import PRESETS, LinkModel, LinkSettings
from simulation.scenario import parse
from simulation.seeds import Seeds
from simulation.trace import Steps, read_trace
from simulation.varied import VariedLinks, geography_of, links_of

PARIS = RegionSettings(name="paris", latitude=48.86, longitude=2.35)
TOKYO = RegionSettings(name="tokyo", latitude=35.68, longitude=139.69)
LIMA = RegionSettings(name="lima", latitude=-12.05, longitude=-77.04)


def links(
    seed: int = 1, *, nat: Nat | None = None, geography: Geography | None = None, **settings: Any
) -> VariedLinks:
    return VariedLinks(LinkSettings(**settings), random.Random(seed), nat=nat, geography=geography, salt=b"s")


def placed(*regions: RegionSettings, nodes: int = 60, **settings: Any) -> Geography:
    return Geography(
        GeographySettings(regions=list(regions), **settings), list(range(nodes)), random.Random(1)
    )


# --- nothing of it costs nothing -----------------------------------------------------------------------


def test_a_scenario_that_asks_for_none_of_it_gets_the_plain_links() -> None:
    for preset in ("ideal", "lan", "wan"):
        plain = parse({"network": {"preset": preset, "loss": 0.1}}, "x.toml")
        assert type(links_of(plain, Seeds(1), (), geography_of(plain, Seeds(1)))) is LinkModel
    for tree in (
        {"network": {"preset": "mobile"}},
        {"nat": {"symmetric": 0.1}},
        {"network": {"asymmetry": 0.1}},
    ):
        varied = parse(tree, "x.toml")
        assert type(links_of(varied, Seeds(1), (), geography_of(varied, Seeds(1)))) is VariedLinks


def test_varied_links_without_variety_are_the_plain_ones_frame_for_frame() -> None:
    wan = LinkSettings(
        delay_s_mean=0.08, delay_s_min=0.02, bandwidth_bytes_s=1e5, loss=0.1, duplication=0.1, reorder=0.1
    )
    plain, varied = LinkModel(wan, random.Random(3)), VariedLinks(wan, random.Random(3))
    for number in range(2_000):
        ends = (number % 3, number % 5 + 3)
        assert plain.fates(*ends, 500, number * 0.01) == varied.fates(*ends, 500, number * 0.01)
    assert plain.handshake(0, 4, 50.0) == varied.handshake(0, 4, 50.0)
    assert plain.counts == varied.counts


# --- distance ----------------------------------------------------------------------------------------


def test_distances_are_those_of_the_globe() -> None:
    assert distance_km(PARIS, TOKYO) == pytest.approx(9_710, rel=0.01)
    assert distance_km(PARIS, LIMA) == pytest.approx(10_250, rel=0.01)
    assert distance_km(PARIS, PARIS) == 0
    poles = (RegionSettings(name="n", latitude=90), RegionSettings(name="s", latitude=-90, longitude=77))
    assert distance_km(*poles) == pytest.approx(20_015, rel=0.001)


def test_a_frame_across_the_world_takes_longer_by_the_distance() -> None:
    where = placed(PARIS, TOKYO)
    here = [node for node in range(60) if where.region(node) == 0]
    there = [node for node in range(60) if where.region(node) == 1]
    model = links(geography=where, delay_s_mean=0.01, jitter="none")
    assert model.fates(here[0], here[1], 1, 0.0) == [pytest.approx(0.01)]
    # 9,710 km: the ping is 200 ms to 250 ms, as it is.
    assert model.fates(here[0], there[1], 1, 0.0) == [pytest.approx(0.01 + 0.102, abs=0.001)]
    assert model.handshake(there[0], here[0], 0.0) == pytest.approx(3 * 0.112, abs=0.003)


def test_a_table_of_delays_stands_for_the_coordinates() -> None:
    where = placed(PARIS, TOKYO, nodes=2, delay_s=[[0.001, 0.2], [0.3, 0.002]])
    model = links(geography=where)
    one, other = sorted((0, 1), key=where.region)
    assert model.fates(one, other, 1, 0.0) == [0.2]
    assert model.fates(other, one, 1, 0.0) == [0.3]


@given(shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=8), nodes=st.integers(2, 200))
def test_every_region_has_its_share_of_the_nodes(shares: list[float], nodes: int) -> None:
    regions = [RegionSettings(name=str(index), share=share) for index, share in enumerate(shares)]
    where = Geography(GeographySettings(regions=regions), list(range(nodes)), random.Random(1))
    for index, share in enumerate(shares):
        count = sum(where.region(node) == index for node in range(nodes))
        assert abs(count - nodes * share / sum(shares)) < 1


# --- two ways, two bandwidths ------------------------------------------------------------------------


def test_one_way_is_longer_and_the_other_shorter_by_as_much() -> None:
    model = links(delay_s_mean=0.1, jitter="none", asymmetry=0.5)
    shares = []
    for other in range(1, 300):
        forth, back = model.fates(0, other, 1, 0.0)[0], model.fates(other, 0, 1, 0.0)[0]
        assert forth + back == pytest.approx(0.2), "the round trip stays"
        assert model.fates(0, other, 1, 9.0)[0] == forth, "a link keeps its ways"
        shares.append(forth / 0.1 - 1)
    assert -0.5 <= min(shares) < -0.4 < 0.4 < max(shares) <= 0.5
    assert abs(fmean(shares)) < 3 * 0.5 / sqrt(3 * 300), "uniform: neither way is favoured"


def test_frames_queue_for_the_downlink_of_their_target_only() -> None:
    model = links(downlink_bytes_s=1000.0)
    assert model.fates(0, 9, 500, 0.0) == [0.5]
    assert model.fates(1, 9, 500, 0.0) == [1.0], "of whoever they are"
    assert model.fates(0, 8, 500, 0.0) == [0.5]
    assert model.fates(0, 9, 500, 10.0) == [0.5], "an idle downlink has no memory"


@given(seed=st.integers(0, 10**6))
def test_frames_of_one_link_keep_their_order_behind_a_downlink(seed: int) -> None:
    rng = random.Random(seed)
    model = links(
        seed, delay_s_mean=0.1, downlink_bytes_s=2000.0, bandwidth_bytes_s=5000.0, asymmetry=0.5, spike=0.1
    )
    last: dict[int, float] = {}
    now = 0.0
    for _ in range(60):
        now += rng.expovariate(10.0)
        source = rng.randrange(3)
        arrival = now + model.fates(source, 9, rng.randrange(1, 400), now)[0]
        assert arrival >= last.get(source, 0.0)
        last[source] = arrival


# --- measured links ----------------------------------------------------------------------------------


def written(folder: Path, text: str) -> str:
    path = folder / "trace.csv"
    path.write_text(text)
    return str(path)


def test_a_trace_holds_from_line_to_line_and_begins_again() -> None:
    steps = Steps(starts=[0.0, 10.0, 20.0], delays=[0.1, 0.2, 0.3], losses=[0.0, 0.5, 1.0])
    assert steps.period_s == 30.0
    for date, found in [
        (0, (0.1, 0.0)),
        (9.99, (0.1, 0.0)),
        (10, (0.2, 0.5)),
        (29.9, (0.3, 1.0)),
        (31, (0.1, 0.0)),
    ]:
        assert steps.at(date) == found
    assert Steps([0.0], [0.1], [0.2]).at(1e6) == (0.1, 0.2)


def test_a_trace_delays_and_loses_as_it_was_measured_each_link_at_another_place_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, "time_s,delay_s,loss\n0,0.1,0\n60,0.3,0\n120,0.2,1\n")
    model = links(trace=path)
    fates = [model.fates(0, other, 1, float(second)) for other in range(1, 40) for second in range(180)]
    assert sum(not copies for copies in fates) == pytest.approx(len(fates) / 3, rel=0.02)
    assert {round(copies[0], 6) for copies in fates if copies} >= {0.1, 0.3}
    first = [model.fates(0, other, 1, 1000.0) for other in range(1, 40)]
    assert len({tuple(copies) for copies in first}) > 2, "not all have their bad minute at once"


def test_a_trace_of_pairs_of_regions_goes_by_their_names(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "from,to,time_s,delay_s,loss\nparis,tokyo,0,0.5,0\nparis,tokyo,10,0.7,0\ntokyo,paris,0,0,1\n",
    )
    where = placed(PARIS, TOKYO, nodes=2, delay_s=[[0, 0], [0, 0]])
    model = links(trace=path, geography=where)
    one, other = sorted((0, 1), key=where.region)
    assert [model.fates(one, other, 1, date) for date in (5.0, 15.0, 25.0)] == [[0.5], [0.7], [0.5]]
    assert model.fates(other, one, 1, 5.0) == []
    assert model.handshake(one, other, 5.0) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a first line time_s,delay_s,loss"),
        ("time,delay\n", "found 'time,delay'"),
        ("time_s,delay_s,loss\n", "at least one line"),
        ("time_s,delay_s,loss\n0,0.1\n", "line 2: expected as many cells"),
        ("time_s,delay_s,loss\n0,0.1,0,0\n", "line 2: expected as many cells"),
        ("time_s,delay_s,loss\n5,0.1,0\n", "line 2: time_s: expected 0 in the first line, found 5"),
        (
            "time_s,delay_s,loss\n0,x,0\n",
            r"line 2: delay_s: expected a number between 0 and 3600 \(seconds\), found 'x'",
        ),
        ("time_s,delay_s,loss\n0,1e308,0\n", r"trace\.csv: line 2: delay_s: expected .*, found '1e308'"),
        ("time_s,delay_s,loss\n0,3601,0\n", "line 2: delay_s"),
        (
            "time_s,delay_s,loss\n0,3600,0\n1e10,0,0\n",
            "line 3: time_s: expected a number between 0 and 1000000000",
        ),
        ("time_s,delay_s,loss\n0,inf,0\n", "line 2: delay_s"),
        ("time_s,delay_s,loss\n0,0.1,1.5\n", "line 2: loss: expected a number between 0 and 1, found '1.5'"),
        ("time_s,delay_s,loss\n0,0.1,nan\n", "line 2: loss"),
        ("time_s,delay_s,loss\n0,1,0\n3,1,0\n3,1,0\n", "line 4: time_s: expected more than 3, found 3"),
    ],
)
def test_a_trace_that_cannot_be_is_answered_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        read_trace(written(tmp_path, text))


def test_a_scenario_names_the_key_of_a_trace_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"x\.toml: network\.trace: .*none\.csv: cannot be read"):
        parse({"network": {"trace": str(tmp_path / "none.csv")}}, "x.toml")
    path = written(tmp_path, "from,to,time_s,delay_s,loss\nparis,tokio,0,0,0\n")
    regions = [{"name": "paris"}, {"name": "tokyo"}]
    with pytest.raises(ScenarioError, match=r"found text .'tokio'.; did you mean tokyo"):
        parse({"network": {"trace": path}, "geography": {"regions": regions}}, "x.toml")


# --- who can be dialled --------------------------------------------------------------------------------


def behind(nat: Nat, kind: str) -> int:
    return next(node for node in range(100) if nat.kind(node) == kind)


def through(nat: Nat, source: int, target: int, now: float) -> bool:
    """A dial that takes no time."""
    nat.dials(source, target, now)
    return nat.admits(source, target, now)


@pytest.fixture
def nat() -> Nat:
    settings = NatSettings(full_cone=0.1, restricted=0.2, symmetric=0.3, mapping_s=100.0)
    return Nat(settings, list(range(100)), random.Random(1))


def test_shares_are_shares_and_the_first_node_is_always_in_the_open(nat: Nat) -> None:
    kinds = [nat.kind(node) for node in range(100)]
    assert [kinds.count(kind) for kind in KINDS] == [10, 20, 30]
    assert kinds[0] == ""
    crowd = Nat(NatSettings(symmetric=1.0), list(range(9)), random.Random(1))
    assert [crowd.kind(node) for node in range(9)] == ["", *["symmetric"] * 8]


def test_what_a_kind_of_nat_lets_through(nat: Nat) -> None:
    cone, restricted, symmetric = (behind(nat, kind) for kind in KINDS)
    friend, stranger, *_ = (node for node in range(100) if not nat.kind(node))
    assert through(nat, cone, friend, 1.0), "nobody is kept from dialling"
    assert through(nat, restricted, friend, 1.0)
    assert through(nat, symmetric, friend, 1.0)
    assert through(nat, stranger, friend, 1.0)
    assert through(nat, stranger, cone, 2.0)
    assert through(nat, friend, restricted, 2.0)
    assert not through(nat, stranger, restricted, 2.0)
    assert not through(nat, friend, symmetric, 2.0)
    assert not through(nat, friend, restricted, 102.0), "the router has forgotten"
    assert not through(nat, cone, restricted, 103.0)
    assert through(nat, restricted, cone, 104.0)
    assert through(nat, cone, restricted, 105.0), "both have dialled"


def test_a_full_cone_that_never_dialled_anybody_is_not_there(nat: Nat) -> None:
    assert not through(nat, 0, behind(nat, "full_cone"), 1.0)


def test_a_dial_that_does_not_come_through_is_counted_and_frames_of_a_connection_are_free(nat: Nat) -> None:
    model = links(nat=nat)
    hidden = behind(nat, "symmetric")
    assert model.handshake(0, hidden, 1.0) is None
    assert model.counts == {"nat": 1}
    assert model.handshake(hidden, 0, 1.0) == 0.0
    assert model.fates(0, hidden, 1, 2.0) == [0.0]


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        ({"nat": {"full_cone": 0.5, "symmetric": 0.6}}, ["nat", "add up to 1"]),
        (
            {"geography": {"regions": [{"name": "a"}, {"name": "a"}]}},
            ["geography.regions[1].name", "of its own"],
        ),
        (
            {"geography": {"regions": [{"latitude": 91, "name": "a"}]}},
            ["geography.regions[0].latitude", "-90 and 90"],
        ),
        (
            {"geography": {"regions": [{"name": "a"}], "delay_s": [[0, 1]]}},
            ["geography.delay_s", "1 rows of 1"],
        ),
        (
            {"geography": {"regions": [{"name": "a"}, {"name": "b"}], "delay_s": [[0.0, 1.0]]}},
            ["geography.delay_s: expected 2 rows of 2 numbers, one for each region, found one row of 2"],
        ),
        (
            {"geography": {"regions": [{"name": "a"}, {"name": "b"}], "delay_s": [[0.0, 1.0], [2]]}},
            ["found 2 rows of 2, 1"],
        ),
        ({"geography": {"delay_s": [[-1]]}}, ["geography.delay_s[0][0]", "between 0 and"]),
        ({"network": {"asymmetry": 1}}, ["network.asymmetry", "between 0 and 0.9"]),
    ],
)
def test_what_cannot_be_a_network_is_answered(tree: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(tree, "x.toml")
    for part in parts:
        assert part in str(caught.value)


def test_every_preset_is_a_network_that_makes_sense() -> None:
    for name in PRESETS:
        if name != "trace":
            assert parse({"network": {"preset": name}}, "x.toml").network == PRESETS[name]
    with pytest.raises(ScenarioError, match=r"network\.trace: expected the path of a CSV file"):
        parse({"network": {"preset": "trace"}}, "x.toml")
    assert PRESETS["mobile"].downlink_bytes_s > PRESETS["mobile"].bandwidth_bytes_s


def test_whole_daemons_over_the_memory_network_feel_distance_and_nats_too() -> None:
    """The second user of a link model knows its hosts by name."""
    hosts: list[Any] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    where = Geography(
        GeographySettings(regions=[PARIS, TOKYO], delay_s=[[0.0, 0.1], [0.1, 0.0]]), hosts, random.Random(1)
    )
    hidden = Nat(NatSettings(symmetric=0.34), hosts, random.Random(1))
    behind_nat = next(host for host in hosts if hidden.kind(host))
    other = next(host for host in hosts[1:] if host != behind_nat)
    network = MemoryNetwork(VariedLinks(LinkSettings(), random.Random(1), geography=where, nat=hidden))
    took: dict[str, float] = {}

    async def dial(source: str, target: str) -> None:
        listener = await network.host(target).listen(f"{target}:7400")
        begun = trio.current_time()
        took[target] = inf
        with trio.move_on_after(60.0):
            await network.host(source).dial(listener.address)
            took[target] = trio.current_time() - begun
        await listener.aclose()

    async def both() -> None:
        await dial(hosts[0], behind_nat)
        await dial(hosts[0], other)

    trio.run(both, clock=MockClock(autojump_threshold=0.0))
    assert took[behind_nat] == inf
    assert took[other] == pytest.approx(3 * where.delay_s(hosts[0], other))
