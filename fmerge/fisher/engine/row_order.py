"""Which example each of a batch's rows belongs to."""

from typing import Literal

import torch
from torch import Tensor

RowOrder = Literal["example-major", "interleaved", "none"]
"""Which example row r of k·n rows belongs to: r // k, r % n, or no single one."""


def example_major(rows: Tensor, n: int, order: RowOrder) -> Tensor:
    """Puts each example's rows together.

    Args:
        rows: (k·n, …).
        n: Number of examples.
        order: The order they are in.

    Returns:
        The same rows in example-major order.
    """
    if order == "interleaved" and len(rows) != n:
        return rows.reshape(-1, n, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)
    return rows


def owners(rows: int, n: int, order: RowOrder) -> Tensor:
    """Tells which example each of k·n rows belongs to.

    Args:
        rows: k·n.
        n: Number of examples.
        order: The order they are in.

    Returns:
        The examples' positions (k·n,), on the CPU.
    """
    examples = torch.arange(n)
    k = rows // n
    return examples.repeat(k) if order == "interleaved" else examples.repeat_interleave(k)
