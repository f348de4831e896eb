"""WUDI-Merging: linear layers that answer as each expert on the inputs its task vector knows."""

import torch
from torch import Tensor

from fmerge.methods.layers import Layer, LayerMethod, mean, scaled


class WUDI(LayerMethod):
    r"""WUDI-Merging in closed form (Cheng et al., ICML 2025).

    .. math::
        \Delta = \Big(\sum_m \lambda_m \tau_m S_m\Big) \Big(\sum_m S_m\Big)^{+}, \qquad
        S_m = \tau_m^\top \tau_m / \lVert \tau_m \rVert_F^2

    for a task matrix τₘ (o, i) of a linear layer. With every λₘ = 1 it is the minimum of
    Σₘ ‖(Δ − τₘ)τₘᵀ‖² / ‖τₘ‖², for which the paper takes 300 steps of Adam: the rows of τₘ stand
    for the inputs of task m, so that Sₘ (i, i) takes the place of the Gram in ``RegMean``.
    λₘ multiplies what is wanted of Δ on these inputs: λₘ = 0 asks it to leave them as they are.

    All other tensors get Δ = Σₘ λₘτₘ / M, embeddings among them. Directions of inputs in which
    ΣₘSₘ is only rounding get no change.

    Args:
        scale: Factor s on Δ.
    """

    def combine(self, layer: Layer) -> Tensor:
        """Computes Δ of a linear layer, in float64; see the class.

        Args:
            layer: τₘ and λₘ.

        Returns:
            Δ, shape (o, i).
        """
        if not layer.linear:
            return mean(scaled(layer.vectors, layer.coefficients))
        first = layer.vectors[0].double()
        moment = torch.zeros_like(first)
        total = first.new_zeros(first.shape[1], first.shape[1])
        for vector, coefficient in zip(layer.vectors, layer.coefficients, strict=True):
            matrix = vector.double()
            length = torch.linalg.vector_norm(matrix)
            if length > 0:
                direction = matrix / length
                own = direction.T @ direction
                total.add_(own)
                moment = moment + coefficient * (matrix @ own)
        change: Tensor = moment @ torch.linalg.pinv(total, hermitian=True)
        return change.to(layer.vectors[0])
