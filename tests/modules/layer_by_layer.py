"""The calibration of a network by its definition: one layer, expert and example after the other."""

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

RIDGE = 1e-6  # of the mean diagonal entry, where r is zero


class Read:
    """The rows that a layer reads while a model runs."""

    def __init__(self, model, path):
        self.rows = []
        self.handle = model.get_submodule(path).register_forward_hook(self.keep)

    def keep(self, layer, inputs, output):
        x = inputs[0].detach()
        if isinstance(layer, nn.Conv2d):
            x = patches(x, layer)
        if isinstance(layer, nn.BatchNorm2d):
            x = x.permute(0, 2, 3, 1)
        self.rows += list(x.reshape(-1, x.shape[-1]))


def patches(x, layer):
    """The patches of images (n, c, h, w), each cut out by itself."""
    (kh, kw), (sh, sw), (ph, pw) = layer.kernel_size, layer.stride, layer.padding
    x = nn.functional.pad(x, (pw, pw, ph, ph))
    return torch.stack([
        one[:, i : i + kh, j : j + kw].reshape(-1)
        for one in x
        for i in range(0, x.shape[2] - kh + 1, sh)
        for j in range(0, x.shape[3] - kw + 1, sw)
    ])


def rows(model, paths, runs):
    """What layers read, as rows, one run after the other."""
    reads = {path: Read(model, path) for path in paths}
    for run in runs:
        run(model)
    for read in reads.values():
        read.handle.remove()
    return {path: torch.stack(read.rows) for path, read in reads.items()}


def calibrated(merged, experts, base, order, runs, a=0.0, rho=1.0, r=0.0, tied=None, **options):
    """Fits the layers of a copy of a merged model in the given order.

    tied has the layers that share the weight of a layer of the order, whose inputs count too.
    runs has a list of functions for each expert, each of which runs a model on one example.
    options: c (whether moments are divided by their norm), biases, norms, off_diagonal.
    """
    model, base = copy.deepcopy(merged), merged if base is None else base
    with torch.no_grad():
        everywhere = order + [other for others in (tied or {}).values() for other in others]
        inputs = [rows(one, everywhere, some) for one, some in zip(experts, runs, strict=True)]
        for path in order:
            paths = [path, *(tied or {}).get(path, [])]
            layer = model.get_submodule(path)
            start, origin = merged.get_submodule(path), base.get_submodule(path)
            others = [one.get_submodule(path) for one in experts]
            x = [torch.cat(list(rows(model, paths, some).values())) for some in runs]
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.copy_(sum(some.mean(0) for some in x) / len(x))
                apart = [(some - layer.running_mean).square().mean(0) for some in x]
                layer.running_var.copy_(sum(apart) / len(apart))
                continue
            if not isinstance(layer, nn.Linear | nn.Conv2d | Conv1D):
                if options.get("norms"):
                    norm(layer, start, origin, others, x, rho, r)
                continue
            xt = [torch.cat([one[each] for each in paths]) for one in inputs]
            linear(layer, start, origin, others, x, xt, a, rho, r, **options)
    return model


def matrix(layer):
    w = layer.weight.detach()
    return w.T if isinstance(layer, Conv1D) else w.reshape(len(w), -1)


def linear(
    layer, start, origin, others, x, xt, a, rho, r,
    c=False, biases=False, norms=False, off_diagonal=1.0,
):  # fmt: skip
    size = matrix(layer).shape[1]
    left, right = torch.zeros(size, size).double(), torch.zeros(size, len(matrix(layer))).double()
    blends = []
    for own, xs, ts in zip(others, x, xt, strict=True):
        blend = a * ts + (1 - a) * xs
        blends.append(blend)
        second = torch.einsum("pi,pj->ij", xs, xs)
        cross = torch.einsum("pi,pj->ij", xs, blend)
        if c:
            second, cross = second / len(xs), cross / len(xs)
            factor = second.square().sum().sqrt()
            second, cross = second / factor, cross / factor
        eye = torch.eye(size, dtype=torch.float64)
        keep = eye + off_diagonal * (1 - eye)
        left += second * keep
        right += (cross * keep) @ matrix(own).T
    anchor = rho * matrix(start) + (1 - rho) * matrix(origin)
    if r == 0:
        r, anchor = RIDGE * float(left.diagonal().mean()), matrix(start)
    w = torch.linalg.solve(left + r * torch.eye(size), right + r * anchor.T).T
    layer.weight.copy_(w.T if isinstance(layer, Conv1D) else w.reshape(layer.weight.shape))
    if biases and layer.bias is not None:
        shifts = [
            ts @ matrix(own).T + own.bias - xs @ w.T
            for own, xs, ts in zip(others, x, blends, strict=True)
        ]
        layer.bias.copy_(sum(one.mean(0) for one in shifts) / len(shifts))


def norm(layer, start, origin, others, x, rho, r):
    """Gain and shift, channel by channel: least squares over stacked rows."""
    has_shift = getattr(layer, "bias", None) is not None
    plain = copy.deepcopy(layer)
    plain.weight.fill_(1)
    if has_shift:
        plain.bias.fill_(0)
    z = [plain(some) for some in x]
    for i in range(len(layer.weight)):
        lines, values = [], []
        for own, some in zip(others, z, strict=True):
            weight = len(some) ** -0.5  # a mean over the rows of each expert
            ones = torch.ones(len(some), dtype=torch.float64)
            shift = own.bias[i] if has_shift else 0.0
            lines.append(weight * torch.stack([some[:, i], ones], dim=1))
            values.append(weight * (own.weight[i] * some[:, i] + shift))
        for k, name in enumerate(["weight", "bias"][: 1 + has_shift]):
            first, zero = getattr(start, name)[i], getattr(origin, name)[i]
            lines.append(r**0.5 * torch.eye(2)[k : k + 1])
            values.append((r**0.5 * (rho * first + (1 - rho) * zero))[None])
        table = torch.cat([one.double() for one in lines])[:, : 1 + has_shift]
        found = torch.linalg.lstsq(table, torch.cat(values)[:, None].double()).solution[:, 0]
        layer.weight[i] = found[0]
        if has_shift:
            layer.bias[i] = found[1]
