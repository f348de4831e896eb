"""Model Stock: how far to go from the base to the average, told by the experts' angles."""

import torch
from torch import Tensor

from fmerge.methods.base import TensorFormula
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.tensorwise import Tensorwise

_SINGULAR = 1e-6
"""Least 1 + (M − 1)cos φ; below it, as in mergekit, the experts say nothing and θ₀ stays."""


class ModelStock(Tensorwise):
    """The point of the line from θ₀ to the average that is nearest to the experts' centre.

    Model Stock (Jang et al., ECCV 2024): θ = θ₀ + t · (Σₘ θₘ / M − θ₀) with
    t = M cos φ / (1 + (M − 1) cos φ), tensor by tensor, where φ is the angle between task vectors:
    cos φ is the mean over all pairs. One expert stays as it is. Task vectors on average at more
    than 90° give t < 0, a step away from the average. A task vector that is zero counts as at
    90° to all others.

    Args:
        filter_wise: An angle, and a t, for each row of a tensor instead of one for the whole.
    """

    needs_base = True
    uses_coefficients = False

    def __init__(self, filter_wise: bool = False) -> None:
        self.filter_wise = filter_wise

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares θ = θ₀ + t · Σₘ τₘ / M.

        Args:
            inputs: θ₀ and θₘ.

        Returns:
            The formula.
        """

        def merged(name: str) -> Tensor:
            vectors = torch.stack([inputs.task_vector(m, name) for m in range(len(inputs.experts))])
            by_row = self.filter_wise and vectors.dim() > 2 and vectors.numel() > 0
            rows = vectors.reshape(len(vectors), vectors.shape[1] if by_row else 1, -1)
            ratio = _ratio(rows.double())[:, None].to(rows)
            return inputs.origin[name] + (ratio * rows.mean(dim=0)).reshape(vectors.shape[1:])

        return merged


def _ratio(rows: Tensor) -> Tensor:
    """T (f,) of the task vectors' rows (M, f, n)."""
    count = len(rows)
    if count == 1:
        return rows.new_ones(rows.shape[1])
    units = torch.nn.functional.normalize(rows, dim=2, eps=torch.finfo(rows.dtype).tiny)
    # Σₘ Σₙ ⟨uₘ, uₙ⟩ counts each pair twice, and each vector with itself
    both = units.sum(dim=0).square().sum(dim=1) - units.square().sum(dim=(0, 2))
    cosine = both / (count * (count - 1))
    below = 1 + (count - 1) * cosine
    return torch.where(below < _SINGULAR, 0.0, count * cosine / below)
