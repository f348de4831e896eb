"""Which examples a merge was made from, chosen by and scored on, in words for its report."""

from collections.abc import Mapping, Sequence

from fmerge.data import MultiTask, Split
from fmerge.fisher import FisherSettings
from fmerge.methods import MergeMethod


def split_facts(
    data: MultiTask,
    method: MergeMethod,
    settings: FisherSettings,
    origins: Mapping[str, str] | None,
    tasks: Sequence[str],
) -> list[str]:
    """Says where the examples of Fishers or Grams, of the choice and of the scores came from.

    Args:
        data: The tasks.
        method: The formula, which may need no Fisher.
        settings: How Fishers and Grams that no file gives were estimated.
        origins: What the files of given Fishers say of themselves, by expert.
        tasks: The tasks whose examples are used, in order.

    Returns:
        Sentences.
    """
    chose, scored = (_counts(data, tasks, split) for split in ("validation", "test"))
    facts = [f"examples that chose, validation: {chose}; that scored the table, test: {scored}"]
    if method.statistic in {"fisher", "moving fisher"} and origins:
        told = "; ".join(f"`{name}` {origin}" for name, origin in origins.items())
        return [*facts, f"Fishers: given, {told}"]
    if method.statistic is None:
        return facts
    what = "Grams" if method.statistic == "gram" else "Fishers"
    used = _counts(data, tasks, settings.split, settings.examples)
    if settings.until is not None and what == "Fishers":
        used = f"at most {used}"
    apart = {
        "train": "none of them among those that chose or scored",
        "validation": "they are AMONG THOSE THAT CHOSE; --fisher.split train keeps them apart",
        "test": "they are AMONG THOSE THAT SCORED; choose another --fisher.split",
    }[settings.split]
    return [*facts, f"{what}: estimated on examples of the {settings.split} split: {used}; {apart}"]


def _counts(data: MultiTask, tasks: Sequence[str], split: Split, most: int | None = None) -> str:
    sizes = {task: len(data.tasks[task].examples(split)) for task in tasks}
    return ", ".join(
        f"{task} {size if most is None else min(size, most)}" for task, size in sizes.items()
    )
