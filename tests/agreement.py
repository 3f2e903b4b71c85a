"""How far fleet and world are apart: the table of docs/simulation.md, "Fleet"; printed, not written.

python -m tests.agreement                       100 nodes, five seeds, three networks: some five minutes
python -m tests.agreement --nodes 24 --seeds 2
"""

import argparse
from typing import Any

import numpy as np

from simulation.scenario import parse
from tests.simulation.fleet.test_fleet import LOSSY, SCENE, fleet_curve, world_curve

DATES = [4.0, 8.0, 12.0, 16.0, 20.0, 28.0, 40.0]
NETWORKS: dict[str, dict[str, Any]] = {
    "lan": SCENE["network"],
    "wan": {"preset": "wan"},
    "wan, 5 % loss": LOSSY,
}
FIRST_SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    for name, network in NETWORKS.items():
        tree = {**SCENE, "nodes": given.nodes, "duration_s": DATES[-1], "network": network}
        scenario = parse(tree, "scene.toml")
        print(
            f"{name}, {given.nodes} nodes, seeds {seeds.start} to {seeds.stop - 1}; deviation over seeds after ±"
        )
        found = [
            np.array([curve(scenario, seed, DATES) for seed in seeds]) for curve in (world_curve, fleet_curve)
        ]
        for index, date in enumerate(DATES):
            cells = [
                f"{100 * values[:, index, 0].mean():5.1f} % ± {100 * values[:, index, 0].std(ddof=1):3.1f}"
                f"  consensus {values[:, index, 1].mean():.3f}"
                for values in found
            ]
            print(f"  {date:4.0f} s   world {cells[0]}   fleet {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
