"""Coverage and width of every interval that a report or ``fmerge fisher`` prints.

Run:  python benchmarks/interval_coverage.py [--repeats 1000] [--seed 0] [--output docs/results.md]

Intervals of accuracies and of their differences are summed over all outcomes, so that their
coverage is exact. All others are simulated: F1, Matthews' correlation and correlations of numbers,
their differences, means over tasks, and the total of a Fisher. Simulated coverages of 1,000 repeats
have a standard error of 0.7 points.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from coverage_exact import SIZES, accuracies, pairs, row, simulated, width
from coverage_metrics import classes, numbers
from scipy import stats
from sections import write_section

from fmerge.fisher.standard_error import StandardError
from fmerge.report.confidence import Estimate, bonett_price, mean_over_tasks, proportion


def means(rng: np.random.Generator, repeats: int) -> Iterator[str]:
    """Writes rows of means over tasks."""
    for n in SIZES:
        for tasks in (2, 6):
            shares = np.linspace(0.55, 0.99, tasks)
            right = rng.binomial(n, shares, (repeats, tasks))
            found = [mean_over_tasks([proportion(r / n, n) for r in one]) for one in right]
            yield mean_row("accuracy", n, tasks, "55 to 99% right", found, shares.mean())
            for share in (0.003, 0.03, 0.3):
                chances = [0.8 * share, 0.2 * share, 1 - share]
                counts = rng.multinomial(n, chances, (repeats, tasks))
                found = [
                    mean_over_tasks([bonett_price(int(b), int(c), n) for b, c, _ in one])
                    for one in counts
                ]
                what = f"{100 * share:g}% discordant"
                yield mean_row("difference", n, tasks, what, found, 0.6 * share)


def mean_row(
    kind: str, n: int, tasks: int, what: str, found: Sequence[Estimate | None], truth: float
) -> str:
    """Writes one row of a mean over tasks."""
    one = simulated([estimate for estimate in found if estimate is not None], truth)
    return row([kind, n, tasks, what, f"{one.share:.3f}", f"{100 * one.width:.2f}"])


TOTALS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: 1 + 0.2 * rng.normal(size=shape),
    "gamma, variation 50%": lambda rng, shape: rng.gamma(4, 1 / 4, size=shape),
    "heavy tails: lognormal, σ = 1.5": lambda rng, shape: np.exp(
        1.5 * rng.normal(size=shape) - 1.125
    ),
}
"""Totals of a batch's Fisher, of mean 1."""


def fishers(rng: np.random.Generator, repeats: int) -> Iterator[str]:
    """Writes rows of the total of a Fisher, for passes of a fixed length and by ``until``."""
    for what, draw in TOTALS.items():
        for batches in (8, 30, 100):
            found = [_interval(totals) for totals in draw(rng, (repeats, batches))]
            one = simulated(found, 1.0)
            normal = simulated([_narrow(estimate, batches) for estimate in found], 1.0)
            yield row([what, batches, f"{one.share:.3f}", width(one), f"{normal.share:.3f}"])
        if what.startswith("heavy"):
            continue
        for target in (0.1, 0.05):
            found, used = [], []
            for totals in draw(rng, (repeats, 400)):
                found.append(_interval(totals, target))
                used.append(round(found[-1].error))
            one = simulated(found, 1.0)
            stop = f"until {100 * target:g}%: {np.mean(used):.0f} on average"
            yield row([what, stop, f"{one.share:.3f}", width(one), ""])


def _interval(totals: np.ndarray, until: float | None = None) -> Estimate:
    """The interval of a pass; its error is the number of batches used."""
    spread = StandardError()
    for total in totals.tolist():
        spread.add(1, total)
        if until is not None and spread.enough(until):
            break
    mean = spread.total / spread.count
    half = mean * spread.relative_interval()
    return Estimate(mean, mean - half, mean + half, spread.batches)


def _narrow(found: Estimate, batches: int) -> Estimate:
    """The interval of 1.96 standard errors."""
    half = (found.high - found.value) * 1.959964 / stats.t.ppf(0.975, batches - 1)
    return Estimate(found.value, found.value - half, found.value + half, found.error)


def table(header: str, rows: Iterator[str]) -> str:
    """Writes a table, and each row as it is computed.

    Args:
        header: The columns, separated by bars.
        rows: The rows.

    Returns:
        Markdown.
    """
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    for one in rows:
        print(one, flush=True)
        lines.append(one)
    return "\n".join(lines)


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = arguments.repeats
    rng, other, third = (np.random.default_rng(arguments.seed + part) for part in range(3))
    parts = [
        "How often a printed 95% interval holds the true value, and its mean width in points.",
        "An accuracy, exactly, for every share of right answers from 50 to 100% (below, it is the "
        "same): the least and the mean coverage, and the widths at 80, 95 and 99%.",
        table("n | least | mean | width | Clopper and Pearson's width", accuracies()),
        "A difference of two accuracies, exactly: the least coverage over how the discordant "
        "examples are divided between the models, and the mean width.",
        table("n | discordant | coverage | width | Tango's | width | Wald's", pairs()),
        f"The mean over tasks, {20 * repeats} repeats.",
        table("of | n | tasks | each | coverage | width", means(rng, 20 * repeats)),
        f"Other metrics, {repeats} repeats: alone, and the difference of two models.",
        table(
            "metric | n | models | alone | width | difference | width",
            chain(
                classes(rng, repeats),
                numbers("Pearson", rng, repeats),
                numbers("Spearman", other, repeats),
            ),
        ),
        f"The total of a Fisher, {20 * repeats} repeats.",
        table(
            "a batch's total | batches | coverage | width | 1.96 errors",
            fishers(third, 20 * repeats),
        ),
    ]
    if arguments.output:
        write_section(arguments.output, "Coverage of intervals", "\n\n".join(parts))


if __name__ == "__main__":
    main()
