"""Transforms that thin task vectors: trimming, random drops, masks of outliers."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fmerge.errors import UserError, check_within
from fmerge.methods.composition import Transform
from fmerge.methods.inputs import MergeInputs, VectorMap
from fmerge.methods.pruning import ranks, sample, thresholds, trim


class Trim(Transform):
    """Zeroes all but the largest entries of each τₘ (Yadav et al. 2023, algorithm 1, step 1).

    Args:
        density: Share of entries that stay, the largest by magnitude; entries as large as the
            smallest of them stay too.
        per_tensor: Rank the entries within each tensor instead of over the whole task vector.
    """

    entrywise = True

    def __init__(self, density: float, per_tensor: bool) -> None:
        check_within("density", density, "(0, 1]")
        self.density = density
        self.per_tensor = per_tensor

    def prepare(self, inputs: MergeInputs) -> VectorMap:
        """Finds each task vector's threshold; see the base class.

        Args:
            inputs: The models.

        Returns:
            The map that zeroes the entries below the threshold.
        """
        if self.density == 1:
            return lambda m, name, vector: vector
        if self.per_tensor:
            found: dict[int, tuple[str, float]] = {}  # of the last tensor of each expert

            def trimmed(m: int, name: str, vector: Tensor) -> Tensor:
                if found.get(m, ("", 0.0))[0] != name:  # the vector may be a part of the tensor
                    parts = partial(_vectors, inputs, [name], [m])
                    (limit,) = thresholds(parts, self.density, 1)
                    found[m] = name, limit
                return trim(vector, found[m][1])

            return trimmed
        every = range(len(inputs.experts))
        # anew for each pass, so that a task vector is never whole in memory
        vectors = partial(_vectors, inputs, list(inputs.experts[0]), every)
        limits = thresholds(vectors, self.density, len(every))
        return lambda m, name, vector: trim(vector, limits[m])


def _vectors(
    inputs: MergeInputs, names: Sequence[str], experts: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Parts of task vectors, each with the place of its expert in the list."""
    for name in names:
        for part in inputs.parts(name):
            for place, m in enumerate(experts):
                yield place, part.task_vector(m, name)


class Drop(Transform):
    """Drops entries at random and rescales the others (Yu et al. 2024, section 3.2).

    τ̂ₘ = τₘ · bₘ / (1 − p), bₘ ~ Bernoulli(1 − p): the expectation is τₘ. The draws depend only on
    the seed, the expert's position and the tensor's name, not on processes, devices or the order
    of the tensors.

    Args:
        drop: p, the probability that an entry is dropped.
        seed: Seed of the draws.
    """

    def __init__(self, drop: float, seed: int) -> None:
        check_within("drop", drop, "[0, 1)")
        self.drop = drop
        self.seed = seed

    def prepare(self, inputs: MergeInputs) -> VectorMap:
        """Prepares the draws; see the base class.

        Args:
            inputs: The models; this transform needs nothing of them.

        Returns:
            The map that drops entries at random and rescales the others.
        """
        share = torch.tensor(1 - self.drop, dtype=torch.float64)
        return lambda m, name, vector: sample(vector, share, f"{self.seed}|{m}|{name}")


class DropByRank(Transform):
    """Drops small entries more often than large ones (MAGPRUNE: Deep et al. 2024).

    Within each row the entry of rank r among n (0 the smallest magnitude) is dropped with
    probability p_r = p + ε · (1/2 − (r + 1/2)/n) and otherwise divided by 1 − p_r, so that the
    expectation is τₘ and the mean of p_r over a row is p. A vector is one row.

    Args:
        drop: p, the mean probability that an entry is dropped.
        epsilon: ε, the difference between the probabilities of a row's smallest and largest entry.
        seed: Seed of the draws, which are made as in ``Drop``.
    """

    def __init__(self, drop: float, epsilon: float, seed: int) -> None:
        check_within("drop", drop, "[0, 1)")
        check_within("epsilon", epsilon, "[0, 1]")
        if drop - epsilon / 2 < 0 or drop + epsilon / 2 > 1:
            raise UserError(
                f"epsilon: is {epsilon}, but drop ± epsilon/2 must lie in [0, 1] and drop is {drop}"
            )
        self.drop = drop
        self.epsilon = epsilon
        self.seed = seed

    def prepare(self, inputs: MergeInputs) -> VectorMap:
        """Prepares the draws; see the base class.

        Args:
            inputs: The models; this transform needs nothing of them.

        Returns:
            The map that drops entries at random by their rank and rescales the others.
        """
        return self._drop

    def _drop(self, m: int, name: str, vector: Tensor) -> Tensor:
        if not vector.numel():  # it has no rows
            return vector
        rows = vector.reshape(vector.shape[0] if vector.dim() > 1 else 1, -1)
        place = (ranks(rows.abs()).to(rows) + 0.5) / rows.shape[1]
        share = 1 - self.drop - self.epsilon * (0.5 - place)
        return sample(vector, share.reshape(vector.shape), f"{self.seed}|{m}|{name}")


class MaskOutliers(Transform):
    """Zeroes the smallest and the largest entries of each tensor (Davari & Belilovsky 2024).

    The smallest magnitudes are noise, the largest outliers. Entries equal to the smallest or the
    largest that stays, stay too.

    Args:
        bottom: Share of each tensor's entries, the smallest, that is zeroed.
        top: Share of each tensor's entries, the largest, that is zeroed.
    """

    def __init__(self, bottom: float, top: float) -> None:
        check_within("bottom", bottom, "[0, 1)")
        check_within("top", top, "[0, 1)")
        if bottom + top >= 1:
            raise UserError(f"top: is {top}, but bottom + top must be below 1; bottom is {bottom}")
        self.bottom = bottom
        self.top = top

    def prepare(self, inputs: MergeInputs) -> VectorMap:
        """Prepares the mask; see the base class.

        Args:
            inputs: The models; this transform needs nothing of them.

        Returns:
            The map that zeroes a tensor's smallest and largest entries.
        """
        return self._mask

    def _mask(self, m: int, name: str, vector: Tensor) -> Tensor:
        magnitudes = vector.abs().reshape(-1)
        low = round(self.bottom * len(magnitudes))
        high = len(magnitudes) - round(self.top * len(magnitudes))
        if low >= high:  # of a few entries, the rounded shares can be all
            return torch.zeros_like(vector)
        smallest, largest = magnitudes.kthvalue(low + 1).values, magnitudes.kthvalue(high).values
        return vector * ((vector.abs() >= smallest) & (vector.abs() <= largest))
