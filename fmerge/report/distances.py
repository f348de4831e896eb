"""How far the experts of a merge lie from the base and from each other, by layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from fmerge.report.tables import MISSING, Cell, Column, Line, Table, heated

BASE: Final = "base"
"""The origin of distances where a base is given."""

_MOST_PAIRS: Final = 10
"""Pairs of experts that have a column each."""

DISTANCES: Final = (
    "A distance is the Euclidean norm of the difference of two models' weights in a layer, in per "
    "cent of the norm of {origin}'s weights in it."
)
_MEANT: Final = (
    " The last column is the mean over all pairs of experts; "
    "the farthest pair of all is {a} and {b}."
)


@dataclass(frozen=True)
class LayerDistances:
    """Distances of models, layer by layer.

    Attributes:
        names: The experts m.
        origin: Whose weights θ₀ all is compared with: ``base``, or the first expert without one.
        products: Layer to ⟨δₘ, δₙ⟩ (m, n) with δₘ = θₘ − θ₀.
        norms: Layer to ‖θ₀‖².
    """

    names: Sequence[str]
    origin: str
    products: Mapping[str, Sequence[Sequence[float]]]
    norms: Mapping[str, float]

    def away(self, layer: str, m: int) -> float | None:
        """Computes an expert's distance from the origin.

        Args:
            layer: The layer.
            m: The expert's number.

        Returns:
            ‖θₘ − θ₀‖ / ‖θ₀‖; None where θ₀ is 0.
        """
        return self._share(layer, self.products[layer][m][m])

    def apart(self, layer: str, m: int, n: int) -> float | None:
        """Computes the distance between two experts.

        Args:
            layer: The layer.
            m: The number of one.
            n: That of the other.

        Returns:
            ‖θₘ − θₙ‖ / ‖θ₀‖; None where θ₀ is 0.
        """
        found = self.products[layer]
        return self._share(layer, found[m][m] + found[n][n] - 2 * found[m][n])

    def _share(self, layer: str, squared: float) -> float | None:
        norm = self.norms[layer]
        # rounding leaves a little less than nothing of equal models
        return math.sqrt(max(squared, 0.0) / norm) if norm > 0 else None

    def total(self) -> "LayerDistances":
        """Adds all layers up.

        Returns:
            The distances of the whole bodies, as one layer.
        """
        count = range(len(self.names))
        sums = [[sum(one[m][n] for one in self.products.values()) for n in count] for m in count]
        return LayerDistances(self.names, self.origin, {"": sums}, {"": sum(self.norms.values())})

    def table(self) -> Table:
        """Lays the distances out.

        Returns:
            A row a layer and one for all; a column an expert, where there is a base, and one for
            every two experts, or for the mean of all pairs where they are many.
        """
        count, based = len(self.names), self.origin == BASE
        pairs = list(combinations(range(count), 2))
        few = len(pairs) <= _MOST_PAIRS

        def values(found: LayerDistances, layer: str) -> list[float | None]:
            own = [found.away(layer, m) for m in range(count)] if based else []
            between = [found.apart(layer, m, n) for m, n in pairs]
            known = [one for one in between if one is not None]
            mean = sum(known) / len(known) if known else None
            return [*own, *(between if few else [mean])]

        rows = {layer: values(self, layer) for layer in self.products}
        whole = self.total()
        rows["all layers"] = values(whole, "")
        most = max((x for row in rows.values() for x in row if x is not None), default=0.0) or 1.0
        lines = [
            Line(
                [
                    Cell(layer, code=layer in self.products),
                    *(Cell(MISSING) if x is None else heated(x, x / most) for x in row),
                ],
                own=layer not in self.products,
            )
            for layer, row in rows.items()
        ]
        columns = [Column(f"{self.origin} to {name}") for name in self.names] if based else []
        named = [Column(f"{self.names[m]} to {self.names[n]}") for m, n in pairs]
        columns = [Column("layer", text=True), *columns, *(named if few else [Column("pairs")])]
        note = DISTANCES.format(origin="the base" if based else f"`{self.origin}`")
        if not few:
            m, n = max(pairs, key=lambda pair: whole.apart("", *pair) or 0.0)
            note += _MEANT.format(a=f"`{self.names[m]}`", b=f"`{self.names[n]}`")
        title = "Distances between the models by layer, %"
        return Table(title, columns, lines, [note])
