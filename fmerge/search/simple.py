"""Searches that list their coefficients beforehand: fixed, grid, Dirichlet, random, Sobol."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from typing_extensions import override

from fmerge.errors import UserError, known
from fmerge.search.base import BatchSearch, Search
from fmerge.search.objective import Objective
from fmerge.search.parameter_groups import coefficient_names
from fmerge.search.space import Range, SearchSpace, is_number


class _Listed(BatchSearch):
    """A search whose proposals do not depend on the scores."""

    def __init__(self) -> None:
        super().__init__()
        self._proposals: list[list[float]] = []

    @override
    def start(self, space: SearchSpace, objective: Objective | None = None) -> None:
        super().start(space, objective)
        self._proposals = self._list()

    @abstractmethod
    def _list(self) -> list[list[float]]:
        """All proposals, in order, with their numbers in the order of the names."""

    @property
    @override
    def budget(self) -> int:
        return len(self._proposals)

    @override
    def ask_batch(self, count: int) -> list[dict[str, float]]:
        begin = len(self.history)
        listed = self._proposals[begin : begin + count]
        return [dict(zip(self.names, one, strict=True)) for one in listed]


class Fixed(_Listed):
    """One merge, with the coefficients you give.

    Args:
        coefficients: λ by expert, or by ``expert/group`` where tensors are grouped, below 0 for
            what an expert is to unlearn; 1/M for each of the M experts when left out.
    """

    def __init__(self, coefficients: dict[str, float] | None = None) -> None:
        super().__init__()
        self.coefficients = coefficients

    def _list(self) -> list[list[float]]:
        own, experts = self.space.own, self.space.experts
        if self.coefficients is None:
            return [[1 / len(experts)] * len(self.space.coefficients) + list(own.values())]
        numbers = {name: self.coefficients.get(name, value) for name, value in own.items()}
        given = {name: one for name, one in self.coefficients.items() if name not in own}
        # coefficients of an expert as a whole stand for all its groups
        for expert in experts:
            if expert in given and expert not in self.names:  # one number for all its groups
                value = given.pop(expert)
                for name in coefficient_names([expert], list(self.space.groups)):
                    given.setdefault(name, value)
        return [check_coefficients(given, self.space.coefficients) + list(numbers.values())]


class Grid(_Listed):
    """Two experts, coefficients (λ, 1 − λ) on an even grid of λ from 0 to 1.

    Matena & Raffel 2022, section 4: 51 points.

    Args:
        points: Number of grid points, both ends included.
    """

    def __init__(self, points: int = 51) -> None:
        super().__init__()
        if points < 2:
            raise UserError(f"Grid: points is {points}, but a grid needs at least 2")
        self.points = points

    def _list(self) -> list[list[float]]:
        names, own = self.space.coefficients, list(self.space.own.values())
        if len(names) != 2:
            what = "experts" if names == tuple(self.space.experts) else "coefficients"
            raise UserError(
                f"Grid: searches the line between two {what}, but there are {len(names)} "
                f"({', '.join(names)}); use Dirichlet or AxSearch"
            )
        _check_unit(self)
        ratios = [i / (self.points - 1) for i in range(self.points)]
        return [[ratio, 1 - ratio, *own] for ratio in ratios]


class Dirichlet(_Listed):
    """Random coefficients that sum to one, drawn evenly from the simplex: Dirichlet(1).

    Matena & Raffel 2022, section 4, for more than two models: 51 draws. Where tensors are
    grouped, the coefficients of each group sum to one.

    Args:
        draws: Number of random vectors.
        seed: Seed of the draws.
    """

    def __init__(self, draws: int = 51, seed: int = 0) -> None:
        super().__init__()
        if draws < 1:
            raise UserError(f"Dirichlet: draws is {draws}, but at least 1 is needed")
        self.draws = draws
        self.seed = seed

    def _list(self) -> list[list[float]]:
        _check_unit(self)
        generator = torch.Generator().manual_seed(self.seed)
        # exponential variables over their sum are Dirichlet(1, …, 1)
        shape = (self.draws, len(self.space.groups), len(self.space.experts))
        draws = torch.empty(shape, dtype=torch.float64)
        draws.exponential_(generator=generator)
        shares = draws / draws.sum(dim=2, keepdim=True)
        proposals: list[list[float]] = shares.transpose(1, 2).flatten(1).tolist()
        numbers = torch.rand(
            self.draws, len(self.space.numbers), generator=generator, dtype=torch.float64
        ).tolist()
        ranges = [(low, high) for _, low, high in self.space.numbers.values()]
        return [
            shares + scaled(drawn, ranges) for shares, drawn in zip(proposals, numbers, strict=True)
        ]


class RandomSearch(_Listed):
    """Independent random coefficients, uniform in the box from 0 to 1, or of the given bounds.

    Args:
        trials: Number of random points.
        seed: Seed of the points.
    """

    def __init__(self, trials: int = 60, seed: int = 0) -> None:
        super().__init__()
        _check_trials(self, trials)
        self.trials = trials
        self.seed = seed

    def _list(self) -> list[list[float]]:
        generator = torch.Generator().manual_seed(self.seed)
        # one draw a trial: a longer search begins with the trials of a shorter one
        count, box = len(self.names), list(self.space.box.values())
        return [
            scaled(torch.rand(count, generator=generator, dtype=torch.float64).tolist(), box)
            for _ in range(self.trials)
        ]


class Sobol(_Listed):
    """Quasi-random coefficients: a scrambled Sobol sequence, which fills the box evenly.

    Args:
        trials: Number of points.
        seed: Seed of the scrambling.
    """

    def __init__(self, trials: int = 60, seed: int = 0) -> None:
        super().__init__()
        _check_trials(self, trials)
        self.trials = trials
        self.seed = seed

    def _list(self) -> list[list[float]]:
        box = list(self.space.box.values())
        return [scaled(one, box) for one in sobol_points(len(box), self.trials, self.seed)]


def scaled(point: Sequence[float], box: Sequence[Range]) -> list[float]:
    """Brings a point of the unit box into another.

    Args:
        point: Numbers in [0, 1].
        box: The least and the greatest number in each place.

    Returns:
        The point, unchanged where the box is the unit box.
    """
    return [low + (high - low) * x for x, (low, high) in zip(point, box, strict=True)]


def sobol_points(dimensions: int, count: int, seed: int) -> list[list[float]]:
    """Draws the first points of a scrambled Sobol sequence.

    Args:
        dimensions: Numbers in a point.
        count: How many points; more of them begin with the same ones.
        seed: Seed of the scrambling.

    Returns:
        Points in the unit box.
    """
    engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
        dimensions, scramble=True, seed=seed
    )
    points: list[list[float]] = engine.draw(count, dtype=torch.float64).tolist()
    return points


def _check_trials(search: Search, trials: int) -> None:
    if trials < 1:
        raise UserError(f"{type(search).__name__}: trials is {trials}, but at least 1 is needed")


def _check_unit(search: Search) -> None:
    if search.space.bounds:
        raise UserError(
            f"--optimizer.bounds: {type(search).__name__} proposes coefficients that sum to one; "
            "leave the bounds out, or use AxSearch, Sobol or RandomSearch"
        )


def check_coefficients(coefficients: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Checks that there is one number per name.

    Args:
        coefficients: λ by name.
        names: The experts, or ``expert/group``.

    Returns:
        The coefficients in the order of ``names``.

    Raises:
        UserError: If names differ, a value is no finite number, or all are zero.
    """
    if set(coefficients) != set(names):
        raise UserError(
            f"coefficients are given for {known(coefficients)}, but the experts are "
            f"{known(names)}; give each one"
        )
    for name, value in coefficients.items():
        if not is_number(value):
            raise UserError(f"the coefficient of '{name}' is {value}, but must be a finite number")
    if not any(coefficients.values()):
        raise UserError("all coefficients are 0, so nothing would be merged; raise at least one")
    return [float(coefficients[name]) for name in names]
