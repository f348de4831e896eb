"""A merge that learns, as a LightningModule to be run by the public ``Trainer.fit``."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.modules.base import TaskModule
from fmerge.modules.losses import TARGETS, Loss, example_losses, expert_targets
from fmerge.params import Params
from fmerge.system.memory import free_memory

_LARGEST = 1e18
"""What is larger has diverged: a product of two such numbers overflows."""

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Learnable(nn.Module, ABC):
    """What is learned of the live networks: coefficients, or weights themselves."""

    @abstractmethod
    def write(self) -> None:
        """Writes the present values into the live networks."""

    @abstractmethod
    def leaves(self) -> Sequence[nn.Parameter]:
        """Lists the live weights that losses are differentiated by."""

    @abstractmethod
    def pull_back(self, gradients: Sequence[Tensor | None]) -> Mapping[str, Tensor]:
        """Computes the gradients of what is learned.

        Args:
            gradients: ∂L/∂θ by leaf; None where the losses do not depend on it.

        Returns:
            Name of each own parameter to its gradient, in its dtype.
        """

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Lists the optimizer's parameter groups, each with its learning rate."""


@final
class Learner(LightningModule):
    """Minimises Σₜ Lₜ over what is learned, with one forward and backward pass per task and step.

    The networks run in eval mode, without dropout. A training batch is task name to batch, each a
    share of that step's examples; the gradient is that of the sum over tasks of the mean over all
    processes' examples.

    Args:
        module: The task module, whose live networks the losses are of.
        learnable: What is learned.
        loss: Which loss.
        examples: Examples of a task in a step, over all processes.

    Attributes:
        losses: The sum of the losses of each step of this process, weighed as in the gradient.
    """

    def __init__(
        self, module: TaskModule, learnable: Learnable, loss: Loss, examples: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.module = module
        self.learnable = learnable
        self.loss = loss
        self.examples = examples
        self.losses: list[Tensor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        learned = {id(one) for one in learnable.parameters()}
        # DDP need not average the gradients of weights that no optimizer steps
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, one in self.named_parameters(remove_duplicate=False)
            if id(one) not in learned
        ] + [name for name, _ in self.named_buffers(remove_duplicate=False)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Makes Adam once: it keeps its moments from fit to fit.

        Returns:
            The optimizer.
        """
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self.learnable.groups())
        return self._optimizer

    def snapshot(self) -> Params:
        """Copies what a fit is resumed from.

        Returns:
            Name of each learned parameter to its values, and with ``.exp_avg``, ``.exp_avg_sq``
            and ``.step`` to Adam's state; on the CPU.
        """
        found = {}
        for name, one in self.learnable.named_parameters():
            found[name] = one.detach()
            for key, value in self.configure_optimizers().state[one].items():
                found[f"{name}.{key}"] = value
        return {name: one.detach().cpu().clone() for name, one in found.items()}

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Continues from a snapshot.

        Args:
            saved: What ``snapshot`` gave.
        """
        optimizer = self.configure_optimizers()
        for name, one in self.learnable.named_parameters():
            one.copy_(saved[name])
            keys = [key for key in _MOMENTS if f"{name}.{key}" in saved]
            optimizer.state[one] = {key: saved[f"{name}.{key}"].clone() for key in keys}

    @property
    def is_finite(self) -> bool:
        """Whether no loss of this process, and nothing that is learned, is beyond all measure."""
        values = [*self.losses, *(one.detach() for one in self.learnable.parameters())]
        return all(bool((one.abs() < _LARGEST).all()) for one in values)  # NaN is not

    def on_train_start(self) -> None:
        """Turns dropout off."""
        self.module.eval()

    def training_step(self, batch: Mapping[str, Mapping[str, Any]], batch_idx: int) -> Tensor:
        """Computes the gradients of one step.

        Args:
            batch: Task name to its share of the examples; tasks without any are left out.
            batch_idx: The step's index; required by Lightning.

        Returns:
            A scalar whose gradient by what is learned is that of the losses, which are not in its
            graph: ∂L/∂θ is computed here, task by task, and pulled back.
        """
        if not self.is_finite:  # the caller sees it; what follows would raise on all processes
            return self._surrogate({
                name: torch.zeros_like(one) for name, one in self.learnable.named_parameters()
            })
        self.learnable.write()
        leaves = self.learnable.leaves()
        sums: list[Tensor | None] = [None] * len(leaves)
        total = torch.zeros((), device=self.device)
        for task, own in batch.items():
            # DDP takes the mean over processes, of which each has a share of the examples
            share = self.examples[task] / self.trainer.world_size
            loss = example_losses(self.module, own, self.loss).sum() / share
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            sums = [_sum(a, b) for a, b in zip(sums, found, strict=True)]
            total = total + loss.detach()
        self.losses.append(total)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            pulled = self.learnable.pull_back(sums)
        return self._surrogate(pulled)

    def _surrogate(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """A scalar with these gradients."""
        learned = dict(self.learnable.named_parameters())
        parts = [(learned[name] * one).sum() for name, one in gradients.items()]
        return torch.stack([part.to(parts[0]) for part in parts]).sum()


@final
class TargetPass(LightningModule):
    """Computes what an expert says of its task's examples, by ``Trainer.predict``.

    Args:
        module: The task module, with the expert's weights.
        examples: How many examples there are in all.
    """

    def __init__(self, module: TaskModule, examples: int) -> None:
        super().__init__()
        self.module = module
        self.examples = examples
        self.collate = module.collate

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Computes a batch's targets.

        Args:
            batch: What ``collate`` made.
            batch_idx: The batch's index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning.

        Returns:
            See ``expert_targets``, on the CPU in float32 or wider.

        Raises:
            UserError: If those of all examples would not fit into memory.
        """
        found = expert_targets(self.module, batch).cpu()
        # padded to the widest and joined: twice as much for a moment
        needed = 2 * self.examples * found.shape[1] * found.element_size()
        memory = free_memory(torch.device("cpu"))
        if memory is not None and needed > memory.free:
            raise UserError(
                f"loss experts: the probabilities of {self.examples} examples of task "
                f"'{batch['task']}' take {needed / 2**30:.1f} GiB, but {memory.free / 2**30:.1f} "
                "are free; lower --optimizer.examples or --model.max_length, or use labels"
            )
        return found


@final
class DistancePass(LightningModule):
    """Computes KL(p ‖ q) of each example, p what an expert says of it, by ``Trainer.predict``.

    Args:
        module: The task module, with the weights that give q.
        targets: What the expert says of each batch; see ``expert_targets``.
    """

    def __init__(self, module: TaskModule, targets: Sequence[Tensor]) -> None:
        super().__init__()
        self.module = module
        self.targets = targets
        self.collate = module.collate

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Computes a batch's distances.

        Args:
            batch: What ``collate`` made.
            batch_idx: The batch's index, as in ``targets``.
            dataloader_idx: The loader's index; required by Lightning.

        Returns:
            The loss ``experts`` of each example (n,), on the CPU.
        """
        given = {**batch, TARGETS: self.targets[batch_idx]}
        return example_losses(self.module, given, "experts").cpu()


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Adds two gradients, of which None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
