"""Ways to compute a Fisher: this project's, with and without its kernel, and others."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from cases import Batch, Case, LogProbs
from torch import Tensor, nn

from fmerge.fisher import FisherAccumulator

Fisher = dict[str, Tensor]


@dataclass
class Contestant:
    """A way to compute a Fisher: maps a batch to the sum of its examples' squared gradients."""

    run: Callable[[Batch], Fisher | None]
    few: bool = False
    compared: bool = True


def contestants(case: Case) -> dict[str, Contestant]:
    """Lists the contestants, the training step first."""
    model, log_probs = case.model, case.log_probs
    on_gpu = case.batch["labels"].is_cuda and importlib.util.find_spec("triton") is not None

    def plain(batch: Batch) -> None:
        model.zero_grad(set_to_none=True)
        log_probs(batch).gather(1, batch["labels"][:, None]).sum().backward()
        model.zero_grad(set_to_none=True)

    found = {"forward + backward": Contestant(plain, compared=False)}
    classes = log_probs(case.few()).shape[1]
    estimators: list[tuple[str, Any]] = [("empirical", "empirical"), ("sampled(1)", "sampled")]
    estimators += [(f"exact, {classes} candidates", "exact")] if classes > 1 else []
    estimators += [("rademacher(1)", "rademacher")]
    for name, estimator in estimators:
        random = estimator in {"sampled", "rademacher"}
        run = ours(model, log_probs, estimator)
        found[f"fmerge {name}"] = Contestant(run, compared=not random)
        if on_gpu and estimator != "rademacher":
            found[f"fmerge {name}, no kernel"] = Contestant(
                without_kernel(ours(model, log_probs, estimator)), compared=not random
            )
    found["loop at batch size 1"] = Contestant(
        lambda batch: loop(model, log_probs, batch, "empirical"), few=True
    )
    if classes > 1:
        found[f"loop at batch size 1, exact, {classes} candidates"] = Contestant(
            lambda batch: loop(model, log_probs, batch, "exact"), few=True
        )
    found["torch.func vmap"] = Contestant(lambda batch: vmap(model, log_probs, batch), few=True)
    found["opacus GradSampleModule"] = Contestant(lambda batch: opacus(case, batch), few=True)
    found["BackPACK SumGradSquared"] = Contestant(lambda batch: backpack(case, batch), few=True)
    return found


def ours(model: nn.Module, log_probs: LogProbs, estimator: Any) -> Callable[[Batch], Fisher]:
    """One accumulator for all rounds, as in a pass over data; the first result covers one batch."""
    accumulator = FisherAccumulator(model, log_probs, estimator)

    def run(batch: Batch) -> Fisher:
        accumulator.add(batch)
        return accumulator.sums

    return run


def without_kernel(run: Callable[[Batch], Fisher]) -> Callable[[Batch], Fisher]:
    """The same by batched products: no matrix is of a size that the kernel takes."""

    def changed(batch: Batch) -> Fisher:
        with mock.patch("fmerge.fisher.engine.triton_kernel.tile_side", return_value=None):
            return run(batch)

    return changed


def loop(model: nn.Module, log_probs: LogProbs, batch: Batch, estimator: str) -> Fisher:
    """The definition, example by example."""
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for i in range(len(batch["labels"])):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        values = log_probs(one)[0]
        classes = range(len(values)) if estimator == "exact" else [int(one["labels"][0])]
        for c in classes:
            model.zero_grad(set_to_none=True)
            values[c].backward(retain_graph=c != classes[-1])
            weight = float(values[c].detach().exp()) if estimator == "exact" else 1.0
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    sums[name].addcmul_(parameter.grad, parameter.grad, value=weight)
    model.zero_grad(set_to_none=True)
    return sums


def vmap(model: nn.Module, log_probs: LogProbs, batch: Batch) -> Fisher:
    """All examples' gradients at once, without a mask, as models branch on its contents."""
    holder = nn.Module()
    holder.model = model
    holder.forward = log_probs
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    columns = {key: value for key, value in batch.items() if key != "attention_mask"}

    def value(weights: Fisher, one: Batch) -> Tensor:
        rows = {key: row[None] for key, row in one.items()}
        result: Tensor = torch.func.functional_call(holder, weights, (rows,))
        return result.gather(1, rows["labels"][:, None]).sum()

    gradients = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))(weights, columns)
    return {name.removeprefix("model."): g.square_().sum(0) for name, g in gradients.items()}


def opacus(case: Case, batch: Batch) -> Fisher:
    """Opacus' per-example gradients of the whole model, squared and added."""
    from opacus import GradSampleModule  # noqa: I001  optional

    model = copy.deepcopy(case.model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)
    case.build(wrapped)(batch).gather(1, batch["labels"][:, None]).sum().backward()
    n = len(batch["labels"])
    sums = {}
    for name, parameter in model.named_parameters():
        grads = getattr(parameter, "grad_sample", None)
        if isinstance(grads, list):
            grads = torch.stack(grads).sum(0)
        if grads is None or len(grads) != n:
            raise ValueError(f"no per-example gradient of {name}")
        sums[name] = grads.square().sum(0)
    return sums


def backpack(case: Case, batch: Batch) -> Fisher:
    """BackPACK's SumGradSquared."""
    from backpack import backpack as extension, extend, extensions  # noqa: I001  optional

    model = extend(copy.deepcopy(case.model), use_converter=True)
    with extension(extensions.SumGradSquared()):
        case.build(model)(batch).gather(1, batch["labels"][:, None]).sum().backward()
    return {name: p.sum_grad_squared for name, p in model.named_parameters()}
