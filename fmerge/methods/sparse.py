"""Compositions that thin task vectors before they combine them: TIES, DARE, DELLA, Breadcrumbs."""

from typing import Literal

from fmerge.methods.composition import Transformed
from fmerge.methods.task_vectors import SignElection, TaskVectorMethod, WeightedSum
from fmerge.methods.transforms import Drop, DropByRank, MaskOutliers, Trim

Election = Literal["none", "ties"]


class TIES(Transformed):
    """Trim, elect sign, merge (Yadav et al., NeurIPS 2023, algorithm 1): Trim, then SignElection.

    Only the largest entries of each τₘ stay; γ = sign(Σₘ λₘτ̂ₘ) is elected per entry, and the
    entries of that sign are averaged: θ = θ₀ + s · Σₘ∈A λₘτ̂ₘ / Σₘ∈A λₘ. The paper has no
    coefficients: equal λₘ are its method, and only their ratios matter; the paper's λ is ``scale``.

    Args:
        density: Share of entries of each task vector that stay, the largest by magnitude;
            entries as large as the smallest of them stay too.
        scale: Factor s on the merged task vector.
        per_tensor: Rank the entries within each tensor, as mergekit does, instead of over the
            whole task vector, as the paper does.
    """

    def __init__(self, density: float = 0.2, scale: float = 1.0, per_tensor: bool = False) -> None:
        super().__init__(Trim(density, per_tensor), SignElection(scale))
        self.density = density
        self.scale = scale
        self.per_tensor = per_tensor


class DARE(Transformed):
    """Drop and rescale: τ̂ₘ = τₘ · bₘ / (1 − p), bₘ ~ Bernoulli(1 − p) (Yu et al., ICML 2024).

    Every entry is dropped with probability p (section 3.2); the others are divided by 1 − p, so
    that the expectation is task arithmetic. The draws depend only on the seed, the expert's
    position and the tensor's name, not on processes, devices or the order of the tensors.

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
        super().__init__(Drop(drop, seed), _combination(election, scale))
        self.drop = drop
        self.seed = seed
        self.election = election
        self.scale = scale


class DELLA(Transformed):
    """Drops small entries more often than large ones, then elects signs (Deep et al. 2024).

    MAGPRUNE: within each row the entry of rank r among n (0 the smallest magnitude) is dropped
    with probability p_r = p + ε · (1/2 − (r + 1/2)/n) and otherwise divided by 1 − p_r, so that
    the expectation is the task vector and the mean of p_r over a row is p.

    Args:
        drop: p, the mean probability that an entry is dropped.
        epsilon: ε, the difference between the probabilities of a row's smallest and largest entry.
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
        super().__init__(DropByRank(drop, epsilon, seed), _combination(election, scale))
        self.drop = drop
        self.epsilon = epsilon
        self.seed = seed
        self.election = election
        self.scale = scale


class Breadcrumbs(Transformed):
    """Sum of task vectors without their smallest and largest entries.

    Model Breadcrumbs (Davari & Belilovsky, ECCV 2024, section 3): θ = θ₀ + s · Σₘ λₘ(maskₘ ∘ τₘ),
    where in each tensor the mask zeroes a share of the smallest magnitudes, which are noise, and a
    share of the largest, which are outliers. Entries equal to the smallest or the largest that
    stays, stay too.

    Args:
        bottom: Share of each tensor's entries, the smallest, that is zeroed.
        top: Share of each tensor's entries, the largest, that is zeroed.
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
        super().__init__(MaskOutliers(bottom, top), _combination(election, scale))
        self.bottom = bottom
        self.top = top
        self.election = election
        self.scale = scale


def _combination(election: Election, scale: float) -> TaskVectorMethod:
    return SignElection(scale) if election == "ties" else WeightedSum(scale)
