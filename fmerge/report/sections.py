"""The tables of a report and of a model card."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fmerge.fisher.summary import layer_of
from fmerge.params import Params
from fmerge.report.parts import StageFacts
from fmerge.report.scores import EXPERTS, Comparison, Row, TaskFacts
from fmerge.report.tables import (
    MISSING,
    Cell,
    Column,
    Line,
    Table,
    difference,
    percent,
    score,
)
from fmerge.search import Trial

RETAINED = (
    "Retained is the mean over tasks of a model's score divided by the score of the task's expert, "
    "in per cent."
)
INTERVALS = (
    "The ranges are 95% confidence intervals over the test examples: Wilson's interval for an "
    "accuracy (Agresti and Coull's where at most 5 examples are right or wrong), a bootstrap "
    "interval for other metrics, and for the mean the interval of independent tasks. They do not "
    "cover how much another fine-tuning or another search would differ."
)
PAIRS = (
    "Each difference is between two models on the same test examples. Its 95% confidence interval "
    "is that of Bonett and Price for an accuracy, of a paired bootstrap for other metrics, and of "
    "independent tasks for the mean. Intervals that exclude 0 are in bold; in a table of "
    "several differences, one of them may exclude 0 by chance."
)
NON_DOMINATED = (
    "A trial is non-dominated if no other trial is at least as good on every task and better on "
    "one."
)
SENSITIVITY = (
    "The share of the objective's variance that involves a coefficient, alone or together with "
    "others (Sobol's total index), as the search's model predicts it within the bounds. "
    "The shares may sum to more than 100%."
)
MOST = 12
"""Trials that are listed."""


def score_table(
    rows: Sequence[Row], title: str, own: Sequence[str] = (), notes: Sequence[str] = ()
) -> Table:
    """Lays out test scores.

    Args:
        rows: The models compared, the experts among them.
        title: The table's title.
        own: Names of the rows that are highlighted.
        notes: Further notes.

    Returns:
        A row a model; a column a task, the mean over tasks, and the retained share.
    """
    experts = next(row for row in rows if row.name == EXPERTS).scores
    lines = []
    for row in rows:
        retained = row.retained(experts)
        cells = [
            Cell(row.name),
            *(
                score(row.estimates[task]) if task in row.estimates else percent(row.scores[task])
                for task in experts
            ),
            percent(row.mean_over(list(experts))) if row.mean is None else score(row.mean),
            Cell(MISSING) if retained is None else percent(retained),
        ]
        lines.append(Line(cells, row.name in own))
    intervals = [INTERVALS] if any(row.estimates for row in rows) else []
    columns = [Column("", text=True), *map(Column, experts), Column("mean"), Column("retained")]
    return Table(title, columns, lines, [RETAINED, *intervals, *notes])


def comparison_table(
    comparisons: Sequence[Comparison], runner_up: Trial | None = None, improved: bool = False
) -> Table:
    """Lays out differences of test scores.

    Args:
        comparisons: The comparisons, one at least.
        runner_up: The trial that rows call the runner-up.
        improved: Whether the merge is that of a stage after the search.

    Returns:
        A row a comparison; a column a task, and the mean over tasks.
    """
    lines = [
        Line([
            Cell(f"{one.name} minus {one.against}"),
            *(difference(found) for found in (*one.differences.values(), one.mean)),
        ])
        for one in comparisons
    ]
    columns = [Column("", text=True), *map(Column, comparisons[0].differences), Column("mean")]
    notes = [PAIRS]
    if runner_up is not None:
        what = "best of the search" if improved else "second best"
        notes.append(f"The runner-up is trial {runner_up.index}, the {what} on validation.")
    return Table("Differences, in points", columns, lines, notes)


def trial_table(trials: Sequence[Trial], best: Trial) -> Table:
    """Lays out how the tasks' validation scores trade off.

    Args:
        trials: The non-dominated trials, the best first.
        best: The trial that was chosen.

    Returns:
        A row a trial, up to ``MOST``; the objective, and a column a task.
    """
    lines = []
    for one in trials[:MOST]:
        chosen = one.index == best.index
        scores = [percent(one.objective or 0), *(percent(one.metrics[t]) for t in best.metrics)]
        lines.append(Line([Cell(f"{one.index}{', chosen' * chosen}"), *scores], chosen))
    listed = f" The best {MOST} of {len(trials)} are listed." if len(trials) > MOST else ""
    columns = [Column("trial", text=True), Column("objective"), *map(Column, best.metrics)]
    title = "Non-dominated trials, validation scores in %"
    return Table(title, columns, lines, [NON_DOMINATED + listed])


def coefficient_table(
    coefficients: Mapping[str, float], sensitivity: Mapping[str, float], digits: str = ".4f"
) -> Table:
    """Lays out the chosen coefficients.

    Args:
        coefficients: λ by name.
        sensitivity: Share of the objective's variance by name; empty without a model.
        digits: Format of a coefficient.

    Returns:
        A row a coefficient: its value and, if known, its share of the variance.
    """
    columns = [Column("coefficient", text=True), Column("value")]
    if sensitivity:
        columns.append(Column("share of the objective's variance, %"))
    lines = []
    for name, value in coefficients.items():
        bar = min(max(value, 0.0), 1.0)
        cells = [Cell(name, code=True), Cell(f"{value:{digits}}", share=bar)]
        if sensitivity:
            cells.append(Cell(f"{100 * sensitivity[name]:.0f}", share=sensitivity[name]))
        lines.append(Line(cells))
    return Table("Coefficients", columns, lines, [SENSITIVITY] if sensitivity else [])


def layer_table(fisher: Params, title: str) -> Table:
    """Lays out a Fisher's mean by layer.

    Args:
        fisher: F by parameter name.
        title: The table's title.

    Returns:
        A row a layer: its entries, their mean, and its share of the total.
    """
    layers: dict[str, list[Tensor]] = {}
    for name, tensor in fisher.items():
        layers.setdefault(layer_of(name), []).append(tensor)
    sums = {
        layer: sum(float(one.double().sum()) for one in tensors)
        for layer, tensors in layers.items()
    }
    total = sum(sums.values())
    lines = []
    for layer, tensors in layers.items():
        entries = sum(tensor.numel() for tensor in tensors)
        share = sums[layer] / total if total else 0.0
        mean = f"{sums[layer] / entries:.2e}"
        lines.append(Line([Cell(layer), Cell(f"{entries:,}"), Cell(mean), percent(share)]))
    names = map(Column, ("entries", "mean Fisher", "share, %"))
    return Table(title, [Column("layer", text=True), *names], lines)


def stage_table(stages: Sequence[StageFacts]) -> Table:
    """Lays out what each part of a run brought.

    Args:
        stages: The parts, in order.

    Returns:
        A row a part: its trials, the best objective before and after it, and its time.
    """
    total = sum(one.seconds for one in stages) or 1.0
    lines = [
        Line([
            Cell(one.name),
            Cell(str(one.trials) if one.trials else MISSING),
            *(Cell(MISSING) if x is None else percent(x) for x in (one.before, one.after)),
            Cell(f"{one.seconds:.1f}"),
            percent(one.seconds / total),
        ])
        for one in stages
    ]
    names = ("trials", "before", "after", "seconds", "share of time, %")
    columns = [Column("stage", text=True), *map(Column, names)]
    return Table("What each stage brought, best objective on validation in %", columns, lines)


def task_table(tasks: Mapping[str, TaskFacts]) -> Table:
    """Lays out the examples of the choice and of the test.

    Args:
        tasks: What the tasks were scored on.

    Returns:
        A row a task.
    """
    lines = [
        Line([
            Cell(name),
            Cell(task.kind, code=True),
            Cell(", ".join(task.metrics)),
            Cell(task.sha256[:16], code=True),
            *(Cell(str(task.sizes[split])) for split in ("validation", "test")),
        ])
        for name, task in tasks.items()
    ]
    texts = [Column(name, text=True) for name in ("task", "data", "metrics", "SHA-256")]
    notes = ["Validation and test are numbers of examples; the hash is of the validation examples."]
    return Table("Data", [*texts, Column("validation"), Column("test")], lines, notes)


def model_table(models: Sequence[tuple[str, str, str]], digits: int | None = None) -> Table:
    """Lays out what was merged.

    Args:
        models: Name, place and SHA-256 of each model; an unknown hash is empty.
        digits: How many digits of a hash are shown; all if None.

    Returns:
        A row a model.
    """
    lines = [
        Line([Cell(name), Cell(path), Cell(sha[:digits], code=True) if sha else Cell(MISSING)])
        for name, path, sha in models
    ]
    header = ("name", "read from", "SHA-256 of its weights")
    return Table("Models", [Column(name, text=True) for name in header], lines)
