"""Distances between models by layer: as a number, and as a table."""

import pytest

from fmerge.report.distances import LayerDistances
from fmerge.report.tables import to_markdown

FOUND = LayerDistances(
    ["a", "b"],
    "base",
    # δₐ = (3, 0), δ_b = (0, 4) beside ‖θ₀‖ = 10; then twice the same step of norm 1 beside 2
    {"m.0": [[9.0, 0.0], [0.0, 16.0]], "m.1": [[1.0, 1.0], [1.0, 1.0]], "m.2": [[0.0] * 2] * 2},
    {"m.0": 100.0, "m.1": 4.0, "m.2": 0.0},
)


def test_distances_are_those_of_the_triangle():
    assert [FOUND.away("m.0", m) for m in (0, 1)] == [pytest.approx(0.3), pytest.approx(0.4)]
    assert FOUND.apart("m.0", 0, 1) == pytest.approx(0.5)
    assert FOUND.apart("m.1", 0, 1) == 0.0 and FOUND.away("m.1", 1) == pytest.approx(0.5)
    assert FOUND.away("m.2", 0) is None and FOUND.apart("m.2", 0, 1) is None


def test_the_table_ends_with_the_whole_model():
    lines = to_markdown(FOUND.table())
    assert "| layer | base to a | base to b | a to b |" in lines
    assert "| `m.0` | 30.0 | 40.0 | 50.0 |" in lines and "| `m.2` | - | - | - |" in lines
    # √(9 + 1) / √104 = 31.0%, √17 / √104 = 40.4%, 5 / √104 = 49.0%
    assert "| all layers | 31.0 | 40.4 | 49.0 |" in lines
    heats = [cell.heat for cell in FOUND.table().lines[0].cells[1:]]
    assert heats == [pytest.approx(0.6), pytest.approx(0.8), pytest.approx(1.0)]


def test_without_a_base_only_pairs_are_told():
    found = LayerDistances(["a", "b"], "a", {"m.0": [[0.0, 0.0], [0.0, 4.0]]}, {"m.0": 16.0})
    lines = to_markdown(found.table())
    assert "| layer | a to b |" in lines and "| `m.0` | 50.0 |" in lines
    assert any("norm of `a`'s weights" in line for line in lines)


def test_many_pairs_are_told_by_their_mean():
    names = [f"e{m}" for m in range(6)]
    # δₘ = m along one axis: distances |m − n|
    products = [[float(m * n) for n in range(6)] for m in range(6)]
    found = LayerDistances(names, "e0", {"m.0": products}, {"m.0": 100.0})
    lines = to_markdown(found.table())
    # of the 15 pairs 5 are 1 apart, 4 are 2, ...: 35 / 15 / 10 = 23.3%
    assert "| `m.0` | 23.3 |" in lines
    assert any("the farthest pair of all is `e0` and `e5`." in line for line in lines)
