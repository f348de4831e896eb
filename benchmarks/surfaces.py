"""Merge surfaces: validation scores over a grid of coefficients, recorded once.

Run:  python benchmarks/surfaces.py [--surfaces topics-arithmetic ...]
Needs nothing; it trains the experts of benchmarks/quality.py at seed 1 where they are missing.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator

from fmerge.evaluation import FisherSettings
from fmerge.methods import DFMerge, FisherMerge, MergeMethod, TaskArithmetic
from fmerge.objective import binomial_error
from fmerge.store import write_text

FOLDER = Path(__file__).parent / "surfaces"
POINTS = 5
"""Grid points along each coefficient."""

METHODS: dict[str, Callable[[], MergeMethod]] = {
    "arithmetic": TaskArithmetic,
    "df-merge": DFMerge,
    "fisher": FisherMerge,
}
SURFACES = ("topics-arithmetic", "topics-df-merge", "fields-arithmetic", "fields-fisher")


class Surface:
    """A recorded surface, linear between the points of its grid.

    Args:
        name: One of ``SURFACES``.
    """

    def __init__(self, name: str) -> None:
        recorded = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        self.name = name
        self.tasks: list[str] = recorded["tasks"]
        self.examples: list[int] = recorded["examples"]
        self.only_ratios: bool = recorded["only_ratios"]
        self.scores = np.array(recorded["scores"])  # tasks last

    @cached_property
    def _between(self) -> RegularGridInterpolator:
        grid = [np.linspace(0, 1, size) for size in self.scores.shape[:-1]]
        return RegularGridInterpolator(grid, self.scores)

    @property
    def best(self) -> float:
        """The highest mean score: of a grid point, as it is linear in between."""
        return float(self.scores.mean(-1).max())

    def __call__(self, coefficients: Mapping[str, float]) -> float:
        """Scores a merge: the mean over the tasks."""
        return float(self._at(coefficients).mean())

    def error(self, coefficients: Mapping[str, float]) -> float:
        """The binomial standard error of that score."""
        errors = map(binomial_error, self._at(coefficients).tolist(), self.examples)
        return math.hypot(*errors) / len(self.tasks)

    def _at(self, coefficients: Mapping[str, float]) -> np.ndarray:
        return self._between([coefficients[task] for task in self.tasks])[0]


def record(name: str) -> None:
    """Scores a merge at every grid point.

    Args:
        name: One of ``SURFACES``.
    """
    from quality import Bench  # the search benchmark needs no experts

    family, _, kind = name.partition("-")
    bench, method = Bench(family, 1), METHODS[kind]()
    settings = FisherSettings(split="validation", examples=30, seed=1, curve=5)
    merger = bench.merger(method, settings)
    tasks = bench.ensemble.names
    scores = np.empty([POINTS] * len(tasks) + [len(tasks)])
    for index in itertools.product(range(POINTS), repeat=len(tasks)):
        point = {task: i / (POINTS - 1) for task, i in zip(tasks, index, strict=True)}
        try:
            found = bench.evaluator.score(merger.assemble(point), "validation", tasks)
        except ValueError:  # weighted averages have no value where all weights are zero
            found = dict.fromkeys(tasks, float("nan"))
        scores[index] = [found[task] for task in tasks]
    if method.only_ratios:  # all zeros: what the limit along the diagonal gives
        scores[(0,) * len(tasks)] = scores[(1,) * len(tasks)]
    about = {
        "tasks": tasks,
        "examples": [len(bench.evaluator.data.tasks[one].examples("validation")) for one in tasks],
        "only_ratios": method.only_ratios,
        "scores": scores.round(6).tolist(),
    }
    FOLDER.mkdir(exist_ok=True)
    write_text(FOLDER / f"{name}.json", json.dumps(about) + "\n")


def main() -> None:
    """Records surfaces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--surfaces", nargs="+", default=list(SURFACES), choices=list(SURFACES))
    torch.set_num_threads(1)
    for name in parser.parse_args().surfaces:
        record(name)
        print(name, Surface(name).best)


if __name__ == "__main__":
    main()
