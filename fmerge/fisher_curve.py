"""DF-Merge's moving Fishers without gradients in every trial."""

from collections.abc import Callable, Mapping

from torch import Tensor

from fmerge.params import Between, Params


class FisherCurves:
    """Each task's diagonal Fisher as a curve over its own coefficient.

    In DF-Merge Fₘ is taken at θ₀ + λₘτₘ and depends on λₘ alone: it is computed at nodes of an even
    grid over [0, 1], each when a trial first needs it, and interpolated linearly in between, entry
    by entry, which keeps it nonnegative.

    Args:
        nodes: Number of grid points, both ends included.
        fisher_at: From an expert's name and λ to the Fisher there.
        scale: From a Fisher to a number that is linear in it; interpolated like its entries.
        keep: Puts a node's tensors where they shall stay; where they are when left out.
    """

    def __init__(
        self,
        nodes: int,
        fisher_at: Callable[[str, float], Params],
        scale: Callable[[Params], float] = lambda fisher: 1.0,
        keep: Callable[[Params], Params] = lambda fisher: fisher,
    ) -> None:
        self.nodes = nodes
        self.fisher_at = fisher_at
        self.scale = scale
        self.keep = keep
        self._known: dict[tuple[str, int], tuple[Params, float]] = {}

    def at(self, name: str, coefficient: float) -> tuple[Mapping[str, Tensor], float]:
        """Interpolates a task's Fisher.

        Args:
            name: The expert.
            coefficient: λ in [0, 1].

        Returns:
            F at θ₀ + λτ by parameter name, exact at the nodes and elsewhere computed when a tensor
            is read; and its scale.
        """
        place = coefficient * (self.nodes - 1)
        left = min(int(place), self.nodes - 2)
        share = place - left
        if share == 0:
            return self._node(name, left)
        if share == 1:
            return self._node(name, left + 1)
        (low, low_scale), (high, high_scale) = self._node(name, left), self._node(name, left + 1)
        return Between(low, high, share), low_scale + share * (high_scale - low_scale)

    def _node(self, name: str, index: int) -> tuple[Params, float]:
        if (name, index) not in self._known:
            fisher = self.fisher_at(name, index / (self.nodes - 1))
            self._known[name, index] = self.keep(fisher), self.scale(fisher)
        return self._known[name, index]
