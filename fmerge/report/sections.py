"""The sections of ``report.md`` and of a model card."""

from collections.abc import Mapping, Sequence

from fmerge.fisher.summary import FisherSummary
from fmerge.report.markdown import code, percent, plain, points, table
from fmerge.report.scores import Comparison, Row, TaskFacts, score_cells
from fmerge.search import Trial

INTERVALS = (
    "The ranges are 95% confidence intervals over test examples: Wilson's for an accuracy, from a "
    "bootstrap for other metrics, for the mean that of independent tasks. They know nothing of "
    "what another fine-tuning or another search would give."
)
PAIRS = (
    "Each difference is over the very same test examples, with its 95% confidence interval: by "
    "the spread of right minus wrong for accuracies, by a paired bootstrap for other metrics, for "
    "the mean that of independent tasks. An interval without 0 is in bold; several are looked at, "
    "so that one of them may leave out 0 by chance."
)
MOST = 12
"""Trials that are listed."""

UNBEATEN = "no other is as good on every task and better on one."
SENSITIVITY = (
    "Share of the variance of the objective, as the search's model predicts it over all "
    "coefficients from 0 to 1, that a coefficient has a part in, alone or together with others "
    "(Sobol's total index): they may sum to more than 100%."
)
OVERLAP = (
    "For the diagonal Fishers F and G of two tasks, over the entries i of the body: cosine = "
    "Σᵢ FᵢGᵢ / (‖F‖ ‖G‖), overlap = Σᵢ min(Fᵢ / ΣF, Gᵢ / ΣG). Both are 1 where the tasks need the "
    "same entries alike, and 0 where they need none in common."
)


def score_lines(rows: Sequence[Row], measure: str) -> list[str]:
    """Writes the scores.

    Args:
        rows: The models compared.
        measure: What a score is.

    Returns:
        Lines of Markdown.
    """
    header, *lines = score_cells(rows)
    tasks = header[1:-2]
    for line, row in zip(lines, rows, strict=True):
        for k, task in enumerate(tasks, 1):
            if task in row.estimates:
                line[k] = percent(row.estimates[task])
        if row.mean is not None:
            line[-2] = percent(row.mean)
    known = any(row.estimates for row in rows)
    return [
        "",
        f"Test {measure} in per cent:",
        "",
        *table([plain(name) for name in header], lines),
        "",
        "*kept*: the mean over tasks of the score divided by the expert's."
        + (f" {INTERVALS}" if known else ""),
    ]


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Writes what the merge gained on other rows.

    Args:
        comparisons: The comparisons.

    Returns:
        Lines of Markdown; none without comparisons.
    """
    if not comparisons:
        return []
    tasks = list(comparisons[0].differences)
    rows = [
        [
            f"{one.name} minus {one.against}",
            *(
                f"**{points(found)}**" if found is not None and found.decided else points(found)
                for found in (*one.differences.values(), one.mean)
            ),
        ]
        for one in comparisons
    ]
    header = ["", *map(plain, tasks), "mean"]
    return ["", "## Differences, in points", "", *table(header, rows), "", PAIRS]


def trade_lines(trials: Sequence[Trial], best: Trial) -> list[str]:
    """Writes how the tasks' scores trade off.

    Args:
        trials: Those that no other beats, the best first.
        best: The one that was kept.

    Returns:
        Lines of Markdown; none for one task.
    """
    if len(best.metrics) < 2:
        return []
    rows = [
        [
            f"{one.index}, kept" if one.index == best.index else str(one.index),
            f"{100 * (one.objective or 0):.1f}",
            *(f"{100 * one.metrics[task]:.1f}" for task in best.metrics),
        ]
        for one in trials[:MOST]
    ]
    header = ["trial", "objective", *map(plain, best.metrics)]
    number = f"the {MOST} best of {len(trials)} trials" if len(trials) > MOST else "the trials"
    what = f"Validation scores in per cent of {number} that none beats: {UNBEATEN}"
    return ["", "## How the tasks trade off", "", what, "", *table(header, rows)]


def sensitivity_lines(sensitivity: Mapping[str, float]) -> list[str]:
    """Writes what the objective depends on.

    Args:
        sensitivity: Share by coefficient.

    Returns:
        Lines of Markdown; none without a model.
    """
    if not sensitivity:
        return []
    rows = [[code(name), f"{100 * share:.0f}"] for name, share in sensitivity.items()]
    head = ["", "## What the objective depends on", ""]
    return [*head, *table(["coefficient", "%"], rows), "", SENSITIVITY]


def fisher_lines(facts: FisherSummary | None) -> list[str]:
    """Writes where the Fishers lie.

    Args:
        facts: What was measured, if the method had Fishers.

    Returns:
        Lines of Markdown; none without Fishers.
    """
    if facts is None:
        return []
    names = list(map(plain, facts.names))
    layers = [
        [code(layer), *(f"{100 * share:.1f}" for share in shares)]
        for layer, shares in facts.layers.items()
    ]
    means = ["mean entry", *(f"{mean:.2e}" for mean in facts.means)]
    pairs = [
        [name, *(f"{cosine:.2f}, {overlap:.2f}" for cosine, overlap in zip(*both, strict=True))]
        for name, *both in zip(names, facts.cosines, facts.overlaps, strict=True)
    ]
    return [
        *["", "## Fishers", "", "Share of each task's Fisher by layer, in per cent:", ""],
        *table(["layer", *names], [*layers, means]),
        *["", "Cosine and overlap of the Fishers of two tasks:", ""],
        *table(["", *names], pairs),
        *["", OVERLAP],
    ]


def task_lines(tasks: Mapping[str, TaskFacts]) -> list[str]:
    """Writes what chose and what scored.

    Args:
        tasks: What the tasks were scored on.

    Returns:
        Lines of Markdown; none without data.
    """
    if not tasks:
        return []
    rows = [
        [
            plain(name),
            code(task.kind),
            ", ".join(task.metrics),
            code(task.sha256[:12]),
            *(str(task.sizes[split]) for split in ("validation", "test")),
        ]
        for name, task in tasks.items()
    ]
    header = ["task", "data", "metrics", "SHA-256", "validation (chose)", "test (scored)"]
    return [
        *["", "## Data", "", *table(header, rows, texts=4), ""],
        "Numbers of examples; the hash is that of the validation examples.",
    ]
