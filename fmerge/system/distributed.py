"""Examples shared out to processes by a strided sampler, and results brought back together."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, distributed


def gather(trainer: Trainer, own: Any) -> list[Any]:
    """Brings what each process has to all of them.

    Args:
        trainer: The Trainer.
        own: What this process has; anything that can be pickled.

    Returns:
        What each process has, by rank.
    """
    if trainer.world_size == 1:
        return [own]
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, own)
    return found


def strided_indices(trainer: Trainer, seen: int, n: int) -> list[int]:
    """Lists which examples of a data set this process has next.

    The unrepeated sampler gives rank r of p processes the examples r, r + p, r + 2p, …

    Args:
        trainer: The Trainer of the pass.
        seen: How many examples this process has had.
        n: How many it has next.

    Returns:
        Their positions in the data set.
    """
    return [trainer.global_rank + (seen + i) * trainer.world_size for i in range(n)]


def in_dataset_order(shares: Sequence[Tensor]) -> Tensor:
    """Undoes the sampler: puts the rows of all processes in the order of the data set.

    Args:
        shares: Of p processes, the rows r, r + p, r + 2p, … of rank r. The first ranks may have
            one row more than the last ones.

    Returns:
        All rows, as one process would have them.
    """
    rows = shares[0].new_empty((sum(map(len, shares)), *shares[0].shape[1:]))
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows
