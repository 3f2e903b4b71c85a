"""`make attacks`: what liars do to honest nodes of a fleet; writes the table of docs/simulation.md, "### Attacks".

python -m tests.attacks                 all attacks, all shares, all seeds
python -m tests.attacks --seeds 1 flip  one seed, one attack: printed, not written
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, get_args

import msgspec

from simulation.fleet.settings import Attack, FleetSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "simulation.md"
BEGIN, END = "<!-- attacks:begin -->\n", "\n<!-- attacks:end -->"
SHARES = (0.1, 0.2, 0.3, 0.4)
SEEDS = 2
# An attack is met where the worst honest node is within so many points of the worst one without attackers.
ALLOWED = 1.0
SETTINGS = FleetSettings(
    nodes=100, rounds=200, every=200, gate=True, args={"model": "logistic", "alpha": 0.5}, sample=2
)
MEANING: dict[Attack, str] = {
    "flip": "−1 times what they learned",
    "scale": "20 times what they learned",
    "noise": "another direction, as far",
    "nan": "NaN",
    "labels": "the truth; they train on false labels",
    "alie": "the mean less 1.5 standard deviations in each value",
    "ipm": "−0.5 times what all have learned on average",
    "shift": "the mean, three spreads back towards genesis",
}


class Cell(NamedTuple):
    """Accuracy of honest nodes in percent: the mean over seeds of the mean, and the worst of all."""

    mean: float
    worst: float

    def within(self, clean: "Cell") -> bool:
        return self.worst >= clean.worst - ALLOWED


def cell(attack: Attack, share: float, seeds: int, settings: FleetSettings = SETTINGS) -> Cell:
    """Runs one cell of the table; share 0 is the clean run, whatever the attack."""
    from simulation.fleet.program import Fleet

    means, worsts = [], []
    for seed in range(seeds):
        fleet = Fleet(msgspec.structs.replace(settings, attackers=share, attack=attack, seed=seed))
        fleet.compile()
        fleet.advance(settings.rounds)
        found = fleet.measure()[0]
        means.append(100 * found.mean)
        worsts.append(100 * found.worst)
    return Cell(fmean(means), min(worsts))


def row(attack: Attack, cells: Sequence[Cell], clean: Cell) -> str:
    texts = [f"{one.mean:.1f} / {one.worst:.1f}" for one in cells]
    marked = [f"**{text}**" if one.within(clean) else text for text, one in zip(texts, cells, strict=True)]
    return f"| `{attack}` | {MEANING[attack]} | {' | '.join(marked)} |"


def table(rows: Sequence[str], clean: Cell, seeds: int, met: int, cells: int) -> str:
    shares = " | ".join(f"{share:.0%}".replace("%", " %") for share in SHARES)
    return "\n".join(
        [
            "Written by `make attacks`. Accuracy of honest nodes in %: the mean, and the worst of any seed. "
            f"{SETTINGS.nodes} nodes, Dirichlet",
            f"0.5, logistic regression, {SETTINGS.rounds} rounds, {seeds} seeds, the daemon's own gate. Without "
            f"attackers: {clean.mean:.1f} / {clean.worst:.1f}. Bold: the",
            f"worst is within {ALLOWED:.1f} point of clean; that holds for {met} of {cells}, and what is not bold "
            "misses it.",
            "",
            f"| attack | what they show | {shares} |",
            "|---|---|" + "---|" * len(SHARES),
            *rows,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks")
    parser.add_argument("attacks", nargs="*", choices=[*get_args(Attack), []], metavar="ATTACK")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    chosen: list[Attack] = given.attacks or list(get_args(Attack))
    clean = cell("flip", 0.0, given.seeds)
    print(f"clean {clean.mean:.1f} / {clean.worst:.1f}", flush=True)
    rows, met = [], 0
    for attack in chosen:
        cells = [cell(attack, share, given.seeds) for share in SHARES]
        met += sum(one.within(clean) for one in cells)
        rows.append(row(attack, cells, clean))
        print(rows[-1], flush=True)
    if given.attacks or given.seeds < SEEDS:
        return
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = table(rows, clean, given.seeds, met, len(SHARES) * len(rows))
    PAGE.write_text(before + BEGIN + made + END + after)


if __name__ == "__main__":
    main()
