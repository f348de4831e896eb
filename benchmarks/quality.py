"""Every method on two families of tasks over several seeds: scores with old and refitted heads.

Run:  python benchmarks/quality.py [--families topics fields] [--seeds 1 2 3 4 5] [--output FILE]

A seed sets the data's split, the training, the examples of statistics and the search. Results
of training and merging are cached under runs/quality, and the table is made from them.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench import REFIT, Bench
from families import BATCH, FAMILIES, WORDS
from intervals import difference, interval
from sections import write_section

from fmerge.fisher import FisherSettings
from fmerge.methods import TIES, Average, DFMerge, FisherMerge, MergeMethod, RegMean, TaskArithmetic
from fmerge.search import AxSearch, Fixed

TRIALS = 9
INITIAL = 7
AVERAGE = "plain average"
ARITHMETIC = "task arithmetic"
PAPER = "DFMerge, as in the paper"
UNMERGED = ("base", "experts")


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        method: The formula.
        settings: How its Fishers are estimated, or on what examples its Grams are.
        searched: Whether its coefficients are searched.
    """

    method: MergeMethod
    settings: FisherSettings = field(default_factory=FisherSettings)
    searched: bool = True


def entries(seed: int) -> dict[str, Entry]:
    """Lists the rows to compare.

    Args:
        seed: Of the examples of statistics.

    Returns:
        Name to entry, in the table's order.
    """
    few = FisherSettings(split="validation", examples=30, seed=seed, curve=3)
    many = FisherSettings(split="train", examples=128, seed=seed, curve=3)
    tempered = DFMerge(alpha=0.5, damping=0.1, normalize=True)
    return {
        AVERAGE: Entry(Average(), searched=False),
        ARITHMETIC: Entry(TaskArithmetic()),
        "TIES": Entry(TIES(), searched=False),
        "FisherMerge": Entry(FisherMerge(), few, searched=False),
        "RegMean": Entry(RegMean(), few, searched=False),
        PAPER: Entry(DFMerge(), few),
        "DFMerge, tempered": Entry(tempered, few),
        "DFMerge, normalised": Entry(DFMerge(normalize=True), few),
        "DFMerge, 128 examples": Entry(DFMerge(), many),
        "DFMerge, tempered, 128 examples": Entry(tempered, many),
    }


def rows_of(name: str, seed: int, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Computes a family's missing rows at a seed.

    Args:
        name: The family.
        seed: The seed.
        wanted: Rows beside those of the base and the experts.

    Returns:
        Row by name.
    """
    bench = Bench(name, seed)

    def row(entry: Entry) -> dict[str, Any]:
        search = AxSearch(TRIALS, INITIAL, seed=seed) if entry.searched else Fixed()
        return bench.search(bench.assembler(entry.method, entry.settings), search)

    rows = {
        "base": bench.once("base", lambda: bench.merged(bench.base)),
        "experts": bench.once("experts", bench.alone),
    }
    for title, entry in entries(seed).items():
        if title in wanted:
            rows[title] = bench.once(title, lambda one=entry: row(one))  # type: ignore[misc]
    return rows


def table(runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Lays out the means over seeds and the paired differences.

    Args:
        runs: Rows by seed.

    Returns:
        Markdown.
    """
    lines = [
        "| | experts' heads | − average | − arithmetic | heads refitted | − average | "
        "− arithmetic | − base |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def column(title: str, heads: str) -> list[float]:
        return [100 * run[title][heads] for run in runs]

    for title in runs[0]:
        cells = []
        for heads in ("old", "refitted"):
            own = column(title, heads)
            cells.append(interval(own))
            for other in (AVERAGE, ARITHMETIC):
                compared = title not in {*UNMERGED, AVERAGE, other} and other in runs[0]
                cells.append(difference(own, column(other, heads)) if compared else "")
        against = title != "base"
        cells.append(difference(own, column("base", "refitted")) if against else "")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe(name: str, runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Writes the paragraph above the table: what was measured, and how.

    Args:
        name: The family.
        runs: Rows by seed.

    Returns:
        Markdown.
    """
    family, few = FAMILIES[name], entries(0)[PAPER].settings
    one = next(iter(family.tasks.values()))(0)
    sizes = {split: len(one.examples(split)) for split in ("train", "validation", "test")}
    return (
        f"{len(family.tasks)} tasks: {family.about} ({', '.join(family.tasks)}). "
        f"Sentences of at most {WORDS} words; {sizes['train']}, {sizes['validation']} and "
        f"{sizes['test']} to train, validate and test on. An expert is MiniLM with its "
        f"upper half (3 layers) trained for {family.epochs * sizes['train'] // BATCH} steps of "
        f"{BATCH}. "
        f"Coefficients of task arithmetic and DFMerge are the best of {TRIALS} trials of AxSearch "
        f"by mean validation accuracy, the others' are equal. "
        f"Fishers and Grams are from {few.examples} validation examples a task as in the paper "
        f"unless a row says otherwise, moving Fishers along a curve of {few.curve}. "
        f"Heads are refitted on {REFIT} training examples a task.\n\nMean test accuracy over the "
        f"tasks in %, mean and 95% "
        f"interval (Student's t) over {len(runs)} seeds; differences are paired by seed."
        f"\n\n{table(runs)}"
    )


def main() -> None:
    """Computes missing rows, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rows", nargs="+", default=list(entries(0)), choices=list(entries(0)))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.families:
        text = describe(name, [rows_of(name, seed, arguments.rows) for seed in arguments.seeds])
        print(text)
        if arguments.output:
            write_section(arguments.output, f"Quality: {name}", text)


if __name__ == "__main__":
    main()
