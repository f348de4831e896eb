"""Sequence classification on any ``AutoModelForSequenceClassification``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.modules.base import TaskModule
from fmerge.modules.optimization import Scheduler, adamw
from fmerge.modules.prompts import CutPrompts, longest_prompt
from fmerge.params import Params, params_of, select
from fmerge.store import load_classifier, load_tokenizer, save_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TextClassifier(TaskModule):
    """Sequence classification: one shared body, one head per task, from Hugging Face.

    The weights are read when a command starts, with the labels of its data.

    Args:
        path: Where the weights are: Hugging Face folder, hub id, or ``package:name/folder``
            inside an installed package. ``fisher`` and ``merge`` take them from the experts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate goes on after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        max_length: Tokens an input is cut to, if the model takes as many.
        tasks: Filled in by the data: task name to the names of its classes.
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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.path = path
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.scheduler = scheduler
        self.warmup_fraction = warmup_fraction
        self.max_length = max_length
        self.tasks = tasks
        self.models = nn.ModuleDict()
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.prompts = CutPrompts()
        self._untrained: UserError | None = None

    def configure_model(self) -> None:
        """Reads the weights from ``path``, once, with a head for each task of the data.

        Raises:
            UserError: If there is no path.
        """
        if self.models:
            return
        trainer = self._trainer
        data = trainer.datamodule  # type: ignore[union-attr]
        labels = self.tasks or data.labels
        if not self.path:
            raise UserError(
                "--model.path: is not set; give a Hugging Face folder, a hub id or "
                "package:name/folder"
            )
        training = trainer is None or trainer.training
        self.adopt(
            {task: self._load(self.path, task, names, training) for task, names in labels.items()},
            load_tokenizer(self.path),
        )
        if data is not None:
            self.add_metrics(labels, data.metrics)

    def _load(
        self, path: str, task: str, labels: Sequence[str], training: bool
    ) -> "PreTrainedModel":
        try:
            return self.read(path, task, labels, fresh_head=training)
        except UserError as error:
            if training:
                raise
            # a checkpoint restored later may still bring the head that is lacking here
            self._untrained = error
            return self.read(path, task, labels, fresh_head=True)

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> "PreTrainedModel":
        """Reads a sequence classifier.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
            task: Which of a Lightning checkpoint's heads to take.
            labels: The task's class names in order; those of the source when None.
            fresh_head: Start a new head where the source has none; otherwise refuse.

        Returns:
            The classifier, in float32 on the CPU.
        """
        return load_classifier(source, task, labels, fresh_head)

    def body(self, model: nn.Module) -> Params:
        """Picks everything but the head.

        Args:
            model: A Hugging Face classifier.

        Returns:
            The parameters below its ``base_model_prefix``, sharing its memory.
        """
        return select(params_of(model), f"{model.base_model_prefix}.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes that trained heads have come from a checkpoint.

        Args:
            checkpoint: Not used.
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
        self, models: Mapping[str, "PreTrainedModel"], tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        """Takes over classifiers of one architecture: the first one's body, everyone's head.

        Args:
            models: Task name to classifier; all but the first lose their body to the first's.
            tokenizer: The tokenizer they share.
        """
        first = next(iter(models.values()))
        self.models = nn.ModuleDict()
        for task, model in models.items():
            setattr(model, model.base_model_prefix, first.base_model)
            self.models[task] = model
        self.models.train()  # from_pretrained leaves eval mode, and Lightning would keep it in fit
        self.tokenizer = tokenizer
        self.tasks = {
            task: [str(label) for _, label in sorted((model.config.id2label or {}).items())]
            for task, model in models.items()
        }
        self.hparams["tasks"] = self.tasks
        self.add_metrics(self.tasks, {})

    def task_model(self, task: str) -> "PreTrainedModel":
        """Finds the classifier of one task, whose body all tasks share.

        Args:
            task: The task's name.

        Returns:
            A Hugging Face sequence classifier.
        """
        model: PreTrainedModel = self.models[task]  # type: ignore[assignment]
        return model

    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ = log_softmax(logits).

        Args:
            batch: What ``collate`` made.

        Returns:
            ℓ (n, c), at least float32.
        """
        inputs = {key: value for key, value in batch.items() if key not in {"labels", "task"}}
        logits: Tensor = self.models[batch["task"]](**inputs).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes n examples and pads them to the longest.

        Args:
            examples: Mappings with ``text``, optionally ``text_pair``, and ``label``.
            task: The task's name.

        Returns:
            The tokenizer's tensors (n, t), ``labels`` (n,) and ``task``.

        Raises:
            RuntimeError: If the weights were not read yet.
        """
        if self.tokenizer is None:
            raise RuntimeError("the tokenizer is read by configure_model or adopt: call one first")
        configs = [self.task_model(name).config for name in self.models]
        limit = longest_prompt(self.max_length, self.tokenizer, configs)
        pairs = [one["text_pair"] for one in examples] if "text_pair" in examples[0] else None
        encoded = self.tokenizer(
            [one["text"] for one in examples],
            pairs,
            truncation=True,
            max_length=limit,
            padding=True,
            return_tensors="pt",
        )
        keys = ["text"] if pairs is None else ["text", "text_pair"]
        texts = [[one[key] for key in keys] for one in examples]
        lengths = encoded["attention_mask"].sum(1).tolist()
        self.prompts.count(self.tokenizer, texts, lengths, [limit] * len(texts), task)
        labels = torch.tensor([one["label"] for one in examples])
        return {**encoded, "labels": labels, "task": task}

    def configure_optimizers(self) -> Any:
        """Makes AdamW and its schedule.

        Returns:
            Lightning's dictionary of an optimizer and a schedule by step.
        """
        return adamw(
            self.trainer,
            self.models.parameters(),
            self.learning_rate,
            self.weight_decay,
            self.scheduler,
            self.warmup_fraction,
        )

    def save(self, folder: Path) -> None:
        """Writes every task's classifier as a Hugging Face folder.

        Args:
            folder: Where it shall be, if there is one task; where a folder of each task's name
                shall be, if there are several.

        Raises:
            RuntimeError: If the weights were not read yet.
        """
        if self.tokenizer is None:
            raise RuntimeError("the tokenizer is read by configure_model or adopt: call one first")
        models = {task: self.task_model(task) for task in self.models}
        single = {"": next(iter(models.values()))}
        save_models(folder, single if len(models) == 1 else models, self.tokenizer)
