"""What a merge can learn: its coefficients by group, or its weights; and each task's head along."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fmerge.merging.assembler import Assembler
from fmerge.modules.learner import Learnable
from fmerge.params import Params, layer_of, write_params
from fmerge.search.parameter_groups import coefficient_name

LearnedGroups = Literal["layers", "tensors"]
"""layers: a coefficient for each numbered layer, and one for the rest; tensors: for each tensor."""

REST = "rest"
"""The group of the tensors that are in no numbered layer."""

Leaves = Mapping[str, nn.Parameter]
"""Live weights by their names in a task's network."""


def learned_groups(tensors: Sequence[str], groups: LearnedGroups) -> dict[str, list[str]]:
    """Divides a body's tensors into the groups that learned coefficients have.

    Args:
        tensors: The names of the body's tensors, in order.
        groups: How.

    Returns:
        Group name to the names of its tensors.
    """
    found: dict[str, list[str]] = {}
    for name in tensors:
        group = name if groups == "tensors" else layer_of(name) or REST
        found.setdefault(group, []).append(name)
    return found


@final
class Coefficients(Learnable):
    """λ (m, g) of M experts and G groups: θ_l = θ₀,l + Σₘ λₘ,g(l) τₘ,l, or the method's formula.

    The loss is differentiated by the live weights; ∂L/∂λ follows by the method's ``pull_back``,
    without the merge in the graph and without another copy of an expert.

    Args:
        assembler: Merges, with the groups that are learned.
        start: λ by ``expert/group``.
        body: The live body's weights.
        heads: Task name to the weights of its live head, where heads are trained along.
        learning_rate: Adam's, of λ.
        head_learning_rate: Adam's, of the heads.

    Attributes:
        values: λ (m, g).
    """

    def __init__(
        self,
        assembler: Assembler,
        start: Mapping[str, float],
        body: Leaves,
        heads: Mapping[str, Leaves],
        learning_rate: float,
        head_learning_rate: float,
    ) -> None:
        super().__init__()
        self.assembler = assembler
        rows = [
            [start[coefficient_name(expert, group)] for group in assembler.parts]
            for expert in assembler.experts
        ]
        self.values = nn.Parameter(torch.tensor(rows, dtype=torch.float64))
        self.heads = nn.ParameterList([one for head in heads.values() for one in head.values()])
        self.rates = learning_rate, head_learning_rate
        self._body = body

    @property
    def named(self) -> dict[str, float]:
        """λ by ``expert/group``, expert by expert."""
        rows = self.values.tolist()
        return {
            coefficient_name(expert, group): value
            for expert, row in zip(self.assembler.experts, rows, strict=True)
            for group, value in zip(self.assembler.parts, row, strict=True)
        }

    @torch.no_grad()
    def write(self) -> None:
        """Assembles the merge at λ and copies it to the live body."""
        try:
            merged = self.assembler.assemble(self.named)
        except ValueError:  # such as a sum below zero to divide by: they have left the formula
            self.values.fill_(torch.nan)  # which ends the training
            return
        for name, one in self._body.items():
            one.copy_(merged[name])

    def leaves(self) -> Sequence[nn.Parameter]:
        """Lists the live body's weights, then those of the heads."""
        return [*self._body.values(), *self.heads]

    def pull_back(self, gradients: Sequence[Tensor | None]) -> Mapping[str, Tensor]:
        """Computes ∂L/∂λₘg = Σ_{l in g} ⟨∂L/∂θ_l, ∂θ_l/∂λₘg⟩; the heads have theirs already.

        Args:
            gradients: ∂L/∂θ by leaf.

        Returns:
            The gradients of λ and of the heads.
        """
        known = zip(self._body, gradients, strict=False)
        by_group = self.assembler.pull_back(
            self.named, {name: one for name, one in known if one is not None}
        )
        found = {"values": torch.stack(list(by_group.values()), dim=1).to(self.values)}
        for i, one in enumerate(gradients[len(self._body) :]):
            found[f"heads.{i}"] = torch.zeros_like(self.heads[i]) if one is None else one
        return found

    def groups(self) -> list[dict[str, Any]]:
        """Lists λ, and the heads in a group of their own."""
        groups: list[dict[str, Any]] = [{"params": [self.values], "lr": self.rates[0]}]
        if len(self.heads):
            groups.append({"params": list(self.heads), "lr": self.rates[1]})
        return groups


@final
class Weights(Learnable):
    """The live weights themselves, held to where they start by an anchor μ Σᵢ Fᵢ (θᵢ − θ*ᵢ)².

    Kirkpatrick et al. 2017, equation 3, with F the mean over tasks of their exact Fishers.

    Args:
        body: The live body's weights, at θ*.
        heads: Task name to the weights of its live head.
        learning_rate: Adam's.
        anchor: μ.
        fisher: Fᵢ by the names of the body, and by task those of the head; needed where μ > 0.
    """

    def __init__(
        self,
        body: Leaves,
        heads: Mapping[str, Leaves],
        learning_rate: float,
        anchor: float = 0.0,
        fisher: tuple[Params, Mapping[str, Params]] | None = None,
    ) -> None:
        super().__init__()
        rows = [(one, None if fisher is None else fisher[0][name]) for name, one in body.items()]
        for task, head in heads.items():
            for name, one in head.items():
                rows.append((one, None if fisher is None else fisher[1][task][name]))
        self.weights = nn.ParameterList([one for one, _ in rows])
        self.learning_rate = learning_rate
        self.anchor = anchor
        self._pull = [None if f is None else f.detach() for _, f in rows] if anchor else []
        self._start = [one.detach().clone() for one, _ in rows] if anchor else []

    def write(self) -> None:
        """Does nothing: the live weights are what is learned."""

    def leaves(self) -> Sequence[nn.Parameter]:
        """Lists the weights."""
        return list(self.weights)

    def pull_back(self, gradients: Sequence[Tensor | None]) -> Mapping[str, Tensor]:
        """Adds the anchor's gradient 2μ Fᵢ (θᵢ − θ*ᵢ).

        Args:
            gradients: ∂L/∂θ by weight.

        Returns:
            The gradients.
        """
        found = {}
        for i, (weight, own) in enumerate(zip(self.weights, gradients, strict=True)):
            total = torch.zeros_like(weight) if own is None else own
            if self.anchor and (fisher := self._pull[i]) is not None:
                fisher = fisher.to(weight)
                away = weight - self._start[i].to(weight)
                total = total + 2 * self.anchor * fisher * away
            found[f"weights.{i}"] = total
        return found

    def groups(self) -> list[dict[str, Any]]:
        """Lists all weights in one group."""
        return [{"params": list(self.weights), "lr": self.learning_rate}]


def head_values(heads: Mapping[str, Leaves]) -> dict[str, Params]:
    """Copies the present weights of live heads.

    Args:
        heads: Task name to the weights of its live head.

    Returns:
        The same with copies on the CPU.
    """
    return {
        task: {name: one.detach().cpu().clone() for name, one in head.items()}
        for task, head in heads.items()
    }


def write_heads(networks: Mapping[str, nn.Module], heads: Mapping[str, Params]) -> None:
    """Copies values into live heads.

    Args:
        networks: Task name to its live network.
        heads: Task name to tensors of its head.
    """
    for task, head in heads.items():
        write_params(networks[task], head)
