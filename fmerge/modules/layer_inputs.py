"""Runs a network up to some of its layers, and hands over what enters them."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from fmerge.modules.layer_order import Level

Take = Callable[[str, nn.Module, Tensor], None]
"""Is called with a layer's place, the layer, and what it reads, before the layer runs."""


class _Reached(Exception):
    """The level's last layer has run."""


@dataclass
class Progress:
    """What the finished blocks of a network have made of one batch.

    In a chain of blocks it is the last output that counts; those of earlier ones are not kept.

    Attributes:
        outputs: Name of a stack of blocks to the output of its last finished block.
        blocks: The finished blocks.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the outputs."""
        sizes: list[int] = []
        apply_to_collection(self.outputs, Tensor, lambda t: sizes.append(t.numel() * t.itemsize))
        return sum(sizes)


def tapped(level: Level) -> tuple[str, ...]:
    """Lists the layers whose inputs are handed over.

    Args:
        level: The level.

    Returns:
        Of layers that read one tensor the first; else all that use the weight.
    """
    return level.layers[0].paths


def run_up_to(
    network: nn.Module,
    level: Level,
    run: Callable[[], object],
    take: Take,
    progress: Progress | None = None,
) -> None:
    """Runs a network up to the layers of a level.

    Args:
        network: The network, with the weights that it is to run with.
        level: The level.
        run: Runs the network on a batch.
        take: Is called with what enters the layers.
        progress: Of this network and batch at earlier levels: the blocks in it are skipped, and
            those that are finished since are added to it. None runs all blocks.
    """
    with ExitStack() as stack:
        for path in tapped(level):
            stack.enter_context(_tap(network.get_submodule(path), path, take))
        if level.stop:
            stack.enter_context(_stop(network.get_submodule(level.stop), level.calls))
        if progress is not None:
            stack.enter_context(_skipping(network, level, progress))
        try:
            run()
        except _Reached:
            pass


@contextmanager
def _tap(layer: nn.Module, path: str, take: Take) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(path, module, next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))

    with layer.register_forward_pre_hook(hook, with_kwargs=True):
        yield


@contextmanager
def _stop(layer: nn.Module, calls: int) -> Iterator[None]:
    seen: Counter[str] = Counter()

    def hook(*_: Any) -> None:
        seen["calls"] += 1
        if seen["calls"] == calls:
            raise _Reached

    with layer.register_forward_pre_hook(hook):
        yield


@contextmanager
def _skipping(network: nn.Module, level: Level, progress: Progress) -> Iterator[None]:
    """Skips the finished blocks, and keeps the outputs of those that are finished by now."""
    # what follows a block may write to its output in place
    copies = apply_to_collection(progress.outputs, Tensor, torch.clone)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        for name in level.done:
            block, place = network.get_submodule(name), name.rpartition(".")[0]
            if name in progress.blocks:
                stack.enter_context(_replaced(block, copies[place]))
            else:
                stack.enter_context(block.register_forward_hook(_keep(found, name)))
        yield
    for name, output in found.items():
        progress.blocks.append(name)
        progress.outputs[name.rpartition(".")[0]] = output


def _keep(found: dict[str, Any], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found[name] = apply_to_collection(output, Tensor, torch.clone)

    return hook


@contextmanager
def _replaced(block: nn.Module, output: Any) -> Iterator[None]:
    own = vars(block).get("forward")
    block.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own
