"""The first sentences of a report: what was merged, how well it does, what was not shown."""

from collections.abc import Sequence

from fmerge.report.confidence import Estimate
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome
from fmerge.report.scores import (
    AVERAGE,
    BASE,
    EXPERTS,
    MERGE,
    REFITTED,
    RUNNER_UP,
    TRAINED,
    Row,
)

_WANTED = (AVERAGE, BASE, BASE + REFITTED, *TRAINED)
"""Baselines that a merge should beat."""


def headline(search: SearchOutcome, tests: TestOutcome, provenance: Provenance) -> list[str]:
    """Says what was merged by what, what it retains, what it beats, and what was not shown.

    Args:
        search: The search.
        tests: The test scores.
        provenance: Where the merge comes from.

    Returns:
        Two sentences, of which only backticks are Markdown.
    """
    names = _listed([f"`{name}`" for name in provenance.experts])
    merged = f"{search.method} merged {names}, by {_how(search)}"
    rows = {row.name: row for row in tests.rows}
    own = own_rows(tests)
    if EXPERTS not in rows or not own:
        return [
            f"{merged}; nothing was scored, as there were no data.",
            "Not shown: how good the merge is; with data it is scored beside its baselines.",
        ]
    row, experts = own[-1], rows[EXPERTS].scores
    mean = f"{100 * row.mean_over(list(experts)):.1f}% test {tests.measure} in the mean over tasks"
    share = row.retained(experts)
    kept = "" if share is None else f" and retains {100 * share:.1f}% of the experts' scores"
    refitted = " with refitted heads" if row.name.endswith(REFITTED) else ""
    found = [
        (one.against, one.mean)
        for one in tests.comparisons
        if one.name == row.name and one.against.removesuffix(REFITTED) in _WANTED
    ]
    compared = f"; it {_listed([_verb(*one) for one in found])}" if found else ""
    return [
        f"{merged}; the merge{refitted} has {mean}{kept}{compared}.",
        f"Not shown: {_not_shown(tests, provenance, row.name.removesuffix(REFITTED))}.",
    ]


def own_rows(tests: TestOutcome) -> list[Row]:
    """Finds the rows of the merge that was saved.

    Args:
        tests: The test scores.

    Returns:
        Its row, then that with refitted heads; the plain average's where that was asked for.
    """
    # an average that was asked for is the merge, and has no other row
    own = MERGE if any(row.name == MERGE for row in tests.rows) else AVERAGE
    return [row for row in tests.rows if row.name in {own, own + REFITTED}]


def _how(search: SearchOutcome) -> str:
    count = len(search.trials)
    if search.built:
        return f"the coefficients of trial {search.best.index}"
    if count < 2:
        return "its usual coefficients" if not search.best.coefficients else "given coefficients"
    return f"the best of {count} trials of {search.name}"


def _verb(name: str, estimate: Estimate | None) -> str:
    found = ""
    if estimate is not None:
        value, low, high = (f"{100 * one:+.1f}" for one in estimate.ends())
        found = f" ({value} points, {low} to {high})"
    shown = f"{_named(name)}{found}"
    if estimate is None or not estimate.decided:
        return f"is not shown to differ from {shown}"
    return f"beats {shown}" if estimate.low > 0 else f"IS BELOW {shown}"


def _named(name: str) -> str:
    return f"the {name}" if name in {AVERAGE, BASE} else f"'{name}'"


def _not_shown(tests: TestOutcome, provenance: Provenance, own: str) -> str:
    names = {row.name for row in tests.rows}
    lacking = []
    if BASE not in names:
        why = "none was given" if provenance.base is None else "baselines were left out"
        lacking.append(f"how the base scores, as {why}")
    if AVERAGE not in names and own != AVERAGE:
        lacking.append("how the plain average scores, as baselines were left out")
    if own == AVERAGE:
        lacking.append("whether another method is better")
    elif not any(name.startswith(RUNNER_UP) for name in names):
        lacking.append("whether other coefficients are better")
    again = "that another fine-tuning, seed or draw of test examples gives the same"
    return _listed([*lacking, again])


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
