"""The tables of Fishers: where they lie, and where those of tasks overlap."""

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from fmerge.fisher.summary import FisherSummary
from fmerge.report.tables import Cell, Column, Line, Table, heated, percent

_MOST_PAIRS: Final = 10
"""Pairs of tasks that have a column each."""

OVERLAP = (
    "For the diagonal Fishers F and G of two tasks, over the entries i of the body: cosine = "
    "Σᵢ FᵢGᵢ / (‖F‖ ‖G‖), overlap = Σᵢ min(Fᵢ / ΣF, Gᵢ / ΣG). Both are 1 if the two tasks need the "
    "same entries to the same degree, and 0 if they need no entry in common."
)
SHARED = "A layer's number is its part of the overlap of the whole Fishers, to which all add up."


def fisher_tables(found: FisherSummary) -> list[Table]:
    """Lays out where the Fishers lie.

    Args:
        found: What was measured.

    Returns:
        The shares by layer, the overlaps by layer unless the pairs are many, and two matrices, of
        cosines and of overlaps, over the tasks.
    """
    names = list(map(Column, found.names))
    lines = [
        Line([Cell(layer, code=True), *(percent(share, bar=True) for share in shares)])
        for layer, shares in found.layers.items()
    ]
    lines.append(Line([Cell("mean entry"), *(Cell(f"{mean:.2e}") for mean in found.means)]))
    header = [Column("layer", text=True), *names]
    pairs = [Column(f"{a} and {b}") for a, b in combinations(found.names, 2)]
    most = max((max(shares, default=0) for shares in found.shared.values()), default=0) or 1
    where = [
        Line([Cell(layer, code=True), *(heated(share, share / most) for share in shares)])
        for layer, shares in found.shared.items()
    ]
    named = [Column("layer", text=True), *pairs]
    by_layer = Table("Overlap of two Fishers by layer, %", named, where, [SHARED])
    return [
        Table("Share of each task's Fisher by layer, %", header, lines),
        *([by_layer] if 0 < len(pairs) <= _MOST_PAIRS else []),
        _matrix("Cosine of two Fishers", found.names, found.cosines),
        _matrix("Overlap of two Fishers", found.names, found.overlaps, [OVERLAP]),
    ]


def _matrix(
    title: str,
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    notes: Sequence[str] = (),
) -> Table:
    lines = [
        Line([Cell(name), *(Cell(f"{value:.2f}", share=value) for value in row)])
        for name, row in zip(names, values, strict=True)
    ]
    return Table(title, [Column("", text=True), *map(Column, names)], lines, notes)
