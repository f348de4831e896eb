"""Experts that are worse than guessing on their own task, which mostly tells of their labels."""

import logging
from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_only

from fmerge.data import MultiTask, Split

_LOG = logging.getLogger(__name__)
_UNCORRELATED = {"matthews", "pearson", "spearman"}


def chance_level(data: MultiTask, task: str, split: Split) -> float | None:
    """Computes the score of a guess that is uniform over the classes.

    Args:
        data: The tasks.
        task: The task.
        split: Its split, where the choices differ by example.

    Returns:
        1 / c for the accuracy of c classes, the mean of it where c differs by example, 0 for
        correlations; None where it is not known.
    """
    metrics = set(data.metrics[task])
    if metrics and metrics <= _UNCORRELATED:
        return 0.0
    if metrics != {"accuracy"}:
        return None
    if classes := len(data.labels[task]):
        return 1 / classes
    choices = [one["choices"] for one in data.tasks[task].examples(split) if "choices" in one]
    return sum(1 / len(one) for one in choices) / len(choices) if choices else None


def below_chance(data: MultiTask, scores: Mapping[str, float], split: Split) -> list[str]:
    """Finds experts that score below chance on their own tasks, and warns of them.

    Args:
        data: The tasks.
        scores: Each expert's score on its own task.
        split: The split that they were scored on.

    Returns:
        A sentence for each, which the first process logs as well.
    """
    found = []
    for task, score in scores.items():
        level = chance_level(data, task, split)
        if level is not None and score < level:
            found.append(
                f"task '{task}': its expert scores {score:.4f} on the {split} examples, below "
                f"chance ({level:.4f}); the likely reason is that its outputs are in another order "
                f"than the data's labels ({', '.join(data.labels[task]) or 'choices'})"
            )
            rank_zero_only(_LOG.warning)(found[-1])
    return found


def check_results(data: object, results: Sequence[Mapping[str, float]], split: Split) -> None:
    """Warns where the metrics of a pass over all tasks are below chance.

    Args:
        data: The data of the pass; nothing is said unless it names its tasks.
        results: What the Trainer returned, by ``<task>/<metric>``.
        split: The split.
    """
    if not isinstance(data, MultiTask):
        return
    found = {name: float(value) for one in results for name, value in one.items()}
    scores = {}
    for task, metrics in data.metrics.items():
        own = [found[f"{task}/{name}"] for name in metrics if f"{task}/{name}" in found]
        if own:
            scores[task] = sum(own) / len(own)
    below_chance(data, scores, split)
