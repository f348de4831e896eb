"""``fmerge.merge``: the values of the formulas, and one line for each mistake."""

import math

import pytest
import torch

from fmerge import methods
from fmerge.errors import UserError, classes_of
from fmerge.merging.in_memory import merge
from fmerge.methods import (
    DARE,
    Average,
    FisherMerge,
    Gram,
    Isotropic,
    MergeMethod,
    RegMean,
    TaskArithmetic,
)

A = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([1.0, 0.0])}
B = {"w": torch.tensor([[3.0, 0.0], [1.0, 8.0]]), "b": torch.tensor([0.0, 3.0])}
BASE = {"w": torch.ones(2, 2), "b": torch.zeros(2)}
ONES = {"w": torch.ones(2, 2), "b": torch.ones(2)}
GRAM = {"w": Gram(torch.eye(2))}
FORMULAS = sorted(
    name
    for name, one in classes_of(methods, MergeMethod).items()
    if not one.calibrates and not one.chooses
)


def same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("name", FORMULAS)
def test_every_method_gives_what_its_class_gives(name):
    method = classes_of(methods, MergeMethod)[name]()
    statistics = {None: None, "gram": [GRAM, GRAM]}.get(method.statistic, [ONES, ONES])
    given = [0.25, 0.75] if method.uses_coefficients else None
    expected = method.merge(BASE, [A, B], given or [0.5, 0.5], statistics)
    same(merge([A, B], name, given, BASE, statistics), expected)


def test_coefficients_are_equal_when_left_out():
    expected = TaskArithmetic().merge(BASE, [A, B], [0.5, 0.5])
    same(merge([A, B], TaskArithmetic(), base=BASE), expected)


def test_a_task_is_unlearned_by_a_negative_coefficient():
    """θ₀ + 0.6 τ₁ − 0.2 τ₂, and more than a whole task vector."""
    base, one, two = ({"w": torch.tensor([value])} for value in (1.0, 2.0, 6.0))
    found = merge({"a": one, "b": two}, "TaskArithmetic", {"a": 0.6, "b": -0.2}, base)
    torch.testing.assert_close(found["w"], torch.tensor([1 + 0.6 * 1 - 0.2 * 5]))
    found = merge([one, two], "TaskArithmetic", [1.5, 0.2], base)
    torch.testing.assert_close(found["w"], torch.tensor([1 + 1.5 * 1 + 0.2 * 5]))


def test_dictionaries_are_matched_by_name():
    fishers = {"b": ONES, "a": {name: 2 * one for name, one in ONES.items()}}
    method = FisherMerge(normalize=False)
    found = merge({"a": A, "b": B}, method, {"b": 0.2, "a": 0.6}, statistics=fishers)
    same(found, method.merge(None, [A, B], [0.6, 0.2], [fishers["a"], fishers["b"]]))


def test_inputs_stay_and_results_are_new():
    before = {name: one.clone() for name, one in A.items()}
    merged = merge([A, A], "Average")
    merged["w"].zero_()
    same(A, before)


def test_integers_are_copied_where_they_are_equal():
    ids = {"ids": torch.arange(3)}
    merged = merge([ids | A, ids | B], "Average")
    assert list(merged) == ["ids", "w", "b"] and torch.equal(merged["ids"], ids["ids"])
    merged["ids"].zero_()
    assert torch.equal(ids["ids"], torch.arange(3))
    with pytest.raises(UserError, match=r"experts\[1\]: tensor 'ids' of torch.int64 differs"):
        merge([ids | A, {"ids": torch.zeros(3, dtype=torch.int64)} | B], "Average")
    with pytest.raises(
        UserError, match=r"experts\[1\]: tensor 'ids' is torch.float32, but torch.i"
    ):
        merge([ids | A, {"ids": torch.arange(3.0)} | B], "Average")


NAN = {**A, "b": torch.tensor([float("nan"), 0.0])}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], "Average"), {}, "experts: is empty"),
        (
            ([A, B], "Avrage"),
            {},
            "method: unknown name 'Avrage'; known: Auto, Average, Breadcrumbs",
        ),
        (([A, B], "MergeMethod"), {}, "method: unknown name 'MergeMethod'"),
        (([A, {"w": B["w"]}], "Average"), {}, r"experts\[1\]: tensor 'b' is no such tensor"),
        (([A, {**B, "b": torch.ones(3)}], "Average"), {}, r"is \(3,\), but \(2,\) in experts\[0\]"),
        (({"a": A, "b": NAN}, "Average"), {}, r"experts\['b'\]: tensor 'b' holds 1 NaN"),
        (([A, B], "TIES"), {}, "base: TIES needs the model that the experts started from"),
        (([A, B], "TIES"), {"base": {"w": A["w"]}}, "base: tensor 'b' is no such tensor"),
        (([A, B], Isotropic(), [1.0]), {}, "coefficients: 1 are given for 2 experts"),
        (([A, B], Isotropic(), [0.5, math.inf]), {}, "coefficient of '1' is inf, but must be a fi"),
        (
            ([A, B], Isotropic(), [0.5, True]),
            {},
            "coefficient of '1' is True, but must be a finite",
        ),
        (([A, B], Isotropic(), [0.5, -0.2]), {}, "Isotropic: divides by the sum .* of '1' is -0.2"),
        (([A, B], Isotropic(), [0.0, 0.0]), {}, "all coefficients are 0"),
        (({"a": A}, Isotropic(), {"b": 1.0}), {}, "coefficients: are given for b, but the exp"),
        (([A, B], "Average", [0.3, 0.7]), {}, "coefficients: Average uses none; .* Isotropic is"),
        (([A, B], "FisherMerge"), {}, "statistics: FisherMerge needs a diagonal Fisher for each"),
        (([A, B], "RegMean"), {}, "statistics: RegMean needs a Gram matrix by linear layer for"),
        (([A, B], "Average"), {"statistics": [ONES, ONES]}, "statistics: Average uses none"),
        (([A, B], "FisherMerge"), {"statistics": [ONES]}, "statistics: 1 are given for 2 experts"),
        (([A, B], "FisherMerge"), {"statistics": [ONES, {}]}, r"statistics\[1\]: tensor 'w' is no"),
        (
            ([A, B], "FisherMerge"),
            {"statistics": [ONES, {**ONES, "b": -ONES["b"]}]},
            r"statistics\[1\]: tensor 'b' has entries below 0",
        ),
        (
            ([A, B], RegMean()),
            {"statistics": [GRAM, {"x": GRAM["w"]}]},
            r"statistics\[1\]: no expert has a tensor 'x'",
        ),
        (([A, B, A], "SLERP"), {}, "SLERP"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_parameter(arguments, options, message):
    with pytest.raises(UserError, match=message) as error:
        merge(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (([A, B], Average), {}, None),
        (([A, B], DARE), {"base": A}, None),
        (([A, B], 3), {}, "method: is 3, but must be a MergeMethod or the name of one; known: "),
        (([A, B], dict), {}, "method: is <class 'dict'>, but must be a MergeMethod or the name"),
        (("runs/a", "Average"), {}, "experts: is 'runs/a', but must be a list of dictionaries"),
        ((["runs/a", "runs/b"], "Average"), {}, "experts[0]: must be a dictionary of tensors, but "
         "is 'runs/a'; fmerge.load_params reads one"),
        (({"a": A, "b": "runs/b"}, "Average"), {}, "experts['b']: must be a dictionary of tensors"),
        (([A, B], "TaskArithmetic"), {"base": "runs/base"}, "base: must be a dictionary of "),
        (([A, B], "FisherMerge"), {"statistics": "f.h5"}, "statistics: is 'f.h5', but must be a "),
        (([A, B], "FisherMerge"), {"statistics": [A, {}]}, "statistics[1]: tensor 'w' is not "),
    ],
)  # fmt: skip
def test_names_and_classes_work_and_other_things_are_named(given, options, message):
    if message is None:
        assert merge(*given, **options).keys() == A.keys()
        return
    with pytest.raises(UserError) as raised:
        merge(*given, **options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
