"""Convolutions and normalisations of channels, as layers and as functions, in every option."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmerge.fisher import estimate_fisher
from tests.compare import assert_same
from tests.fisher.cases import definition

N = 8  # as many examples as there are in a batch of tests/fisher/cases.py


class Reflecting(nn.Conv2d):
    """A subclass that pads by itself and then calls its parent's function."""

    def forward(self, x):
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.weight, bias=self.bias, stride=self.stride)


class FirstChannels(nn.Module):
    """A convolution by a part of a weight, and a bias of another's."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(6, 4, 3)), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        first = F.conv1d(x, self.weight[:4], self.bias[:4])
        return first + F.conv1d(x, self.weight[2:], self.bias[2:], dilation=1)


def batch_norm(layer):
    """Statistics that are not those of a new layer."""
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


LAYERS = {
    "1-d": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "1-d strided, dilated": lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2),
    "1-d depthwise, causal": lambda: nn.Conv1d(4, 4, 4, groups=4, padding=3),
    "1-d grouped, dilated": lambda: nn.Conv1d(4, 6, 2, groups=2, dilation=2, stride=2),
    "1-d same": lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2, bias=False),
    "1-d circular": lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"),
    "part of a weight": FirstChannels,
    "2-d": lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 0), stride=(1, 2)),
    "2-d depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same", dilation=(1, 2)),
    "2-d grouped, same": lambda: nn.Conv2d(4, 6, (4, 3), groups=2, padding="same", dilation=(2, 1)),
    "2-d reflecting": lambda: Reflecting(4, 6, 3, stride=2),
    "3-d": lambda: nn.Conv3d(4, 6, (1, 2, 2), stride=2, padding=(0, 1, 0)),
    "3-d grouped": lambda: nn.Conv3d(4, 6, 2, groups=2),
    "1-d batch norm": lambda: batch_norm(nn.BatchNorm1d(4)),
    "2-d batch norm": lambda: batch_norm(nn.BatchNorm2d(4, eps=0.1)),
    "3-d batch norm": lambda: batch_norm(nn.BatchNorm3d(4)),
    "1-d group norm": lambda: nn.GroupNorm(2, 4),
    "2-d group norm": lambda: nn.GroupNorm(1, 4, eps=0.1),
}


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(5, 5), layer, nn.LazyLinear(3)

    def forward(self, batch):
        hidden = self.layer(self.first(batch["x"]).tanh())
        return self.head(hidden.tanh().flatten(2).mean(2)).log_softmax(1)


def model_of(name):
    torch.manual_seed(0)
    dims = int(name[0]) if name[0].isdigit() else 1
    model = Model(LAYERS[name]()).double().eval()
    batch = {"x": torch.randn(N, 4, *(4, 6, 5)[-dims:], dtype=torch.float64)}
    model(batch)  # gives the head its width
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model, batch


@pytest.mark.parametrize("name", LAYERS)
def test_the_fisher_is_the_definition(name):
    model, batch = model_of(name)
    found = estimate_fisher(model, [batch], model, fallback="error").values
    assert_same(found, definition(model, batch, model))


def test_several_rows_of_an_example_are_summed_before_the_square():
    torch.manual_seed(0)
    conv, head = nn.Conv1d(4, 4, 3, groups=4).double(), nn.Linear(4, 3).double()
    model = nn.Sequential(conv, head)
    batch = {"x": torch.randn(N, 2, 4, 7, dtype=torch.float64)}

    def log_probs(batch):
        rows = conv(batch["x"].flatten(0, 1)).tanh().mean(2)
        return head(rows.unflatten(0, (-1, 2)).sum(1)).log_softmax(1)

    found = estimate_fisher(model, [batch], log_probs, fallback="error").values
    assert_same(found, definition(model, batch, log_probs))


@pytest.mark.parametrize("name", ["2-d depthwise", "1-d strided, dilated", "2-d batch norm"])
def test_half_precision_is_as_coarse_as_autograd(name):
    model, batch = model_of(name)
    expected = definition(model, batch, model)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = estimate_fisher(model, [{"x": batch["x"].float()}], model, fallback="error").values
    worst = max(float((found[k] - expected[k]).norm() / expected[k].norm()) for k in expected)
    assert worst < 0.1 and all(value.dtype == torch.float32 for value in found.values())
