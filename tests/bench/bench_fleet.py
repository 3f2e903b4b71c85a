"""The fleet: node-updates a second, against gossipy's and against a bare JAX loop of the same arithmetic.

A node-update is one local training job of one node together with the exchange that it initiates. gossipy's figures are
for 500 nodes, digits, logistic regression and an MLP 64-32-10. The bare loop is what one
would write by hand for this one experiment, as JAX likes it best: parameters as a tree, the rows of every node as one
array, no choice of codec, gate or faults, nothing counted. It trains, keeps the read-out, and averages every node with
two random others, as the fleet does; both are measured in turns.
"""

from collections.abc import Callable
from typing import Any

from tests.bench.figures import Figure, medians, times
from tests.bench.reference import beside

MODELS = ("logistic", "mlp")
# gossipy's MLP; the logistic regression has no hidden layer.
HIDDEN = 32
NODES = 500
ROUNDS = 400
# Sizes over which the cost of a node-update should stay the same; as many rounds of each, because a measurement ends
# with a look at all weights. What the bare loop's costs do over the same sizes stands beside it: that is the machine.
SIZES = (1_000, 10_000, 100_000)
SIZES_ROUNDS = 20
NODES_BRIEF = 50
ROUNDS_BRIEF = 4
SIZES_BRIEF = (50, 100)
# 20 rounds of the smallest are 40 ms, too short beside other programs.
_SMALLEST_TIMES = 10


def fleet(model: str, nodes: int, rounds: int) -> Callable[[], object]:
    """So many rounds of the fleet, compiled; measuring, which the bare loop does not do, is kept to two nodes."""
    from simulation.fleet.program import Fleet
    from simulation.fleet.settings import FleetSettings

    args = {"model": model, "hidden": HIDDEN}
    made = Fleet(FleetSettings(nodes=nodes, rounds=rounds, args=args, sample=2, batch=3))
    made.compile()
    return lambda: made.advance(rounds)


def bare(model: str, nodes: int, rounds: int) -> Callable[[], object]:
    """The same arithmetic as a loop of its own."""
    import jax
    import jax.numpy as jnp

    from p2pnode.tasks.digits import make

    task = make(model=model, hidden=HIDDEN)
    # Three rows for each node, as on average of 500 nodes.
    rows = jnp.arange(nodes * 3).reshape(nodes, 3) % len(task.train)
    x, y = jnp.asarray(task.train.x)[rows], jnp.asarray(task.train.y)[rows]  # (nodes, 3, 64), (nodes, 3)
    first = task.init(jax.random.key(0))
    begin = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (nodes, *leaf.shape)), first)

    def one(params: Any, x: Any, y: Any) -> Any:
        gradient = jax.grad(lambda params: task.loss(params, {"x": x, "y": y}, None)[0])(params)
        return jax.tree.map(lambda leaf, slope: leaf - 0.2 * slope, params, gradient)

    def round_(carry: Any, key: Any) -> Any:
        params, readout = carry
        readout = jax.tree.map(lambda mean, leaf: leaf + 0.9 * (mean - leaf), readout, params)
        params = jax.vmap(one)(params, x, y)
        for wave in jax.random.split(key):
            order = jax.random.permutation(wave, nodes)
            partner = (
                jnp.zeros(nodes, int).at[order].set(jnp.roll(order.reshape(2, -1), 1, axis=0).reshape(-1))
            )
            params = jax.tree.map(lambda leaf, partner=partner: (leaf + leaf[partner]) / 2, params)
        return (params, readout), None

    @jax.jit
    def run(carry: Any, key: Any) -> Any:
        return jax.lax.scan(round_, carry, jax.random.split(key, rounds))[0]

    return lambda: jax.block_until_ready(run((begin, begin), jax.random.key(1)))


def five_hundred(brief: bool) -> list[Figure]:
    nodes, rounds, repeats = (NODES_BRIEF, ROUNDS_BRIEF, 1) if brief else (NODES, ROUNDS, 7)
    figures = []
    for model in MODELS[:1] if brief else MODELS:
        ours_s, bare_s = medians(fleet(model, nodes, rounds), bare(model, nodes, rounds), repeats=repeats)
        updates = nodes * rounds / ours_s
        name = f"fleet: node-updates, {nodes} nodes, {model}"
        figures += [
            *beside(name, updates, model),
            Figure(
                name=name,
                value=updates,
                unit="1/s",
                reference=nodes * rounds / bare_s,
                against="bare lax.scan + vmap of the same arithmetic",
            ),
        ]
    return figures


def sizes(brief: bool) -> list[Figure]:
    """Microseconds per node-update from 10^3 to 10^5 nodes, in turns with the smallest."""
    all_sizes, rounds = (SIZES_BRIEF, ROUNDS_BRIEF) if brief else (SIZES, SIZES_ROUNDS)
    figures = []
    for name, made in (("fleet", fleet), ("bare loop", bare)):
        smallest = times(_SMALLEST_TIMES, made("logistic", all_sizes[0], rounds))
        for nodes in all_sizes[1:]:
            ours_s, reference_s = medians(
                made("logistic", nodes, rounds), smallest, repeats=1 if brief else 5
            )
            figures.append(
                Figure(
                    name=f"{name}: one node-update, {nodes} nodes, logistic",
                    value=ours_s / (nodes * rounds) * 1e6,
                    unit="us",
                    reference=reference_s / (_SMALLEST_TIMES * all_sizes[0] * rounds) * 1e6,
                    against=f"{all_sizes[0]} nodes",
                )
            )
    return figures


BENCHMARKS = (five_hundred, sizes)
