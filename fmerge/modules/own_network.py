"""Reads, shares and saves networks of one's own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from fmerge.errors import UserError
from fmerge.modules.fine_tuned import FineTuned
from fmerge.modules.shared_body import share_parts
from fmerge.params import Params, params_of
from fmerge.store import (
    NO_PREPROCESSORS,
    Preprocessors,
    SavedForm,
    fill,
    outputs_in,
    read_state,
    save_states,
)


class OwnNetwork(FineTuned, ABC):
    """A task module of any ``nn.Module``, with a body that tasks share and a head for each.

    Attributes:
        head: Names of the parts of a network that each task keeps, such as ``("classifier",)``;
            none where the tasks share all. None: the last linear layer.
    """

    reads: ClassVar[Preprocessors] = NO_PREPROCESSORS
    head: ClassVar[Sequence[str] | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleDict()

    @abstractmethod
    def network(self, outputs: int) -> nn.Module:
        """Makes the network, with any weights.

        Args:
            outputs: How many outputs its head has: classes, labels, or 1 for a number.

        Returns:
            An ``nn.Module``, a LightningModule among them.
        """

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> nn.Module:
        """Makes the network and reads its weights, in float32 on the CPU.

        Args:
            source: A file of a ``state_dict`` (``.pt``, ``.pth``, ``.bin``, ``.safetensors``), a
                Lightning ``.ckpt``, or a folder that a fit or merge saved.
            task: Which network of a fit's checkpoint to take, where it has several.
            labels: The task's class names, which tell the number of outputs; without them the
                head in the file tells it.
            fresh_head: Keep the new head where the source has none that fits.

        Returns:
            The network.
        """
        state = read_state(source)
        network = self._make(len(labels or ()) or 1)
        head = self._head(network)
        if not labels and (outputs := _outputs(network, head, state)) > 1:
            network = self._make(outputs)
        fill(network, state, source, task, head if fresh_head else ())
        return network

    def _make(self, outputs: int) -> nn.Module:
        found: object = self.network(outputs)
        if not isinstance(found, nn.Module):
            raise UserError(
                f"{self._kind}: its network(outputs) gives a {type(found).__name__}, but must give "
                "an nn.Module"
            )
        for one in found.parameters():
            one.data = one.data.float()
        return found

    def body(self, model: nn.Module) -> Params:
        """Selects the parameters that are not of the head.

        Args:
            model: A network.

        Returns:
            Names to tensors that share memory with it.
        """
        head = self._head(model)
        return {name: one for name, one in params_of(model).items() if name not in head}

    def _head(self, model: nn.Module) -> list[str]:
        """Names the head's parameters."""
        names = list(params_of(model))
        parts = _linear(model)[-1:] if self.head is None else self.head
        found = [n for n in names if any(n == part or n.startswith(f"{part}.") for part in parts)]
        if not parts and self.head is None:
            raise UserError(
                f"{self._kind}: its network has no linear layer that could be the head; name "
                "what each task keeps, such as head = ('classifier',), or head = () if nothing"
            )
        for part in parts:
            if not any(name == part or name.startswith(f"{part}.") for name in found):
                raise UserError(
                    f"{self._kind}: its network has no parameters '{part}', which head names; its "
                    f"parts: {', '.join(name for name, _ in model.named_children())}"
                )
        if len(found) == len(names):
            raise UserError(
                f"{self._kind}: all parameters of its network are of the head, so that nothing "
                "is left to merge; name the head's parts, such as head = ('classifier',)"
            )
        return found

    def configure_model(self) -> None:
        """Makes the networks when a command starts, once, with weights from ``path``.

        Raises:
            UserError: If there is no ``path``, and what is needed is a trained network.
        """
        if self.models:
            return
        trainer: Any = self._trainer
        data: Any = trainer.datamodule
        if not (self.path or trainer.training or trainer.ckpt_path):
            raise UserError("--model.path: is not set; name the file of the trained network")
        models = {
            task: self.read(self.path, task, names, fresh_head=trainer.training)
            if self.path
            else self._make(len(names))
            for task, names in data.labels.items()
        }
        self.adopt(models, ())
        self.add_metrics(data.labels, data.metrics)

    def adopt(self, models: Mapping[str, nn.Module], tokenizer: Any) -> None:
        """Adopts networks of one architecture: the body of the first one, the heads of all.

        Args:
            models: Task name to network; the bodies are replaced by that of the first one.
            tokenizer: Nothing.
        """
        first = next(iter(models.values()))
        body = self.body(first)
        self.models = nn.ModuleDict()
        for task, model in models.items():
            if len(body) == len(params_of(first)):
                model = first
            elif model is not first:
                share_parts(model, first, body)
            self.models[task] = model
        self.models.train()

    def task_model(self, task: str) -> nn.Module:
        """Finds the network of one task, whose body all tasks share.

        Args:
            task: The task's name.

        Returns:
            The network.
        """
        return self.models[task]

    def save(self, folder: Path, cards: Mapping[str, str] | None = None) -> None:
        """Writes every task's network as ``model.safetensors`` under the names of its state_dict.

        Args:
            folder: The network's folder, if all tasks have one; else the folder in which each
                task gets a folder of its name.
            cards: Task name to the model card of its folder; None for no cards.
        """
        models = dict(self.models.items())
        forms = {task: self.forms.get(task) or self.forms.get("", SavedForm()) for task in models}
        if len(set(models.values())) == 1:
            models, forms = {"": next(iter(models.values()))}, {"": next(iter(forms.values()))}
            cards = {"": next(iter(cards.values()))} if cards else None
        save_states(folder, models, cards, forms)

    @property
    def _kind(self) -> str:
        return f"--model {type(self).__name__}"


def _linear(model: nn.Module) -> list[str]:
    """Names the linear layers of a network, in order."""
    return [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]


def _outputs(network: nn.Module, head: Sequence[str], state: Params) -> int:
    """Counts the outputs of the head in a file; 1 where they are not known."""
    linear = [f"{name}.weight" for name in _linear(network)[-1:]]
    weight = next(iter([*head, *linear]), "")
    return outputs_in(state, weight) or 1
