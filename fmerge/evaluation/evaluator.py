"""Scores and Fishers of a body, each through a public pass of the Trainer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from fmerge.data import MultiTask, Split
from fmerge.evaluation.batch_size import BatchSizes, in_memory
from fmerge.evaluation.passes import Cost, Pass, Passes
from fmerge.fisher import FisherEstimate, FisherSettings
from fmerge.methods import Grams
from fmerge.modules import FisherPass, GramPass, Saving, TaskModule
from fmerge.params import Params, write_params
from fmerge.search.objective import binomial_error
from fmerge.store import begun_with
from fmerge.system.distributed import gather, in_dataset_order


class Evaluator:
    """Runs passes over the tasks' data, on the Trainer's device, precision and processes.

    Args:
        trainer: The Trainer, whose ``validate``, ``test`` and ``predict`` are used.
        module: The task module; its weights are changed by the passes that take a body. Any
            LightningModule with ``label_log_probs`` will do for a Fisher at its own weights.
        data: The tasks.

    Attributes:
        sizes: The batch sizes, where they are found.
        made: How often each pass has been made.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, data: MultiTask) -> None:
        self.trainer = trainer
        self.module = module
        self.data = data
        self.sizes = BatchSizes(trainer, data)
        self.made = Passes()
        self._passes: dict[tuple[str, FisherSettings], FisherPass] = {}
        data.trainer = trainer
        data.prepare_data()
        data.setup("validate")
        self._start_metrics()

    def _start_metrics(self) -> None:
        if isinstance(self.module, TaskModule):
            self.module.add_metrics(self.data.labels, self.data.metrics)
            self.module.val_loss.reset()

    def write_body(self, body: Params) -> None:
        """Copies a body into the live module, whose tasks all share it.

        Args:
            body: Body tensors by name.

        Raises:
            TypeError: If the module's tasks do not share a body.
        """
        if not isinstance(self.module, TaskModule):
            raise TypeError(f"{type(self.module).__name__} is no TaskModule: it shares no body")
        write_params(self.module.task_model(next(iter(self.data.tasks))), body)

    def score(self, body: Params, split: Split, tasks: Sequence[str]) -> dict[str, float]:
        """Scores a body, with each task's own head.

        Args:
            body: Body tensors by name.
            split: ``validation`` or ``test``.
            tasks: Which tasks.

        Returns:
            Task name to the mean of its metrics.
        """
        self.write_body(body)
        results = self._score(split, tasks, lambda data: data.loaders(split, tasks))
        metrics: dict[str, float] = {key: value for one in results for key, value in one.items()}
        return {
            task: mean({key: one for key, one in metrics.items() if key.startswith(f"{task}/")})
            for task in tasks
        }

    def right_answers(
        self, module: TaskModule, split: Split, tasks: Sequence[str], block: int
    ) -> dict[str, list[bool]]:
        """Scores the module's present weights on one block of a split.

        Args:
            module: The live module.
            split: ``validation`` or ``test``.
            tasks: Which tasks.
            block: Which of the split's disjoint blocks.

        Returns:
            Task name to whether each example was right, in one order on all processes and
            whatever the batches; without tasks for which the block is empty.
        """

        def loaders(data: MultiTask) -> dict[str, Any]:
            module.right = {}  # also where a pass is made again with smaller batches
            # what a batch size is tried on has no blocks
            return data.loaders(split, tasks, block=block if data is self.data else None)

        if not loaders(self.data):
            return {}
        try:
            self._score(split, tasks, loaders)
            own = {task: torch.cat(parts).cpu() for task, parts in (module.right or {}).items()}
        finally:
            module.right = None
        shares = gather(self.trainer, own)
        return {task: in_dataset_order([one[task] for one in shares]).tolist() for task in own}

    def _score(
        self, split: Split, tasks: Sequence[str], loaders: Callable[[MultiTask], Any]
    ) -> list[Mapping[str, float]]:
        run = self.trainer.test if split == "test" else self.trainer.validate

        def whole(data: MultiTask) -> list[Mapping[str, float]]:
            try:
                return run(self.module, dataloaders=loaders(data), verbose=False)
            except BaseException:
                self._start_metrics()  # half a pass must not enter the scores of the next
                raise

        with silent(self.trainer):
            results = self.sizes.make("scores", split, tasks, whole)
        self.note("score", split, tasks)
        return results

    def note(self, cost: Cost, split: Split, tasks: Sequence[str], most: int | None = None) -> None:
        """Counts a pass that was made.

        Args:
            cost: What it costs.
            split: The split.
            tasks: The tasks.
            most: How many examples of a task it used at most; all when None.
        """
        for task in tasks:
            self.made[Pass(cost, task, split, self.data.size(task, split, most))] += 1

    def errors(self, scores: Mapping[str, float], split: Split) -> dict[str, float]:
        """Estimates how far scores are from those on infinitely many examples.

        Args:
            scores: Score by task.
            split: What they were scored on, all of it.

        Returns:
            Binomial standard error by task, for the tasks that are scored by accuracy alone.
        """
        loaders = self.data.loaders(split, list(scores))
        return {
            task: binomial_error(score, len(loaders[task].dataset))  # type: ignore[arg-type]
            for task, score in scores.items()
            if by_accuracy(self.data, task)
        }

    def fisher(
        self,
        task: str,
        settings: FisherSettings,
        body: Params | None = None,
        bar: bool = False,
        saving: Saving | None = None,
    ) -> FisherEstimate:
        """Estimates a task's diagonal Fisher.

        Args:
            task: The task, whose head is used.
            settings: Estimator and examples.
            body: Where to take it; at the module's present weights when None.
            bar: Whether to show Lightning's progress bar.
            saving: Where unfinished sums are kept; nowhere when None.

        Returns:
            The Fisher over body and head.
        """
        if body is not None:
            self.write_body(body)
        kind = f"Fisher of {task}"
        if saving is not None and self.data.automatic:
            begun = begun_with(saving.path, saving.belongs_to, "batch_size")
            if isinstance(begun, int) and begun > 0:
                self.sizes.found[kind] = begun

        def whole(data: MultiTask) -> FisherEstimate:
            real = data is self.data
            return self._fisher(data, task, settings, bar and real, saving if real else None)

        estimate = self.sizes.make(kind, settings.split, [task], whole)
        self.note("Fisher", settings.split, [task], settings.examples)
        return estimate

    def grams(self, task: str, settings: FisherSettings, body: Params) -> Grams:
        """Sums up what enters a body's linear layers on a task's examples.

        Args:
            task: The task.
            settings: Which examples; the rest of it is of Fishers alone.
            body: The body.

        Returns:
            Grams by the name of the weight, on the CPU.
        """
        self.write_body(body)
        assert isinstance(self.module, TaskModule)  # else write_body had raised
        module = self.module

        def whole() -> Grams:
            one = GramPass(module, task)
            loader = self.data.loaders(settings.split, [task], settings.examples, settings.seed)
            with silent(self.trainer):
                self.trainer.predict(one, dataloaders=loader[task], return_predictions=False)
            return one.grams

        grams = in_memory(self.trainer, self.data, whole)
        self.note("score", settings.split, [task], settings.examples)
        return grams

    def _fisher(
        self,
        data: MultiTask,
        task: str,
        settings: FisherSettings,
        bar: bool,
        saving: Saving | None,
    ) -> FisherEstimate:
        # a pass is kept for its checks of the layers, which depend on no weight
        key = (task, settings)
        if key not in self._passes:
            self._passes[key] = FisherPass(self.module, *key)
        one = self._passes[key]
        if saving is not None:  # sums up to a batch mean nothing where batches are smaller
            belongs_to = {**saving.belongs_to, "batch_size": data.batch_size}
            saving = replace(saving, belongs_to=belongs_to)
        one.saving = saving
        # errors are estimated from the batches, which are random draws only in random order
        shuffled = settings.errors is not None
        loader = data.loaders(settings.split, [task], settings.examples, settings.seed, shuffled)[
            task
        ]
        examples, size = len(loader.dataset), loader.batch_size or 1  # type: ignore[arg-type]
        one.common_batches = -(-(examples // self.trainer.world_size) // size)
        with silent(self.trainer, on=not bar):
            self.trainer.predict(one, dataloaders=loader, return_predictions=False)
        return one.estimate


def by_accuracy(data: MultiTask, task: str) -> bool:
    """Tells whether a task's score is a share of its examples.

    Args:
        data: The tasks.
        task: The task.

    Returns:
        Whether accuracy is its one metric.
    """
    return list(data.metrics[task]) == ["accuracy"]


@contextmanager
def silent(trainer: Trainer, on: bool = True) -> Iterator[None]:
    """Hides Lightning's own bar during a pass of which there will be many.

    Args:
        trainer: The Trainer.
        on: Whether to do so at all.

    Yields:
        Nothing.
    """
    bar = trainer.progress_bar_callback
    if bar is None or not on:
        yield
        return
    bar.disable()
    try:
        yield
    finally:
        bar.enable()


def mean(scores: Mapping[str, float]) -> float:
    """Averages scores, unweighted.

    Args:
        scores: Name to score.

    Returns:
        Their mean.
    """
    return float(torch.tensor(list(scores.values()), dtype=torch.float64).mean())
