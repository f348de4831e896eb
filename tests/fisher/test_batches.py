"""What is read of a batch, and a module's modes and flags that come back."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fmerge.fisher.batches import (
    batch_labels,
    batch_size,
    differentiating,
    evaluating,
    example,
    replace,
)

BATCH = {
    "ids": torch.arange(6).view(3, 2),
    "nested": [torch.tensor([1.0, 2.0, 3.0]), (torch.zeros(2, 3), "text")],
    "labels": torch.tensor([0, 1, 0]),
    "number": torch.tensor(7),
}


def test_size_and_labels():
    assert batch_size(BATCH) == 3 and batch_labels(BATCH).tolist() == [0, 1, 0]
    assert batch_size([torch.tensor(7), OrderedDict(a=torch.zeros(5))]) == 5
    with pytest.raises(ValueError, match="no tensor to count examples by in a batch of dict"):
        batch_size({"text": "one", "number": torch.tensor(7)})


def test_an_example_has_one_row_of_each_tensor_that_has_rows():
    one = example(BATCH, 1, 3)
    assert one["ids"].tolist() == [[2, 3]] and one["labels"].tolist() == [1]
    assert one["nested"][0].tolist() == [2.0] and one["nested"][1][1] == "text"
    # two rows are not three examples', and a number has no rows
    assert one["nested"][1][0].shape == (2, 3) and int(one["number"]) == 7
    assert isinstance(one["nested"], list) and isinstance(one["nested"][1], tuple)
    doubled = replace(BATCH, 3, lambda tensor: tensor * 2)
    assert doubled["labels"].tolist() == [0, 2, 0] and int(doubled["number"]) == 7


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(list(model.modules())):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_each_parameter_gets_its_own_flag_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(KeyError), differentiating([model[0].bias], model.parameters()):
        assert [p is model[0].bias for p in model.parameters() if p.requires_grad] == [True]
        raise KeyError
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
