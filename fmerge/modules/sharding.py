"""Splits a module's parameters over processes by FSDP2."""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils import _pytree as trees

from fmerge.errors import UserError
from fmerge.fisher import FisherSettings
from fmerge.modules.generator import TextGenerator

_WHOLE = "_whole_children"
_METHODS = ("label_log_probs", "outcome", "task_loss", "draw_answers")
"""Methods of a module that run its network."""


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Splits a module, unless it is split.

    Each block of a stack is a unit, which is whole in memory while it runs. The rest is the root:
    embeddings and heads, and what is tied to them.

    Args:
        module: The module, on the CPU.
        mesh: The processes.
    """
    # importing FSDP2 takes a second, which other commands spare
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(module, FSDPModule):
        return
    vars(module)[_WHOLE] = _hollow(module)
    for block in blocks_of(module):
        block.register_forward_hook(_without_views)  # before FSDP2 sees what the block returns
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for name in _METHODS:
        if hasattr(module, name):
            setattr(module, name, _returning_no_views(getattr(module, name)))
            register_fsdp_forward_method(module, name)


def _without_views(block: nn.Module, inputs: object, outputs: object) -> object:
    """A hook of a block, whose result is without views."""
    return trees.tree_map(_no_view, outputs)


def _returning_no_views(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return trees.tree_map(_no_view, method(*args, **kwargs))

    return wrapped


def _no_view(one: Any) -> Any:
    """Copies a view, such as T5's position bias: changed in place, it would lose FSDP2's hooks."""
    view = isinstance(one, Tensor) and one.requires_grad and one._base is not None
    return one.clone() if view else one


def make_whole(module: nn.Module) -> None:
    """Undoes ``shard`` in one process, for a module whose weights are read next.

    Args:
        module: The module. Its parameters are not those that were split, and hold no numbers yet.
    """
    hollow = vars(module)[_WHOLE]
    memory: dict[int, object] = {
        id(one): nn.Parameter(torch.empty(one.shape, dtype=one.dtype), one.requires_grad)
        for child in hollow.values()
        for one in child.parameters()
    }
    for name, child in copy.deepcopy(hollow, memory).items():
        setattr(module, name, child)


def _hollow(module: nn.Module) -> dict[str, nn.Module]:
    """Copies what has parameters, without their memory: what ``fully_shard`` changes is classes."""
    children = {
        name: child
        for name, child in module.named_children()
        if any(True for _ in child.parameters())
    }
    # by the memory of deepcopy, what is tied stays tied
    memory: dict[int, object] = {
        id(one): nn.Parameter(one.to("meta"), one.requires_grad)
        for child in children.values()
        for one in child.parameters()
    }
    return copy.deepcopy(children, memory)


def check_split_fisher(trainer: Trainer, module: nn.Module, settings: FisherSettings) -> None:
    """Refuses what a Fisher of a split model cannot be asked for.

    Args:
        trainer: The Trainer, whose strategy splits models.
        module: The module.
        settings: How the Fisher is estimated.

    Raises:
        UserError: If its standard error is asked for, answers are to be written, or gradients are
            in float16, whose overflow is found in whole batches.
    """
    reason = ""
    if settings.errors is not None:
        reason = "--until and --standard_error compare sums of single processes"
    elif isinstance(module, TextGenerator) and settings.estimator == "sampled":
        reason = "answers of several lengths would be written; use --estimator empirical"
    elif str(trainer.precision).startswith("16"):
        reason = f"--trainer.precision is {trainer.precision}; use bf16-mixed, bf16-true or 32-true"
    if reason:
        raise UserError(f"--trainer.strategy: fsdp2 splits the model over processes, but {reason}")


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Finds the blocks of a network's stacks.

    Args:
        module: A network, or a module that has some.

    Returns:
        The members of its lists of modules, but for those inside other blocks, those without
        parameters and those that share a parameter with the rest: it must be in one unit.
    """
    found = list(_members(module, set()))
    times = Counter(p for block in found for p in set(block.parameters()))
    inside = {id(one) for block in found for one in block.modules()}
    outside = {
        parameter
        for one in module.modules()
        if id(one) not in inside
        for parameter in one.parameters(recurse=False)
    }
    return [
        block
        for block in found
        if any(True for _ in block.parameters())
        and all(times[p] == 1 and p not in outside for p in block.parameters())
    ]


def _members(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """Yields members of the outermost lists once; of lists in lists, the inner members."""
    for child in module.children():
        if id(child) in seen:
            continue
        seen.add(id(child))
        inner = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if isinstance(module, nn.ModuleList) and not inner:
            yield child
        else:
            yield from _members(child, seen)
