"""The test of several bodies: one pass each, with intervals by the task's own metric."""

from types import SimpleNamespace

import pytest
import torch

from fmerge.evaluation.test_scores import TestTable, task_facts
from fmerge.modules.metrics import make_metric
from fmerge.report.confidence import bonett_price, proportion
from fmerge.report.resamples import (
    correlation,
    correlation_difference,
    difference,
    of_classes,
    of_numbers,
    spread,
)

N = 60
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(2, (N,), generator=GENERATOR)
NUMBERS = torch.rand(N, generator=GENERATOR)
TARGETS = {"binary": LABELS, "numbers": NUMBERS, "plain": LABELS, "silent": LABELS}
METRICS = {
    "binary": ["accuracy", "f1"],
    "numbers": ["pearson"],
    "plain": ["accuracy"],
    "silent": ["matthews"],
}


def answers(task, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(N, generator=generator)
    return NUMBERS + noise if task == "numbers" else LABELS ^ (noise < 0.05 * seed).long()


def metric_of(task, predictions, targets):
    classes = 1 if task == "numbers" else 2
    found = [
        float(make_metric(name, ["x"] * classes)(predictions, targets)) for name in METRICS[task]
    ]
    return sum(found) / len(found)


def score(task, predictions):
    return metric_of(task, predictions, TARGETS[task])


class Evaluator:
    """Makes each pass twice, as one that ran out of memory on its second batch does."""

    def __init__(self):
        self.trainer = SimpleNamespace(callbacks=[], world_size=1, is_global_zero=True)
        self.data = SimpleNamespace(
            metrics=METRICS,
            labels={task: ["y"] if task == "numbers" else ["a", "b"] for task in TARGETS},
            size=lambda task, split: N,
            tasks={task: type("Data", (), {"metrics": METRICS[task]})() for task in TARGETS},
        )

    def score(self, body, split, tasks):
        assert split == "test"
        (recorder,) = self.trainer.callbacks
        for size, batches in ((20, 1), (10, 6)):
            recorder.on_test_start(self.trainer, None)
            for task in tasks:
                for i in range(batches):
                    part = slice(i * size, (i + 1) * size)
                    outputs = {
                        "predictions": answers(task, body)[part],
                        "targets": TARGETS[task][part],
                    }
                    if task == "silent":  # a test_step of the user's own
                        outputs = None
                    recorder.on_test_batch_end(self.trainer, None, outputs, {"task": task}, i)
        return {task: score(task, answers(task, body)) for task in tasks}


@pytest.fixture(scope="module")
def table():
    made = TestTable(Evaluator(), draws=25)
    made.add("this merge", 2, list(TARGETS))
    for task in TARGETS:
        made.add("experts", 1, [task])
    made.add("plain average", 6, list(TARGETS))
    made.record("base, heads refitted", lambda: dict.fromkeys(TARGETS, 0.5))
    assert made.evaluator.trainer.callbacks == []
    return made


def test_references_come_first(table):
    names = ["base, heads refitted", "experts", "plain average", "this merge"]
    assert [row.name for row in table.rows()] == names


def resamples(task, seed, second=False):
    """What the intervals are made of, here from the score's own definition."""
    if task == "numbers":
        return of_numbers(lambda p, y: metric_of(task, p, y), answers(task, seed), NUMBERS, 25)
    return of_classes(
        lambda p, y: metric_of(task, p, y), answers(task, seed), LABELS, 2, second, 25
    )


@pytest.mark.parametrize(
    ("task", "single", "several"),
    [("binary", spread, difference), ("numbers", correlation, correlation_difference)],
)
def test_other_metrics_are_resampled(table, task, single, several):
    row = table.rows()[-1]
    assert row.estimates[task] == single(resamples(task, 2))
    assert row.estimates[task].value == row.scores[task] == score(task, answers(task, 2))
    average, experts, base = table.comparisons("this merge")
    names = [one.against for one in (average, experts, base)]
    assert names == ["plain average", "experts", "base, heads refitted"]
    for comparison, seed in ((average, 6), (experts, 1)):
        found = comparison.differences[task]
        expected = score(task, answers(task, 2)) - score(task, answers(task, seed))
        assert found.value == pytest.approx(expected)
        assert found == several(resamples(task, 2), resamples(task, seed, second=True))
        assert found.low < found.value < found.high


def test_accuracies_are_paired_example_by_example(table):
    ours, theirs = answers("plain", 2) == LABELS, answers("plain", 6) == LABELS
    found = table.comparisons("this merge")[0].differences["plain"]
    assert found == bonett_price(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), N)
    assert found.value == pytest.approx(float((ours.double() - theirs.double()).mean()))
    own = table.rows()[-1].estimates["plain"]
    assert own.ends() == pytest.approx(proportion(float(ours.double().mean()), N).ends())


def test_what_is_not_known_is_not_told(table):
    rows = table.rows()
    assert "silent" not in rows[-1].estimates and rows[-1].mean is None
    assert rows[0].estimates.keys() == {"plain"}
    comparison = table.comparisons("this merge")[0]
    assert comparison.differences["silent"] is None and comparison.mean is None


def test_other_processes_only_score(table):
    table.evaluator.trainer.is_global_zero = False
    assert not table.comparisons("this merge") and not any(r.estimates for r in table.rows())
    table.evaluator.trainer.is_global_zero = True


def test_the_splits_are_counted(table):
    facts = task_facts(table.evaluator.data, dict.fromkeys(TARGETS, "ab"))
    assert facts["plain"].sizes == {"validation": N, "test": N} and facts["plain"].kind == "Data"
    assert task_facts(None, {}) == {}


class Texts:
    """An evaluator whose module tells what the metrics of its texts are sums of."""

    def __init__(self):
        self.trainer = SimpleNamespace(callbacks=[], world_size=1, is_global_zero=True)
        self.data = SimpleNamespace(
            metrics={"texts": ["exact_match", "inverse_perplexity"]}, labels={"texts": []}
        )

    def score(self, body, split, tasks):
        (recorder,) = self.trainer.callbacks
        outputs = {"predictions": body, "targets": torch.zeros(N, dtype=torch.long)}
        recorder.on_test_batch_end(self.trainer, None, outputs, {"task": "texts"}, 0)
        return {"texts": score_of_texts(body)}


def score_of_texts(rows):
    """Half the share of exact matches, and half the inverse of the perplexity."""
    right, _, log_likelihoods, tokens = rows.double().sum(0)
    return float((right / len(rows) + (log_likelihoods / tokens).exp()) / 2)


def test_scores_of_texts_are_resampled():
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 9, (N,), generator=generator).float()
    better, worse = (
        torch.stack([
            (torch.rand(N, generator=generator) < share).float(),
            torch.ones(N),
            -2 * lengths * torch.rand(N, generator=generator),
            lengths,
        ], dim=1)
        for share in (0.7, 0.4)
    )  # fmt: skip
    table = TestTable(Texts(), draws=25)
    table.add("plain average", worse, ["texts"])
    table.add("this merge", better, ["texts"])
    mine, its = (
        of_numbers(lambda p, _: score_of_texts(p), rows, rows[:, 0], 25) for rows in (better, worse)
    )
    assert table.rows()[-1].estimates["texts"] == spread(mine)
    (found,) = table.comparisons("this merge")
    assert found.differences["texts"] == difference(mine, its)
    assert found.differences["texts"].value > 0
