"""Fishers as curves over a coefficient: DF-Merge without gradients in every trial."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fmerge.params import Between, Params, logarithms

_ROUNDING = torch.finfo(torch.float32).eps
"""How far a coefficient may lie from a node that it means."""


class FisherCurves:
    """Each task's diagonal Fisher as a curve over its own coefficient.

    In DF-Merge Fₘ is taken at θ₀ + λₘτₘ, so it depends on λₘ alone. It is computed at the nodes of
    an even grid over [0, 1], each when a trial first needs it, and interpolated in between, entry
    by entry. The interpolation is geometric: a merge depends on the ratios of Fishers, and an entry
    changes by orders of magnitude from node to node, as the task's answers become certain.

    Args:
        nodes: Number of grid points, both ends included.
        fisher_at: From an expert's name and λ to the Fisher there.
        scale: From a Fisher to a number ≥ 0, interpolated like its entries.
        keep: From a node's logarithms to the tensors to cache, for example copies on disk; the
            same tensors when left out.
    """

    def __init__(
        self,
        nodes: int,
        fisher_at: Callable[[str, float], Mapping[str, Tensor]],
        scale: Callable[[Mapping[str, Tensor]], float] = lambda fisher: 1.0,
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
            F at θ₀ + λτ by parameter name, and its scale. Each tensor is computed when it is read;
            at a node it is the Fisher computed there, up to rounding.
        """
        place = coefficient * (self.nodes - 1)
        # 0.3 in float32, or 1 - 0.7, is at the node of 0.3: rounding must not cost a pass
        if abs(place - round(place)) <= _ROUNDING * (self.nodes - 1):
            place = float(round(place))
        left = min(int(place), self.nodes - 2)  # the last node belongs to the last interval
        share = place - left
        low, low_scale = self._node(name, left + (share == 1))
        if share in {0, 1}:
            return Between(low, low, 0.0), low_scale
        high, high_scale = self._node(name, left + 1)
        return Between(low, high, share), low_scale ** (1 - share) * high_scale**share

    def _node(self, name: str, index: int) -> tuple[Params, float]:
        if (name, index) not in self._known:
            fisher = self.fisher_at(name, index / (self.nodes - 1))
            self._known[name, index] = self.keep(logarithms(fisher)), self.scale(fisher)
        return self._known[name, index]
