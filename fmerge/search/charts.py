"""The numbers that a model of the scores sees in place of coefficients."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

from fmerge.search.parameter_groups import coefficient_name
from fmerge.search.space import Range, SearchSpace

REACH = math.log(1000)
"""How far an expert can outweigh another, on either side of equal and of balanced weights."""

_DIGITS = 6
"""Of a log-ratio; the rest cannot be read back from coefficients that were rounded."""


class Chart(ABC):
    """A map between coefficients and the points of a box.

    Attributes:
        box: The least and the greatest number by name.
        digits: How many decimals a number has; all that a float holds if None.
    """

    box: Mapping[str, Range]
    digits: int | None = None

    @abstractmethod
    def point(self, coefficients: Mapping[str, float]) -> dict[str, float]:
        """Finds the point of coefficients.

        Args:
            coefficients: λ by name.

        Returns:
            A point in the box; of ``coefficients(point)`` the very same point.
        """

    @abstractmethod
    def made(self, coefficients: Mapping[str, float]) -> bool:
        """Tells whether coefficients can come from ``coefficients(point)``.

        Args:
            coefficients: λ by name.

        Returns:
            False where they surely come from another chart.
        """

    @abstractmethod
    def coefficients(self, point: Mapping[str, float]) -> dict[str, float]:
        """Finds the coefficients of a point.

        Args:
            point: A point in the box.

        Returns:
            λ by name.
        """


@final
class Linear(Chart):
    """The coefficients as they are.

    Args:
        space: The space, which has the box.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.box = space.box

    def point(self, coefficients: Mapping[str, float]) -> dict[str, float]:
        """Gives the coefficients; see the base class.

        Args:
            coefficients: λ by name.

        Returns:
            The same.
        """
        return dict(coefficients)

    def made(self, coefficients: Mapping[str, float]) -> bool:
        """Tells whether they can be of this chart; see the base class.

        Args:
            coefficients: λ by name.

        Returns:
            True.
        """
        return True

    def coefficients(self, point: Mapping[str, float]) -> dict[str, float]:
        """Gives the point; see the base class.

        Args:
            point: λ by name.

        Returns:
            The same.
        """
        return dict(point)


@final
class LogRatios(Chart):
    r"""Isometric log-ratios, for methods to which c·λ is the same merge as λ.

    With zₘ = log λₘ of the M experts of a group there are M − 1 numbers

    .. math:: y_k = \sqrt{\tfrac{k}{k+1}} \Big(\frac1k \sum_{m \le k} z_m - z_{k+1}\Big),

    which do not change with c, and whose distances are those of z up to its mean (Egozcue et al.
    2003, Isometric logratio transformations for compositional data analysis). The largest λ of a
    group is 1.

    Args:
        space: The space; ``balanced`` widens the box.
    """

    digits = _DIGITS

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.box: dict[str, Range] = {}
        self._floor: dict[str, float] = {}
        for group in space.groups:
            # both merges lie inside: that of equal weights, at 0, and that of balanced ones
            z = [math.log(one) for one in self._weights(group, space.balanced)]
            self._floor[group] = -(REACH + max(z) - min(z))
            for k, (name, y) in enumerate(zip(self._names(group), _forward(z), strict=True), 1):
                reach = REACH * math.sqrt(k / (k + 1))
                self.box[name] = round(min(0.0, y) - reach, 6), round(max(0.0, y) + reach, 6)

    def point(self, coefficients: Mapping[str, float]) -> dict[str, float]:
        """Computes y; see the base class.

        Args:
            coefficients: λ ≥ 0 by name, one of each group above 0.

        Returns:
            y by name, a λ of 0 at the edge of the box.
        """
        found = {}
        for group in self.space.groups:
            weights = self._weights(group, coefficients)
            top = math.log(max(weights))
            z = [math.log(one) - top if one > 0 else self._floor[group] for one in weights]
            for name, y in zip(self._names(group), _forward(z), strict=True):
                low, high = self.box[name]
                found[name] = min(high, max(low, round(y, _DIGITS) + 0.0))
        return found

    def made(self, coefficients: Mapping[str, float]) -> bool:
        """Tells whether the largest λ of each group is 1; see the base class.

        Args:
            coefficients: λ by name.

        Returns:
            Whether it is.
        """
        return all(max(self._weights(g, coefficients)) == 1.0 for g in self.space.groups)

    def coefficients(self, point: Mapping[str, float]) -> dict[str, float]:
        """Computes λ; see the base class.

        Args:
            point: y by name.

        Returns:
            λ in (0, 1] by the names of the coefficients, the largest of each group 1.
        """
        found = {}
        for group in self.space.groups:
            z = _backward([point[name] for name in self._names(group)])
            for expert, one in zip(self.space.experts, z, strict=True):
                found[coefficient_name(expert, group)] = math.exp(one - max(z))
        return {name: found[name] for name in self.space.names}

    def _weights(self, group: str, coefficients: Mapping[str, float]) -> list[float]:
        names = [coefficient_name(expert, group) for expert in self.space.experts]
        return [coefficients.get(name, 1.0) for name in names]

    def _names(self, group: str) -> list[str]:
        count = len(self.space.experts)
        return [coefficient_name(f"ratio{k}", group) for k in range(1, count)]


def _forward(z: list[float]) -> list[float]:
    return [math.sqrt(k / (k + 1)) * (sum(z[:k]) / k - z[k]) for k in range(1, len(z))]


def _backward(y: list[float]) -> list[float]:
    """The z of mean 0: of each row of the transform, which are orthonormal, as much as y says."""
    z = [0.0] * (len(y) + 1)
    for k, one in enumerate(y, 1):
        for m in range(k):
            z[m] += one / math.sqrt(k * (k + 1))
        z[k] -= one * math.sqrt(k / (k + 1))
    return z
