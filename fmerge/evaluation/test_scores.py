"""Test scores of a merge and of its baselines, with one pass over the test split for each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmerge.data import MultiTask, Split
from fmerge.evaluation.evaluator import Evaluator, by_accuracy, mean
from fmerge.modules import Predictions, record_predictions
from fmerge.modules.metrics import CORRELATIONS, UNBOUNDED, make_metric
from fmerge.modules.text_metrics import answer_metric, is_of_texts
from fmerge.params import Params
from fmerge.report.confidence import DRAWS, Estimate, mean_over_tasks, paired, proportion
from fmerge.report.resamples import (
    Resamples,
    Score,
    correlation,
    correlation_difference,
    difference,
    of_classes,
    of_numbers,
    spread,
)
from fmerge.report.scores import (
    AVERAGE,
    BASE,
    BASELINES,
    EXPERTS,
    REFITTED,
    RUNNER_UP,
    TRAINED,
    Comparison,
    Row,
    TaskFacts,
)
from fmerge.store import kind_of

_SPLITS: tuple[Split, ...] = ("validation", "test")


@dataclass
class _Tested:
    """What was measured of one row.

    Attributes:
        scores: Score by task.
        outcomes: Predictions and targets of each example, for the tasks where they are known.
        resamples: The score on bootstrap resamples, for tasks that are not scored by accuracy
            alone, by task and whether it is the second of a comparison.
    """

    scores: dict[str, float] = field(default_factory=dict)
    outcomes: Predictions = field(default_factory=dict)
    resamples: dict[tuple[str, bool], Resamples] = field(default_factory=dict)


class TestTable:
    """Tests bodies, each once, and estimates the intervals of their scores and differences.

    Args:
        evaluator: Runs the passes.
        draws: How many bootstrap resamples estimate the error of a metric other than accuracy.
    """

    __test__ = False  # for pytest, which takes Test* for a class of tests

    def __init__(self, evaluator: Evaluator, draws: int = DRAWS) -> None:
        self.evaluator = evaluator
        self.draws = draws
        self._tested: dict[str, _Tested] = {}

    def add(self, name: str, body: Params, tasks: Sequence[str]) -> None:
        """Tests a body, under each task's own head.

        Args:
            name: The row; its scores on other tasks stay.
            body: The body.
            tasks: The tasks.
        """
        self.record(name, lambda: self.evaluator.score(body, "test", tasks))

    def record(self, name: str, test: Callable[[], dict[str, float]]) -> None:
        """Tests a model.

        Args:
            name: The row; its scores on other tasks stay.
            test: Runs one test of the Trainer and returns the scores by task.
        """
        row = self._tested.setdefault(name, _Tested())
        with record_predictions(self.evaluator.trainer) as recorder:
            row.scores |= test()
        row.outcomes |= recorder.predictions(self.evaluator.trainer)

    def rows(self) -> list[Row]:
        """Lists what was tested.

        Returns:
            The rows, the baselines first; only the first process has intervals.
        """
        order = [*BASELINES, RUNNER_UP, RUNNER_UP + REFITTED, *self._tested]
        return [self._row(name) for name in dict.fromkeys(order) if name in self._tested]

    def _row(self, name: str) -> Row:
        row = self._tested[name]
        if not self.evaluator.trainer.is_global_zero:
            return Row(name, row.scores)
        found = {task: self._estimate(row, task) for task in row.scores}
        known = {task: one for task, one in found.items() if one is not None}
        return Row(name, row.scores, known, mean_over_tasks(list(found.values())))

    def comparisons(self, name: str) -> list[Comparison]:
        """Compares a row with the plain average, the runner-up, the experts and the base.

        Rows with refitted heads are compared with each other, with the experts and with the
        refitted base, and every row with those that were trained.

        Args:
            name: The row.

        Returns:
            The comparisons with those of them that were tested; none in other processes than the
            first.
        """
        if not self.evaluator.trainer.is_global_zero:
            return []
        trained = [row for row in TRAINED if row in self._tested]
        # the base under heads of other bodies is no baseline of a merge with refitted ones
        honest = {"": [BASE, BASE + REFITTED, *trained], REFITTED: [BASE + REFITTED, *trained]}
        return [
            self._compare(name + heads, against)
            for heads in ("", REFITTED)
            for against in (AVERAGE + heads, RUNNER_UP + heads, EXPERTS, *honest[heads])
            if {name + heads, against} <= self._tested.keys() and name + heads != against
        ]

    def _compare(self, name: str, against: str) -> Comparison:
        one, other = self._tested[name], self._tested[against]
        found = {task: self._difference(one, other, task) for task in one.scores}
        return Comparison(name, against, found, mean_over_tasks(list(found.values())))

    def _estimate(self, row: _Tested, task: str) -> Estimate | None:
        if by_accuracy(self.evaluator.data, task):
            known = row.outcomes.get(task)
            number = len(known[1]) if known else self.evaluator.data.size(task, "test")
            return proportion(row.scores[task], number)
        found = self._resamples(row, task)
        if found is None:
            return None
        return correlation(found) if self._correlates(task) else spread(found, self._least(task))

    def _difference(self, one: _Tested, other: _Tested, task: str) -> Estimate | None:
        if task not in one.outcomes or task not in other.outcomes:
            return None
        if by_accuracy(self.evaluator.data, task):
            return paired(_right(one, task), _right(other, task))
        mine, its = self._resamples(one, task), self._resamples(other, task, second=True)
        if mine is None or its is None:
            return None
        if self._correlates(task):
            return correlation_difference(mine, its)
        return difference(mine, its, self._least(task))

    def _resamples(self, row: _Tested, task: str, second: bool = False) -> Resamples | None:
        """Computes the task's metrics on bootstrap resamples; None where answers are unknown."""
        if task not in row.outcomes:
            return None
        if (task, second) not in row.resamples:
            predictions, targets = row.outcomes[task]
            texts = all(map(is_of_texts, self.evaluator.data.metrics[task]))
            score = self._score_of_texts(task) if texts else self._score(task)
            labels = self.evaluator.data.labels[task]
            # the resamples of one seed are the same for every row, so differences are paired
            row.resamples[task, second] = (
                of_classes(score, predictions, targets, len(labels), second, self.draws)
                if not texts and kind_of(labels) == "classes"
                else of_numbers(score, predictions, targets, self.draws)
            )
        return row.resamples[task, second]

    def _score(self, task: str) -> Score:
        data = self.evaluator.data
        metrics = {name: make_metric(name, data.labels[task]) for name in data.metrics[task]}

        def score(predictions: Tensor, targets: Tensor) -> float:
            found = {}
            for name, metric in metrics.items():
                metric.reset()
                metric.update(predictions, targets)
                found[name] = float(metric.compute())
            return mean(found)

        return score

    def _score_of_texts(self, task: str) -> Score:
        metrics = [answer_metric(name) for name in self.evaluator.data.metrics[task]]
        sizes = [metric.size for metric in metrics]

        def score(statistics: Tensor, targets: Tensor) -> float:
            totals = torch.split(statistics.double().sum(0), sizes)
            return mean({
                str(i): float(metric.value(total))
                for i, (metric, total) in enumerate(zip(metrics, totals, strict=True))
            })

        return score

    def _correlates(self, task: str) -> bool:
        data = self.evaluator.data
        return kind_of(data.labels[task]) == "number" and set(data.metrics[task]) <= CORRELATIONS

    def _least(self, task: str) -> float:
        metrics = set(self.evaluator.data.metrics[task])
        if metrics & UNBOUNDED:
            return -math.inf
        return -1.0 if "matthews" in metrics else 0.0


def task_facts(data: MultiTask | None, hashes: Mapping[str, str]) -> dict[str, TaskFacts]:
    """Describes the data of tasks.

    Args:
        data: The tasks, if there are any.
        hashes: Hash of each task's validation examples.

    Returns:
        Task name to its data's class, metrics, sizes and hash.
    """
    if data is None:
        return {}
    return {
        name: TaskFacts(
            kind=type(task).__name__,
            metrics=task.metrics,
            sizes={split: data.size(name, split) for split in _SPLITS},
            sha256=hashes[name],
        )
        for name, task in data.tasks.items()
    }


def _right(row: _Tested, task: str) -> Tensor:
    predictions, targets = row.outcomes[task]
    return (predictions == targets).to(torch.float64)
