"""Several tasks side by side as a LightningDataModule."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from fmerge.data.blocks import LEAST, stratified_blocks
from fmerge.data.examples import (
    Collate,
    Example,
    Examples,
    Split,
    TaskData,
    digest,
    length,
    plain_batch,
    read_examples,
)
from fmerge.data.resumable import ResumableLoader, unrepeated_sampler
from fmerge.data.task_names import check_task_names
from fmerge.errors import UserError, check_within, known


class MultiTask(LightningDataModule):
    """One or more tasks; the data of every command.

    Args:
        tasks: Task name to its data. The names are also those of the experts, of the
            coefficients and of the metrics.
        batch_size: Examples in a batch, on each device; auto: the fastest size that fits, for
            fisher and merge.
        num_workers: Processes that prepare batches; 0 prepares them in the main one.
    """

    def __init__(
        self,
        tasks: dict[str, TaskData] | None = None,
        batch_size: int | Literal["auto"] = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.automatic = batch_size == "auto"
        if batch_size == "auto":
            batch_size = 1  # until one is found
        if batch_size < 1:
            raise UserError(f"--data.batch_size: is {batch_size}, but must be at least 1")
        check_within("--data.num_workers", num_workers, "[0, inf)")
        self.tasks = tasks or {}
        check_task_names(self.tasks, "--data.tasks")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._training: dict[str, dict[str, int]] = {}
        self._cache: dict[tuple[Any, ...], DataLoader[Example]] = {}
        self._divided: dict[tuple[str, Split], list[list[Example]]] = {}
        self._checked: set[tuple[str, Split]] = set()

    @property
    def labels(self) -> dict[str, list[str]]:
        """Task name to the names of its classes."""
        return {name: task.labels for name, task in self.tasks.items()}

    @property
    def metrics(self) -> dict[str, Sequence[str]]:
        """Task name to the names of its metrics."""
        return {name: task.metrics for name, task in self.tasks.items()}

    def check_named(self) -> None:
        """Checks that there is a task.

        Raises:
            UserError: If there is none.
        """
        if not self.tasks:
            raise UserError("--data.tasks: is not set; name the task and its data")

    def only_task(self, name: str | None = None) -> str:
        """Chooses one task.

        Args:
            name: The task, if it was named.

        Returns:
            The named task, or the only one there is.

        Raises:
            UserError: If the name is unknown, or none was given and there are several.
        """
        self.check_named()
        if name is None and len(self.tasks) > 1:
            raise UserError(f"--task: is not set, but the data has {known(self.tasks)}; pick one")
        if name is not None and name not in self.tasks:
            raise UserError(f"unknown task '{name}'; the data has: {known(self.tasks)}")
        return next(iter(self.tasks)) if name is None else name

    def check_splits(self, *splits: Split) -> None:
        """Reads splits of every task, so that a missing one is reported before any long work.

        Args:
            splits: Which splits will be needed.
        """
        for name in self.tasks:
            for split in splits:
                self._read(name, split)

    def fingerprint(self, task: str, split: Split) -> str:
        """Hashes a task's examples.

        Args:
            task: The task.
            split: Which examples.

        Returns:
            The SHA-256 digest of their contents in order, in hexadecimal.
        """
        return digest(self._read(task, split))

    def train_dataloader(self) -> dict[str, DataLoader[Example]]:
        """Makes shuffled loaders; Lightning draws a batch of every task for each step.

        Returns:
            Task name to loader.
        """
        # examples of similar length share a batch, which saves padding; batches stay random
        from transformers.trainer_pt_utils import LengthGroupedSampler

        loaders = {}
        for name in self.tasks:
            dataset = Examples(self._read(name, "train"))
            lengths = [length(example) for example in dataset.examples]
            generator = torch.Generator().manual_seed(torch.initial_seed())
            sampler = LengthGroupedSampler(self.batch_size, lengths=lengths, generator=generator)
            loader = self._make(name, dataset, sampler, ResumableLoader, generator)
            if name in self._training and isinstance(loader, ResumableLoader):
                loader.load_state_dict(self._training[name])
            loaders[name] = loader
        return loaders

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the training data, for Lightning's checkpoints.

        Returns:
            Task name to the state of its loader.
        """
        loaders = {} if self.trainer is None else self.trainer.train_dataloader or {}
        return {
            name: loader.state_dict()
            for name, loader in loaders.items()
            if isinstance(loader, ResumableLoader)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes the training data at the position of a checkpoint.

        Args:
            state_dict: What ``state_dict`` returned.
        """
        # Lightning calls this before the loaders are made. It restores the loaders themselves as
        # well, but too late where configure_optimizers asks for the number of steps.
        self._training = state_dict

    def val_dataloader(self) -> dict[str, DataLoader[Example]]:
        """Makes the loaders of the validation split.

        Returns:
            Task name to loader, in order.
        """
        return self.loaders("validation")

    def test_dataloader(self) -> dict[str, DataLoader[Example]]:
        """Makes the loaders of the test split.

        Returns:
            Task name to loader, in order.
        """
        return self.loaders("test")

    def loaders(
        self,
        split: Split,
        tasks: Sequence[str] | None = None,
        examples: int | None = None,
        seed: int = 0,
        shuffled: bool = False,
        block: int | None = None,
    ) -> dict[str, DataLoader[Example]]:
        """Makes loaders that give every example once, in a fixed order, under DDP too.

        Args:
            split: Which split.
            tasks: Which tasks; all when None.
            examples: How many examples of each, chosen at random; all when None.
            seed: Seed of that choice.
            shuffled: Whether the order is random, by the same seed, or by length, which saves
                padding.
            block: Which of the split's disjoint ``stratified_blocks`` to take instead; tasks for
                which it is empty are left out.

        Returns:
            Task name to loader, in order; cached for each batch size.
        """
        names = list(self.tasks if tasks is None else tasks)
        if block is not None:
            names = [name for name in names if self._blocks(name, split)[block]]
        return {name: self._loader(name, split, examples, seed, shuffled, block) for name in names}

    def size(self, task: str, split: Split, most: int | None = None) -> int:
        """Counts the examples of a pass.

        Args:
            task: The task.
            split: The split.
            most: How many are used at most; all when None.

        Returns:
            The number of examples.
        """
        there = len(self.tasks[task].examples(split))
        return there if most is None else min(most, there)

    def choose(self, task: str, split: Split, examples: int | None, seed: int) -> list[Example]:
        """Draws examples of a task, the same ones each time.

        Args:
            task: The task.
            split: Which examples.
            examples: How many, or as many as there are; all when None.
            seed: Seed of the choice.

        Returns:
            The examples, in random order.
        """
        available = self._read(task, split)
        order = torch.randperm(len(available), generator=torch.Generator().manual_seed(seed))
        return [available[i] for i in order[:examples].tolist()]

    def _loader(
        self,
        name: str,
        split: Split,
        examples: int | None,
        seed: int,
        shuffled: bool,
        block: int | None,
    ) -> DataLoader[Example]:
        key = (name, split, examples, seed, shuffled, block, self.batch_size)
        if key not in self._cache:
            if block is None:
                chosen = self.choose(name, split, examples, seed)
            else:
                chosen = self._blocks(name, split)[block]
            if not shuffled:  # the order changes no score
                chosen = sorted(chosen, key=length)
            dataset = Examples(chosen)
            self._cache[key] = self._make(name, dataset, unrepeated_sampler(self.trainer, dataset))
        return self._cache[key]

    def _blocks(self, name: str, split: Split) -> list[list[Example]]:
        if (name, split) not in self._divided:
            available = self._read(name, split)
            processes = 1 if self.trainer is None else self.trainer.world_size
            parts = stratified_blocks(
                [one.get("label") for one in available], least=max(LEAST, processes)
            )
            self._divided[name, split] = [[available[i] for i in part] for part in parts]
        return self._divided[name, split]

    def _make(
        self,
        name: str,
        dataset: Examples,
        sampler: Sampler[int] | None,
        kind: type[DataLoader[Example]] = DataLoader,
        generator: torch.Generator | None = None,
    ) -> DataLoader[Example]:
        return kind(
            dataset,
            generator=generator,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=partial(self._collate, task=name),
        )

    def _read(self, name: str, split: Split) -> Sequence[Example]:
        found = read_examples(
            self.tasks[name], name, split, check=(name, split) not in self._checked
        )
        self._checked.add((name, split))
        return found

    def _collate(self, examples: Sequence[Example], task: str) -> dict[str, Any]:
        if self.trainer is None:
            raise RuntimeError("MultiTask makes batches only when a Trainer uses it")
        collate: Collate = getattr(self.trainer.lightning_module, "collate", plain_batch)
        return collate(examples, task)
