"""The order in which a network calls its layers, and which of its blocks can be skipped."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmerge.modules.fitted_layers import FittedLayer


@dataclass(frozen=True)
class Level:
    """Layers that are fitted together, as they read one input; later levels may depend on them.

    Attributes:
        layers: The layers: several where they follow each other and read the same tensor.
        stop: The layer that is called next, after which no input is needed; empty if there is none.
        calls: In how many calls of it, counted from the first that is not in ``done``.
        done: The blocks that lie before all of them, are called once, and have no unfitted layers.
    """

    layers: tuple[FittedLayer, ...]
    stop: str
    calls: int
    done: tuple[str, ...]


@dataclass(frozen=True)
class _Call:
    """A call of a layer.

    Attributes:
        path: The layer.
        same: Whether it reads what the call before it reads.
    """

    path: str
    same: bool


def levels_of(
    network: nn.Module, layers: Sequence[FittedLayer], run: Callable[[], object]
) -> tuple[list[Level], list[str]]:
    """Records one forward pass.

    Args:
        network: The network.
        layers: Those that are to be fitted.
        run: Runs the pass.

    Returns:
        The levels in forward order, and the weights of the layers that were not called.
    """
    of = {path: layer for layer in layers for path in layer.paths}
    blocks = {path: _block_of(network, path) for path in of}
    names = [one for one in dict.fromkeys(blocks.values()) if one]
    calls, times = _record(network, of, names, run)
    first = {of[call.path]: i for i, call in reversed(list(enumerate(calls)))}
    last = {of[call.path]: i for i, call in enumerate(calls)}
    groups: list[list[FittedLayer]] = []
    for layer in sorted(first, key=lambda layer: first[layer]):
        call = calls[first[layer]]
        if groups and call.same and _alike(groups[-1][-1], layer, first, last):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    levels, fitted = [], set[FittedLayer]()
    for group in groups:
        unfitted = {blocks[path] for one in first if one not in fitted for path in one.paths}
        done = [name for name in names if times[name] == 1 and name not in unfitted]
        end = max(last[layer] for layer in group) + 1
        stop = calls[end].path if end < len(calls) else ""
        # calls within skipped blocks do not happen
        before = [call.path for call in calls[: end + 1] if blocks[call.path] not in done]
        levels.append(Level(tuple(group), stop, before.count(stop), tuple(done)))
        fitted |= set(group)
    return levels, [layer.weight for layer in layers if layer not in first]


def _alike(
    one: FittedLayer,
    other: FittedLayer,
    first: Mapping[FittedLayer, int],
    last: Mapping[FittedLayer, int],
) -> bool:
    """Whether two layers follow each other and each is a linear layer that is called once."""
    pair = (one, other)
    single = all(x.kind == "linear" and len(x.paths) == 1 and first[x] == last[x] for x in pair)
    return single and first[other] == last[one] + 1


def _block_of(network: nn.Module, path: str) -> str:
    """Finds the outermost block of a stack that a layer is in; empty where it is in none."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        if isinstance(network.get_submodule(".".join(parts[:end])), nn.ModuleList):
            return ".".join(parts[: end + 1])
    return ""


def _record(
    network: nn.Module,
    layers: Mapping[str, FittedLayer],
    blocks: Sequence[str],
    run: Callable[[], object],
) -> tuple[list[_Call], Counter[str]]:
    calls: list[_Call] = []
    times: Counter[str] = Counter()
    before: list[Tensor] = []

    def called(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
            # a tensor may have been written to since: its values are compared too
            same = bool(before) and x is before[0] and _equal(x, before[1])
            before[:] = [x, x.clone()]
            calls.append(_Call(path, same))

        return hook

    def entered(name: str) -> Callable[..., None]:
        return lambda *_: times.update([name])

    handles = [
        network.get_submodule(path).register_forward_pre_hook(called(path), with_kwargs=True)
        for path in layers
    ] + [network.get_submodule(name).register_forward_pre_hook(entered(name)) for name in blocks]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, times


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())
