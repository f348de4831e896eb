"""Metrics of texts that a model writes or reads, each from sums over the examples.

Letters: n example, k statistic.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from typing import Final

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score, squad
from torchmetrics.text import BLEUScore

from fmerge.errors import UserError, known

Compare = Callable[[str, str], float]
"""From a written answer and the true one to a score from 0 to 1."""


@dataclass(frozen=True)
class Written:
    """What is known of n examples when they are scored.

    Attributes:
        log_likelihoods: Σₛ log p(yₛ | y₍<ₛ₎, x) of the true answers (n,).
        tokens: How many tokens these are sums over (n,).
        answers: What the model wrote (n,); empty where no metric asks for it.
        references: The true answers (n,).
    """

    log_likelihoods: Tensor
    tokens: Tensor
    answers: Sequence[str]
    references: Sequence[str]


class AnswerMetric(Metric, ABC):
    """A metric from 0 to 1 that is a function of Σₙ statistics[n].

    It can therefore be added over batches and processes, and computed on any of the examples.

    Args:
        size: k, the number of statistics of an example.
    """

    higher_is_better = True
    full_state_update = False
    written = True
    """Whether it compares written answers, which are generated for it."""

    total: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.add_state("total", torch.zeros(size), dist_reduce_fx="sum")

    @abstractmethod
    def statistics(self, found: Written) -> Tensor:
        """Computes what is to be added up.

        Args:
            found: n scored examples.

        Returns:
            Statistics (n, k).
        """

    @abstractmethod
    def value(self, total: Tensor) -> Tensor:
        """Computes the metric.

        Args:
            total: Sums of the statistics (k,).

        Returns:
            The score, a scalar.
        """

    def update(self, statistics: Tensor) -> None:
        """Adds examples.

        Args:
            statistics: See ``statistics`` (n, k).
        """
        # float32 counts to 17 million; Apple's GPUs have nothing larger
        kind = torch.float32 if self.total.device.type == "mps" else torch.float64
        self.total = self.total.to(kind) + statistics.to(self.total.device, kind).sum(0)

    def compute(self) -> Tensor:
        """Computes the metric of all examples so far.

        Returns:
            The score, a scalar in float32.
        """
        return self.value(self.total).float()


class _InversePerplexity(AnswerMetric):
    """The inverse of the perplexity, exp(Σ log p / number of tokens): the mean p of a token."""

    written = False

    def __init__(self) -> None:
        super().__init__(2)

    def statistics(self, found: Written) -> Tensor:
        return torch.stack([found.log_likelihoods.double(), found.tokens.double()], dim=1)

    def value(self, total: Tensor) -> Tensor:
        return (total[0] / total[1]).exp()


class _Mean(AnswerMetric):
    """The mean over the examples of a comparison.

    Args:
        compare: From an answer and the true one to a score from 0 to 1.
        name: Its name, for errors.
    """

    def __init__(self, compare: Compare, name: str) -> None:
        super().__init__(2)
        self.compare = compare
        self.name = name

    def statistics(self, found: Written) -> Tensor:
        pairs = zip(found.answers, found.references, strict=True)
        scores = [self._score(*pair) for pair in pairs]
        return torch.tensor([[one, 1.0] for one in scores], dtype=torch.float64)

    def value(self, total: Tensor) -> Tensor:
        return total[0] / total[1]

    def _score(self, answer: str, reference: str) -> float:
        found = self.compare(answer, reference)
        try:
            score = float(found)
        except (TypeError, ValueError):
            score = float("nan")
        if not (isfinite(score) and 0 <= score <= 1):
            raise UserError(
                f"metric '{self.name}': gives {found!r} for the answer {answer[:40]!r}, but must "
                "give a number from 0 to 1"
            )
        return score


class _Bleu(AnswerMetric):
    """BLEU of the whole corpus (Papineni et al. 2002), of words apart by spaces, up to 4-grams."""

    _N = 4

    def __init__(self) -> None:
        super().__init__(2 * self._N + 2)

    def statistics(self, found: Written) -> Tensor:
        rows = []
        for answer, reference in zip(found.answers, found.references, strict=True):
            one = BLEUScore(self._N)
            one.update([answer], [[reference]])
            lengths = torch.stack([one.preds_len, one.target_len])
            rows.append(torch.cat([one.numerator, one.denominator, lengths]))
        return torch.stack(rows)

    def value(self, total: Tensor) -> Tensor:
        n, whole = self._N, BLEUScore(self._N)
        numbers = total.cpu().float()
        whole.numerator, whole.denominator = numbers[:n], numbers[n : 2 * n]
        whole.preds_len, whole.target_len = numbers[2 * n], numbers[2 * n + 1]
        whole._update_count = 1  # else it warns that nothing was added
        score: Tensor = whole.compute()
        return score


def _squad(key: str) -> Compare:
    def compare(answer: str, reference: str) -> float:
        truth = {"answers": {"answer_start": [0], "text": [reference]}, "id": "0"}
        found = squad({"prediction_text": answer, "id": "0"}, truth)  # type: ignore[arg-type]
        return float(found[key]) / 100

    return compare


def _rouge(key: str) -> Compare:
    def compare(answer: str, reference: str) -> float:
        return float(rouge_score(answer, reference, rouge_keys=key)[f"{key}_fmeasure"])

    return compare


COMPARISONS: Final[dict[str, Compare]] = {
    "exact_match": _squad("exact_match"),
    "token_f1": _squad("f1"),
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
}
"""Name to the comparison of single answers: SQuAD's, and the F of ROUGE (Lin 2004)."""

ANSWER_METRICS: Final = ("inverse_perplexity", "bleu", *COMPARISONS)


def is_of_texts(name: str) -> bool:
    """Tells whether a metric is one of texts.

    Args:
        name: A metric's name.

    Returns:
        Whether ``answer_metric`` makes it: all functions of a user's own are.
    """
    return name in ANSWER_METRICS or "." in name


def answer_metric(name: str) -> AnswerMetric:
    """Makes a metric of texts.

    Args:
        name: One of ``ANSWER_METRICS``, or the path of a function of the user's own, such as
            ``my_module.similarity``.

    Returns:
        The metric.

    Raises:
        UserError: If there is no such metric or function.
    """
    if name == "inverse_perplexity":
        return _InversePerplexity()
    if name == "bleu":
        return _Bleu()
    if name in COMPARISONS:
        return _Mean(COMPARISONS[name], name)
    module, _, function = name.rpartition(".")
    if not module:
        raise UserError(
            f"metric '{name}': does not fit TextGenerator; known: {known(ANSWER_METRICS)}, or a "
            "function of your own as module.function"
        )
    try:
        compare = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"metric '{name}': cannot be imported ({error})") from error
    if not callable(compare):
        raise UserError(f"metric '{name}': is no function, but {type(compare).__name__}")
    return _Mean(compare, name)
