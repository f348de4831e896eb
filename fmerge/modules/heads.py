"""The bases of modules with a shared Hugging Face body and one head for each task."""

import logging
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fmerge.errors import UserError, check_within
from fmerge.modules.optimization import Scheduler
from fmerge.modules.preprocessed import PreprocessedModule
from fmerge.modules.shared_body import share_body
from fmerge.modules.tokenized import TokenizedModule
from fmerge.modules.truncation import max_input_length
from fmerge.params import Params, head_parts, params_of
from fmerge.store import (
    Kind,
    LabelNames,
    SavedForm,
    kind_of,
    labels_of_config,
    new_pooler,
    save_models,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)


class SharedBody(PreprocessedModule, ABC):
    """One shared body, one head per task, from Hugging Face, whatever the inputs are.

    The weights are read when a command starts, with the labels of its data.

    Args:
        path: Where the weights are: Hugging Face folder, hub id, or ``package:name/folder``
            inside an installed package. ``fisher`` and ``merge`` take them from the experts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        tasks: Filled in by the data: task name to the names of its classes, labels or number.
        kinds: Filled in by the data: task name to what these names are.

    Attributes:
        apart: Names of a body's tensors that each task keeps, as its head: a pooler that the
            models do not have in common.
    """

    def __init__(
        self,
        path: str | None = None,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        scheduler: Scheduler = "linear",
        warmup_fraction: float = 0.1,
        tasks: dict[str, list[str]] | None = None,
        kinds: dict[str, Kind] | None = None,
    ) -> None:
        super().__init__()
        self.take_options(path, learning_rate, weight_decay, scheduler, warmup_fraction)
        self.save_hyperparameters()
        self.tasks: dict[str, list[str]] | None = tasks and {
            task: LabelNames(names, (kinds or {}).get(task) or kind_of(names))
            for task, names in tasks.items()
        }
        self.models = nn.ModuleDict()
        self.apart: frozenset[str] = frozenset()
        self._untrained: UserError | None = None

    def configure_model(self) -> None:
        """Reads the weights from ``path``, once, with a head for each task of the data."""
        if self.models:
            return
        trainer = self._trainer
        data = trainer.datamodule  # type: ignore[union-attr]
        labels = self.tasks or data.labels
        path = self.given_path
        training = trainer is None or trainer.training
        models = {t: self._load(path, t, names, training) for t, names in labels.items()}
        if training and (new := sorted(new_pooler(next(iter(models.values()))))):
            _LOG.warning(
                "%s: has no pooler ('%s'); a new one starts from random numbers, as the head does",
                path, new[0],
            )  # fmt: skip
        self.adopt(models, self.reads.load(path))
        if data is not None:
            self.add_metrics(labels, data.metrics)

    def _load(self, path: str, task: str, labels: Sequence[str], training: bool) -> Any:
        try:
            return self.read(path, task, labels, fresh_head=training)
        except UserError as error:
            if training:
                raise
            # a checkpoint restored later may still bring the head that is lacking here
            self._untrained = error
            return self.read(path, task, labels, fresh_head=True)

    def body(self, model: nn.Module) -> Params:
        """Selects everything but the head, and what the tasks keep ``apart``.

        Args:
            model: A Hugging Face classifier.

        Returns:
            The parameters that are not of its ``head_parts``, sharing its memory.
        """
        head = head_parts(model)
        return {
            name: tensor
            for name, tensor in params_of(model).items()
            if name.partition(".")[0] not in head and name not in self.apart
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Records that trained heads have come from a checkpoint.

        Args:
            checkpoint: The checkpoint; required by Lightning.
        """
        self._untrained = None

    def on_validation_start(self) -> None:
        """Refuses to score a head that nobody trained."""
        self._check_trained()

    def on_test_start(self) -> None:
        """Refuses to score a head that nobody trained."""
        self._check_trained()

    def _check_trained(self) -> None:
        if self._untrained is not None:
            raise self._untrained

    def adopt(
        self,
        models: Mapping[str, "PreTrainedModel"],
        tokenizer: Any,
    ) -> None:
        """Adopts classifiers of one architecture: the body of the first one, the heads of all.

        Args:
            models: Task name to classifier; the bodies are replaced by that of the first one.
            tokenizer: The tokenizer they share, or what else makes their inputs; or task name to
                that of each.
        """
        self.adopt_preprocessors(models, tokenizer)
        first = next(iter(models.values()))
        self.models = nn.ModuleDict()
        # one body object for all tasks: a merge is written once, and memory holds one body
        for task, model in models.items():
            self.share(model, first)
            self.models[task] = model
        self.models.train()  # from_pretrained leaves eval mode, and Lightning would keep it in fit
        self._name({task: self._names(model) for task, model in models.items()})

    def _names(self, model: "PreTrainedModel") -> LabelNames:
        """What a network's outputs are called, and what they are."""
        return labels_of_config(model.config)

    def _name(self, labels: Mapping[str, LabelNames]) -> None:
        """Takes the names of the outputs of all tasks."""
        self.tasks = dict(labels)
        # of plain values: a checkpoint is read without running code
        self.hparams["tasks"] = {task: list(names) for task, names in labels.items()}
        self.hparams["kinds"] = {task: kind_of(names) for task, names in labels.items()}
        self.add_metrics(labels, {})

    def label_names(self, task: str) -> Sequence[str]:
        """Names a task's outputs.

        Args:
            task: The task's name.

        Returns:
            The names in order; none where there are no outputs of a name.
        """
        return (self.tasks or {}).get(task, LabelNames())

    def share(self, model: Any, first: Any) -> None:
        """Gives a network the body of the first one.

        Args:
            model: The network.
            first: The first task's network.
        """
        share_body(model, first, self.apart)

    def task_model(self, task: str) -> "PreTrainedModel":
        """Finds the classifier of one task, whose body all tasks share.

        Args:
            task: The task's name.

        Returns:
            A Hugging Face sequence classifier.
        """
        model: PreTrainedModel = self.models[task]  # type: ignore[assignment]
        return model

    def save(self, folder: Path, cards: Mapping[str, str] | None = None) -> None:
        """Writes every task's classifier as a Hugging Face folder.

        Args:
            folder: The model's folder, if all tasks have one network; else the folder in which
                each task gets a folder of its name.
            cards: Task name to the model card of its folder; None for no cards.

        """
        models = {task: self.task_model(task) for task in self.models}
        forms = {task: self.forms.get(task) or self.forms.get("", SavedForm()) for task in models}
        tokenizers = {task: self.preprocessor_of(task) for task in models or [""]}
        if len(set(models.values())) == 1:  # one task, or several with one head
            models = {"": next(iter(models.values()))}
            forms = {"": next(iter(forms.values()))}
            tokenizers = {"": next(iter(tokenizers.values()))}
            cards = {"": next(iter(cards.values()))} if cards else None
        save_models(folder, models, tokenizers, cards, forms)


class HeadedModule(SharedBody, TokenizedModule, ABC):
    """One shared body, one head per task, on texts, from Hugging Face.

    The weights are read when a command starts, with the labels of its data.

    Args:
        path: Where the weights are: Hugging Face folder, hub id, or ``package:name/folder``
            inside an installed package. ``fisher`` and ``merge`` take them from the experts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        max_length: Tokens to which an input is truncated, if the model takes as many.
        tasks: Filled in by the data: task name to the names of its classes, labels or number.
        kinds: Filled in by the data: task name to what these names are.
    """

    def __init__(
        self,
        path: str | None = None,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        scheduler: Scheduler = "linear",
        warmup_fraction: float = 0.1,
        max_length: int = 128,
        tasks: dict[str, list[str]] | None = None,
        kinds: dict[str, Kind] | None = None,
    ) -> None:
        super().__init__(
            path, learning_rate, weight_decay, scheduler, warmup_fraction, tasks, kinds=kinds
        )
        check_within("--model.max_length", max_length, "[1, inf)")
        self.max_length = max_length

    def _longest(self, task: str) -> int:
        """Tokens an input may have: at most ``max_length`` and what the model takes."""
        return max_input_length(
            self.max_length, self.tokenizer_of(task), list(self.models.values())
        )


class PositionModule(HeadedModule, ABC):
    """A headed module whose answers are at positions in texts, which its tokenizers must know."""

    def adopt(self, models: Mapping[str, "PreTrainedModel"], tokenizer: Any) -> None:
        """Adopts networks of one architecture: the body of the first one, the heads of all.

        Args:
            models: Task name to network.
            tokenizer: The tokenizer they share, or task name to the tokenizer of each; they know
                where their tokens stand.

        Raises:
            UserError: If a tokenizer does not.
        """
        super().adopt(models, tokenizer)
        if not all(one.is_fast for one in self.tokenizers.values()):
            raise UserError(
                f"{type(self).__name__}: needs a fast tokenizer, which knows where tokens stand"
            )
