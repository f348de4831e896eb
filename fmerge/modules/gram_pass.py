"""The Gram pass as a LightningModule, to be run by the public ``Trainer.predict``."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.fisher.batches import batch_size
from fmerge.methods import Gram
from fmerge.modules.base import TaskModule
from fmerge.modules.token_masks import (
    has_decoder,
    mask_of,
    masks_of_batch,
    rows_of,
    with_distinct_lengths,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearWeight:
    """The weight of a linear layer, or of several that share it.

    A convolution is linear in its patches: its kernel counts as (out, channels · height · width).

    Attributes:
        layers: The layers.
        inputs: How many inputs they have.
        inputs_first: Whether it is (in, out), not (out, in).
    """

    layers: Sequence[nn.Module]
    inputs: int
    inputs_first: bool


def linear_weights(network: nn.Module, among: Collection[str]) -> dict[str, LinearWeight]:
    """Finds the weights that RegMean can merge.

    Args:
        network: A task's network.
        among: Names of its parameters: those that a merge changes.

    Returns:
        Names to the weights of linear layers (nn.Linear, Conv1D) and of 2D convolutions without
        groups, whose padding is zeros. Weights that are tied to an embedding, or that map the last
        features to the vocabulary, are left out.
    """
    # imported where it is needed: a command's --help does without
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    output = None
    if isinstance(network, PreTrainedModel):
        output = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers: dict[nn.Parameter, list[nn.Module]] = {}
    others = set()
    for module in network.modules():
        linear = type(module) in {nn.Linear, Conv1D} and module is not output
        linear = linear or _is_plain(module)
        for role, parameter in module.named_parameters(recurse=False):
            if linear and role == "weight":
                layers.setdefault(parameter, []).append(module)
            else:
                others.add(parameter)
    found = {}
    # a weight that another kind of layer uses too is left out: its Gram would lack those inputs
    for name, parameter in network.named_parameters():
        if name in among and parameter in layers and parameter not in others:
            first = isinstance(layers[parameter][0], Conv1D)
            size = parameter.shape[0] if first else parameter[0].numel()
            found[name] = LinearWeight(layers[parameter], size, first)
    return found


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a convolution whose patches ``rows_of`` makes."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


@final
class GramPass(LightningModule):
    """Accumulates G = Σ x xᵀ of each linear layer's inputs x over one task's examples.

    Of texts the positions of padding are left out; of images every position and patch counts.

    ``Trainer.predict`` gives each example to one process, in eval mode and without gradients; the
    sums are added over the processes at the end. A layer counts every row that scoring runs: each
    choice of an example, and a prompt again for each answer that reads it.

    Args:
        module: The task module, with the expert's weights.
        task: The task.

    Attributes:
        grams: The Grams by the name of the weight, once the pass has ended.
    """

    grams: dict[str, Gram]

    def __init__(self, module: TaskModule, task: str) -> None:

        super().__init__()
        self.module = module
        self.task = task
        network = module.task_model(task)
        self.weights = linear_weights(network, module.body(network))
        self.has_decoder = has_decoder(network)
        self._sums: dict[str, Tensor] = {}
        self._uses: dict[str, list[int]] = {}

    @property
    def collate(self) -> Callable[[Sequence[Mapping[str, Any]], str], dict[str, Any]]:
        """The task module's own way to make a batch."""
        return self.module.collate

    def on_predict_start(self) -> None:
        """Starts the sums at zero, in the layers' precision but at least in float32."""
        with torch.inference_mode(False):
            own = dict(self.module.task_model(self.task).named_parameters())
            for name, weight in self.weights.items():
                kind = torch.promote_types(own[name].dtype, torch.float32)
                shape = (weight.inputs, weight.inputs)
                self._sums[name] = torch.zeros(shape, dtype=kind, device=own[name].device)
        self._uses = {name: [0, 0] for name in self.weights}

    def predict_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> int:
        """Adds a batch.

        Args:
            batch: One batch of the task.
            batch_idx: The batch's index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning.

        Returns:
            The number of examples added.
        """
        examples = batch_size(batch)
        batch = with_distinct_lengths(batch, self.has_decoder)
        with self._recording(masks_of_batch(batch, self.has_decoder), examples):
            self.module.label_log_probs(batch)
        return examples

    def on_predict_epoch_end(self) -> None:
        """Adds the sums over the processes.

        Raises:
            UserError: If no layer has a Gram.
        """
        reduce = self.trainer.strategy.reduce
        uses = reduce(
            torch.tensor(list(self._uses.values()), dtype=torch.float32, device=self.device),
            reduce_op="sum",
        ).tolist()
        sums, self._sums = self._sums, {}
        self.grams, left = {}, []
        # all processes reduce the same layers: each decides by the uses of all of them
        for (name, weight), (known, unknown) in zip(self.weights.items(), uses, strict=True):
            if unknown:
                left.append(name)
            elif known:
                total = reduce(sums.pop(name), reduce_op="sum").cpu()
                self.grams[name] = Gram(total, weight.inputs_first)
        if not self.grams:
            raise UserError(
                f"RegMean: found no linear layer of '{self.task}' whose inputs have the shape of "
                "the batch's tokens; merge this architecture by another --method"
            )
        if left:
            rank_zero_only(_LOG.warning)(
                "RegMean averages %d weights of '%s', such as '%s', whose inputs do not have the "
                "shape of the batch's tokens", len(left), self.task, left[0],
            )  # fmt: skip

    @contextmanager
    def _recording(self, masks: Sequence[Tensor] | None, examples: int) -> Iterator[None]:
        with ExitStack() as stack:
            for name, weight in self.weights.items():
                hook = self._hook(name, masks, examples)
                for layer in weight.layers:
                    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _hook(
        self, name: str, masks: Sequence[Tensor] | None, examples: int
    ) -> Callable[..., None]:
        def rows_that_count(layer: nn.Module, x: Tensor) -> Tensor | None:
            if masks is None:
                return rows_of(layer, x, None, examples)
            mask = mask_of(x, masks)
            # padding may hold anything, a NaN too
            return None if mask is None else x.masked_fill(~mask[..., None], 0).flatten(0, -2)

        def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            (x,) = (*args, *kwargs.values())
            rows = rows_that_count(layer, x)
            self._uses[name][rows is None] += 1
            if rows is None:
                return
            total = self._sums[name]
            rows = rows.to(total.dtype)
            # autocast would multiply in half precision, whatever the dtype of the sums
            with torch.autocast(total.device.type, enabled=False):
                total.addmm_(rows.T, rows)

        return add
