"""What a fleet does with a scenario of the world: what it cannot do is refused, what it leaves out is told.

`settings_of` takes over the rest.
"""

from typing import Any

import msgspec

from simulation.fleet.settings import Attack, FleetSettings, settings_of
from simulation.mistakes import wrong
from simulation.network import PRESETS
from simulation.scenario import Scenario

# Adversaries who lie about their weights, and the attack of the fleet that is theirs. The others send frames that
# change nobody's weights.
ATTACKS: dict[str, Attack] = {"poison_flip": "flip", "poison_nan": "nan"}
_UNKNOWN_POISON = "poison_huge"

# Sections or keys that the fleet has no counterpart for and can leave out without being about something else: where
# they differ from their defaults, that is told. `join` and `stop` among them.
_LEFT_OUT = (
    "join",
    "nat",
    "geography.regions",
    "geography.delay_s",
    "faults.partitions",
    "faults.start_s",
    "faults.stop_s",
    "faults.silence_s",
    "stop",
    "network.duplication",
    "network.reorder",
    "network.spike",
    "network.bandwidth_bytes_s",
    "network.downlink_bytes_s",
    "network.asymmetry",
    "compute.signatures",
    "config.connections_max",
    "config.membership",
    "config.dht",
)
# Where faults are asked for, not where they are not.
_ONLY_WITH = {"faults.start_s": "faults", "faults.stop_s": "faults", "faults.silence_s": "faults"}


def from_scenario(scenario: Scenario, *, seed: int, source: str) -> tuple[FleetSettings, list[str]]:
    """Return settings of a fleet, and the keys of the scenario that it leaves out.

    Args:
        seed: Of the run.
        source: What a mistake names as the file.

    Raises:
        ScenarioError: the scenario is about something that a fleet does not have.
    """
    why = "which is all that a fleet has (p2psim run has more)"
    if scenario.churn.model not in ("none", "sessions"):
        raise wrong(source, "churn.model", f"none or sessions, {why}", scenario.churn.model)
    if scenario.network.trace:
        raise wrong(source, "network.trace", f"none, {why}", scenario.network.trace)
    settings = settings_of(scenario, seed=seed)
    left_out = [key for key in _LEFT_OUT if _differs(scenario, key)]
    hostile = scenario.adversaries
    if hostile.share:
        lies = [kind for kind in hostile.kinds if kind.startswith("poison_")]
        if _UNKNOWN_POISON in lies or len(set(lies)) > 1:
            want = f"at most one of {', '.join(ATTACKS)} among them, {why}"
            raise wrong(source, "adversaries.kinds", want, ", ".join(lies))
        if len(lies) < len(hostile.kinds):
            left_out.append("adversaries.kinds but " + lies[0] if lies else "adversaries")
        if lies:
            share = hostile.share * len(lies) / len(hostile.kinds)
            settings = msgspec.structs.replace(settings, attackers=share, attack=ATTACKS[lies[0]])
    churn = scenario.churn
    if churn.model == "sessions":
        round_s = scenario.config.learning.round_interval_s
        settings = msgspec.structs.replace(
            settings,
            churn=min(1.0, round_s / churn.session_s_mean),
            away_rounds=max(1.0, churn.absence_s_mean / round_s),
        )
        left_out += [key for key in ("churn.share", "churn.kills", "churn.stop_s") if _differs(scenario, key)]
    return settings, left_out


def _differs(scenario: Scenario, key: str) -> bool:
    """Whether a key has another value than in a scenario that says nothing."""
    if key in _ONLY_WITH and not (scenario.faults.churn or scenario.faults.crash):
        return False
    if key.startswith("network.") and key.removeprefix("network.").endswith("bytes_s"):
        return bool(_value(scenario, key))
    plain = Scenario(network=PRESETS["ideal"])
    return bool(_value(scenario, key) != _value(plain, key))


def _value(scenario: Scenario, key: str) -> Any:
    value: Any = scenario
    for name in key.split("."):
        value = getattr(value, name)
    return value
