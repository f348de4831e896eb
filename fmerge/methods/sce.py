"""SCE: select, calculate, erase."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fmerge.errors import check_within
from fmerge.methods.layers import scaled
from fmerge.methods.task_vectors import TaskVectorMethod


class SCE(TaskVectorMethod):
    """Mean of salient entries, weighted by the experts' energy (Wan et al. 2024).

    Tensor by tensor: *select* the entries in which the τₘ differ most, by their variance over m;
    *calculate* weights wₘ ∝ λₘ · mean of the selected entries of τₘ²; *erase* the entries whose
    sign is not that of Σₘ λₘτₘ: θ = θ₀ + s · Σₘ∈A wₘτₘ / Σₘ∈A wₘ, A the experts that remain in
    that entry. Equal λₘ are the paper's. Entries that are not selected, and those where the votes
    cancel, keep θ₀.

    Args:
        density: Share of the entries with any variance that is selected, the largest; entries as
            large as the smallest of them are selected too. With 1 all are, those without
            variance among them.
        scale: Factor s on the merged task vector.
    """

    scale_invariant = True

    def __init__(self, density: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(scale)
        check_within("density", density, "(0, 1]")
        self.density = density

    def change(self, vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        """Computes Δ = Σₘ∈A wₘτₘ / Σₘ∈A wₘ; see the class.

        Args:
            vectors: τₘ.
            coefficients: λₘ.

        Returns:
            Δ.
        """
        stacked = torch.stack(list(vectors))
        if self.density < 1:
            stacked = stacked * _salient(stacked, self.density)
        # votes that cancel must sum to zero, which they do if equal coefficients are all 1
        largest = max(coefficients, default=0.0) or 1.0
        shares = [coefficient / largest for coefficient in coefficients]
        elected = sum(scaled(stacked.unbind(), shares), torch.zeros_like(stacked[0])).sign()
        energies = stacked.double().square().reshape(len(stacked), -1).sum(dim=1)
        # in units of the largest, so that a weight is never too small to divide by
        energies = (energies / (energies.max() or 1.0)).to(stacked)
        merged, total = torch.zeros_like(elected), torch.zeros_like(elected)
        for vector, share, energy in zip(stacked, shares, energies, strict=True):
            weight = share * energy * (vector.sign() == elected)
            merged, total = merged + weight * vector, total + weight
        return torch.where((total > 0) & (elected != 0), merged / total, 0.0)


def _salient(stacked: Tensor, density: float) -> Tensor:
    """The entries whose variance over m is among the largest; stacked is (M, …)."""
    # from the first, so that what all share has no variance at all
    apart = stacked - stacked[0]
    variance = (apart - apart.mean(dim=0)).square().mean(dim=0)
    count = int(int(variance.count_nonzero()) * density)
    if count == 0:
        return torch.zeros_like(variance, dtype=torch.bool)
    return variance >= variance.flatten().topk(count).values[-1]
