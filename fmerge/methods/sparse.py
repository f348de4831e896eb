"""Methods that thin task vectors before they add them: TIES, DARE, DELLA, Breadcrumbs."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fmerge.errors import UserError, check_within
from fmerge.methods.base import MergeMethod, wide
from fmerge.methods.pruning import ranks, sample, threshold, trim
from fmerge.params import Params

Election = Literal["none", "ties"]
Thin = Callable[[int, str, Tensor], Tensor]
"""From m, a tensor's name and its part of τₘ to the thinned τ̂ₘ, of the same shape."""


class SparseMethod(MergeMethod):
    """Thins every task vector, then adds them or lets them elect a sign per entry.

    Without an election θ = θ₀ + s · Σₘ λₘτ̂ₘ. With that of TIES (Yadav et al. 2023, algorithm 1,
    steps 2 and 3) γ = sign(Σₘ λₘτ̂ₘ) and θ = θ₀ + s · Σₘ∈A λₘτ̂ₘ / Σₘ∈A λₘ, elementwise, where A
    are the experts whose τ̂ₘ has the sign γ; entries where A is empty keep θ₀.
    """

    needs_base = True

    def __init__(self, election: Election, scale: float) -> None:
        check_within("scale", scale, "(0, inf)")
        self.election = election
        self.scale = scale
        self.scale_invariant = election == "ties"  # a mean with weights λₘ

    @abstractmethod
    def thinning(self, base: Params, experts: Sequence[Params]) -> Thin:
        """Prepares what thins one tensor of one task vector.

        Args:
            base: θ₀.
            experts: θₘ, of its layout.

        Returns:
            A function that returns a new tensor and keeps nothing between its calls.
        """

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes θ₀ plus the scaled sum, or disjoint mean, of the thinned task vectors.

        Args:
            base: θ₀.
            experts: θₘ, of its layout.
            coefficients: λₘ: how much each thinned task vector counts.
            fishers: Not used.

        Returns:
            The merged tensors.

        Raises:
            ValueError: If there is no base.
        """
        if base is None:
            raise ValueError(f"{type(self).__name__} needs the base model")
        thin = self.thinning(base, experts)
        merged: Params = {}
        for name, origin in base.items():
            start = wide(origin)
            vectors = [thin(m, name, expert[name] - start) for m, expert in enumerate(experts)]
            if self.election == "ties":
                change = _disjoint_mean(vectors, coefficients)
            else:
                change = _sum(vectors, coefficients)
            merged[name] = (start + self.scale * change).to(origin)
        return merged


class TIES(SparseMethod):
    """Trim, elect sign, merge (Yadav et al., NeurIPS 2023, algorithm 1).

    Keeps the largest entries of each τₘ, elects γ = sign(Σₘ λₘτ̂ₘ) per entry, and averages the
    entries of that sign: θ = θ₀ + s · Σₘ∈A λₘτ̂ₘ / Σₘ∈A λₘ. The paper has no coefficients: equal
    λₘ are its method, and only their ratios matter; the paper's λ is ``scale``.

    Args:
        density: Share of entries of each task vector that is kept, the largest by magnitude;
            entries as large as the smallest kept one are kept too.
        scale: Factor s on the merged task vector.
        per_tensor: Rank the entries within each tensor, as mergekit does, instead of over the
            whole task vector, as the paper does.
    """

    def __init__(self, density: float = 0.2, scale: float = 1.0, per_tensor: bool = False) -> None:
        check_within("density", density, "(0, 1]")
        super().__init__("ties", scale)
        self.density = density
        self.per_tensor = per_tensor

    def thinning(self, base: Params, experts: Sequence[Params]) -> Thin:
        """Finds each task vector's threshold; see the base class.

        Args:
            base: θ₀.
            experts: θₘ, of its layout.

        Returns:
            What zeroes the entries below the threshold.
        """
        if self.density == 1:
            return lambda m, name, vector: vector
        if self.per_tensor:
            return lambda m, name, vector: trim(vector, threshold(lambda: [vector], self.density))
        limits = [
            threshold(partial(_task_vector, expert, base), self.density) for expert in experts
        ]
        return lambda m, name, vector: trim(vector, limits[m])


class DARE(SparseMethod):
    """Drop and rescale: τ̂ₘ = τₘ · bₘ / (1 − p), bₘ ~ Bernoulli(1 − p) (Yu et al., ICML 2024).

    Every entry is dropped with probability p (section 3.2); the others grow such that the
    expectation is task arithmetic. The draws depend on the seed, the expert's position and the
    tensor's name alone: neither on processes nor on devices nor on the order of the tensors.

    Args:
        drop: p, the probability that an entry is dropped.
        seed: Seed of the draws.
        election: none: sum of the λₘτ̂ₘ, as in task arithmetic; ties: sign election and disjoint
            mean of TIES, without its trimming.
        scale: Factor s on the merged task vector.
    """

    def __init__(
        self,
        drop: float = 0.5,
        seed: int = 0,
        election: Election = "none",
        scale: float = 1.0,
    ) -> None:
        check_within("drop", drop, "[0, 1)")
        super().__init__(election, scale)
        self.drop = drop
        self.seed = seed

    def thinning(self, base: Params, experts: Sequence[Params]) -> Thin:
        """Prepares the draws; see the base class.

        Args:
            base: Not used.
            experts: Not used.

        Returns:
            What drops entries at random and rescales the others.
        """
        keep = torch.tensor(1 - self.drop, dtype=torch.float64)
        return lambda m, name, vector: sample(vector, keep, f"{self.seed}|{m}|{name}")


class DELLA(SparseMethod):
    """Drops small entries more often than large ones, then elects signs (Deep et al. 2024).

    MAGPRUNE: within each row the entry of rank r among n (0 the smallest magnitude) is dropped
    with probability p_r = p + ε · (1/2 − (r + 1/2)/n) and otherwise divided by 1 − p_r, so that
    the expectation is the task vector and the mean of p_r over a row is p.

    Args:
        drop: p, the mean probability that an entry is dropped.
        epsilon: ε, how far the probabilities of a row's smallest and largest entry differ.
        seed: Seed of the draws, which are made as in DARE.
        election: ties: sign election and disjoint mean of TIES, as in the paper; none: sum.
        scale: Factor s on the merged task vector.
    """

    def __init__(
        self,
        drop: float = 0.5,
        epsilon: float = 0.2,
        seed: int = 0,
        election: Election = "ties",
        scale: float = 1.0,
    ) -> None:
        check_within("drop", drop, "[0, 1)")
        check_within("epsilon", epsilon, "[0, 1]")
        if drop - epsilon / 2 < 0 or drop + epsilon / 2 > 1:
            raise UserError(
                f"epsilon: is {epsilon}, but drop ± epsilon/2 must lie in [0, 1] and drop is {drop}"
            )
        super().__init__(election, scale)
        self.drop = drop
        self.epsilon = epsilon
        self.seed = seed

    def thinning(self, base: Params, experts: Sequence[Params]) -> Thin:
        """Prepares the draws; see the base class.

        Args:
            base: Not used.
            experts: Not used.

        Returns:
            What drops entries at random by their rank and rescales the others.
        """

        def thin(m: int, name: str, vector: Tensor) -> Tensor:
            rows = vector.reshape(vector.shape[0] if vector.dim() > 1 else 1, -1)
            place = (ranks(rows.abs()).to(rows) + 0.5) / rows.shape[1]
            keep = 1 - self.drop - self.epsilon * (0.5 - place)
            return sample(vector, keep.reshape(vector.shape), f"{self.seed}|{m}|{name}")

        return thin


class Breadcrumbs(SparseMethod):
    """Sum of task vectors without their smallest and largest entries.

    Model Breadcrumbs (Davari & Belilovsky, ECCV 2024, section 3): θ = θ₀ + s · Σₘ λₘ(maskₘ ∘ τₘ),
    where in each tensor the mask drops a share of the smallest magnitudes, which are noise, and a
    share of the largest, which are outliers. Entries as small or as large as the last that is kept
    are kept too.

    Args:
        bottom: Share of each tensor's entries, the smallest, that is dropped.
        top: Share of each tensor's entries, the largest, that is dropped.
        election: none: sum, as in the paper; ties: sign election and disjoint mean of TIES.
        scale: Factor s on the merged task vector.
    """

    def __init__(
        self,
        bottom: float = 0.85,
        top: float = 0.01,
        election: Election = "none",
        scale: float = 1.0,
    ) -> None:
        check_within("bottom", bottom, "[0, 1)")
        check_within("top", top, "[0, 1)")
        if bottom + top >= 1:
            raise UserError(f"top: is {top}, but bottom + top must be below 1; bottom is {bottom}")
        super().__init__(election, scale)
        self.bottom = bottom
        self.top = top

    def thinning(self, base: Params, experts: Sequence[Params]) -> Thin:
        """Prepares the mask; see the base class.

        Args:
            base: Not used.
            experts: Not used.

        Returns:
            What zeroes a tensor's smallest and largest entries.
        """

        def thin(m: int, name: str, vector: Tensor) -> Tensor:
            magnitudes = vector.abs().reshape(-1)
            low = round(self.bottom * len(magnitudes))
            high = len(magnitudes) - round(self.top * len(magnitudes))
            if low >= high:
                return torch.zeros_like(vector)
            smallest, largest = (
                magnitudes.kthvalue(low + 1).values,
                magnitudes.kthvalue(high).values,
            )
            return vector * ((vector.abs() >= smallest) & (vector.abs() <= largest))

        return thin


def _task_vector(expert: Params, base: Params) -> Iterable[Tensor]:
    """The tensors of τ = θ − θ₀, one at a time, so that they are never all in memory."""
    return (expert[name] - wide(origin) for name, origin in base.items())


def _sum(vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Σₘ λₘτ̂ₘ."""
    total = torch.zeros_like(vectors[0])
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        total.add_(vector, alpha=coefficient)
    return total


def _disjoint_mean(vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Σₘ∈A λₘτ̂ₘ / Σₘ∈A λₘ with A = {m : sign(τ̂ₘ) = sign(Σₘ λₘτ̂ₘ)}; 0 where the sum is 0."""
    elected = _sum(vectors, coefficients).sign()
    total, weight = torch.zeros_like(elected), torch.zeros_like(elected)
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        agrees = (vector.sign() == elected).to(elected)
        total.addcmul_(vector, agrees, value=coefficient)
        weight.add_(agrees, alpha=coefficient)
    return torch.where(weight > 0, total / weight, torch.zeros_like(total))
