"""What methods need of an expert beside its weights, and how it is estimated."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from fmerge.evaluation.evaluator import Evaluator
from fmerge.evaluation.passes import Cost
from fmerge.fisher import FisherSettings
from fmerge.methods import MergeMethod
from fmerge.modules import linear_weights
from fmerge.params import Params


class Statistic(ABC):
    """A statistic of one expert on its task.

    Attributes:
        label: Its name in messages, in the plural.
        from_files: Whether files of the experts may give it.
        moves: Whether it is taken at θ₀ + λₘτₘ, and so changes with every λₘ.
        cost: What a pass that estimates it costs.
    """

    label: ClassVar[str]
    from_files: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    cost: ClassVar[Cost] = "Fisher"

    @abstractmethod
    def estimate(
        self, evaluator: Evaluator, task: str, settings: FisherSettings, body: Params
    ) -> Mapping[str, Any]:
        """Makes one pass over a task's examples.

        Args:
            evaluator: Runs the pass.
            task: The task, whose head is used.
            settings: Estimator and examples.
            body: Where the statistic is taken.

        Returns:
            The statistic by the names of the body's tensors.
        """

    def passes(self, settings: FisherSettings, bodies: int) -> int:
        """Counts the passes of one expert in a whole merge.

        Args:
            settings: Whether a statistic that moves is interpolated on a curve.
            bodies: How many merges are assembled, one after another.

        Returns:
            One where it does not move; else one a merge, or one a node of the curve.
        """
        if not self.moves:  # taken at the experts, before the first trial
            return 1
        return settings.curve or bodies

    def size(self, network: nn.Module, body: Params) -> int:
        """Tells how much memory one expert's statistic takes.

        Args:
            network: A task's network.
            body: Its body; shapes suffice.

        Returns:
            Bytes in float32.
        """
        return sum(4 * tensor.numel() for tensor in body.values())

    def copies(self, settings: FisherSettings) -> int:
        """Counts the copies of an expert's statistic that are kept in memory.

        Args:
            settings: Whether it is interpolated on a curve.

        Returns:
            One, or one a node of the curve.
        """
        return max(settings.curve, 1) if self.moves else 1


class Fisher(Statistic):
    """The diagonal Fisher Fₘ at θₘ."""

    label = "Fishers"
    from_files = True

    def estimate(
        self, evaluator: Evaluator, task: str, settings: FisherSettings, body: Params
    ) -> Params:
        """Estimates F; see the base class.

        Args:
            evaluator: Runs the pass.
            task: The task, whose head is used.
            settings: Estimator and examples.
            body: Where the Fisher is taken.

        Returns:
            F by the names of the body's tensors.
        """
        values = evaluator.fisher(task, settings, body).values
        return {name: values[name] for name in body if name in values}  # a buffer has no Fisher


class MovingFisher(Fisher):
    """The diagonal Fisher at θ₀ + λₘτₘ (Lee et al., NAACL 2025)."""

    moves = True


class LinearGrams(Statistic):
    """The Gram matrices of what enters each linear layer (Jin et al., ICLR 2023)."""

    label = "Grams"
    cost = "score"

    def size(self, network: nn.Module, body: Params) -> int:
        """Counts G (in, in) of each linear layer; see the base class.

        Args:
            network: A task's network.
            body: Its body; shapes suffice.

        Returns:
            Bytes in float32.
        """
        return sum(4 * weight.inputs**2 for weight in linear_weights(network, body).values())

    def estimate(
        self, evaluator: Evaluator, task: str, settings: FisherSettings, body: Params
    ) -> Mapping[str, Any]:
        """Sums Gₘ up; see the base class.

        Args:
            evaluator: Runs the pass.
            task: The task.
            settings: Which examples; the rest of it is of Fishers alone.
            body: The body.

        Returns:
            Grams by the name of the weight, on the CPU.
        """
        return evaluator.grams(task, settings, body)


STATISTICS: Mapping[str, Statistic] = {
    "fisher": Fisher(),
    "moving fisher": MovingFisher(),
    "gram": LinearGrams(),
}
"""By what ``MergeMethod.statistic`` says."""


def statistic_of(method: MergeMethod) -> Statistic | None:
    """Finds what a method needs.

    Args:
        method: The method.

    Returns:
        The statistic; None where it needs nothing beside the weights.
    """
    return None if method.statistic is None else STATISTICS[method.statistic]
