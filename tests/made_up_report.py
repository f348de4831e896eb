"""A report of a merge that never was, with names of any kind."""

import math

import torch

from fmerge.fisher.summary import summarise_fishers
from fmerge.report.confidence import Estimate, mean_over_tasks, wilson
from fmerge.report.merge_report import MergeReport
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome, Trials
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
    """A report of a search that found something."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> float:
        return float(torch.rand((), generator=generator))

    def row(name, low):
        scores = {task: low + 0.2 * draw() for task in tasks}
        estimates = {task: wilson(score, 480) for task, score in scores.items()}
        return Row(name, scores, estimates, mean_over_tasks(list(estimates.values())))

    def compared(against):
        values = {task: 0.12 * (draw() - 0.4) for task in tasks}
        found = {task: Estimate(v, v - 0.0392, v + 0.0392, 0.02) for task, v in values.items()}
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
    found = SearchOutcome(
        method="DFMerge",
        name="AxSearch",
        best=search.best(),
        trials=Trials(search.history),
        goal=Objective("mean", dict.fromkeys(tasks, 1.0)),
        pick=Pick(search.history[3], 0.7, 0.004),
        sensitivity={task: draw() for task in tasks},
        non_dominated=sorted(non_dominated_trials(search.history), key=search.rank, reverse=True),
        runner_up=search.runner_up(),
    )
    tests = TestOutcome(
        rows=[row(*kind) for kind in (*kinds, (MERGE, 0.6))],
        comparisons=[compared(AVERAGE), compared(RUNNER_UP), compared(EXPERTS)],
        refit_heads="end",
    )
    data = TaskFacts("TextFiles", ["accuracy"], {"validation": 200, "test": 480}, "ab" * 32)
    provenance = Provenance(
        experts={task: f"runs/{task}/expert" for task in tasks},
        base=f"base/{tasks[0]}",
        hashes={"expert": dict.fromkeys(tasks, "cd" * 32), "base": "ef" * 32},
        tasks=dict.fromkeys(tasks, data),
        facts=[f"`{tasks[0]}` is a fact"],
        parameters={"alpha": 1.0, "label": tasks[0]},
        vectors=f"`{tasks[0]}` 10.0% of the base's norm",
        fishers=summarise_fishers(fishers),
    )
    return MergeReport(search=found, tests=tests, provenance=provenance)
