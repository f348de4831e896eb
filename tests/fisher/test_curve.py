"""Fishers interpolated over the coefficient: exact at nodes, geometric between, and cheap."""

import math

import pytest
import torch

from fmerge.errors import UserError
from fmerge.fisher import FisherSettings
from fmerge.fisher.curve import FisherCurves
from fmerge.merging.assembler import Assembler
from fmerge.methods import DFMerge
from tests.compare import assert_same


def test_nodes_are_exact_and_computed_once_the_rest_is_geometric():
    asked = []

    def fisher_at(name, coefficient):
        asked.append((name, coefficient))
        return {"w": torch.tensor([coefficient**2, 1.0, 0.0], dtype=torch.float64)}

    def entries(*values):
        return {"w": torch.tensor(values, dtype=torch.float64)}

    curves = FisherCurves(5, fisher_at, scale=lambda fisher: float(fisher["w"].sum()))
    found, scale = curves.at("a", 0.5)
    assert_same(found, entries(0.25, 1.0, 0.0))
    assert asked == [("a", 0.5)] and scale == 1.25
    # 0.6 lies 0.4 of the way from 0.5 to 0.75
    found, scale = curves.at("a", 0.6)
    assert_same(found, entries(0.25**0.6 * 0.5625**0.4, 1.0, 0.0))
    assert asked == [("a", 0.5), ("a", 0.75)]
    assert scale == pytest.approx(1.25**0.6 * 1.5625**0.4)
    curves.at("a", 0.7), curves.at("a", 0.75), curves.at("b", 1.0)
    assert asked == [("a", 0.5), ("a", 0.75), ("b", 1.0)]
    assert_same(curves.at("a", 0.0)[0], entries(0.0, 1.0, 0.0))
    assert_same(curves.at("a", 1.0)[0], entries(1.0, 1.0, 0.0))
    # what is 0 at one end is next to 0 between, and a number
    assert 0 <= float(curves.at("a", 0.1)[0]["w"][0]) < 1e-20


@pytest.mark.parametrize("nodes", [3, 5, 6, 11, 101])
def test_a_coefficient_at_a_node_costs_one_fisher_whatever_its_rounding(nodes):
    for index in range(nodes):
        exact = index / (nodes - 1)
        narrow = float(torch.tensor(exact, dtype=torch.float32))
        for coefficient in {exact, narrow, 1 - (1 - exact), exact * 3 / 3, exact + 0.1 - 0.1}:
            asked = []

            def fisher_at(name, where, asked=asked):
                asked.append(where)
                return {"w": torch.tensor([1.0 + where])}

            found, scale = FisherCurves(nodes, fisher_at, lambda f: float(f["w"])).at(
                "a", coefficient
            )
            assert asked == [exact] and scale == pytest.approx(1 + exact)
            assert_same(found, {"w": torch.tensor([1.0 + exact])}, rtol=1e-6)


def test_a_coefficient_near_a_node_is_between_two():
    asked = []

    def fisher_at(name, where):
        asked.append(where)
        return {"w": torch.ones(1)}

    FisherCurves(5, fisher_at).at("a", 0.500001)
    assert asked == [0.5, 0.75]


def test_a_merge_by_curves_is_the_merge_with_interpolated_fishers():
    """Where log F is linear in λ the curve is exact, so both merges are one."""
    base = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    experts = {
        "a": {"w": torch.tensor([2.0, 0.0], dtype=torch.float64)},
        "b": {"w": torch.tensor([0.0, 4.0], dtype=torch.float64)},
    }
    passes = []

    def fisher_of(name, body):
        passes.append(name)
        return {"w": 0.5 * (math.log(50) * (body["w"] - base["w"])).exp()}

    exact = Assembler(DFMerge(), base, experts, fisher_of)
    curved = Assembler(DFMerge(), base, experts, fisher_of, curve_nodes=3)
    for coefficients in ({"a": 0.3, "b": 0.9}, {"a": 0.31, "b": 0.55}, {"a": 1.0, "b": 0.0}):
        assert_same(curved.assemble(coefficients), exact.assemble(coefficients))
    assert len(passes) == 6 + 6  # exact: two a trial; curves: three nodes a task, once


def test_a_curve_has_two_ends():
    for nodes in (1, -3):
        with pytest.raises(UserError, match=f"curve: is {nodes}, but a curve needs 2 nodes"):
            FisherSettings(curve=nodes)
