"""Adam's second moments from a checkpoint of ``fmerge fit``, by parameter name."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmerge.errors import UserError, known
from fmerge.params import Params
from fmerge.store.fisher_files import check_fisher
from fmerge.store.sources import load_lightning

_AGAIN = "give a .ckpt of 'fmerge fit', or a Fisher of 'fmerge fisher'"


def read_second_moments(path: Path, task: str, names: Collection[str]) -> tuple[Params, Params]:
    r"""Reads the bias-corrected running mean of squared batch gradients.

    .. math::
        \hat v = v / (1 - \beta_2^t)

    for a parameter's ``exp_avg_sq`` v after t steps (Kingma & Ba 2015, algorithm 1).

    Args:
        path: A Lightning ``.ckpt`` with the state of one Adam or AdamW, whose parameter groups
            name their parameters.
        task: Which of the checkpoint's networks, where it has several.
        names: The parameters, by their names in the network.

    Returns:
        The checkpoint's weights in float32, and v̂, both by those names.

    Raises:
        UserError: If the checkpoint lacks such a state, or it does not fit the weights, or a
            parameter was not trained.
    """
    content = load_lightning(path)
    state: dict[str, Tensor] = content["state_dict"]
    prefix = _prefix(path, state, task)
    weights, moments = {}, {}
    try:
        own = _by_name(path, content.get("optimizer_states"))
        for name in names:
            weights[name] = _weight(path, state, prefix + name).float()
            found, beta = own.get(prefix + name, ({}, 0.0))
            moments[name] = _corrected(path, name, found, beta, weights[name])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its optimizer's state is damaged ({type(error).__name__}: {error}); {_AGAIN}"
        ) from error
    check_fisher(path, moments)
    return weights, moments


def _prefix(path: Path, state: Mapping[str, Tensor], task: str) -> str:
    """Finds the prefix of a task's network: ``models.<task>.``, or ``model.``."""
    if not any(name.startswith("models.") for name in state):
        return "model."
    tasks = {name.split(".")[1] for name in state if name.startswith("models.")}
    if task not in tasks and len(tasks) > 1:
        raise UserError(f"{path}: has the networks {known(tasks)}, but none of '{task}'")
    return f"models.{task if task in tasks else tasks.pop()}."


def _by_name(path: Path, optimizers: Any) -> dict[str, tuple[Mapping[str, Any], float]]:
    """Parameter names to Adam's state and β₂."""
    if not optimizers:
        raise UserError(f"{path}: was saved without its optimizer's state; {_AGAIN}")
    # several optimizers, as of a GAN: nothing says which one trained the network
    if len(optimizers) > 1:
        raise UserError(f"{path}: has the states of {len(optimizers)} optimizers, not of one Adam")
    (optimizer,) = optimizers
    found: dict[str, tuple[Mapping[str, Any], float]] = {}
    for group in optimizer["param_groups"]:
        # SGD has no betas; optimizers with betas and another state are refused in _corrected
        if "betas" not in group:
            raise UserError(f"{path}: its optimizer has no second moment, as Adam has; {_AGAIN}")
        if "param_names" not in group:
            raise UserError(
                f"{path}: its optimizer does not name its parameters, and their order may differ; "
                f"{_AGAIN}"
            )
        for index, name in zip(group["params"], group["param_names"], strict=True):
            if name in found:
                raise UserError(f"{path}: its optimizer names '{name}' twice; it is damaged")
            found[name] = optimizer["state"].get(index, {}), float(group["betas"][1])
    return found


def _weight(path: Path, state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(f"{path}: has no tensor '{name}'; it is of another model")
    return state[name]


def _corrected(
    path: Path, name: str, state: Mapping[str, Any], beta: float, weight: Tensor
) -> Tensor:
    if not state:
        raise UserError(
            f"{path}: has no Adam state of '{name}', which was frozen or got no gradient; compute "
            "the Fisher with 'fmerge fisher'"
        )
    if "exp_avg_sq" not in state:
        raise UserError(f"{path}: its optimizer has no second moment 'exp_avg_sq'; {_AGAIN}")
    square, steps = state["exp_avg_sq"], float(state["step"])
    # a sharded or factored moment has another shape
    if square.shape != weight.shape:
        raise UserError(
            f"{path}: the Adam state of '{name}' is {tuple(square.shape)}, but its weight "
            f"{tuple(weight.shape)}; it is damaged"
        )
    if not (steps >= 1 and 0 <= beta < 1):
        raise UserError(f"{path}: the Adam state of '{name}' has step {steps} and β₂ {beta}")
    moment: Tensor = square.to(torch.float32) / (1 - beta**steps)
    return moment
