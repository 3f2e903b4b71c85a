"""What a scenario asks for and will not get: shares that round to nobody, dates after the end, keys without effect.

None of it is a mistake, a control run with `adversaries.share=0` least of all, so that it is said and never refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import ceil

from msgspec import Struct

from simulation.churn import ChurnSettings
from simulation.network import PRESETS
from simulation.scenario import Scenario

# Lines about the combinations of a sweep; after so many nobody reads on.
SHARED_MAX = 20
# Keys of [churn] that a model does not look at.
_UNREAD = {
    "none": ChurnSettings.__struct_fields__[1:],
    "sessions": ("day_s", "peak_s", "amplitude", "file"),
    "diurnal": ("file",),
    "trace": ("share", "session_s_mean", "absence_s_mean", "stop_s", "day_s", "peak_s", "amplitude"),
}


def notes(scenario: Scenario) -> list[str]:
    """One sentence for each setting that can have no effect in this scenario; keys at their defaults are none."""
    return [*_dates(scenario), *_shares(scenario), *_switched_off(scenario)]


def shared_notes(scenarios: Mapping[str, Scenario]) -> list[str]:
    """The notes of many scenarios, each once; what is not true of all says of how many, and of which first.

    Args:
        scenarios: What people call it -> a scenario.
    """
    found: dict[str, list[str]] = {}
    for name, scenario in scenarios.items():
        for note in notes(scenario):
            found.setdefault(note, []).append(name)
    total = len(scenarios)
    told = [
        note if len(names) == total else f"{note} (in {len(names)} of {total} combinations, as {names[0]})"
        for note, names in found.items()
    ]
    more = len(told) - SHARED_MAX
    return told if more <= 0 else [*told[:SHARED_MAX], f"and {more} more like these"]


def _dates(scenario: Scenario) -> Iterator[str]:
    end = scenario.duration_s
    late = f"the run ends at {end:g} s"
    if scenario.start_s > end:
        yield f"start_s: {late}, so that nodes that start later, until {scenario.start_s:g} s, never do"
    for number, cut in enumerate(scenario.faults.partitions):
        if cut.start_s >= end:
            yield f"faults.partitions[{number}].start_s: {late}, before a cut at {cut.start_s:g} s"
    churn = scenario.churn
    if churn.model in ("sessions", "diurnal") and churn.stop_s >= end:
        yield f"churn.stop_s: {late}, before {churn.stop_s:g} s"
    stop = scenario.stop
    # The first multiple at which it may hold, as `StopRule.next` has them.
    first = max(ceil(stop.from_s / stop.every_s), 1) * stop.every_s
    if stop.asked and first >= end:
        key = "from_s" if stop.from_s >= end else "every_s"
        yield f"stop.{key}: {late}, before anybody looks whether to stop (at {first:g} s)"


def _shares(scenario: Scenario) -> Iterator[str]:
    """Shares of the nodes that come to nobody; rounded as where they are drawn."""
    nodes, faults, churn, nat = scenario.nodes, scenario.faults, scenario.churn, scenario.nat
    shares = [
        ("adversaries.share", scenario.adversaries.share, nodes),
        ("faults.churn", faults.churn, nodes),
        ("faults.crash", faults.crash, nodes),
        ("compute.stragglers", scenario.compute.stragglers, nodes),
        *((f"nat.{kind}", getattr(nat, kind), nodes) for kind in ("full_cone", "restricted", "symmetric")),
        ("churn.share", churn.share if churn.model in ("sessions", "diurnal") else 0.0, nodes - 1),
    ]
    for key, share, among in shares:
        if share and not round(share * among):
            yield f"{key}: {share:g} of {among} nodes is none of them, rounded"
    for number, cut in enumerate(faults.partitions):
        apart = round(cut.share * nodes)
        if apart in (0, nodes):
            who = "none" if not apart else "all"
            where = f"faults.partitions[{number}].share"
            yield f"{where}: {cut.share:g} of {nodes} nodes is {who} of them, rounded: nobody is cut off"
    kinds = scenario.adversaries.kinds
    hostile = round(scenario.adversaries.share * nodes)
    if idle := [kind for kind in kinds[hostile:] if kind not in kinds[:hostile]] if hostile else []:
        left = f"nobody does {', '.join(idle)}"
        yield f"adversaries.kinds: each hostile node does one thing, and they are {hostile}: {left}"


def _switched_off(scenario: Scenario) -> Iterator[str]:
    """Keys that somebody changed in sections, or parts of them, that have no effect."""
    churn, faults, network = scenario.churn, scenario.faults, scenario.network
    yield from _unused("churn", churn, _UNREAD[churn.model], f"churn.model is {churn.model}")
    if not (faults.churn or faults.crash):
        keys = ("away_s_mean", "start_s", "stop_s")
        yield from _unused("faults", faults, keys, "faults.churn and faults.crash are 0")
        if churn.model == "none" and not faults.partitions:
            yield from _unused("faults", faults, ("silence_s",), "no machine goes and no cable is cut")
    if not scenario.adversaries.share:
        yield from _unused(
            "adversaries", scenario.adversaries, ("kinds", "every_s"), "adversaries.share is 0"
        )
    if not scenario.stop.asked:
        yield from _unused("stop", scenario.stop, ("from_s", "every_s", "sample"), "no rule to stop is given")
    if not scenario.compute.stragglers:
        why = "compute.stragglers is 0"
        yield from _unused("compute", scenario.compute, ("slowdown",), why)
    if not (scenario.nat.full_cone or scenario.nat.restricted):
        yield from _unused("nat", scenario.nat, ("mapping_s",), "nat.full_cone and nat.restricted are 0")
    preset = PRESETS[network.preset]
    if not network.reorder:
        yield from _unused("network", network, ("reorder_s_max",), "network.reorder is 0", preset)
    if not network.spike:
        yield from _unused("network", network, ("spike_s_max",), "network.spike is 0", preset)
    if network.jitter != "lognormal":
        why = f"network.jitter is {network.jitter}"
        yield from _unused("network", network, ("jitter_sigma",), why, preset)


def _unused(
    where: str, section: Struct, keys: Iterable[str], why: str, default: Struct | None = None
) -> Iterator[str]:
    usual = default if default is not None else type(section)()
    changed = [f"{where}.{key}" for key in keys if getattr(section, key) != getattr(usual, key)]
    if changed:
        yield f"{', '.join(changed)}: without effect, because {why}"
