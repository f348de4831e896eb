"""Parameters that FSDP2 splits over processes, and sums of squares that are split likewise.

A unit of FSDP2 (a block of the network; the root has the rest) is whole in the memory of a process
while it runs. Otherwise the process holds its share. The same is done with the squares: they are
summed in buffers of the whole unit, which are added over the processes and shared out once the
backward pass has left the unit. So a process holds its share of the model and of its Fisher, the
root, and at most two more units of each.

Processes run the same passes at the same time, since all of them take part whenever a unit is put
together. What a process decides by its own numbers is therefore decided together.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.utils import _pytree as trees

from fmerge.fisher.engine.gradients import Gradients
from fmerge.fisher.engine.squares import add_squares
from fmerge.fisher.engine.together import Alone
from fmerge.fisher.engine.tracked_tensor import TrackedTensor
from fmerge.params import Params

_ROOT = 0


@final
class Shards(Alone):
    """The shares of one process.

    Args:
        root: The module to which ``fully_shard`` was applied last, after its blocks.
        module: The part of it whose parameters are differentiated.

    Attributes:
        whole: The parameters as the units' layers have them while they run, by name. Their memory
            is there only then.
        parts: The same parameters as the module has them otherwise: this process's shares.
        is_first: Whether this is the first process.

    Raises:
        ValueError: If a parameter is not split by its first dimension over all processes.
    """

    def __init__(self, root: nn.Module, module: nn.Module) -> None:
        self._root = root
        self.parts: dict[str, Any] = dict(module.named_parameters())
        self.whole: dict[str, nn.Parameter] = {}
        self._unit_of: dict[str, int] = {}
        self._units: list[Any] = [one for one in root.modules() if isinstance(one, FSDPModule)]
        for number, unit in enumerate(self._units):
            unit.unshard()  # one after the other: all at once would be the whole model
            for name, parameter in module.named_parameters():
                if not isinstance(parameter, DTensor):
                    self.whole[name] = parameter
                    self._unit_of[name] = number
            unit.reshard()
        for name, part in self.parts.items():
            split = isinstance(part, DTensor) and part.device_mesh.ndim == 1
            if not split or part.placements != (Shard(0),):
                raise ValueError(f"'{name}' is not split by rows over all processes")
        self._mesh = next(iter(self.parts.values())).device_mesh
        self._processes: int = self._mesh.size()
        self.is_first = self._mesh.get_local_rank() == 0
        self._buffers: Params = {}

    def any(self, flag: bool) -> bool:
        """See the base class.

        Args:
            flag: What this process says.

        Returns:
            Whether one of them says so.
        """
        return bool(self.most(int(flag)))

    def most(self, number: int) -> int:
        """See the base class.

        Args:
            number: That of this process.

        Returns:
            That of all.
        """
        return int(self._largest([number])[0])

    def union(self, names: set[str]) -> set[str]:
        """See the base class.

        Args:
            names: Those of this process.

        Returns:
            Those of all.
        """
        found = self._largest([int(name in names) for name in self.parts])
        return {name for name, flag in zip(self.parts, found, strict=True) if flag}

    def _largest(self, numbers: Sequence[int]) -> list[int]:
        device = next(iter(self.whole.values())).device
        found = torch.tensor(numbers, device=device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self._mesh.get_group())
        return found.tolist()

    def twins(self, parameters: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
        """Lists parameters in both forms, as FSDP2 copies the flag ``requires_grad`` between them.

        Args:
            parameters: Whole ones, by name.

        Returns:
            These, and their shares.
        """
        return [*parameters.values(), *(self.parts[name] for name in parameters)]

    def zeros(self) -> Params:
        """Makes sums for this process's shares.

        Returns:
            Zeros by name, at least float32.
        """
        return {
            name: torch.zeros_like(part.to_local(), dtype=_wide(part))
            for name, part in self.parts.items()
            if self.whole[name].requires_grad
        }

    def add_squares(self, name: str, uses: Sequence[Gradients], sums: Params) -> None:
        """Adds the squared gradients of a parameter in the backward pass.

        Args:
            name: Its name.
            uses: Its gradients through all its uses.
            sums: The shares that are added to.
        """
        add_squares(uses, self._buffer(name, sums))

    def square_gradients(
        self, log_likelihoods: Tensor, seeds: Sequence[Tensor], sums: Params, scale: float
    ) -> None:
        """Adds the squared gradients of Σ seeds · ℓ, one backward pass for each of the seeds.

        Args:
            log_likelihoods: ℓ (n, c), with its graph.
            seeds: Of each backward pass (n, c).
            sums: The shares that are added to.
            scale: Factor of the squares.
        """

        def square(name: str, g: Tensor) -> Tensor:
            wide = g.to(sums[name].dtype)
            self._buffer(name, sums).addcmul_(wide, wide, value=scale)
            return g.new_zeros(()).expand_as(g)  # what autograd then keeps is a single zero

        chosen = {name: self.whole[name] for name in sums}
        with ExitStack() as stack:
            for name, parameter in chosen.items():
                handle = parameter.register_hook(partial(square, name))  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
            for k, seed in enumerate(seeds):
                torch.autograd.grad(
                    log_likelihoods,
                    list(chosen.values()),
                    seed,
                    retain_graph=k + 1 < len(seeds),
                    allow_unused=True,
                )
                self.finish(sums)

    def _buffer(self, name: str, sums: Params) -> Tensor:
        unit = self._unit_of[name]
        if unit != _ROOT:
            # the backward pass has come to another unit, in all processes alike: they run the
            # same layers. The root's parameters are met at any time, so they wait for the end
            left = {self._unit_of[one] for one in self._buffers} - {unit, _ROOT}
            for one in sorted(left):
                # all of the unit, as other processes may have met other parameters of it
                self._share_out([n for n in sums if self._unit_of[n] == one], sums)
        if name not in self._buffers:
            whole = self.whole[name]
            self._buffers[name] = torch.zeros(whole.shape, dtype=_wide(whole), device=whole.device)
        return self._buffers[name]

    def finish(self, sums: Params) -> None:
        """Shares out what is left at the end of a backward pass.

        Args:
            sums: The shares that are added to.
        """
        left = self.union(set(self._buffers))
        for unit in range(len(self._units)):
            names = [name for name in sums if name in left and self._unit_of[name] == unit]
            if names:
                self._share_out(names, sums)

    def _share_out(self, names: Sequence[str], sums: Params) -> None:
        """Adds the buffers of some parameters over the processes, each of which gets its rows."""
        padded = []
        for name in names:
            whole = self.whole[name]
            buffer = self._buffers.pop(name, None)
            rows = self._rows(whole) * self._processes
            wide = torch.zeros((rows, *whole.shape[1:]), dtype=_wide(whole), device=whole.device)
            if buffer is not None:
                wide[: len(buffer)] = buffer
            padded.append(wide.view(self._processes, -1))
        together = torch.cat(padded, dim=1)
        summed = DTensor.from_local(together.flatten(), self._mesh, [Partial()], run_check=False)
        own = summed.redistribute(self._mesh, [Shard(0)]).to_local()
        sizes = [one.shape[1] for one in padded]
        for name, part in zip(names, torch.split(own, sizes), strict=True):
            share = part.view(-1, *self.whole[name].shape[1:])
            sums[name] += share[: len(sums[name])]

    def _rows(self, whole: Tensor) -> int:
        """The rows of a share; the last ones may have fewer, or none."""
        return math.ceil(whole.shape[0] / self._processes)

    def gathered(self, sums: Params) -> Iterator[tuple[str, Tensor]]:
        """Puts shares together, one parameter after the other.

        Args:
            sums: The shares of this process, by name.

        Yields:
            Name and whole tensor, on the device.
        """
        for name, part in sums.items():
            whole = self.whole[name]
            padded = part.new_zeros((self._rows(whole), *whole.shape[1:]))
            padded[: len(part)] = part
            found = DTensor.from_local(padded, self._mesh, [Shard(0)], run_check=False)
            yield name, found.full_tensor()[: len(whole)]

    @contextmanager
    def passing_tracked(self) -> Iterator[None]:
        """Lets batch-independent tensors pass into units as they are.

        FSDP2 passes what enters a unit through a function of autograd's, of which T5's position
        bias would come out as a plain tensor.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for unit in self._units:
                if unit is self._root:
                    continue
                # before the hook of FSDP2, which was there first
                handle = unit.register_forward_pre_hook(_pack, prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
                vars(unit)["forward"] = _unpacking(unit.forward)
                stack.callback(vars(unit).pop, "forward")
            yield


class _Box:
    """Holds a tensor, which FSDP2 then does not find."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _pack(unit: nn.Module, args: Any, kwargs: Any) -> Any:
    return trees.tree_map(
        lambda one: _Box(one) if type(one) is TrackedTensor else one, (args, kwargs)
    )


def _unpacking(forward: Callable[..., Any]) -> Callable[..., Any]:
    def unpacked(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = trees.tree_map(
            lambda one: one.tensor if isinstance(one, _Box) else one, (args, kwargs)
        )
        return forward(*args, **kwargs)

    return unpacked


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
