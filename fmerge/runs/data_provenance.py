"""Sentences for a report: which examples estimated, chose and scored a merge."""

from collections.abc import Mapping, Sequence

from fmerge.data import MultiTask, Split
from fmerge.evaluation.evaluator import by_accuracy
from fmerge.evaluation.statistics import statistic_of
from fmerge.fisher import FisherSettings
from fmerge.methods import MergeMethod


def split_facts(
    data: MultiTask,
    method: MergeMethod,
    settings: FisherSettings,
    origins: Mapping[str, str] | None,
    tasks: Sequence[str],
) -> list[str]:
    """Says which examples the Fishers or Grams, the choice and the scores come from.

    Args:
        data: The tasks.
        method: The formula, which may need no Fisher.
        settings: How Fishers and Grams that no file gives were estimated.
        origins: What the files of given Fishers say of their origin, by expert.
        tasks: The tasks whose examples are used, in order.

    Returns:
        Sentences.
    """
    chose, scored = (_counts(data, tasks, split) for split in ("validation", "test"))
    facts = [
        f"validation examples, used to choose: {chose}; test examples, used to score: {scored}"
    ]
    statistic = statistic_of(method)
    used = _counts(data, tasks, settings.split, settings.examples)
    overlap = {
        "train": "none of them used to choose or to score",
        "validation": "ALSO USED TO CHOOSE; --fisher.split train avoids this",
        "test": "ALSO USED TO SCORE; give another --fisher.split",
    }[settings.split]
    split = f"examples of the {settings.split} split"
    if method.calibrates:
        facts.append(f"calibration: on {split}, without their labels: {used}; {overlap}")
    if statistic is None:
        return facts
    if statistic.from_files and origins:
        told = "; ".join(f"`{name}` {origin}" for name, origin in origins.items())
        return [*facts, f"{statistic.label}: given, {told}"]
    if settings.until is not None and statistic.cost == "Fisher":
        used = f"at most {used}"
    return [*facts, f"{statistic.label}: estimated on {split}: {used}; {overlap}"]


def _counts(data: MultiTask, tasks: Sequence[str], split: Split, most: int | None = None) -> str:
    return ", ".join(f"{task} {data.size(task, split, most)}" for task in tasks)


def measure_of(data: MultiTask | None) -> str:
    """Names what the tasks are scored by.

    Args:
        data: The tasks, if there are any.

    Returns:
        accuracy, or score where a task has another metric.
    """
    plain = data is None or all(by_accuracy(data, task) for task in data.tasks)
    return "accuracy" if plain else "score"
