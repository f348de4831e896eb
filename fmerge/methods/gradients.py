"""How a merge changes with its coefficients: ∂L/∂λₘ from ∂L/∂θ, without a model in the graph."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fmerge.methods.inputs import MergeInputs, wide
from fmerge.params import Params


def add_scaled(
    total: Tensor, tensor: Tensor, factor: float | Tensor, mask: Tensor | None = None
) -> None:
    """Computes total += factor · mask · tensor in place; autograd follows it to the factor.

    Args:
        total: The sum.
        tensor: What is added.
        factor: A number, or a tensor without dimensions.
        mask: A factor by entry; 1 when None.
    """
    if isinstance(factor, Tensor):
        total.add_((tensor if mask is None else tensor * mask) * factor)
    elif mask is None:
        total.add_(tensor, alpha=factor)
    else:
        total.addcmul_(tensor, mask, value=factor)


def inner_products(inputs: MergeInputs, gradient: Params) -> Tensor:
    """Computes Σₗ ⟨∂L/∂θₗ, τₘₗ⟩, which is ∂L/∂λₘ where θ = θ₀ + Σₘ λₘτₘ.

    Task vectors are formed tensor by tensor and dropped again.

    Args:
        inputs: θ₀ and θₘ.
        gradient: ∂L/∂θ by tensor, for some tensors of the experts.

    Returns:
        One number for each expert (m,), in float64.
    """
    weights = inputs.weights
    products = [
        torch.stack([
            torch.dot(one.flatten(), (wide(model[name]) - inputs.origin[name]).flatten().to(one))
            for model in weights
        ])
        for name, one in gradient.items()
    ]
    return torch.stack(products).double().sum(dim=0)


def by_autograd(
    formula: Callable[[MergeInputs], Callable[[str], Tensor]],
    inputs: MergeInputs,
    gradient: Params,
) -> Tensor:
    """Computes ∂L/∂λₘ = Σₗ ⟨∂L/∂θₗ, ∂θₗ/∂λₘ⟩ by autograd through a formula, tensor by tensor.

    Args:
        formula: Prepares the formula of one tensor, whose coefficients are tensors here.
        inputs: The inputs at which to take it.
        gradient: ∂L/∂θ by tensor.

    Returns:
        One number for each expert (m,), in float64.

    Raises:
        RuntimeError: If the formula drops the coefficients out of the graph.
    """
    first = next(iter(gradient.values()))
    total = torch.zeros(len(inputs.coefficients), dtype=torch.float64, device=first.device)
    with torch.enable_grad():
        values: Any = [
            torch.tensor(one, dtype=torch.float64, device=first.device, requires_grad=True)
            for one in inputs.coefficients
        ]
        one_tensor = formula(replace(inputs, coefficients=values))
        for name, one in gradient.items():
            merged = one_tensor(name)
            if not merged.requires_grad:
                raise RuntimeError("the formula turns its coefficients into plain numbers")
            found = torch.autograd.grad(
                merged, values, one.to(merged), retain_graph=True, allow_unused=True
            )
            total += torch.stack([
                torch.zeros_like(total[0]) if part is None else part.double() for part in found
            ])
    return total
