"""Searches that list their coefficients beforehand: fixed, grid, Dirichlet."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from typing_extensions import override

from fmerge.errors import UserError, known
from fmerge.search.base import Search


class _Listed(Search):
    """A search whose proposals do not depend on the scores."""

    def __init__(self) -> None:
        super().__init__()
        self._proposals: list[list[float]] = []

    @override
    def start(self, names: Sequence[str]) -> None:
        super().start(names)
        self._proposals = self._list(self.names)

    @abstractmethod
    def _list(self, names: tuple[str, ...]) -> list[list[float]]:
        """All proposals, in order."""

    @property
    @override
    def budget(self) -> int:
        return len(self._proposals)

    @override
    def ask(self) -> dict[str, float]:
        return dict(zip(self.names, self._proposals[len(self.history)], strict=True))


class Fixed(_Listed):
    """One merge, with the coefficients you give.

    Args:
        coefficients: λ in [0, 1] by expert; 1/M for each of the M experts when left out.
    """

    def __init__(self, coefficients: dict[str, float] | None = None) -> None:
        super().__init__()
        self.coefficients = coefficients

    def _list(self, names: tuple[str, ...]) -> list[list[float]]:
        if self.coefficients is None:
            return [[1 / len(names)] * len(names)]
        return [check_coefficients(self.coefficients, names)]


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

    def _list(self, names: tuple[str, ...]) -> list[list[float]]:
        if len(names) != 2:
            raise UserError(
                f"Grid: searches the line between two experts, but there are {len(names)} "
                f"({', '.join(names)}); use Dirichlet or AxSearch"
            )
        ratios = [i / (self.points - 1) for i in range(self.points)]
        return [[ratio, 1 - ratio] for ratio in ratios]


class Dirichlet(_Listed):
    """Random coefficients that sum to one, drawn evenly from the simplex: Dirichlet(1).

    Matena & Raffel 2022, section 4, for more than two models: 51 draws.

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

    def _list(self, names: tuple[str, ...]) -> list[list[float]]:
        generator = torch.Generator().manual_seed(self.seed)
        # exponential variables over their sum are Dirichlet(1, …, 1)
        draws = torch.empty(self.draws, len(names), dtype=torch.float64)
        draws.exponential_(generator=generator)
        proposals: list[list[float]] = (draws / draws.sum(dim=1, keepdim=True)).tolist()
        return proposals


def check_coefficients(coefficients: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Proves that there is one coefficient in [0, 1] per expert.

    Args:
        coefficients: λ by expert.
        names: The experts.

    Returns:
        The coefficients in the order of ``names``.

    Raises:
        UserError: If names differ, a value is outside [0, 1], or all are zero.
    """
    if set(coefficients) != set(names):
        raise UserError(
            f"coefficients are given for {known(coefficients)}, but the experts are "
            f"{known(names)}; give each expert one"
        )
    for name, value in coefficients.items():
        if not 0 <= value <= 1:
            raise UserError(f"the coefficient of '{name}' is {value}, but must lie in [0, 1]")
    if not any(coefficients.values()):
        raise UserError("all coefficients are 0, so nothing would be merged; raise at least one")
    return [float(coefficients[name]) for name in names]
