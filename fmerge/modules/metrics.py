"""torchmetrics by name, correct also for merged models that always give one answer."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.regression import (
    MeanAbsoluteError,
    MeanSquaredError,
    PearsonCorrCoef,
    R2Score,
    SpearmanCorrCoef,
)
from torchmetrics.utilities import dim_zero_cat

from fmerge.errors import UserError, known
from fmerge.modules.tag_metrics import TokenAccuracy, entity_f1
from fmerge.modules.text_metrics import ANSWER_METRICS
from fmerge.store import Kind, kind_of


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
        kind = _wide(preds)
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


def _wide(numbers: Tensor) -> torch.dtype:
    # Apple's GPUs have no float64
    return torch.float32 if numbers.device.type == "mps" else torch.float64


@contextmanager
def _constant_allowed() -> Iterator[None]:
    """Silences torchmetrics' warning about a case that is handled here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The variance of predictions or target")
        yield


class _AveragePrecision(MultilabelAveragePrecision):
    """Average precision, the mean over labels; zero of a label that no example has."""

    def compute(self) -> Tensor:  # type: ignore[override]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Average precision score for one or more classes")
            warnings.filterwarnings("ignore", "No positive samples found in target")
            return super().compute().nan_to_num(0.0)


class _R2(R2Score):
    """The share of explained variance, summed in float64; zero where the numbers are all equal."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.to(_wide(preds)), target.to(_wide(preds)))

    def compute(self) -> Tensor:
        if int(self.total) < 2:
            return torch.zeros((), device=self.device)
        return super().compute().nan_to_num(0.0, posinf=0.0, neginf=0.0)


class _Negative(Metric):
    """An error with the sign changed, so that higher is better."""

    higher_is_better = True
    full_state_update = False

    def __init__(self, error: Metric) -> None:
        super().__init__()
        self.error = error

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds predictions (n,) and numbers (n,)."""
        self.error.update(preds.float(), target.float())

    def compute(self) -> Tensor:
        """Computes the error so far, times −1."""
        error: Tensor = self.error.compute()
        return -error

    def reset(self) -> None:
        """Begins anew."""
        super().reset()
        self.error.reset()


class _Retrieval(Metric):
    """A score of the ranks of the own answers among the answers of all examples.

    Args:
        score: From ranks (n,), 0 for the nearest, to the score of each.
    """

    higher_is_better = True
    full_state_update = False
    vectors: list[Tensor]

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score
        self.add_state("vectors", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds the embeddings of queries and answers (n, 2d); targets are not read."""
        self.vectors.append(preds)

    def compute(self) -> Tensor:
        """Computes the mean score; equal answers share their rank."""
        queries, answers = dim_zero_cat(self.vectors).double().chunk(2, dim=1)
        similarities = queries @ answers.T
        own = similarities.diagonal()[:, None]
        # rounding must not rank a copy of the own answer before it
        ranks = (similarities > own + 1e-6).sum(dim=1)
        return self.score(ranks).double().mean()


Make = Callable[[Sequence[str]], Metric]
"""From the names of a task's classes, labels or tags to a metric; higher is better."""

METRICS: Final[Mapping[str, Mapping[Kind, Make]]] = {
    # micro: the share of examples that are right; torchmetrics' default averages classes
    "accuracy": {
        "classes": lambda names: MulticlassAccuracy(len(names) or None, average="micro"),
    },
    "f1": {"classes": lambda names: BinaryF1Score()},
    "macro_f1": {
        "classes": lambda names: MulticlassF1Score(len(names), average="macro"),
        "labels": lambda names: MultilabelF1Score(len(names), average="macro"),
    },
    "micro_f1": {"labels": lambda names: MultilabelF1Score(len(names), average="micro")},
    "average_precision": {"labels": lambda names: _AveragePrecision(len(names))},
    "matthews": {"classes": lambda names: _Matthews(len(names))},
    # of classes: bins of a score, in their order
    "pearson": {"classes": lambda names: _Pearson(), "number": lambda names: _Pearson()},
    "spearman": {"classes": lambda names: _Spearman(), "number": lambda names: _Spearman()},
    "r2": {"number": lambda names: _R2()},
    "neg_rmse": {"number": lambda names: _Negative(MeanSquaredError(squared=False))},
    "neg_mae": {"number": lambda names: _Negative(MeanAbsoluteError())},
    "recall_at_1": {"matches": lambda names: _Retrieval(lambda ranks: ranks < 1)},
    "recall_at_10": {"matches": lambda names: _Retrieval(lambda ranks: ranks < 10)},
    "mrr": {"matches": lambda names: _Retrieval(lambda ranks: 1 / (1 + ranks))},
    "entity_f1": {"tags": entity_f1},
    "token_accuracy": {"tags": lambda names: TokenAccuracy(len(names), average="micro")},
}
"""Metric name to its constructor for each kind of answers that it is of."""

CORRELATIONS: Final = frozenset({"pearson", "spearman"})
"""Metrics in [−1, 1] whose intervals are made on the scale of Fisher's transform."""

UNBOUNDED: Final = frozenset({"r2", "neg_rmse", "neg_mae"})
"""Metrics that have no lower bound."""


def make_metric(name: str, labels: Sequence[str]) -> Metric:
    """Makes a metric.

    Args:
        name: One of ``METRICS``.
        labels: Names of the task's classes or labels, which tell their kind; none where every
            example has candidates of its own.

    Returns:
        The metric, to be updated with predictions and targets, whose first dimension is n.

    Raises:
        UserError: If the name is unknown, or the metric is of other answers than the task's.
    """
    if name not in METRICS:
        other = "; for texts that a model writes, give --model TextGenerator"
        more = other if name in ANSWER_METRICS else ""
        raise UserError(f"unknown metric '{name}'; known: {known(METRICS)}{more}")
    kind = kind_of(labels)
    if kind not in METRICS[name]:
        fitting = [other for other, kinds in METRICS.items() if kind in kinds]
        raise UserError(
            f"metric '{name}': is of {' or '.join(METRICS[name])}, but the task's answers are "
            f"{kind}; use {known(fitting)}"
        )
    if name == "f1" and len(labels) != 2:
        raise UserError(
            f"metric 'f1': needs two classes, but the task has {len(labels)}; use macro_f1"
        )
    if name == "macro_f1" and not labels:
        raise UserError("metric 'macro_f1': needs classes that the examples share; use accuracy")
    return METRICS[name][kind](labels)


def short_name(name: str) -> str:
    """Shortens the path of a function to its name, as submodules and scores are named.

    Args:
        name: A metric's name.

    Returns:
        What stands after its last dot.
    """
    return name.rpartition(".")[2]
