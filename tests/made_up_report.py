"""A report of a merge that never was, with names of any kind."""

import math

import torch

from fmerge.fisher.summary import summarise_fishers
from fmerge.report.confidence import mean_over_tasks, normal, wilson
from fmerge.report.merge_report import MergeReport
from fmerge.report.scores import (
    AVERAGE,
    BASE,
    EXPERTS,
    MERGE,
    REFITTED,
    RUNNER_UP,
    Comparison,
    Row,
    TaskFacts,
)
from fmerge.search import Fixed, Pick, SearchSpace, Trial, non_dominated_trials
from fmerge.search.objective import Objective

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://example.org/x onerror=alert(1)>',
    "{{ 7 * 7 }} $x^$ | `a` [l](http://example.org)",
]


def made_up(tasks, layers=4, trials=30):
    """A search and its report."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> float:
        return float(torch.rand((), generator=generator))

    def row(name, low):
        scores = {task: low + 0.2 * draw() for task in tasks}
        estimates = {task: wilson(score, 480) for task, score in scores.items()}
        return Row(name, scores, estimates, mean_over_tasks(list(estimates.values())))

    def compared(against):
        found = {task: normal(0.12 * (draw() - 0.4), 0.02) for task in tasks}
        return Comparison(MERGE, against, found, mean_over_tasks(list(found.values())))

    search = Fixed()
    search.start(SearchSpace(tasks))
    for i in range(trials):
        coefficients = {task: draw() for task in tasks}
        metrics = {
            task: 0.4 + 0.5 * math.sqrt(value) / (1 + sum(coefficients.values()))
            for task, value in coefficients.items()
        }
        search.tell(Trial(i, coefficients, sum(metrics.values()) / len(tasks), metrics))
    search.tell(Trial(trials, coefficients, status="failed", reason="nan"))
    fishers = {
        task: {
            f"bert.encoder.layer.{i}.output.dense.weight": torch.rand(9, generator=generator) ** 3
            for i in range(layers)
        }
        for task in tasks
    }
    kinds = ((BASE, 0.3), (BASE + REFITTED, 0.6), (EXPERTS, 0.75), (AVERAGE, 0.5), (RUNNER_UP, 0.6))
    report = MergeReport(
        "DFMerge",
        "AxSearch",
        search.best(),
        len(search.history),
        {task: f"runs/{task}/expert" for task in tasks},
        f"base/{tasks[0]}",
        [row(*kind) for kind in (*kinds, (MERGE, 0.6))],
        Objective("mean", dict.fromkeys(tasks, 1.0)),
        ("",),
        Pick(search.history[3], 0.7, 0.004),
        "accuracy",
        f"`{tasks[0]}` 10.0% of the base's norm",
        "end",
        None,
        [f"`{tasks[0]}` is a fact"],
        {"alpha": 1.0, "label": tasks[0]},
        [compared(AVERAGE), compared(RUNNER_UP), compared(EXPERTS)],
        search.runner_up(),
        {task: draw() for task in tasks},
        summarise_fishers(fishers),
        {
            task: TaskFacts("TextFiles", ["accuracy"], {"validation": 200, "test": 480}, "ab" * 32)
            for task in tasks
        },
        sorted(non_dominated_trials(search.history), key=search.rank, reverse=True),
        {"expert": dict.fromkeys(tasks, "cd" * 32), "base": "ef" * 32},
    )
    return report, search
