"""The sentences of a report: only their backticks are Markdown."""

from collections import Counter

from fmerge.errors import counted
from fmerge.report.markdown import points
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome
from fmerge.report.scores import BASE, REFITTED, TRAINED
from fmerge.search.objective import shortfalls
from fmerge.search.parameter_groups import coefficient_name

_MOST_GROUPS = 40
"""Coefficients of an expert that are listed one by one."""


def verdict(tests: TestOutcome) -> list[str]:
    """Says whether a trained merge beats what was trained, or refitted, on the same examples.

    Args:
        tests: The test scores.

    Returns:
        A sentence; none where nothing was trained.
    """
    honest = (*TRAINED, BASE + REFITTED)
    found = [one for one in tests.comparisons if one.against in honest]
    if not any(one.against in TRAINED for one in found):
        return []
    said = []
    for one in found:
        verb = "differs by an unknown number of points from"
        if one.mean is not None:
            verb = "beats" if one.mean.low > 0 else "does not beat"
            if one.mean.high < 0:
                verb = "IS BEATEN by"
        said.append(f"{verb} '{one.against}', {points(one.mean)} points")
    return [f"on the test examples, with 95% intervals, {found[0].name} {'; it '.join(said)}"]


def made(search: SearchOutcome, provenance: Provenance) -> list[str]:
    """Says what was searched and found.

    Args:
        search: The search.
        provenance: Where the merge comes from.

    Returns:
        Sentences.
    """
    which = "this is trial {}, built by its index" if search.built else "the best is trial {}"
    best, stages = search.best, Counter(trial.stage for trial in search.trials)
    found = which.format(f"{best.index}, of stage {best.stage}" if best.stage else best.index)
    later = [f"stage {name}, {counted(count, 'trial')}" for name, count in stages.items() if name]
    made = "; ".join([f"{search.name}, {counted(stages[''], 'trial')}", *later])
    given = ", ".join(f"{name} {value}" for name, value in provenance.parameters.items())
    return [
        f"search: {made}; {found}",
        *([f"search ended before its budget: {search.ended}"] if search.ended else []),
        *([f"parameters of {search.method}: {given}"] if given else []),
        *([provenance.saved] if provenance.saved else []),
    ]


def choice(search: SearchOutcome, provenance: Provenance) -> list[str]:
    """Says what was chosen and why.

    Args:
        search: The search.
        provenance: Where the merge comes from.

    Returns:
        Sentences.
    """
    objective = f"{100 * (search.best.objective or 0):.1f}"
    chosen = (
        f"chosen on the validation split by {search.goal} (objective {objective}); scored once, on "
        "the test split"
    )
    if search.built:
        chosen = f"{search.goal} is {objective} on the validation split; scored on the test split"
    warned = [search.warning] if search.warning else []
    return [chosen, *warned, *bounds_met(search), *_picked(search), *provenance.facts]


def coefficients(search: SearchOutcome, provenance: Provenance) -> list[str]:
    """Lists the coefficients.

    Args:
        search: The search.
        provenance: Where the merge comes from.

    Returns:
        One line, or one per expert where tensors are grouped.
    """
    values, groups = search.best.coefficients, list(search.groups)
    if search.best.stage:  # which has groups of its own, if it has coefficients at all
        if not values:
            return ["coefficients: none, as its weights were trained"]
        first = f"{next(iter(provenance.experts))}/"
        groups = [name.removeprefix(first) for name in values if name.startswith(first)] or [""]
    if groups == [""]:
        return [f"coefficients: {', '.join(f'{n} {v:.4f}' for n, v in values.items())}"]
    lines = []
    for expert in provenance.experts:
        own = {group: values[coefficient_name(expert, group)] for group in groups}
        listed = ", ".join(f"{group} {value:.4f}" for group, value in own.items())
        if len(own) > _MOST_GROUPS:
            middle, ends = sum(own.values()) / len(own), (min(own.values()), max(own.values()))
            listed = f"{len(own)} from {ends[0]:.4f} to {ends[1]:.4f}, mean {middle:.4f}"
        lines.append(f"coefficients of {expert}: {listed}")
    known = {coefficient_name(expert, group) for expert in provenance.experts for group in groups}
    if numbers := [f"{name} {value:.4f}" for name, value in values.items() if name not in known]:
        lines.append(f"numbers of the method: {', '.join(numbers)}")
    return lines


def bounds_met(search: SearchOutcome) -> list[str]:
    """Says which bounds there were, and by how much they were missed.

    Args:
        search: The search.

    Returns:
        A sentence; none where there were no bounds.
    """
    bounds = search.goal.bounds
    if not bounds:
        return []
    least = ", ".join(f"{task} {100 * bound:.1f}" for task, bound in bounds.items())
    given = f"lower bounds on validation: {least}"
    short = shortfalls(search.best.metrics, bounds)
    if not short:
        return [f"{given}; {'this' if search.built else 'the best'} trial meets them"]
    missing = ", ".join(f"{task} by {100 * value:.1f}" for task, value in short.items())
    if search.built:
        return [f"{given}; this trial falls short: {missing}"]
    return [
        f"{given}; NO TRIAL meets them, and the best is the one with the smallest shortfall: "
        f"{missing}"
    ]


def refitted(tests: TestOutcome) -> str:
    """Says what refitted heads are.

    Args:
        tests: The test scores.

    Returns:
        A sentence; empty if no row has refitted heads.
    """
    if not any(row.name.endswith(REFITTED) for row in tests.rows):
        return ""
    examples = "all" if tests.refit_examples is None else f"at most {tests.refit_examples}"
    where = {
        "end": "; the merge is saved with these heads",
        "trials": "; the search scored with such heads, and the merge is saved with them",
    }
    return (
        "Heads refitted: each task's last linear layer is fitted to the body on "
        f"{examples} of its training examples{where.get(tests.refit_heads, '')}."
    )


def _picked(search: SearchOutcome) -> list[str]:
    if search.pick is None:
        return []
    best, pick = search.best, search.pick
    low, high = pick.mean - pick.error, pick.mean + pick.error
    predicted = f"{100 * pick.mean:.1f} ± {100 * pick.error:.1f} predicted"
    if search.bounded and (low < 0 or high > 1):
        mean, low, high = (min(max(one, 0.0), 1.0) for one in (pick.mean, low, high))
        predicted = f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f}) predicted"
    same = "the same trial" if pick.trial.index == best.index else f"trial {pick.trial.index}"
    return [
        f"chosen by its observed score: trial {best.index}, {100 * (best.objective or 0):.1f}; "
        f"the search's model would choose {same}, {predicted}"
    ]
