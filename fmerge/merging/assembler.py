"""Merges for given coefficients, group of tensors by group."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fmerge.fisher.curve import FisherCurves
from fmerge.methods import MergeMethod
from fmerge.methods.elementwise import Elementwise
from fmerge.params import Params, check_finite, empty_like
from fmerge.search.parameter_groups import coefficient_name


class Assembler:
    """Assembles a merge for given coefficients.

    The merged tensors are the Assembler's own: a merge stays as it is until the next is assembled,
    which is written over it. Experts, base and given Fishers must not change in its life.

    Args:
        method: The formula.
        base: The base's body θ₀, or None.
        experts: Bodies θₘ by name.
        fisher_of: From an expert's name and a body to that task's diagonal Fisher there;
            called only for methods that move the Fisher with the coefficients.
        statistics: What the method needs of the experts beside their bodies, by name: diagonal
            Fishers Fₘ at the experts, or Grams; None if nothing.
        parts: Group name to the names of its tensors: each group is a merge of its own, with its
            own coefficients. One group of all tensors when left out.
        curve_nodes: At how many λ a Fisher that moves with it is computed, to be interpolated in
            between; 0 computes it anew in every trial, as Lee et al. do.
        keep: Puts the tensors of such a Fisher where they shall stay; see FisherCurves.
    """

    def __init__(
        self,
        method: MergeMethod,
        base: Params | None,
        experts: Mapping[str, Params],
        fisher_of: Callable[[str, Params], Mapping[str, Any]],
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        parts: Mapping[str, Sequence[str]] | None = None,
        curve_nodes: int = 0,
        keep: Callable[[Params], Params] = lambda fisher: fisher,
    ) -> None:
        self.method = method
        self.base = base
        self.experts = experts
        self.fisher_of = fisher_of
        self.statistics = statistics
        self.order = list(next(iter(experts.values())))
        self.parts = {"": self.order} if parts is None else parts
        self._curves = None
        if curve_nodes:
            self._curves = FisherCurves(curve_nodes, self._fisher_at, self._scale, keep)
        self._scales: dict[tuple[str, str], float] = {}
        self._merged: Params = {}
        self._merged_at: dict[str, float] | None = None

    def assemble(
        self,
        coefficients: Mapping[str, float],
        look: Callable[[Mapping[str, Mapping[str, Any]]], None] | None = None,
    ) -> Params:
        """Computes the merged body.

        Args:
            coefficients: λ by expert, or by ``expert/group``.
            look: Is shown the statistics that enter, if there are any; the merge is then computed
                anew, even if it was the last.

        Returns:
            The merged tensors, to be read and not changed, and only until the next call.

        Raises:
            ValueError: If the method cannot merge with these coefficients.
            UserError: If the merged tensors are not finite.
        """
        if self._merged_at == coefficients and look is None:
            return self._merged
        self._merged_at = None
        if not isinstance(self.method, Elementwise):
            self._merged = {}  # frees the last merge
        elif not self._merged:
            self._merged = empty_like(self.experts[next(iter(self.experts))])
        statistics = self._statistics_at(coefficients)
        if look is not None and statistics is not None:
            look(statistics)
        for group, names in self.parts.items():
            self._merge(group, names, coefficients, statistics)
        self._merged = {name: self._merged[name] for name in self.order}
        check_finite(self._merged, f"{type(self.method).__name__} at {dict(coefficients)}")
        self._merged_at = dict(coefficients)
        return self._merged

    def _merge(
        self,
        group: str,
        names: Sequence[str],
        coefficients: Mapping[str, float],
        statistics: Mapping[str, Mapping[str, Any]] | None,
    ) -> None:
        base = None if self.base is None else _only(self.base, names)
        experts = [_only(expert, names) for expert in self.experts.values()]
        weights = [coefficients[coefficient_name(name, group)] for name in self.experts]
        if not isinstance(self.method, Elementwise):
            given = (
                None if statistics is None else [_of(names, statistics[m]) for m in self.experts]
            )
            self._merged |= self.method.merge(base, experts, weights, given)
            return
        # over the last merge: the pages of new tensors would cost more than the sums
        out = _only(self._merged, names)
        if statistics is None:
            self.method.merge(base, experts, weights, out=out)
            return
        scales = [self._scale_at(name, group, coefficients, statistics) for name in self.experts]
        self.method.merge(
            base, experts, weights, [statistics[m] for m in self.experts], scales, out
        )

    def _statistics_at(
        self, coefficients: Mapping[str, float]
    ) -> Mapping[str, Mapping[str, Any]] | None:
        if self.method.statistic != "moving fisher":
            return self.statistics
        if self._curves is not None:
            return {name: self._curves.at(name, coefficients[name])[0] for name in self.experts}
        return {
            name: self.fisher_of(name, self._scaled(name, coefficients)) for name in self.experts
        }

    def _scale_at(
        self,
        name: str,
        group: str,
        coefficients: Mapping[str, float],
        fishers: Mapping[str, Mapping[str, Tensor]],
    ) -> float:
        """A group's scale of a Fisher: measured once where the Fisher does not move."""
        if self._curves is not None:
            return self._curves.at(name, coefficients[name])[1]
        key = name, group
        if self.method.statistic == "moving fisher" or key not in self._scales:
            self._scales[key] = self._scale(_only(fishers[name], self.parts[group]))
        return self._scales[key]

    def _scale(self, fisher: Mapping[str, Tensor]) -> float:
        return self.method.scale(fisher) if isinstance(self.method, Elementwise) else 1.0

    def _fisher_at(self, name: str, coefficient: float) -> Mapping[str, Any]:
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


def _of(names: Sequence[str], statistic: Mapping[str, Any]) -> dict[str, Any]:
    """A group's part of a statistic, which need not say something of every tensor."""
    return {name: statistic[name] for name in names if name in statistic}


def _only(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Params:
    return {name: tensors[name] for name in names}
