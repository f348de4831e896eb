"""The strategy fsdp2 splits a model over all processes of all nodes."""

from types import SimpleNamespace

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry

from fmerge.system.fsdp2 import FSDP2Strategy, is_split, mesh_of


def test_the_model_is_split_over_all_processes(monkeypatch):
    strategy = StrategyRegistry.get("fsdp2")
    assert isinstance(strategy, FSDP2Strategy)
    strategy.num_nodes, strategy.parallel_devices = 2, [torch.device("cpu")] * 3
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: None)
    strategy.setup_environment()
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (6, 1)
    assert not strategy._save_distributed_checkpoint  # one file, as other strategies
    strategy._device_mesh = {"data_parallel": "mesh"}
    assert mesh_of(SimpleNamespace(strategy=strategy)) == "mesh"
    assert is_split(SimpleNamespace(strategy=strategy))


def test_other_strategies_split_nothing():
    one = SimpleNamespace(strategy=DDPStrategy())
    assert mesh_of(one) is None and not is_split(one)
