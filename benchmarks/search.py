"""Evaluations that searches need to come within 1% of a merge surface's best.

Run:  python benchmarks/search.py [--repeats 20] [--surfaces topics] [--output docs/results.md]

The surfaces were recorded by benchmarks/surfaces.py. A search is told a surface's value with the
noise of a validation on it; the count uses the value itself. AxSearch is compared with a
noise-free Gaussian process with one length-scale for all coefficients (that of bayes_opt, which
DF-Merge's code uses), random points, and a grid in random order. Counts are cached under
runs/search.
"""

import argparse
import itertools
import json
import statistics
import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import FOLDER
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu, norm
from sections import write_section
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern
from surfaces import SOURCES, Surface, surface

from fmerge.search import AxSearch, SearchSpace, Trial
from fmerge.store import write_text

BUDGET = 60
SHARE = 0.99
CACHED = FOLDER.parent / "search" / "counts.json"

Points = Generator[np.ndarray, float, None]
"""Points that are asked for, and the score that each is told."""


def ours(where: Surface, seed: int, **options: Any) -> Points:
    """AxSearch with its default or with other options."""
    search = AxSearch(BUDGET, seed=seed, **options)
    search.start(SearchSpace(where.tasks, dict.fromkeys(where.groups, ())))
    while not search.finished:
        point = search.ask()
        value = yield np.array([point[name] for name in where.names])
        search.tell(Trial(len(search.history), point, value, error=where.error(value)))


def random(where: Surface, seed: int) -> Points:
    """Uniform points."""
    points = np.random.default_rng(seed).random((BUDGET, len(where.names)))
    yield from (point for point in points)  # a generator, as scores are sent to it


def grid(where: Surface, seed: int) -> Points:
    """The largest full grid within the budget, but at least two points a coefficient, shuffled."""
    dimensions = len(where.names)
    steps = np.linspace(0, 1, max(int(BUDGET ** (1 / dimensions) + 1e-9), 2))
    points = np.array(list(itertools.product(steps, repeat=dimensions)))
    yield from (point for point in np.random.default_rng(seed).permutation(points)[:BUDGET])


def one_scale(where: Surface, seed: int) -> Points:
    """Noise-free GP, one Matérn 5/2 length-scale, 10 random points, then EI with xi 0.01."""
    generator = np.random.default_rng(seed)
    dimensions = len(where.names)
    points = list(generator.random((10, dimensions)))
    values = []
    for begin in points:
        values.append((yield begin))
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
        values.append((yield point))


SEARCHES: dict[str, Callable[[Surface, int], Points]] = {
    "AxSearch": ours,
    "AxSearch, noise none": partial(ours, noise="none"),
    "AxSearch, noise binomial": partial(ours, noise="binomial"),
    "GP of one length-scale, noise-free": one_scale,
    "random": random,
    "grid": grid,
}
FIRST = next(iter(SEARCHES))


def needed(name: str, where: Surface, seed: int) -> int:
    """Counts evaluations until the target is reached.

    Args:
        name: The search.
        where: The surface.
        seed: Of the search and of the noise.

    Returns:
        The number; one more than the budget where it is not reached.
    """
    noise = np.random.default_rng([seed, 1])
    search = SEARCHES[name](where, seed)
    point = next(search)
    for count in range(1, BUDGET + 1):
        value = where.at(point)
        if value >= SHARE * where.best:
            return count
        try:
            point = search.send(value + where.roughness * noise.normal())
        except StopIteration:
            break
    return BUDGET + 1


def counts(names: Sequence[str], surfaces: Sequence[str], repeats: int) -> dict[str, list[int]]:
    """Runs the missing searches.

    Args:
        names: The searches.
        surfaces: The surfaces.
        repeats: Seeds of each.

    Returns:
        Evaluations by ``search on surface``, one for each seed.
    """
    cached: dict[str, list[int]] = json.loads(CACHED.read_text()) if CACHED.exists() else {}
    CACHED.parent.mkdir(parents=True, exist_ok=True)
    for where, name in itertools.product(surfaces, names):
        known = cached.setdefault(f"{name} on {where}", [])
        while len(known) < repeats:
            known.append(needed(name, surface(where), len(known)))
            write_text(CACHED, json.dumps(cached))
    return cached


def table(cached: dict[str, list[int]], names: Sequence[str], surfaces: Sequence[str]) -> str:
    """Lays the counts out.

    Args:
        cached: Evaluations by ``search on surface``.
        names: The searches.
        surfaces: The surfaces.

    Returns:
        Markdown.
    """
    heads = [f"{where}, {len(surface(where).names)} coefficients" for where in surfaces]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name in names:
        cells = [
            _cell(cached[f"{name} on {where}"], cached[f"{FIRST} on {where}"], name == FIRST)
            for where in surfaces
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(own: list[int], first: list[int], is_first: bool) -> str:
    low, middle, high = (
        f"{value:g}" if value <= BUDGET else f">{BUDGET}"
        for value in statistics.quantiles(own, n=4, method="inclusive")
    )
    reached = sum(count <= BUDGET for count in own)
    p = "" if is_first else f", p {mannwhitneyu(own, first).pvalue:.1g}"
    return f"{middle} ({low} to {high}), {reached}/{len(own)}{p}"


def describe(where: str) -> str:
    """Describes a surface in one line."""
    one = surface(where)
    return (
        f"`{where}`: {len(one.scores)} merges scored on {one.examples} examples; the fit predicts "
        f"{one.foreseen:.0%} of the variance of scores left out; best {100 * one.best:.1f}%, "
        f"plain average {100 * one.at(np.full(len(one.names), 1 / len(one.tasks))):.1f}%, noise "
        f"{100 * one.roughness:.1f} points."
    )


def main() -> None:
    """Prints and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--surfaces", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES), choices=list(SEARCHES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, surfaces, repeats = arguments.searches, arguments.surfaces, arguments.repeats
    found = table(counts(names, surfaces, repeats), names, surfaces)
    text = (
        f"Evaluations until a merge is worth at least {SHARE:.0%} of the surface's best, of "
        f"{BUDGET}: median (quartiles) over {repeats} seeds, how many seeds got there, and p of a "
        f"two-sided Mann-Whitney test against {FIRST}.\n\n{found}\n\n"
        + "\n".join(f"- {describe(where)}" for where in surfaces)
    )
    print(text)
    if arguments.output:
        write_section(arguments.output, f"Search: {', '.join(surfaces)}", text)


if __name__ == "__main__":
    main()
