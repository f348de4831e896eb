"""Merges for given coefficients, group of tensors by group."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fmerge.evaluation.statistics import statistic_of
from fmerge.fisher.curve import FisherCurves
from fmerge.merging.buffers import nearest
from fmerge.merging.stored import only, stored
from fmerge.methods import Average, MergeMethod
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.roles import places_of
from fmerge.params import Params, check_finite, empty_like
from fmerge.search.parameter_groups import coefficient_name


class Assembler:
    """Assembles a merge for given coefficients.

    The merged tensors belong to the Assembler: the next merge is written over the last one. The
    experts, the base and the given statistics must not change while it is used.

    Args:
        method: The formula.
        base: The base's body θ₀, or None.
        experts: Bodies θₘ by name.
        fisher_of: From an expert's name and a body to that task's diagonal Fisher there;
            called only for methods whose Fisher moves with the coefficients.
        statistics: What the method needs of the experts beside their bodies, by name: diagonal
            Fishers Fₘ at the experts, or Grams; None if it needs nothing.
        parts: Group name to the names of its tensors: each group is merged on its own, with its
            own coefficients. One group of all tensors when left out.
        curve_nodes: Number of λ at which a moving Fisher is computed, to be interpolated in
            between; 0 computes it anew in every trial, as Lee et al. do.
        keep: Stores the tensors of such a Fisher; see FisherCurves.
        buffers: Which of the bodies' tensors are buffers: each is merged by the method's rule for
            buffers, with the coefficients of the weight that it stands beside.
        dtypes: The dtypes of the merged tensors by name, such as those that the experts are
            stored in; the experts' own when left out.
        finish: From a merged body, in the order of the model, to the body that the merge ends
            with, such as a calibrated one; it must not change its argument.
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
        buffers: Sequence[str] = (),
        dtypes: Mapping[str, torch.dtype] | None = None,
        finish: Callable[[Params], Params] | None = None,
    ) -> None:
        self.method = method
        self.base = base
        self.experts = experts
        self.fisher_of = fisher_of
        self.statistics = statistics
        self._moves = (needed := statistic_of(method)) is not None and needed.moves
        first = next(iter(experts.values()))
        self.order = list(first)
        weights = {name: tensor for name, tensor in first.items() if name not in buffers}
        self.places = places_of(weights)  # a group alone does not tell how deep the model is
        self.parts = {"": list(weights)} if parts is None else parts
        beside = {name: nearest(name, weights) for name in buffers}
        self._buffers = {
            group: [name for name, weight in beside.items() if weight in names]
            for group, names in self.parts.items()
        }
        self._curves = None
        if curve_nodes:
            self._curves = FisherCurves(curve_nodes, self._fisher_at, method.statistic_scale, keep)
        self.others: Callable[[str], Assembler] | None = None
        self._scales: dict[tuple[str, str], float] = {}
        self._dtypes = dtypes or {}
        self.finish = finish
        self._inputs = stored(experts, self._dtypes)
        self._merged: Params = {}
        self._rounded: Params = {}
        self._merged_at: dict[str, float] | None = None

    def of(self, method: str) -> "Assembler":
        """Finds the assembler of a trial's method: this one, unless it is one of a portfolio's."""
        return self if self.others is None or not method else self.others(method)

    def assemble(
        self,
        coefficients: Mapping[str, float],
        look: Callable[[Mapping[str, Mapping[str, Any]]], None] | None = None,
    ) -> Params:
        """Computes the merged body.

        Args:
            coefficients: λ by expert, or by ``expert/group``, and the method's numbers.
            look: Called with the statistics, if there are any; the merge is then computed anew.

        Returns:
            The merged tensors, in ``dtypes``: only to be read, and valid until the next call.

        Raises:
            ValueError: If the method cannot merge with these coefficients.
            UserError: If the merged tensors are not finite.
        """
        if self._merged_at == coefficients and look is None:
            return self._rounded
        self._merged_at, self._rounded = None, {}
        if not self.method.writes_into_out:
            self._merged = {}  # frees the last merge before the next is allocated
        elif not self._merged:
            self._merged = empty_like(next(iter(self._inputs.values())))
        statistics = self._statistics_at(coefficients)
        if look is not None and statistics is not None:
            look(statistics)
        for group, names in self.parts.items():
            self._merge(group, names, coefficients, statistics)
            self._merge_buffers(group, coefficients)
        self._merged = {name: self._merged[name] for name in self.order}
        name = f"{type(self.method).__name__} at {dict(coefficients)}"
        finished = self._merged
        if self.finish is not None:
            check_finite(self._merged, f"the start of {name}")
            finished = self.finish(self._merged)
        self._rounded = self.in_dtypes(finished)
        check_finite(self._rounded, name)
        self._merged_at = dict(coefficients)
        return self._rounded

    def regrouped(
        self, parts: Mapping[str, Sequence[str]], device: torch.device, numbers: Mapping[str, float]
    ) -> "Assembler":
        """Makes an assembler of the same experts with other groups.

        Args:
            parts: Group name to the names of its tensors.
            device: Where it merges: the tensors are moved there, if they are elsewhere.
            numbers: The method's numbers; its own of those that are left out.

        Returns:
            The assembler; on the same device it shares all tensors but the merged ones.
        """

        def there(tensors: Mapping[str, Any]) -> dict[str, Any]:
            return {name: one.to(device) for name, one in tensors.items()}

        statistics = self.statistics
        return Assembler(
            self.method.with_numbers(numbers),
            None if self.base is None else there(self.base),
            {name: there(one) for name, one in self.experts.items()},
            self.fisher_of,
            None if statistics is None else {name: there(one) for name, one in statistics.items()},
            parts=parts,
            buffers=[name for names in self._buffers.values() for name in names],
            dtypes=self._dtypes,
        )

    def pull_back(
        self, coefficients: Mapping[str, float], gradient: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Computes ∂L/∂λ from ∂L/∂θ, for a loss L of the merged tensors.

        Args:
            coefficients: λ by expert, or by ``expert/group``: where to take it.
            gradient: ∂L/∂θ by tensor.

        Returns:
            Group name to one number for each expert (m,), in float64.
        """
        return {
            group: self.method.pull_back(
                self._group_inputs(group, names, coefficients, self.statistics),
                only(gradient, names),
            )
            for group, names in self.parts.items()
        }

    def facts(self, coefficients: Mapping[str, float]) -> list[str]:
        """Asks the method what the report should tell of a merge.

        Args:
            coefficients: What it was assembled from.

        Returns:
            The method's sentences by group; none where its statistics move, and are not kept.
        """
        if self._moves:
            return []
        method, found = self.method.with_numbers(coefficients), []
        for group, names in self.parts.items():
            one = self._group_inputs(group, names, coefficients, self.statistics)
            found += [f"{group}: {fact}" if group else fact for fact in method.facts(one)]
        return found

    def average(self) -> Params:
        """Computes the plain average of the experts, which does not end the validity of a merge.

        Returns:
            New tensors, in ``dtypes``.
        """
        merged = Average().merge(None, list(self._inputs.values()), [])
        if self.finish is not None and not self.method.calibrates:  # whose own it is else
            merged = self.finish(merged)
        return self.in_dtypes(merged)

    def in_dtypes(self, merged: Params) -> Params:
        """Rounds a body's tensors to ``dtypes``."""
        return {name: one.to(self._dtypes.get(name, one.dtype)) for name, one in merged.items()}

    def _merge(
        self,
        group: str,
        names: Sequence[str],
        coefficients: Mapping[str, float],
        statistics: Mapping[str, Mapping[str, Any]] | None,
    ) -> None:
        one = self._group_inputs(group, names, coefficients, statistics)
        given = None if statistics is None else one.statistics
        scales = None if statistics is None else one.scales
        # over the last merge: to map the pages of new tensors would cost more than the sums
        out = only(self._merged, names) if self.method.writes_into_out else None
        self._merged |= self.method.with_numbers(coefficients).merge(
            one.base, one.experts, one.coefficients, given,  # type: ignore[arg-type]
            scales=scales, places=self.places, out=out,
        )  # fmt: skip

    def _group_inputs(
        self,
        group: str,
        names: Sequence[str],
        coefficients: Mapping[str, float],
        statistics: Mapping[str, Mapping[str, Any]] | None,
    ) -> MergeInputs:
        known = {} if statistics is None else statistics
        return MergeInputs(
            base=None if self.base is None else only(self.base, names),
            experts=[only(expert, names) for expert in self._inputs.values()],
            coefficients=[coefficients[coefficient_name(name, group)] for name in self.experts],
            statistics=[known[name] for name in known and self.experts],
            scales=[
                self._scale_at(name, group, coefficients, known) for name in known and self.experts
            ],
            given_places=self.places,
        )

    def _merge_buffers(self, group: str, coefficients: Mapping[str, float]) -> None:
        if names := self._buffers[group]:
            base = None if self.base is None else only(self.base, names)
            experts = [only(expert, names) for expert in self.experts.values()]
            weights = [coefficients[coefficient_name(name, group)] for name in self.experts]
            self._merged |= self.method.merge_buffers(base, experts, weights)

    def _statistics_at(
        self, coefficients: Mapping[str, float]
    ) -> Mapping[str, Mapping[str, Any]] | None:
        if not self._moves:
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
        statistics: Mapping[str, Mapping[str, Any]],
    ) -> float:
        """A group's scale of a statistic: measured once where the statistic does not move."""
        if self._curves is not None:
            return self._curves.at(name, coefficients[name])[1]
        key = name, group
        if self._moves or key not in self._scales:
            part = only(statistics[name], self.parts[group])
            self._scales[key] = self.method.statistic_scale(part)
        return self._scales[key]

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
            for key in [*names, *self._buffers[group]]
        }
