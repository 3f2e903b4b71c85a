"""gossipy (makgyver/gossipy) as the reference: on this machine where `make gossipy` has installed it, and as recorded.

A node-update is one local training job of one node together with the exchange that it initiates.
"""

from functools import cache
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.processes import ROOT, answer

PYTHON = ROOT / "build" / "gossipy" / "bin" / "python"
PROGRAM = Path(__file__).with_name("run_gossipy.py")
# Node-updates a second of 500 nodes, one core; reference: commit ea85ab1, torch 2.13 on the processor.
RECORDED = {"logistic": 721.0, "mlp": 568.0}


@cache
def measured(model: str) -> float | None:
    """Node-updates a second here and now; None where gossipy is not installed."""
    return float(answer(PYTHON, PROGRAM, model)["updates_per_s"]) if PYTHON.exists() else None


def beside(name: str, updates: float, model: str) -> list[Figure]:
    """Our node-updates a second against both speeds of gossipy."""
    here = measured(model)
    known = [(here, False)] if here is not None else []
    return [
        Figure(name=name, value=updates, unit="1/s", reference=speed, against="gossipy", recorded=recorded)
        for speed, recorded in [*known, (RECORDED[model], True)]
    ]
