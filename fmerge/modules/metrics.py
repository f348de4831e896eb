"""torchmetrics by name, correct also for merged models that always give one answer."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassMatthewsCorrCoef,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from fmerge.errors import UserError, known


class _Matthews(MulticlassMatthewsCorrCoef):
    """Matthews' correlation, zero for constant predictions or labels.

    torchmetrics returns a small correlation for a constant predictor (its issue 3355).
    """

    def compute(self) -> Tensor:
        table = self.confmat
        constant = (table.sum(0) > 0).sum() < 2 or (table.sum(1) > 0).sum() < 2
        return torch.zeros((), device=table.device) if constant else super().compute()


class _Pearson(PearsonCorrCoef):
    """Pearson's correlation, zero where a side is constant instead of not a number.

    It is summed in float64: in float32 a mean far from zero cancels the digits of the variance.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        # Apple's GPUs have no float64
        kind = torch.float32 if preds.device.type == "mps" else torch.float64
        if self.mean_x.dtype != kind:  # at first, and where a module was cast to half precision
            self.set_dtype(kind)
        super().update(preds.to(kind), target.to(kind))

    def compute(self) -> Tensor:
        with _constant_allowed():
            return super().compute().nan_to_num(0.0)


class _Spearman(SpearmanCorrCoef):
    """Spearman's correlation, zero where a side is constant instead of not a number."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float(), target.float())

    def compute(self) -> Tensor:
        with _constant_allowed():
            return super().compute().nan_to_num(0.0)


@contextmanager
def _constant_allowed() -> Iterator[None]:
    """Silences torchmetrics' warning about a case that is handled here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The variance of predictions or target")
        yield


METRICS: Final[dict[str, Callable[[int], Metric]]] = {
    # micro: the share of examples that are right; torchmetrics' default averages classes
    "accuracy": lambda classes: MulticlassAccuracy(classes or None, average="micro"),
    "f1": lambda classes: BinaryF1Score(),
    "matthews": lambda classes: _Matthews(classes),
    "pearson": lambda classes: _Pearson(),
    "spearman": lambda classes: _Spearman(),
}
"""Metric name to its constructor, which takes the number of classes; higher is better."""


def make_metric(name: str, classes: int) -> Metric:
    """Makes a metric.

    Args:
        name: One of ``METRICS``.
        classes: Number of classes; 0 where every example has candidates of its own.

    Returns:
        The metric, to be updated with predictions (n,) and labels (n,).

    Raises:
        UserError: If the name is unknown, or the metric needs another number of classes.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'; known: {known(METRICS)}")
    if name == "f1" and classes != 2:
        raise UserError(f"metric 'f1': needs two classes, but the task has {classes}")
    return METRICS[name](classes)


def short_name(name: str) -> str:
    """Shortens the path of a function to its name, as submodules and scores are named.

    Args:
        name: A metric's name.

    Returns:
        What stands after its last dot.
    """
    return name.rpartition(".")[2]
