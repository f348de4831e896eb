"""DF-Merge's moving Fishers without gradients in every trial."""

from collections.abc import Callable

import torch

from fmerge.params import Params


class FisherCurves:
    """Each task's diagonal Fisher as a curve over its own coefficient.

    In DF-Merge Fₘ is taken at θ₀ + λₘτₘ and depends on λₘ alone: it is computed at nodes of an even
    grid over [0, 1], each when a trial first needs it, and interpolated linearly in between, entry
    by entry, which keeps it nonnegative.

    Args:
        nodes: Number of grid points, both ends included.
        fisher_at: From an expert's name and λ to the Fisher there.
    """

    def __init__(self, nodes: int, fisher_at: Callable[[str, float], Params]) -> None:
        self.nodes = nodes
        self.fisher_at = fisher_at
        self._known: dict[tuple[str, int], Params] = {}

    def at(self, name: str, coefficient: float) -> Params:
        """Interpolates a task's Fisher.

        Args:
            name: The expert.
            coefficient: λ in [0, 1].

        Returns:
            F at θ₀ + λτ by parameter name; exact at the nodes.
        """
        place = coefficient * (self.nodes - 1)
        left = min(int(place), self.nodes - 2)
        share = place - left
        if share == 0:
            return self._node(name, left)
        if share == 1:
            return self._node(name, left + 1)
        low, high = self._node(name, left), self._node(name, left + 1)
        return {key: torch.lerp(value, high[key], share) for key, value in low.items()}

    def _node(self, name: str, index: int) -> Params:
        if (name, index) not in self._known:
            self._known[name, index] = self.fisher_at(name, index / (self.nodes - 1))
        return self._known[name, index]
