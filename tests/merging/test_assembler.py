"""Merges group by group, with statistics where they are due, against sums worked by hand."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging.assembler import Assembler
from fmerge.methods import DFMerge, FisherMerge, FisherTSV, LiNeS, RegMean, TaskArithmetic
from fmerge.methods.averages import Isotropic
from fmerge.methods.tensorwise import Tensorwise
from tests.compare import assert_same

BASE = {"emb": torch.tensor([1.0, 2.0]), "layer.0.w": torch.tensor([4.0]), "out": torch.zeros(2)}
EXPERTS = {
    "a": {"emb": torch.tensor([2.0, 2.0]), "layer.0.w": torch.tensor([8.0]), "out": torch.ones(2)},
    "b": {"emb": torch.tensor([1.0, 6.0]), "layer.0.w": torch.tensor([2.0]), "out": -torch.ones(2)},
}
FISHERS = {
    "a": {"emb": torch.tensor([1.0, 3.0]), "layer.0.w": torch.tensor([2.0]), "out": torch.ones(2)},
    "b": {"emb": torch.tensor([3.0, 1.0]), "layer.0.w": torch.tensor([6.0]), "out": torch.ones(2)},
}
GROUPS = {"deep": ["layer.0.w"], "rest": ["emb", "out"]}


def never(name, body):
    raise AssertionError(f"the Fisher of {name} was estimated")


class Moves:
    """A Fisher that tells where it was taken: each entry is θ² + 1 there."""

    def __init__(self):
        self.calls = []

    def __call__(self, name, body):
        self.calls.append((name, {key: value.clone() for key, value in body.items()}))
        return {key: value.square() + 1 for key, value in body.items()}


class Recorded(Tensorwise):
    """Σ λₘθₘ / scaleₘ, which records what it is given."""

    statistic = "fisher"

    def __init__(self):
        self.measured, self.places = [], []

    def statistic_scale(self, statistic):
        self.measured.append(sorted(statistic))
        return sum(float(tensor.sum()) for tensor in statistic.values())

    def tensor_formula(self, inputs):
        self.places.append(inputs.places)
        weights = [c / s for c, s in zip(inputs.coefficients, inputs.scales, strict=True)]
        return lambda name: sum(
            w * one[name] for w, one in zip(weights, inputs.experts, strict=True)
        )


def df_merge(coefficients, fishers):
    """θ₀ + 2 Σ F λτ / Σ F, with λ by expert and tensor."""
    merged = {}
    for key, origin in BASE.items():
        top = sum(
            fishers[name][key] * coefficients[name, key] * (EXPERTS[name][key] - origin)
            for name in EXPERTS
        )
        merged[key] = origin + 2 * top / sum(fishers[name][key] for name in EXPERTS)
    return merged


def test_one_group_has_one_coefficient_an_expert():
    found = Assembler(TaskArithmetic(), BASE, EXPERTS, never).assemble({"a": 0.5, "b": 0.25})
    # θ₀ + ½τₐ + ¼τ_b
    assert_same(
        found,
        {
            "emb": torch.tensor([1.5, 3.0]),
            "layer.0.w": torch.tensor([5.5]),
            "out": torch.tensor([0.25, 0.25]),
        },
    )


def test_each_group_has_its_own_coefficients_and_the_order_is_the_models():
    one = Assembler(TaskArithmetic(), BASE, EXPERTS, never, parts=GROUPS)
    coefficients = {"a/deep": 1.0, "b/deep": 0.0, "a/rest": 0.0, "b/rest": 0.5}
    found = one.assemble(coefficients)
    assert list(found) == list(BASE)  # not that of the groups
    assert_same(
        found,
        {
            "emb": torch.tensor([1.0, 4.0]),
            "layer.0.w": torch.tensor([8.0]),
            "out": torch.tensor([-0.5, -0.5]),
        },
    )
    with pytest.raises(KeyError, match="a/deep"):
        one.assemble({"a": 1.0, "b": 1.0})


def test_a_moving_fisher_is_taken_where_each_group_of_each_expert_is():
    fisher = Moves()
    one = Assembler(DFMerge(epsilon=0.0), BASE, EXPERTS, fisher, parts=GROUPS)
    coefficients = {"a/deep": 1.0, "b/deep": 0.5, "a/rest": 0.25, "b/rest": 0.75}
    found = one.assemble(coefficients)
    at, expected = dict(fisher.calls), {}
    assert [name for name, _ in fisher.calls] == ["a", "b"]
    for name in EXPERTS:
        for group, keys in GROUPS.items():
            for key in keys:
                expected[name, key] = coefficients[f"{name}/{group}"]
        places = {
            key: BASE[key] + expected[name, key] * (EXPERTS[name][key] - BASE[key]) for key in BASE
        }
        assert_same(at[name], places)
    fishers = {name: {key: at[name][key] ** 2 + 1 for key in BASE} for name in EXPERTS}
    assert_same(found, df_merge(expected, fishers))


def test_a_given_fisher_is_never_estimated_again():
    found = Assembler(FisherMerge(), None, EXPERTS, never, FISHERS).assemble({"a": 0.5, "b": 0.5})
    # normalised by the norm over all tensors, θ = Σ F̂θ / Σ F̂
    norms = {n: sum(float((t**2).sum()) for t in FISHERS[n].values()) ** 0.5 for n in FISHERS}
    weights = {n: {k: t / norms[n] for k, t in FISHERS[n].items()} for n in FISHERS}
    expected = {
        k: sum(weights[n][k] * EXPERTS[n][k] for n in EXPERTS) / sum(weights[n][k] for n in EXPERTS)
        for k in BASE
    }
    assert_same(found, expected, rtol=1e-5)


def test_a_moving_fisher_needs_the_base():
    with pytest.raises(ValueError, match="DFMerge needs the base model"):
        Assembler(DFMerge(), None, EXPERTS, Moves()).assemble({"a": 0.5, "b": 0.5})


def test_the_last_merge_is_reused_unless_its_statistics_are_asked_for():
    fisher, seen = Moves(), []
    one = Assembler(DFMerge(), BASE, EXPERTS, fisher)
    first = one.assemble({"a": 0.5, "b": 0.5})
    assert one.assemble({"b": 0.5, "a": 0.5}) is first and len(fisher.calls) == 2
    again = one.assemble({"a": 0.5, "b": 0.5}, seen.append)
    assert len(fisher.calls) == 4 and len(seen) == 1
    assert_same(seen[0]["a"], {k: v**2 + 1 for k, v in fisher.calls[2][1].items()})
    assert_same(again, first)
    one.assemble({"a": 0.5, "b": 0.25})
    assert len(fisher.calls) == 6


def test_a_method_without_statistics_shows_none():
    seen = []
    one = Assembler(TaskArithmetic(), BASE, EXPERTS, never)
    one.assemble({"a": 1.0, "b": 1.0}, seen.append)
    assert seen == []


def test_a_merge_is_written_over_the_last_one():
    one = Assembler(TaskArithmetic(), BASE, EXPERTS, never, parts=GROUPS)
    names = ["a/deep", "b/deep", "a/rest", "b/rest"]
    first = one.assemble(dict.fromkeys(names, 1.0))
    places = {key: tensor.data_ptr() for key, tensor in first.items()}
    second = one.assemble(dict.fromkeys(names, 0.5))
    assert {key: tensor.data_ptr() for key, tensor in second.items()} == places
    assert_same(first, second)  # the first is overwritten: it must be read before the next
    assert EXPERTS["a"]["emb"].tolist() == [2.0, 2.0] and BASE["out"].tolist() == [0.0, 0.0]


def test_a_method_with_tensors_of_its_own_leaves_the_last_merge_alone():
    one = Assembler(Recorded(), None, EXPERTS, never, FISHERS)
    first = one.assemble({"a": 1.0, "b": 0.0})
    kept = {key: tensor.clone() for key, tensor in first.items()}
    second = one.assemble({"a": 0.0, "b": 1.0})
    assert_same(first, kept)
    assert not torch.equal(second["emb"], first["emb"])


def test_a_scale_is_measured_once_for_each_expert_and_group():
    method = Recorded()
    one = Assembler(method, None, EXPERTS, never, FISHERS, parts=GROUPS)
    names = ["a/deep", "b/deep", "a/rest", "b/rest"]
    one.assemble(dict.fromkeys(names, 1.0))
    found = one.assemble(dict(zip(names, [1.0, 0.0, 0.0, 0.5], strict=True)))
    assert method.measured == [["layer.0.w"]] * 2 + [["emb", "out"]] * 2
    # θₐ over the sum of Fₐ in its group; half of θ_b over that of F_b in the other
    assert_same(
        found,
        {
            "emb": 0.5 * EXPERTS["b"]["emb"] / 6,
            "layer.0.w": EXPERTS["a"]["layer.0.w"] / 2,
            "out": 0.5 * EXPERTS["b"]["out"] / 6,
        },
    )


def test_a_scale_is_measured_anew_where_the_fisher_moves():
    method = Recorded()
    method.statistic = "moving fisher"
    one = Assembler(method, BASE, EXPERTS, Moves())
    one.assemble({"a": 1.0, "b": 1.0})
    one.assemble({"a": 0.5, "b": 1.0})
    assert len(method.measured) == 4


def test_groups_know_their_place_in_the_whole_model():
    method = Recorded()
    names = ["a/deep", "b/deep", "a/rest", "b/rest"]
    one = Assembler(method, None, EXPERTS, never, FISHERS, parts=GROUPS)
    one.assemble(dict.fromkeys(names, 1.0))
    assert all(set(places) == set(BASE) for places in method.places)
    assert {places["layer.0.w"].layers for places in method.places} == {1}


def test_a_gram_is_handed_to_the_groups_that_have_one():
    """Of Grams only linear layers have one: a group without must not fail."""

    class Shown(Recorded):
        statistic = "gram"

        def statistic_scale(self, statistic):
            self.measured.append(sorted(statistic))
            return 1.0

    assert RegMean().statistic == "gram"
    method, grams = Shown(), {name: {"layer.0.w": object()} for name in EXPERTS}
    one = Assembler(method, None, EXPERTS, never, grams, parts=GROUPS)
    one.assemble(dict.fromkeys(["a/deep", "b/deep", "a/rest", "b/rest"], 1.0))
    assert method.measured == [["layer.0.w"]] * 2 + [[]] * 2


def test_what_is_not_finite_is_refused_and_not_reused():
    wild = {**EXPERTS, "b": {**EXPERTS["b"], "emb": torch.tensor([float("inf"), 0.0])}}
    one = Assembler(TaskArithmetic(), BASE, wild, never)
    for _ in range(2):  # the second time too: it is no last merge
        with pytest.raises(UserError, match=r"TaskArithmetic at \{'a': 1.0, 'b': 0.5\}: .*'emb'"):
            one.assemble({"a": 1.0, "b": 0.5})


def test_coefficients_that_the_method_refuses_are_a_value_error():
    one = Assembler(Isotropic(), None, EXPERTS, never)
    with pytest.raises(ValueError, match="positive sum"):
        one.assemble({"a": 0.0, "b": 0.0})
    assert_same(one.assemble({"a": 1.0, "b": 0.0}), EXPERTS["a"])


def test_a_curve_estimates_at_its_nodes_and_interpolates_geometrically():
    fisher, stored = Moves(), []
    one = Assembler(
        DFMerge(epsilon=0.0), BASE, EXPERTS, fisher,
        curve_nodes=3, keep=lambda some: stored.append(some) or some,
    )  # fmt: skip
    coefficients = {"a": 0.5, "b": 0.125}
    found = one.assemble(coefficients)
    # λ = 0.5 is a node; 0.125 is a quarter of the way between 0 and 0.5
    assert [name for name, _ in fisher.calls] == ["a", "b", "b"] and len(stored) == 3
    at = [{key: value**2 + 1 for key, value in body.items()} for _, body in fisher.calls]
    assert_same(fisher.calls[1][1], BASE)
    between = {key: at[1][key] ** 0.75 * at[2][key] ** 0.25 for key in BASE}
    by_tensor = {(name, key): coefficients[name] for name in EXPERTS for key in BASE}
    assert_same(found, df_merge(by_tensor, {"a": at[0], "b": between}), rtol=1e-4)
    one.assemble({"a": 0.5, "b": 0.25})
    assert len(fisher.calls) == 3  # no new node


def test_a_curves_scale_is_interpolated_as_its_entries_are():
    method = Recorded()
    method.statistic = "moving fisher"
    one = Assembler(method, BASE, EXPERTS, Moves(), curve_nodes=2)
    found = one.assemble({"a": 0.5, "b": 1.0})
    sums = {}
    for name, share in (("a", 0.0), ("a", 1.0), ("b", 1.0)):
        at = {k: BASE[k] + share * (EXPERTS[name][k] - BASE[k]) for k in BASE}
        sums[name, share] = sum(float((t**2 + 1).sum()) for t in at.values())
    scale = (sums["a", 0.0] * sums["a", 1.0]) ** 0.5
    expected = {k: 0.5 * EXPERTS["a"][k] / scale + EXPERTS["b"][k] / sums["b", 1.0] for k in BASE}
    assert_same(found, expected)


def test_a_methods_numbers_come_with_the_coefficients():
    assembler = Assembler(LiNeS(a=0.5, b=0.25), BASE, EXPERTS, never)
    given = {"a": 0.5, "b": 0.5, "LiNeS.a": 0.75, "LiNeS.b": 0.1}
    expected = LiNeS(a=0.75, b=0.1).merge(BASE, list(EXPERTS.values()), [0.5, 0.5])
    assert_same(assembler.assemble(given), expected)
    # as the method has them, where they are left out
    expected = LiNeS(a=0.5, b=0.25).merge(BASE, list(EXPERTS.values()), [0.5, 0.5])
    assert_same(assembler.assemble({"a": 0.5, "b": 0.5}), expected)


def test_the_method_states_its_facts_group_by_group():
    generator = torch.Generator().manual_seed(0)
    base, *models = [
        {name: torch.randn(6, 5, generator=generator) for name in ("x.weight", "y.weight")}
        for _ in range(5)
    ]
    experts = dict(zip("ab", models[:2], strict=True))
    fishers = {name: {k: v**2 for k, v in one.items()} for name, one in experts.items()}
    parts = {"first": ["x.weight"], "last": ["y.weight"]}
    assembler = Assembler(FisherTSV(), base, experts, never, fishers, parts)
    coefficients = {"a/first": 1.0, "b/first": 0.5, "a/last": 0.2, "b/last": 0.3}
    found = assembler.facts(coefficients)
    assert [fact.partition(": ")[0] for fact in found] == ["first", "last"]
    one = Assembler(
        FisherTSV(),
        {"y.weight": base["y.weight"]},
        {name: {"y.weight": expert["y.weight"]} for name, expert in experts.items()},
        never,
        fishers,
    )
    assert found[1] == f"last: {one.facts({'a': 0.2, 'b': 0.3})[0]}"
    assert Assembler(TaskArithmetic(), BASE, EXPERTS, never).facts({"a": 1.0, "b": 1.0}) == []
    # statistics that move are not taken again to tell of them
    assert Assembler(DFMerge(), BASE, EXPERTS, never).facts({"a": 1.0, "b": 1.0}) == []
