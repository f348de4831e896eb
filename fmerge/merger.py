"""Merges for given coefficients, group of tensors by group."""

from collections.abc import Callable, Mapping, Sequence

import torch

from fmerge.fisher_curve import FisherCurves
from fmerge.grouping import coefficient_name
from fmerge.methods import MergeMethod
from fmerge.params import Params, check_finite


class Merger:
    """Assembles a merge for given coefficients.

    Args:
        method: The formula.
        base: The base's body θ₀, or None.
        experts: Bodies θₘ by name.
        fisher_of: From an expert's name and a body to that task's diagonal Fisher there;
            called only for methods that move the Fisher with the coefficients.
        fishers: Diagonal Fishers Fₘ at the experts, by name, or None.
        parts: Group name to the names of its tensors: each group is a merge of its own, with its
            own coefficients. One group of all tensors when left out.
        curve_nodes: At how many λ a Fisher that moves with it is computed, to be interpolated in
            between; 0 computes it anew in every trial, as Lee et al. do.
    """

    def __init__(
        self,
        method: MergeMethod,
        base: Params | None,
        experts: Mapping[str, Params],
        fisher_of: Callable[[str, Params], Params],
        fishers: Mapping[str, Params] | None = None,
        parts: Mapping[str, Sequence[str]] | None = None,
        curve_nodes: int = 0,
    ) -> None:
        self.method = method
        self.base = base
        self.experts = experts
        self.fisher_of = fisher_of
        self.fishers = fishers
        self.order = list(next(iter(experts.values())))
        self.parts = {"": self.order} if parts is None else parts
        self._curves = FisherCurves(curve_nodes, self._fisher_at) if curve_nodes else None

    def assemble(self, coefficients: Mapping[str, float]) -> Params:
        """Computes the merged body.

        Args:
            coefficients: λ by expert, or by ``expert/group``.

        Returns:
            The merged tensors.

        Raises:
            ValueError: If the method cannot merge with these coefficients.
            UserError: If the merged tensors are not finite.
        """
        fishers = self.fishers
        if self.method.fisher_at == "scaled":
            fishers = {name: self._moving_fisher(name, coefficients) for name in self.experts}
        merged: Params = {}
        for group, names in self.parts.items():
            merged |= self.method.merge(
                None if self.base is None else _only(self.base, names),
                [_only(expert, names) for expert in self.experts.values()],
                [coefficients[coefficient_name(name, group)] for name in self.experts],
                None if fishers is None else [_only(fishers[name], names) for name in self.experts],
            )
        check_finite(merged, f"{type(self.method).__name__} at {dict(coefficients)}")
        return {name: merged[name] for name in self.order}

    def _moving_fisher(self, name: str, coefficients: Mapping[str, float]) -> Params:
        if self._curves is None:
            return self.fisher_of(name, self._scaled(name, coefficients))
        return self._curves.at(name, coefficients[name])

    def _fisher_at(self, name: str, coefficient: float) -> Params:
        return self.fisher_of(name, self._scaled(name, {name: coefficient}))

    def _scaled(self, name: str, coefficients: Mapping[str, float]) -> Params:
        """θ₀ + λₘτₘ, where DF-Merge takes the Fisher, with the λₘ of each tensor's group."""
        if self.base is None:
            raise ValueError(f"{type(self.method).__name__} needs the base model")
        expert = self.experts[name]
        return {
            key: torch.lerp(
                self.base[key], expert[key], coefficients[coefficient_name(name, group)]
            )
            for group, names in self.parts.items()
            for key in names
        }


def _only(tensors: Params, names: Sequence[str]) -> Params:
    return {name: tensors[name] for name in names}
