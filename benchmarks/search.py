"""Evaluations that searches need to come within 1% of a merge surface's best.

Run:  python benchmarks/search.py [--repeats 20] [--jobs 2] [--output docs/results.md]

The surfaces were recorded by benchmarks/surfaces.py. The rivals: a noise-free Gaussian process
with one length-scale for all coefficients (what bayes_opt does, which DF-Merge's code uses), random
points, and a grid in random order.
"""

import argparse
import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu, norm
from sections import write_section
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern
from surfaces import SURFACES, Surface

from fmerge.search import AxSearch, Trial

BUDGET = 60
SHARE = 0.99


def ours(surface: Surface, seed: int, **options: Any) -> Iterator[float]:
    """AxSearch as it is by default, or with other options."""
    search = AxSearch(BUDGET, seed=seed, **options)
    search.start(surface.tasks, only_ratios=surface.only_ratios)
    while not search.finished:
        point = search.ask()
        value = surface(point)
        search.tell(Trial(len(search.history), point, value, error=surface.error(point)))
        yield value


def random(surface: Surface, seed: int) -> Iterator[float]:
    """Uniform points."""
    generator = np.random.default_rng(seed)
    for point in generator.random((BUDGET, len(surface.tasks))):
        yield _at(surface, point)


def grid(surface: Surface, seed: int) -> Iterator[float]:
    """The largest full grid within the budget, in random order."""
    dimensions = len(surface.tasks)
    steps = np.linspace(0, 1, int(BUDGET ** (1 / dimensions) + 1e-9))
    points = np.array(list(itertools.product(steps, repeat=dimensions)))
    for point in np.random.default_rng(seed).permutation(points):
        yield _at(surface, point)


def one_scale(surface: Surface, seed: int) -> Iterator[float]:
    """Noise-free GP, one Matérn 5/2 length-scale, 10 random points, then EI with xi 0.01."""
    generator = np.random.default_rng(seed)
    dimensions = len(surface.tasks)
    points = list(generator.random((10, dimensions)))
    values = [_at(surface, point) for point in points]
    yield from values
    model = GaussianProcessRegressor(
        Matern(nu=2.5), alpha=1e-6, normalize_y=True, n_restarts_optimizer=5, random_state=seed
    )
    while len(values) < BUDGET:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length-scale at its bound
            model.fit(np.array(points), np.array(values))
        best = max(values)

        def loss(point: np.ndarray, best: float = best) -> np.ndarray:
            mean, deviation = model.predict(np.atleast_2d(point), return_std=True)
            gain = mean - best - 0.01
            z = gain / np.maximum(deviation, 1e-12)
            return -(gain * norm.cdf(z) + deviation * norm.pdf(z))

        tried = generator.random((10000, dimensions))
        begins = [tried[loss(tried).argmin()], *generator.random((10, dimensions))]
        box = [(0, 1)] * dimensions
        found = [minimize(lambda x: loss(x)[0], x0, bounds=box) for x0 in begins]
        point = min(found, key=lambda one: one.fun).x
        points.append(point)
        values.append(_at(surface, point))
        yield values[-1]


def _at(surface: Surface, point: np.ndarray) -> float:
    return surface(dict(zip(surface.tasks, point.clip(0, 1).tolist(), strict=True)))


SEARCHES: dict[str, Callable[[Surface, int], Iterator[float]]] = {
    "AxSearch": ours,
    "AxSearch, noise none": partial(ours, noise="none"),
    "AxSearch, noise binomial": partial(ours, noise="binomial"),
    "AxSearch without starts": partial(ours, starts=False),
    "GP of one length-scale, noise-free": one_scale,
    "random": random,
    "grid": grid,
}


def needed(job: tuple[str, str, int]) -> int:
    """Counts evaluations until the target.

    Args:
        job: Search, surface and seed.

    Returns:
        The number; one more than the budget where it is not reached.
    """
    torch.set_num_threads(1)
    name, where, seed = job
    surface = Surface(where)
    for count, value in enumerate(SEARCHES[name](surface, seed), 1):
        if value >= SHARE * surface.best:
            return count
    return BUDGET + 1


def main() -> None:
    """Prints and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--surfaces", nargs="+", default=list(SURFACES), choices=list(SURFACES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    jobs = list(itertools.product(SEARCHES, arguments.surfaces, range(arguments.repeats)))
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        counts = dict(zip(jobs, pool.map(needed, jobs), strict=True))
    lines = [
        "| | " + " | ".join(arguments.surfaces) + " |",
        "|---|" + "---|" * len(arguments.surfaces),
    ]
    for name in SEARCHES:
        cells = []
        for surface in arguments.surfaces:
            own, first = (
                sorted(counts[one, surface, seed] for seed in range(arguments.repeats))
                for one in (name, next(iter(SEARCHES)))
            )
            cells.append(_cell(own, first, name == next(iter(SEARCHES))))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = (
        f"Evaluations until a score of at least {SHARE:.0%} of the surface's best, of {BUDGET}: "
        f"median (quartiles) over {arguments.repeats} seeds, how many seeds got there, and p of "
        "a two-sided Mann-Whitney test against AxSearch.\n\n" + "\n".join(lines)
    )
    print(text)
    if arguments.output:
        write_section(arguments.output, "Search", text)


def _cell(own: list[int], first: list[int], is_first: bool) -> str:
    low, middle, high = (
        f"{value:.0f}" if value <= BUDGET else f">{BUDGET}"
        for value in statistics.quantiles(own, n=4, method="inclusive")
    )
    reached = sum(count <= BUDGET for count in own)
    p = "" if is_first else f", p {mannwhitneyu(own, first).pvalue:.1g}"
    return f"{middle} ({low} to {high}), {reached}/{len(own)}{p}"


if __name__ == "__main__":
    main()
