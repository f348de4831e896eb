"""Training batches whose order depends on seed and pass alone, and which can be resumed."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that Lightning can resume in the middle of an epoch.

    Every pass over the examples draws its order from ``generator``, which the sampler must share.
    Its seed is the generator's initial one plus the number of the pass. Lightning saves
    ``state_dict`` in its checkpoints.
    """

    # class attributes: under DDP Lightning makes the loader again from the constructor's arguments
    _seed: int | None = None
    _pass = -1
    _batches = 0
    _resuming = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches of the next pass, or the remaining ones of a resumed pass."""
        if self._seed is None:
            self._seed = self.generator.initial_seed()
        skipped = self._batches if self._resuming else 0
        if not self._resuming:
            self._pass += 1
        self._resuming = False
        self._batches = skipped
        self.generator.manual_seed(self._seed + self._pass)
        # the batches before the position are made and dropped: the order is drawn as a whole
        for number, batch in enumerate(super().__iter__()):
            if number >= skipped:
                self._batches = number + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the loader's position.

        Returns:
            Seed, number of the pass, and batches of it that were yielded.
        """
        seed = self.generator.initial_seed() if self._seed is None else self._seed
        return {"seed": seed, "pass": self._pass, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes the pass of another loader.

        Args:
            state: What ``state_dict`` returned.
        """
        self._seed, self._pass, self._batches = state["seed"], state["pass"], state["batches"]
        self._resuming = 0 < self._batches < len(self)


def unrepeated_sampler(
    trainer: Trainer | None, dataset: Dataset[Any]
) -> UnrepeatedDistributedSampler | None:
    """Makes a sampler that gives each example to one of several processes.

    Args:
        trainer: The Trainer, which knows the processes.
        dataset: The examples.

    Returns:
        The sampler; None where there is one process.
    """
    # Lightning's own sampler repeats examples until all processes have equally many
    if trainer is None or trainer.world_size == 1:
        return None
    return UnrepeatedDistributedSampler(
        dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False
    )
