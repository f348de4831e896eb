"""FSDP2: Lightning's ``ModelParallelStrategy``, with the model split over all processes."""

from datetime import timedelta
from typing import Final, final

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh

NAME: Final = "fsdp2"


@final
class FSDP2Strategy(ModelParallelStrategy):
    """Splits every parameter over all processes of all nodes, and the examples too.

    A checkpoint is one file, as of other strategies.

    Args:
        timeout: How long a process waits for the others.
    """

    def __init__(self, timeout: timedelta | None = default_pg_timeout) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Joins the processes, whose number is known by now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register(
    NAME, FSDP2Strategy, description="Fully sharded data parallel, second version"
)


def mesh_of(trainer: Trainer) -> DeviceMesh | None:
    """Finds the processes that a model is split over.

    Args:
        trainer: The Trainer, whose processes have been joined.

    Returns:
        Their mesh, of one dimension; None where each process has a whole model.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return None
    mesh: DeviceMesh = strategy.device_mesh["data_parallel"]
    return mesh


def is_split(trainer: Trainer) -> bool:
    """Tells whether models are split over processes.

    Args:
        trainer: The Trainer.

    Returns:
        Whether its strategy splits them.
    """
    return isinstance(trainer.strategy, ModelParallelStrategy)
