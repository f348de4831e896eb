"""Refits heads to a merged body: each task's last linear layer, on the body's features."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from fmerge.data import Example, MultiTask, Split
from fmerge.errors import UserError, known
from fmerge.evaluation.evaluator import Evaluator, silent
from fmerge.modules import Classifier, FeaturePass, TaskModule, fit_linear
from fmerge.params import Params, last_linear, using_params
from fmerge.store import kind_of
from fmerge.system.distributed import gather, in_dataset_order

_LOG = logging.getLogger(__name__)

Refit = Literal["off", "end", "trials"]

Heads = Mapping[str, Params]
"""Task name to new tensors of its head, by their names in the task's network."""


@dataclass(frozen=True)
class Refitting:
    """When heads are refitted, and on what.

    Attributes:
        when: off: only for the baseline of the table; end: for the best merge; trials: also for
            the merge of every trial.
        examples: How many training examples of each task; all if None, and for the baseline where
            the merge's own heads are not refitted.
        seed: Seed of their choice.
    """

    when: Refit = "off"
    examples: int | None = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the number.

        Raises:
            UserError: If there are too few examples for two classes.
        """
        if self.examples is not None and self.examples < 2:
            raise UserError(
                f"--refit_examples: is {self.examples}, but two classes need at least 2"
            )

    @property
    def wanted(self) -> bool:
        """Whether the merge's own heads are refitted."""
        return self.when != "off"

    @property
    def most(self) -> int | None:
        """How many examples of a task are used, all if None."""
        return self.examples if self.wanted else None


def obstacle(module: TaskModule, data: MultiTask | None, models: Mapping[str, nn.Module]) -> str:
    """Finds a reason why heads cannot be refitted.

    Args:
        module: The module that runs the networks.
        data: The tasks, if there are any.
        models: Task name to network.

    Returns:
        The reason; empty if there is none.
    """
    if data is None:
        return "there are no data (--data) to refit heads on"
    for task, model in models.items():
        classes = len(data.labels[task])
        single = kind_of(data.labels[task]) == "classes" and classes > 1
        if not isinstance(module, Classifier) or not single:
            return f"task '{task}' has no classes"
        found = last_linear(model)
        if found is None or found[1].out_features != classes:
            return f"the head of task '{task}' does not end in a linear layer of {classes} outputs"
    if task := untrained(data, models):
        return f"task '{task}' has no train split to fit a head on"
    return ""


def untrained(data: MultiTask, tasks: Iterable[str]) -> str:
    """Finds a task without training examples, which a merge that is only scored does not need.

    Args:
        data: The tasks.
        tasks: Which of them.

    Returns:
        The name of the first; empty if all have some.
    """
    return next((task for task in tasks if not data.tasks[task].has("train")), "")


def warn_untrained(
    data: MultiTask | None, models: Mapping[str, nn.Module], reference: bool
) -> None:
    """Says which row the table will lack, where a task has no training examples.

    Args:
        data: The tasks, if there are any.
        models: Task name to network.
        reference: Whether the table shows the base with refitted heads, where that can be.
    """
    if data is not None and reference and (lacking := untrained(data, models)):
        rank_zero_only(_LOG.warning)(
            "task '%s' has no train split: the table will lack the base with refitted heads",
            lacking,
        )


def check_refitting(
    settings: Refitting,
    module: TaskModule,
    data: MultiTask | None,
    models: Mapping[str, nn.Module],
    reference: bool,
) -> None:
    """Checks that heads can be refitted where they will be, before any long work.

    Args:
        settings: When, and on what.
        module: The module that runs the networks.
        data: The tasks, if there are any.
        models: Task name to network.
        reference: Whether the table shows the base with refitted heads, where that can be.

    Raises:
        UserError: If there are no classes, no training examples, or too few of them.
    """
    reason = obstacle(module, data, models)
    if settings.wanted and reason:
        raise UserError(f"--refit_heads: is {settings.when}, but {reason}; leave it off")
    if data is None or reason or not (settings.wanted or reference):
        return
    for task in models:
        names = data.labels[task]
        chosen = _training_examples(data, task, settings)
        seen = {int(example["label"]) for example in chosen}
        missing = [name for number, name in enumerate(names) if number not in seen]
        if len(seen) < 2:
            option, other = "--refit_examples", "or --refit_heads off"
            if not settings.wanted:
                option, other = "--baselines", "or --baselines experts"
            raise UserError(
                f"{option}: the {len(chosen)} training examples of task '{task}' are all of one "
                f"class, to which no head can be refitted; take more, of {known(names)}, {other}"
            )
        if missing:
            rank_zero_only(_LOG.warning)(
                "a refitted head of '%s' will never answer %s, which none of the %d training "
                "examples is of; --refit_examples may take more", task, known(missing), len(chosen),
            )  # fmt: skip


def _training_examples(data: MultiTask, task: str, settings: Refitting) -> Sequence[Example]:
    try:
        return data.choose(task, "train", settings.most, settings.seed)
    except UserError as error:
        off = "--refit_heads off" if settings.wanted else "--baselines experts"
        raise UserError(f"{error}; no head is refitted on it with {off}") from error


@contextmanager
def using_heads(module: TaskModule, heads: Heads) -> Iterator[None]:
    """Runs a module under other heads; restores its own on exit.

    Args:
        module: The live module.
        heads: The heads.

    Yields:
        Nothing; the module has the heads inside the block.
    """
    with ExitStack() as stack:
        for task, head in heads.items():
            stack.enter_context(using_params(module.task_model(task), head))
        yield


class Refitter:
    """Refits the last linear layers of some tasks' heads to a body, and scores with them.

    Args:
        evaluator: The evaluator that runs the passes; its module is a Classifier.
        settings: On which examples.
        tasks: The tasks.

    Raises:
        TypeError: If the module is no Classifier.
    """

    def __init__(self, evaluator: Evaluator, settings: Refitting, tasks: Sequence[str]) -> None:
        module = evaluator.module
        if not isinstance(module, Classifier):
            raise TypeError(f"{type(module).__name__} is no Classifier")
        self.evaluator = evaluator
        self.module = module
        self.settings = settings
        # made once: each remembers that its head was checked
        self._passes = {task: FeaturePass(module, task) for task in tasks}

    def fit(self, body: Params) -> Heads:
        """Fits the last layer of every task's head to a body.

        Args:
            body: Body tensors by name.

        Returns:
            The layers' new weights and biases in float32, the same in every process; the live
            module keeps its own.
        """
        self.evaluator.write_body(body)
        return {task: self._fit(task) for task in self._passes}

    def score(self, body: Params, split: Split, heads: Heads) -> dict[str, float]:
        """Scores a body with refitted heads; afterwards the live module has its own heads again.

        Args:
            body: Body tensors by name.
            split: ``validation`` or ``test``.
            heads: What ``fit`` returned.

        Returns:
            Task name to the mean of its metrics.
        """
        with using_heads(self.module, heads):
            return self.evaluator.score(body, split, list(heads))

    @contextmanager
    def fitted(self, body: Params) -> Iterator[None]:
        """Writes a body into the live module, which has refitted heads inside the block.

        Args:
            body: Body tensors by name.

        Yields:
            Nothing.
        """
        with using_heads(self.module, self.fit(body)):
            yield

    def _fit(self, task: str) -> Params:
        name, layer = self._passes[task].name, self._passes[task].layer
        features, labels = self._features(task)
        trainer = self.evaluator.trainer
        # the first process fits and the others receive: all have the same head, bit for bit
        found: tuple[Tensor, Tensor] | str = ""
        if trainer.is_global_zero:
            try:
                found = fit_linear(features, labels, layer.out_features, layer.bias is not None)
            except (UserError, ValueError, MemoryError) as error:
                found = f"task '{task}': {error}"  # an exception here would leave them waiting
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise UserError(found)
        weight, bias = (tensor.float() for tensor in found)
        head = {f"{name}.weight": weight}
        return head if layer.bias is None else head | {f"{name}.bias": bias}

    def _features(self, task: str) -> tuple[Tensor, Tensor]:
        """Features and labels of the task's examples, in one order for any number of processes."""
        trainer, settings = self.evaluator.trainer, self.settings

        def whole(data: MultiTask) -> Any:
            loader = data.loaders("train", [task], settings.most, settings.seed)[task]
            with silent(trainer):
                return trainer.predict(self._passes[task], dataloaders=loader)

        outputs = self.evaluator.sizes.make(f"features of {task}", "train", [task], whole)
        self.evaluator.note("score", "train", [task], settings.most)
        found = gather(trainer, (outputs, self._passes[task].ends_head))
        # after the exchange, so that all processes raise or none
        if not all(ends for _, ends in found):
            raise UserError(
                f"the head of task '{task}' does not end with its last linear layer, which alone "
                "could be refitted; set --refit_heads off and --baselines experts"
            )
        # with more processes than examples, the last ranks have none
        shares = [share for share, _ in found if share]
        features = [torch.cat([batch[0] for batch in share]) for share in shares]
        labels = [torch.cat([batch[1] for batch in share]) for share in shares]
        return in_dataset_order(features), in_dataset_order(labels)
