"""gossipy's own simulator, run by the Python of build/gossipy (`make gossipy`): prints node-updates a second as JSON.

Imports nothing of ours.
"""

import contextlib
import json
import sys
import time
import types

NODES = 500
# The speed does not change over the rounds; a hundred take a minute.
ROUNDS = 30


def run(model: str) -> float:
    """500 nodes push to a random one of 20 neighbours; 100 ticks a round; a tenth is evaluated every round."""
    # The package imports it for images, which are not used here, and there is no build of it without CUDA.
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    import networkx
    import torch
    from gossipy import LOG, set_seed
    from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork
    from gossipy.data import DataDispatcher
    from gossipy.data.handler import ClassificationDataHandler
    from gossipy.model.handler import TorchModelHandler
    from gossipy.model.nn import LogisticRegression, TorchMLP
    from gossipy.node import GossipNode
    from gossipy.simul import GossipSimulator, SimulationReport
    from sklearn.datasets import load_digits

    LOG.setLevel("ERROR")
    torch.set_num_threads(1)
    set_seed(1)
    x, y = load_digits(return_X_y=True)
    handler = ClassificationDataHandler(
        torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), test_size=0.2
    )
    data = DataDispatcher(handler, n=NODES, eval_on_user=False, auto_assign=True)
    graph = networkx.to_numpy_array(networkx.random_regular_graph(20, NODES, seed=1))
    model_handler = TorchModelHandler(
        LogisticRegression(64, 10) if model == "logistic" else TorchMLP(64, 10, (32,)),
        torch.optim.SGD,
        {"lr": 0.1},
        torch.nn.CrossEntropyLoss(),
        local_epochs=1,
        batch_size=32,
        create_model_mode=CreateModelMode.MERGE_UPDATE,
    )
    nodes = GossipNode.generate(
        data, StaticP2PNetwork(NODES, topology=graph), model_handler, round_len=100, sync=True
    )
    simulator = GossipSimulator(nodes, data, delta=100, protocol=AntiEntropyProtocol.PUSH, sampling_eval=0.1)
    simulator.add_receiver(SimulationReport())
    simulator.init_nodes(seed=1)
    begun = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # a progress bar
        simulator.start(n_rounds=ROUNDS)
    return NODES * ROUNDS / (time.perf_counter() - begun)


if __name__ == "__main__":
    print(json.dumps({"updates_per_s": run(sys.argv[1])}))
