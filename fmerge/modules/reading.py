"""Reads a network by a module's own ``read``, and checks what that and ``body`` give."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fmerge.errors import UserError
from fmerge.modules.base import TaskModule


def read_network(
    module: TaskModule,
    source: str,
    task: str,
    labels: Sequence[str] | None = None,
    fresh_head: bool = False,
) -> nn.Module:
    """Reads a network by ``TaskModule.read``, which may be one's own.

    Args:
        module: The module.
        source: Where the weights are.
        task: The task.
        labels: Its class names.
        fresh_head: Whether a new head may be started.

    Returns:
        The network.

    Raises:
        UserError: If ``read`` gives no network, or ``body`` no parameters of it.
    """
    found: object = module.read(source, task, labels, fresh_head=fresh_head)
    kind = type(module).__name__
    if not isinstance(found, nn.Module):
        raise UserError(
            f"--model {kind}: its read gives a {type(found).__name__} of {source}, but must give "
            "the network, an nn.Module, with its weights"
        )
    body: Any = module.body(found)
    known = dict(found.named_parameters())
    alien = set(body) - known.keys() if isinstance(body, Mapping) else ()
    if not isinstance(body, Mapping) or not body or alien:
        what = f"'{min(alien)}', which is no parameter" if alien else f"{len(body or ())} names"
        raise UserError(
            f"--model {kind}: its body gives {what} of the network of {source}, but must give the "
            "parameters that the tasks share, by their names in named_parameters()"
        )
    return found
