"""Merge surfaces: validation scores at many coefficients, recorded once, and smooth fits of them.

Run:  python benchmarks/surfaces.py [--surfaces topics ...]
Needs no input; it trains the missing experts of benchmarks/quality.py at seed 1.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from bench import Bench, Subject, tiny_t5
from scipy.optimize import minimize
from scipy.stats import qmc
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from fmerge.evaluation.evaluator import mean
from fmerge.fisher import FisherSettings
from fmerge.methods import TaskArithmetic
from fmerge.search.objective import binomial_error
from fmerge.search.parameter_groups import coefficient_names, partition
from fmerge.store import write_text

FOLDER = Path(__file__).parent / "surfaces"


@dataclass(frozen=True)
class Source:
    """The source of a surface: task arithmetic of some experts.

    Attributes:
        subject: Makes the experts ready.
        slices: How many groups of layers by depth have separate coefficients.
        points: How many points of a scrambled Sobol sequence are scored.
    """

    subject: Callable[[], Subject]
    slices: int
    points: int


SOURCES = {
    "topics": Source(lambda: Bench("topics", 1), 1, 64),
    "topics-halves": Source(lambda: Bench("topics", 1), 2, 128),
    "t5-halves": Source(tiny_t5, 2, 256),
}


class Surface:
    """A Gaussian process through recorded scores: its mean is the value of a merge.

    The noise of a validation, as large as the fit's residual, is drawn anew for each point.

    Args:
        name: One of ``SOURCES``.
    """

    def __init__(self, name: str) -> None:
        recorded = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        self.tasks: list[str] = recorded["tasks"]
        self.groups: list[str] = recorded["groups"]
        self.examples: int = recorded["examples"]
        self.names = coefficient_names(self.tasks, self.groups)
        self.points, self.scores = np.array(recorded["points"]), np.array(recorded["scores"])
        kernel = ConstantKernel(1.0) * Matern(np.ones(len(self.names)), nu=2.5) + WhiteKernel(0.1)
        self._fit = GaussianProcessRegressor(
            kernel, normalize_y=True, n_restarts_optimizer=3, random_state=0
        ).fit(self.points, self.scores)

    @property
    def roughness(self) -> float:
        """Standard deviation of the scores around the fit."""
        return float(np.sqrt(self._fit.kernel_.k2.noise_level) * self.scores.std())

    @cached_property
    def foreseen(self) -> float:
        """Share of the scores' variance that the fit predicts, leaving out one point at a time."""
        covariance = self._fit.kernel_(self.points)
        inverse = np.linalg.inv(covariance)
        values = (self.scores - self.scores.mean()) / self.scores.std()
        errors = inverse @ values / inverse.diagonal()
        return float(1 - np.mean(errors**2))

    @cached_property
    def best(self) -> float:
        """The fit's maximum over the box."""
        tried = qmc.Sobol(len(self.names), rng=0).random(4096)
        begins = tried[np.argsort(self._fit.predict(tried))[-20:]]
        box = [(0.0, 1.0)] * len(self.names)
        found = [minimize(lambda x: -self.at(x), begin, bounds=box).fun for begin in begins]
        return -float(min(found))

    def at(self, point: np.ndarray) -> float:
        """Returns the fit at a point of the box."""
        return float(self._fit.predict(point[None])[0])

    def __call__(self, coefficients: Mapping[str, float]) -> float:
        """Returns the fit for coefficients by name."""
        return self.at(np.array([coefficients[name] for name in self.names]))

    def error(self, score: float) -> float:
        """The binomial standard error of a score."""
        return binomial_error(score, self.examples)


@cache
def surface(name: str) -> Surface:
    """Fits a recorded surface, once in a process."""
    return Surface(name)


def record(name: str) -> None:
    """Scores merges at the points of a surface.

    Args:
        name: One of ``SOURCES``.
    """
    source = SOURCES[name]
    subject = source.subject()
    tasks = subject.ensemble.names
    parts = partition(list(subject.base), source.slices if source.slices > 1 else "whole")
    names = coefficient_names(tasks, list(parts))
    assembler = subject.assembler(TaskArithmetic(), FisherSettings(), parts)
    points = qmc.Sobol(len(names), rng=1).random(source.points).round(4)
    scores = []
    for point in points.tolist():
        body = assembler.assemble(dict(zip(names, point, strict=True)))
        scores.append(mean(subject.evaluator.score(body, "validation", tasks)))
    about = {
        "tasks": tasks,
        "groups": list(parts),
        "examples": sum(len(task.examples("validation")) for task in subject.data.tasks.values()),
        "points": points.tolist(),
        "scores": np.round(scores, 6).tolist(),
    }
    FOLDER.mkdir(exist_ok=True)
    write_text(FOLDER / f"{name}.json", json.dumps(about) + "\n")


def main() -> None:
    """Records surfaces and describes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--surfaces", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    torch.set_num_threads(1)
    for name in parser.parse_args().surfaces:
        record(name)
        one = surface(name)
        print(name, f"best {one.best:.3f}", f"recorded {one.scores.max():.3f}", end=" ")
        print(f"roughness {one.roughness:.4f}, foreseen {one.foreseen:.2f}", one._fit.kernel_)


if __name__ == "__main__":
    main()
