"""Training batches whose order is a function of seed and pass, and which can be gone on with."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that Lightning can restart in the middle of an epoch.

    Every pass over the examples draws its order anew from ``generator``, which the sampler must
    share; its seed is the generator's first one plus the number of the pass. Lightning keeps
    ``state_dict`` in its checkpoints.
    """

    # class attributes: under DDP Lightning makes the loader again from the constructor's arguments
    _seed: int | None = None
    _pass = -1
    _batches = 0
    _going_on = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches of the next pass, or of a restored one those that are left."""
        if self._seed is None:
            self._seed = self.generator.initial_seed()
        skipped = self._batches if self._going_on else 0
        if not self._going_on:
            self._pass += 1
        self._going_on = False
        self._batches = skipped
        self.generator.manual_seed(self._seed + self._pass)
        for number, batch in enumerate(super().__iter__()):
            if number >= skipped:
                self._batches = number + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Says how far the loader has come.

        Returns:
            Plain numbers.
        """
        seed = self.generator.initial_seed() if self._seed is None else self._seed
        return {"seed": seed, "pass": self._pass, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next pass go on where another loader was.

        Args:
            state: What ``state_dict`` gave.
        """
        self._seed, self._pass, self._batches = state["seed"], state["pass"], state["batches"]
        self._going_on = 0 < self._batches < len(self)
