"""DF-Merge with interpolated Fishers, compared with Fishers recomputed in every trial.

Run:  python benchmarks/fisher_curve.py [--on topics t5 t5-sharp] [--nodes 5] [--vectors 50]
        [--output docs/results.md]
Needs no input; it trains the missing experts of benchmarks/quality.py at seed 1.

Every random coefficient vector is merged both ways and scored on the validation splits. A Fisher
depends on its own coefficient alone: each coefficient is one of a dozen random numbers, so that
there are three dozen Fishers to compute and not 150. Times are seconds of one core; those of the
topics are taken at MiniLM's full size, where the experts are the base and a little noise.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import Bench, Subject, tiny_t5
from halves import MINILM
from scipy.stats import pearsonr
from sections import write_section

from fmerge.data import DocsTopics, MultiTask, TaskData
from fmerge.evaluation.evaluator import mean
from fmerge.fisher import FisherSettings
from fmerge.merging.assembler import Assembler
from fmerge.methods import DFMerge
from fmerge.modules import TextClassifier
from fmerge.params import Params, params_of
from fmerge.search.objective import Objective
from fmerge.store import load_tokenizer, save_models

FEW = FisherSettings(split="validation", examples=30)
VALUES = 12
"""Random values that each coefficient takes."""


def full_size(folder: Path) -> Subject:
    """The quickstart's model and data, with experts that are the base and a little noise.

    Args:
        folder: Where the experts are written.

    Returns:
        The subject, for timing.
    """
    tasks: dict[str, TaskData] = {name: DocsTopics(name) for name in ("sympy", "sklearn", "torch")}
    module, generator = TextClassifier(max_length=48), torch.Generator().manual_seed(0)
    for name, data in tasks.items():
        model = module.read(MINILM, name, data.labels, fresh_head=True)
        with torch.no_grad():
            for weight in params_of(model).values():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=1e-3)
        save_models(folder / name, {"": model}, load_tokenizer(MINILM))
    experts = {name: folder / name for name in tasks}
    return Subject(module, MultiTask(tasks, batch_size=64), experts, MINILM)


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        about: What it is.
        subject: The experts whose merges are compared.
        timed: Makes the subject of the timings in a folder; ``subject`` itself when left out.
    """

    about: str
    subject: Callable[[], Subject]
    timed: Callable[[Path], Subject] | None = None


CASES = {
    "topics": Case(
        "Seed 1 of the family `topics`; times at full size: MiniLM's 6 layers, 480 sentences of "
        "up to 48 tokens to validate.",
        lambda: Bench("topics", 1),
        full_size,
    ),
    "t5": Case(
        "A tiny T5 (2 layers of 64) on three made-up tasks, whose experts are trained from a base "
        "that knows little for 150 steps at 0.001.",
        lambda: tiny_t5(150, 1e-3),
    ),
    "t5-sharp": Case("The same, but for 250 steps at 0.003.", tiny_t5),
}


def curve_of(subject: Subject, nodes: int, fisher: Callable[[str, Params], Params]) -> Assembler:
    """Prepares the paper's DF-Merge.

    Args:
        subject: The experts.
        nodes: Of the curve; 0 computes every Fisher.
        fisher: Computes Fishers.

    Returns:
        The assembler.
    """
    return Assembler(DFMerge(), subject.base, subject.ensemble.bodies, fisher, curve_nodes=nodes)


def agreement(subject: Subject, nodes: int, vectors: int) -> str:
    """Scores random merges both ways.

    Args:
        subject: The experts.
        nodes: Of the curve.
        vectors: How many merges.

    Returns:
        A sentence or two.
    """
    names, generator = subject.ensemble.names, torch.Generator().manual_seed(0)
    values = torch.rand(len(names), VALUES, generator=generator)
    picks = torch.randint(VALUES, (vectors, len(names)), generator=generator)
    ways = [subject.assembler(DFMerge(), FEW), curve_of(subject, nodes, subject.fisher_of(FEW))]
    exact: list[float] = []
    curved: list[float] = []
    error = 0.0
    for pick in picks.tolist():
        point = {name: float(values[m, pick[m]]) for m, name in enumerate(names)}
        for way, scores in zip(ways, (exact, curved), strict=True):
            found = subject.evaluator.score(way.assemble(point), "validation", names)
            scores.append(mean(found))
        spread = Objective().of(found, subject.evaluator.errors(found, "validation")).error
        error = max(error, spread or 0.0)
    chosen = max(range(vectors), key=curved.__getitem__)
    return (
        f"{vectors} random coefficient vectors, a curve of {nodes}: the correlation of the "
        f"objectives is {pearsonr(exact, curved).statistic:.4f}; they differ by "
        f"{100 * mean_difference(exact, curved):.2f} points on average and lie between "
        f"{100 * min(exact):.1f} and {100 * max(exact):.1f}%. The curve's best vector scores "
        f"{100 * exact[chosen]:.1f}% recomputed and {100 * curved[chosen]:.1f}% by the curve; the "
        f"best vector recomputed scores {100 * max(exact):.1f}%; the standard error of a score is "
        f"at most {100 * error:.1f} points."
    )


def mean_difference(values: list[float], others: list[float]) -> float:
    """Averages absolute differences."""
    return statistics.mean(abs(a - b) for a, b in zip(values, others, strict=True))


def timing(subject: Subject, nodes: int, repeats: int = 5) -> str:
    """Times a trial both ways, and a validation alone.

    Args:
        subject: The experts.
        nodes: Of the curve.
        repeats: How many measurements the median is taken of.

    Returns:
        A table in Markdown.
    """
    names, bodies = subject.ensemble.names, subject.ensemble.bodies
    generator = torch.Generator().manual_seed(0)

    def stand_in(name: str, body: Params) -> Params:  # its values do not affect the time
        return {key: torch.rand(one.shape, generator=generator) for key, one in body.items()}

    def fisher(name: str) -> None:
        subject.evaluator.fisher(name, FEW, bodies[name])

    curve = curve_of(subject, nodes, stand_in)
    plain = curve_of(subject, 0, lambda name, body: nodes_of[name])
    nodes_of = {name: stand_in(name, body) for name, body in bodies.items()}
    points = torch.rand(repeats + 4, len(names), generator=generator).tolist()
    vectors = [dict(zip(names, point, strict=True)) for point in points]
    for end in (0.1, 0.3, 0.6, 0.9):  # makes all nodes
        curve.assemble(dict.fromkeys(names, end))
    with_curve = seconds(lambda i: curve.assemble(vectors[i]), repeats)
    without = seconds(lambda i: plain.assemble(vectors[i]), repeats)
    body = bodies[names[0]]
    validating = seconds(lambda i: subject.evaluator.score(body, "validation", names), repeats)
    fishers = sum(seconds(lambda i, one=name: fisher(one), 2) for name in names)  # type: ignore[misc]
    lines = [
        "| | Fishers, s | assembly, s | validation, s | trial / validation |",
        "|---|---|---|---|---|",
    ]
    for title, spent, assembly in (
        ("recomputed", fishers, without),
        (f"curve of {nodes}", 0.0, with_curve),
    ):
        share = (spent + assembly + validating) / validating
        cells = f"{spent:.2f} | {assembly:.3f} | {validating:.2f} | {share:.2f}"
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)


def seconds(work: Callable[[int], object], repeats: int) -> float:
    """Measures the median CPU time of a call, after one warm-up."""
    work(repeats)
    spent = []
    for i in range(repeats):
        start = time.process_time()
        work(i)
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--vectors", type=int, default=50)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # seconds of one core
    for name in arguments.on:
        case = CASES[name]
        subject = case.subject()
        text = agreement(subject, arguments.nodes, arguments.vectors)
        with tempfile.TemporaryDirectory() as folder:
            timed = subject if case.timed is None else case.timed(Path(folder))
            text = f"{case.about}\n\n{text}\n\n{timing(timed, arguments.nodes)}"
        print(text)
        if arguments.output:
            write_section(arguments.output, f"Fisher curve: {name}", text)


if __name__ == "__main__":
    main()
