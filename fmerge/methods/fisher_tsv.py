"""TSV-M whose atoms are weighed by the experts' Fishers."""

from typing import NamedTuple

import torch
from torch import Tensor

from fmerge.errors import check_within
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.layers import Layer, LayerMethod, layer_of, mean, scaled
from fmerge.methods.spectral import orthonormal, singular_atoms

RIDGE = 1e-9
"""Ridge, as a share of the mean diagonal entry of H̄: above the rounding of float64 sums."""


class _Curved(NamedTuple):
    """The atoms uₖvₖᵀ of one matrix, and the quadratic problem that the Fishers pose in them.

    Attributes:
        left: u⊥ₖ (o, K).
        right: v⊥ₖ (i, K).
        plain: d̄ (K): TSV-M's coordinates over M.
        step: What the Fishers add to d̄ (K).
        loss: (1/M) Σₘ (d̄ − dₘ)ᵀHₘ(d̄ − dₘ), the quadratic loss at d̄.
        eta: η = cᵀH̄⁻¹c, what the step takes off it.
    """

    left: Tensor
    right: Tensor
    plain: Tensor
    step: Tensor
    loss: float
    eta: float


class FisherTSV(LayerMethod):
    r"""TSV-M with the Fishers' weights in the singular subspace (after EpiMer, arXiv 2605.26693).

    The atoms of a linear layer are TSV-M's K = Σₘ kₘ rank-one matrices u⊥ₖv⊥ₖᵀ, the columns of
    S (o·i, K). In them λₘτₘ has the coordinates dₘ (K): its singular values at its own atoms, and
    zeros. Fₘ as a quadratic form in the atoms is Hₘ = Sᵀ diag(Fₘ) S, and

    .. math::
        d = \Big(\sum_m H_m\Big)^{-1} \sum_m H_m d_m, \qquad \Delta = M \cdot S d

    minimises Σₘ (d − dₘ)ᵀHₘ(d − dₘ). With equal Fₘ it is ``TSVM``: d is then the mean of the dₘ.
    It is solved as a step from that mean, with a ridge of 1e-9 of the mean diagonal entry, so
    that directions about which no expert has information stay TSV-M's.

    With c = (1/M) Σₘ Hₘ(dₘ − d̄), H̄ = (1/M) Σₘ Hₘ, the step is H̄⁻¹c and lowers the mean quadratic
    loss by η = cᵀH̄⁻¹c: where η is small, curvature cannot help. The report states it.

    All other matrices, such as embeddings, are merged as by ``TSVM``; other tensors get
    Δ = Σₘ λₘτₘ / M.

    Args:
        atoms: How many leading atoms of each expert are weighed, so that K ≤ M · atoms; those
            beyond them keep TSV-M's coordinates. The time of a matrix is M · o · i · K².
        scale: Factor s on Δ.
    """

    statistic = "fisher"

    def __init__(self, atoms: int = 16, scale: float = 1.0) -> None:
        super().__init__(scale)
        check_within("atoms", atoms, "[1, inf)")
        self.atoms = atoms

    def combine(self, layer: Layer) -> Tensor:
        """Computes Δ = M · S d; see the class.

        Args:
            layer: τₘ, λₘ and Fₘ.

        Returns:
            Δ, shape (o, i).
        """
        curved = _curved(layer, self.atoms)
        if curved is None:
            return mean(scaled(layer.vectors, layer.coefficients))
        weights = len(layer.vectors) * (curved.plain + curved.step)
        return ((curved.left * weights) @ curved.right.T).to(layer.vectors[0])

    def facts(self, inputs: MergeInputs) -> list[str]:
        """States η, summed over the linear layers.

        Args:
            inputs: The inputs of the merge.

        Returns:
            One sentence.
        """
        layers = (layer_of(inputs, name) for name in inputs.experts[0])
        linear = [_curved(layer, self.atoms) for layer in layers if layer and layer.linear]
        found = [one for one in linear if one is not None]
        loss, eta = sum(one.loss for one in found), sum(one.eta for one in found)
        share = eta / loss if loss > 0 else 0.0
        return [
            f"curvature in the singular subspace: η = {eta:.3g}, {share:.1%} of the quadratic "
            f"loss of TSV-M in {len(found)} linear layers"
        ]


def _curved(layer: Layer, most: int) -> _Curved | None:
    """The problem of one matrix, in float64; None where there are more experts than directions."""
    matrices = [one.double() for one in scaled(layer.vectors, layer.coefficients)]
    atoms = singular_atoms(matrices)
    if atoms is None:
        return None
    left, values, right = (torch.cat(part, dim=-1) for part in atoms)
    plain = values / len(matrices)
    if not values.numel():
        return _Curved(left, right, plain, plain, 0.0, 0.0)
    left, right = orthonormal(left), orthonormal(right)
    step = torch.zeros_like(plain)
    if not layer.linear:
        return _Curved(left, right, plain, step, 0.0, 0.0)
    owner = torch.cat([torch.full_like(own, m) for m, own in enumerate(atoms[1])])
    weighed = torch.cat([torch.arange(len(own)) < most for own in atoms[1]]).to(owner.device)
    own_left, own_right = left[:, weighed], right[:, weighed]
    total = plain.new_zeros(len(own_left.T), len(own_left.T))
    moment, loss = torch.zeros_like(plain[weighed]), 0.0
    for m, given in enumerate(layer.fishers):
        fisher = given.to(plain)
        total.add_(_in_atoms(fisher, own_left, own_right))
        # S(dₘ − d̄), what expert m misses in the mean, is needed as a matrix alone
        missing = (left * (values * (owner == m) - plain)) @ right.T
        weighted = fisher * missing
        moment.add_(torch.einsum("ok,oi,ik->k", own_left, weighted, own_right))
        loss += float((weighted * missing).sum())
    size = float(total.diagonal().mean())
    # without any information, every ridge gives TSV-M
    total.diagonal().add_(RIDGE * size if size > 0 else 1.0)
    solved = torch.linalg.solve(total, moment)
    step[weighed] = solved
    count = len(matrices)
    return _Curved(left, right, plain, step, loss / count, float(moment @ solved) / count)


def _in_atoms(fisher: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """H = Sᵀ diag(F) S (K, K) of F (o, i), U (o, K), V (i, K), without S: row by row."""
    found = left.new_zeros(left.shape[1], left.shape[1])
    for k in range(len(found)):  # H is symmetric: its upper half
        both = left[:, k:] * left[:, k, None], right[:, k:] * right[:, k, None]
        found[k, k:] = torch.einsum("ok,oi,ik->k", both[0], fisher, both[1])
    return found.triu() + found.triu(1).T
