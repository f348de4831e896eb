"""Averages that are exact where there is nothing to average."""

from collections.abc import Sequence

import torch
from torch import Tensor


def convex(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Averages tensors, with weights, in float64.

    Args:
        tensors: Tensors of one shape.
        shares: Weights ≥ 0 of sum one.

    Returns:
        The average, rounded once to the first tensor's dtype; exact where all entries are equal.
    """
    first = tensors[0].double()
    total = torch.zeros_like(first)
    for one, share in zip(tensors, shares, strict=True):
        total.add_(one.double(), alpha=share)
    equal = torch.stack([one.double() == first for one in tensors]).all(dim=0)
    return torch.where(equal, first, total).to(tensors[0])
