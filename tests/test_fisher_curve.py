"""Fishers interpolated over the coefficient: exact at nodes, linear between, and cheap."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.evaluation import FisherSettings
from fmerge.fisher_curve import FisherCurves
from fmerge.merger import Merger
from fmerge.methods import DFMerge
from tests.compare import assert_same


def test_nodes_are_exact_and_computed_once_the_rest_is_linear():
    asked = []

    def fisher_at(name, coefficient):
        asked.append((name, coefficient))
        return {"w": torch.tensor([coefficient**2, 1.0], dtype=torch.float64)}

    curves = FisherCurves(5, fisher_at)
    assert_same(curves.at("a", 0.5)[0], {"w": torch.tensor([0.25, 1.0], dtype=torch.float64)})
    assert asked == [("a", 0.5)]
    # 0.6 lies 0.4 of the way from 0.5 to 0.75: 0.6 · 0.25 + 0.4 · 0.5625
    assert_same(curves.at("a", 0.6)[0], {"w": torch.tensor([0.375, 1.0], dtype=torch.float64)})
    assert asked == [("a", 0.5), ("a", 0.75)]
    curves.at("a", 0.7), curves.at("a", 0.75), curves.at("b", 1.0)
    assert asked == [("a", 0.5), ("a", 0.75), ("b", 1.0)]
    assert_same(curves.at("a", 0.0)[0], {"w": torch.tensor([0.0, 1.0], dtype=torch.float64)})


def test_a_merge_by_curves_is_the_merge_with_interpolated_fishers():
    """Where F is linear in λ the curve is exact, so both merges are one."""
    base = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    experts = {
        "a": {"w": torch.tensor([2.0, 0.0], dtype=torch.float64)},
        "b": {"w": torch.tensor([0.0, 4.0], dtype=torch.float64)},
    }
    passes = []

    def fisher_of(name, body):
        passes.append(name)
        return {"w": body["w"].abs() * 0 + (body["w"] - base["w"]).abs() + 0.5}

    exact = Merger(DFMerge(), base, experts, fisher_of)
    curved = Merger(DFMerge(), base, experts, fisher_of, curve_nodes=3)
    for coefficients in ({"a": 0.3, "b": 0.9}, {"a": 0.31, "b": 0.55}, {"a": 1.0, "b": 0.0}):
        assert_same(curved.assemble(coefficients), exact.assemble(coefficients))
    assert len(passes) == 6 + 6  # exact: two a trial; curves: three nodes a task, once


def test_a_curve_has_two_ends():
    for nodes in (1, -3):
        with pytest.raises(UserError, match=f"curve: is {nodes}, but a curve needs 2 nodes"):
            FisherSettings(curve=nodes)
