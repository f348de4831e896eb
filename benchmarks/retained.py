"""What trained merges keep of their experts, beside the baselines trained as long.

Run:  python benchmarks/retained.py [--families topics] [--seeds 1 2 3 4 5] [--output FILE]

Each row is a whole merge by the public Trainer. A seed sets the data's split, the training and the
search. Results are cached under runs/quality, and the tables are made from them.
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from families import BASE, FAMILIES, FOLDER, HalfClassifier, expert, quiet_trainer
from halves import TOKENS
from intervals import difference, interval
from lightning.pytorch import seed_everything
from sections import write_section

from fmerge.data import MultiTask
from fmerge.evaluation.evaluator import mean
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import Average, FeatCal, TaskArithmetic
from fmerge.report.scores import AVERAGE, EXPERTS, MERGE, TRAINED
from fmerge.search import AxSearch
from fmerge.store import write_text

POLISH = {"polish_steps": 100, "polish_learning_rate": 3e-4}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "average, polished without labels": {"method": Average, **POLISH},
    "average, polished on labels": {"method": Average, **POLISH, "polish_loss": "labels"},
    "coefficients by tensor and heads, without labels": {
        "method": TaskArithmetic,
        "optimizer": {"learn": "tensors"},
        "heads": "train",
    },
    "FeatCal, polished without labels": {"method": FeatCal, **POLISH},
}
"""Name of a merge to what it is asked for."""

SEARCHED = (TaskArithmetic,)


def tested(family: str, seed: int, name: str) -> dict[str, float]:
    """Makes a merge, unless it is cached.

    Args:
        family: One of ``FAMILIES``.
        seed: The seed.
        name: One of ``RUNS``.

    Returns:
        Mean test accuracy of every row of its table, the merge itself under its name.
    """
    path = FOLDER / family / str(seed) / "retained" / f"{name.replace(' ', '_')}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(_merged(family, seed, name)))
        print(f"{family} {seed} {name}", file=sys.stderr, flush=True)
    found: dict[str, float] = json.loads(path.read_text())
    return found


def _merged(family: str, seed: int, name: str) -> dict[str, float]:
    tasks = FAMILIES[family].tasks
    experts = {task: str(expert(family, task, seed)) for task in tasks}
    seed_everything(seed, verbose=False)
    options = dict(RUNS[name])
    method, settings = options.pop("method"), options.pop("optimizer", {})
    if method in SEARCHED:
        settings = {"search": AxSearch(9, 7, seed=seed), **settings}
    with tempfile.TemporaryDirectory() as folder:
        report = quiet_trainer(callbacks=[MergeOptimizer(**settings)]).merge(
            HalfClassifier(max_length=2 * TOKENS),
            MultiTask({task: make(seed) for task, make in tasks.items()}, batch_size=32),
            experts=experts,  # type: ignore[arg-type]
            base=str(BASE),
            method=method(),
            output=Path(folder) / "run",
            **options,
        )
    assert report is not None  # no dry run
    return {name if row.name == MERGE else row.name: mean(row.scores) for row in report.rows}


def table(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Lays out the means over seeds and the paired differences.

    Args:
        runs: Name of a merge to its rows by seed.

    Returns:
        Markdown.
    """
    lines = [
        "| | accuracy | of the experts' | − average | − trained as long |",
        "|---|---|---|---|---|",
    ]
    first = next(iter(runs.values()))
    for name in (EXPERTS, AVERAGE):
        lines.append(_line(name, name, first))
    for name, seeds in runs.items():
        rivals = [row for row in TRAINED if row in seeds[0]]
        lines += [_line(f"{rival} (for the next row)", rival, seeds) for rival in rivals]
        lines.append(_line(name, name, seeds, rivals))
    return "\n".join(lines)


def _line(
    title: str, name: str, seeds: Sequence[Mapping[str, float]], rivals: Sequence[str] = ()
) -> str:
    own, experts, average, *others = (
        [100 * run[row] for run in seeds] for row in (name, EXPERTS, AVERAGE, *rivals)
    )
    shares = [100 * one / whole for one, whole in zip(own, experts, strict=True)]
    against = [
        f"{difference(own, other)} ({row})" for row, other in zip(rivals, others, strict=True)
    ]
    lead = "" if name in {EXPERTS, AVERAGE} else difference(own, average)
    kept = "" if name == EXPERTS else f"{interval(shares)}%"
    return f"| {title} | {interval(own)} | {kept} | {lead} | {'; '.join(against)} |"


def main() -> None:
    """Computes missing rows, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=["topics"], choices=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rows", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name in arguments.families:
        runs = {
            row: [tested(name, seed, row) for seed in arguments.seeds] for row in arguments.rows
        }
        text = (
            f"{FAMILIES[name].about}. Training: 100 steps of 32 sentences a task, drawn from 512 "
            "of its training split, by Adam at 3e-4; the best check on the validation split is "
            "kept. "
            "Mean test accuracy over the tasks in %, mean and 95% interval (Student's t) over "
            f"{len(arguments.seeds)} seeds; differences are paired by seed.\n\n{table(runs)}"
        )
        print(text)
        if arguments.output:
            write_section(arguments.output, f"Retained: {name}", text)


if __name__ == "__main__":
    main()
