"""Metrics of tagged words: F1 of entities, and accuracy."""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from fmerge.errors import UserError
from fmerge.modules.answers import ABSENT


class TokenAccuracy(MulticlassAccuracy):
    """The share of tags that are right."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds tags (n, w), ABSENT where a token has none."""
        there = target != ABSENT
        super().update(preds[there], target[there])


class EntityF1(Metric):
    """F1 of entities, whole spans of one type, over all examples, as seqeval's ``f1_score``.

    Args:
        names: The tags, such as B-PER.
    """

    higher_is_better = True
    full_state_update = False
    right: Tensor
    found: Tensor
    true: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        for count in ("right", "found", "true"):
            self.add_state(count, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._known: dict[tuple[tuple[int, ...], ...], tuple[int, int, int]] = {}

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds tags (n, w), ABSENT where a token has none."""
        for own, truth in zip(preds.tolist(), target.tolist(), strict=True):
            pair = tuple((a, b) for a, b in zip(own, truth, strict=True) if b != ABSENT)
            if pair not in self._known:  # resamples see each example many times
                self._known[pair] = self._counts(pair)
            right, found, true = self._known[pair]
            self.right += right
            self.found += found
            self.true += true

    def _counts(self, pair: tuple[tuple[int, ...], ...]) -> tuple[int, int, int]:
        from seqeval.metrics.sequence_labeling import get_entities

        own, truth = (
            set(get_entities([self.names[tags[side]] for tags in pair])) for side in (0, 1)
        )
        return len(own & truth), len(own), len(truth)

    def compute(self) -> Tensor:
        """Computes 2 · right / (found + true); zero where there is no entity at all."""
        return 2 * self.right / (self.found + self.true).clamp_min(1)


def entity_f1(names: Sequence[str]) -> Metric:
    """Makes ``EntityF1``.

    Args:
        names: The tags.

    Returns:
        The metric.

    Raises:
        UserError: If seqeval is not installed.
    """
    if find_spec("seqeval") is None:
        raise UserError(
            "metric 'entity_f1': needs the package seqeval; run: pip install "
            "'fmerge[text-metrics]', or set metrics to [token_accuracy]"
        )
    return EntityF1(names)
