"""Which models can be merged: by every entry of a config, and by distance from one origin."""

from types import SimpleNamespace

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging.compatibility import (
    FARTHEST,
    FIELDS,
    check_related,
    check_same_function,
    task_vector_facts,
)
from tests import tiny


def with_config(**fields):
    return SimpleNamespace(config=SimpleNamespace(to_dict=lambda: fields))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_that_changes_the_function_is_compared(field):
    one, other = with_config(**{field: "A", "id2label": 1}), with_config(**{field: "B"})
    check_same_function(one, one, "the base x", "y")
    with pytest.raises(UserError) as refused:
        check_same_function(one, other, "the base x", "y")
    assert str(refused.value) == (
        f"y: its config says {field} B, but the base x says A, so that their weights mean "
        "different things; merge models fine-tuned from one base"
    )
    with pytest.raises(UserError, match=f"says {field} None, but the base x says A"):
        check_same_function(one, with_config(), "the base x", "y")


def test_what_changes_no_function_may_differ():
    one = with_config(model_type="bert", id2label={0: "a"}, _name_or_path="x", hidden_dropout=0.1)
    other = with_config(model_type="bert", id2label={0: "b"}, _name_or_path="y", hidden_dropout=0.0)
    check_same_function(one, other, "x", "y")


def test_real_configs_and_modules_without_one():
    one = SimpleNamespace(config=tiny.bert_config())
    check_same_function(one, SimpleNamespace(config=tiny.bert_config(labels=("a",))), "x", "y")
    heads = SimpleNamespace(config=tiny.bert_config(num_attention_heads=4))
    with pytest.raises(UserError, match="num_attention_heads 4, but x says 2"):
        check_same_function(one, heads, "x", "y")
    linear = torch.nn.Linear(2, 2)  # nothing to compare
    check_same_function(linear, torch.nn.Linear(2, 2), "x", "y")


@pytest.mark.parametrize(("factor", "refused"), [(0.999, False), (1.001, True)])
def test_the_distance_is_that_of_all_matrices_together(factor, refused):
    # ‖θ₀‖ = 5 over both; the step is orthogonal to them, of length factor · FARTHEST · 5
    length = factor * FARTHEST * 5
    reference = {"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[0.0], [4.0]])}
    other = {
        "a": reference["a"] + torch.tensor([[0.0, 0.6 * length]]),
        "b": reference["b"] + torch.tensor([[0.8 * length], [0.0]]),
    }
    # vectors do not count, however far they are
    reference["norm"], other["norm"] = torch.ones(3), torch.full((3,), -100.0)
    if not refused:
        return check_related(reference, other, "the base x", "y")
    with pytest.raises(UserError) as error:
        check_related(reference, other, "the base x", "y")
    # cosine 1 / √(1 + distance²)
    cosine = (1 + (factor * FARTHEST) ** 2) ** -0.5
    assert str(error.value).startswith(
        f"y: lies {factor * FARTHEST:.2f} times the norm of the base x away from it "
        f"(cosine {cosine:.2f}), as far as an unrelated model"
    )


def test_an_unrelated_model_of_the_same_recipe_is_refused_and_a_fine_tuned_one_is_not():
    generator = torch.Generator().manual_seed(0)
    base, unrelated, step = (
        {name: torch.randn(40, 40, generator=generator) for name in "ab"} for _ in range(3)
    )
    with pytest.raises(UserError, match=r"lies 1\.4\d times .* \(cosine -?0\.0\d\)"):
        check_related(base, unrelated, "x", "y")
    check_related(base, {n: t + 0.05 * step[n] for n, t in base.items()}, "x", "y")
    check_related(base, base, "x", "y")


def test_a_base_of_zeros_is_the_origin_of_itself_alone():
    zeros = {"w": torch.zeros(2, 2)}
    check_related(zeros, zeros, "x", "y")
    with pytest.raises(UserError, match="cosine 0.00"):
        check_related(zeros, {"w": torch.ones(2, 2)}, "x", "y")


def test_task_vectors_of_three_experts():
    base = {"w": torch.tensor([[6.0, 8.0]]), "b": torch.zeros(1)}
    bodies = {
        "x": {"w": torch.tensor([[7.0, 8.0]]), "b": torch.zeros(1)},  # τ = (1, 0, 0)
        "y": {"w": torch.tensor([[4.0, 8.0]]), "b": torch.zeros(1)},  # (−2, 0, 0)
        "z": {"w": torch.tensor([[9.0, 8.0]]), "b": torch.tensor([4.0])},  # (3, 0, 4)
    }
    assert task_vector_facts(base, bodies) == (
        "`x` 10.0%, `y` 20.0%, `z` 50.0% of the base's norm; cosines: "
        "`y` and `x` -1.00, `z` and `x` 0.60, `z` and `y` -0.60"
    )


def test_an_expert_that_is_the_base_has_no_direction():
    base = {"w": torch.tensor([[3.0, 4.0]])}
    facts = task_vector_facts(base, {"x": base, "y": {"w": torch.tensor([[3.0, 5.0]])}})
    assert facts == "`x` 0.0%, `y` 20.0% of the base's norm; cosines: `y` and `x` 0.00"
