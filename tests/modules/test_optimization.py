"""AdamW's groups and the learning rate at every step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fmerge.errors import UserError
from fmerge.modules.optimization import adamw, check_numbers

LAYER = nn.Linear(3, 2)


def made(scheduler="linear", warmup=0.0, steps=10, precision="32-true"):
    trainer = SimpleNamespace(precision=precision, estimated_stepping_batches=steps)
    found = adamw(trainer, LAYER.named_parameters("layer"), 0.5, 0.1, scheduler, warmup)
    assert found["lr_scheduler"]["interval"] == "step"
    return found["optimizer"], found["lr_scheduler"]["scheduler"]


def rates(*arguments, steps=10):
    """The learning rate of each step, and the one after the last."""
    optimizer, schedule = made(*arguments, steps=steps)
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_a_model_of_matrices_alone_has_one_group():
    trainer = SimpleNamespace(precision="32-true", estimated_stepping_batches=1)
    matrices = [("layer.weight", LAYER.weight)]
    (group,) = adamw(trainer, matrices, 0.5, 0.1, "linear", 0.0)["optimizer"].param_groups
    assert group["param_names"] == ["layer.weight"] and group["weight_decay"] == 0.1


def test_only_matrices_decay_and_the_state_names_its_parameters():
    optimizer, _ = made()
    decayed, others = optimizer.param_groups
    assert decayed["param_names"] == ["layer.weight"] and decayed["weight_decay"] == 0.1
    assert others["param_names"] == ["layer.bias"] and others["weight_decay"] == 0.0
    assert decayed["params"][0] is LAYER.weight and others["params"][0] is LAYER.bias


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("16-mixed", False)])
def test_gradients_can_be_clipped_under_16_mixed(precision, fused):
    optimizer, _ = made(precision=precision)
    assert optimizer.defaults["fused"] is fused


def test_the_learning_rate_rises_and_falls():
    rising = [0.0, 0.25]
    assert rates("linear", 0.2) == pytest.approx([
        *rising,
        *(0.5 * k / 8 for k in range(8, -1, -1)),
    ])
    assert rates("constant", 0.2) == pytest.approx([*rising, *[0.5] * 9])
    half = [0.25 * (1 + torch.tensor(torch.pi * k / 8).cos().item()) for k in range(9)]
    assert rates("cosine", 0.2) == pytest.approx([*rising, *half], abs=1e-7)


def test_without_warm_up_the_first_step_has_the_peak():
    assert rates("linear", 0.0, steps=4) == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-1.0, 0, 0, 1), r"--model.learning_rate: is -1.0, but must lie in \(0, inf\)"),
        ((0.0, 0, 0, 1), r"--model.learning_rate: is 0.0, but must lie in \(0, inf\)"),
        ((float("inf"), 0, 0, 1), "--model.learning_rate"),
        ((1, float("nan"), 0, 1), "--model.weight_decay"),
        ((1, 0, 1.5, 1), r"--model.warmup_fraction: is 1.5, but must lie in \[0, 1\]"),
        ((1, 0, 0, 0), r"--model.max_length: is 0, but must lie in \[1, inf\)"),
    ],
)
def test_options_out_of_range_are_refused(numbers, message):
    check_numbers(0.1, 0.0, 1.0, 1)
    with pytest.raises(UserError, match=message):
        check_numbers(*numbers)
