"""Batch-independent tensors are handled, all others are not, and classes come back."""

import pytest
import torch
from torch import nn

from fmerge.fisher.engine.tracked_tensor import (
    TrackedParameter,
    TrackedTensor,
    flatten,
    is_tracked,
    track,
    tracking,
    untrack,
)


def test_only_functions_of_tracked_arguments_reach_the_handler():
    parameter, plain, called = nn.Parameter(torch.ones(3)), torch.ones(3), []

    def handler(func, args, kwargs):
        called.append(func)
        return func(*args, **kwargs)  # the same function again does not end here again

    with tracking([parameter], handler):
        assert type(parameter) is TrackedParameter
        torch.add(plain, plain)
        torch.add(plain, parameter)
        with torch.no_grad():
            torch.add(plain, parameter)
    torch.add(plain, parameter)
    assert called == [torch.add]


def test_the_class_comes_back_after_an_error():
    parameter = nn.Parameter(torch.ones(3))
    with pytest.raises(ZeroDivisionError), tracking([parameter], lambda *call: 1 / 0):
        parameter.sin()
    assert type(parameter) is nn.Parameter
    assert type(parameter.sin()) is torch.Tensor


def test_a_parameter_stays_the_same_object_and_other_classes_stay_theirs():
    class Own(nn.Parameter):
        pass

    module, own = nn.Linear(2, 2), Own(torch.ones(1))
    weight = module.weight
    track([weight, own])
    assert module.weight is weight and type(weight) is TrackedParameter and type(own) is Own
    untrack([weight, own])
    assert type(weight) is nn.Parameter and type(own) is Own


def test_frozen_parameters_and_plain_tensors_are_not_tracked():
    parameter = nn.Parameter(torch.ones(2))
    assert not is_tracked(parameter) and not is_tracked(torch.ones(2)) and not is_tracked(3)
    track([parameter])
    assert is_tracked(parameter)
    parameter.requires_grad = False
    assert not is_tracked(parameter)
    untrack([parameter])
    assert is_tracked(torch.ones(2).as_subclass(TrackedTensor))


def test_flatten_walks_through_any_nesting():
    assert list(flatten([1, (2, {"a": 3, "b": [4]}), "five"])) == [1, 2, 3, 4, "five"]
