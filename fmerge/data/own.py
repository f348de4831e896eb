"""A LightningDataModule, or loaders, of the user's own in the place of ``MultiTask``."""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.resumable import unrepeated_sampler
from fmerge.data.tasks import MultiTask
from fmerge.errors import UserError

Loaders = DataLoader[Any] | Mapping[str, DataLoader[Any]]
_HOOKS: dict[Split, tuple[str, str]] = {
    "train": ("fit", "train_dataloader"),
    "validation": ("fit", "val_dataloader"),
    "test": ("test", "test_dataloader"),
}
ONLY = "task"
"""Name of the task of a loader that is given without a name."""


class _LoaderTask(TaskData):
    """A task whose examples are in the loaders of the user's own."""

    def __init__(
        self, where: str, loaders: Mapping[Split, DataLoader[Any]], names: Sequence[str] = ()
    ) -> None:
        self.where = where
        self.loaders = loaders
        self.names = names

    @property
    def labels(self) -> list[str]:
        """Those that the data name; without them the classes are known to the module alone."""
        return self.names if isinstance(self.names, list) else list(self.names)

    def has(self, split: Split) -> bool:
        return split in self.loaders

    def examples(self, split: Split) -> Sequence[Example]:
        if split not in self.loaders:
            raise UserError(f"{self.where}: has no {_HOOKS[split][1]}, which the {split} split is")
        dataset: Any = self.loaders[split].dataset
        return Subset(dataset, range(len(dataset)))  # type: ignore[return-value]


@final
class OwnData(MultiTask):
    """Loaders of the user's own, whose batches reach the module as their ``collate_fn`` makes them.

    A task module makes them complete by its ``named_batch``. The attributes ``labels`` and
    ``metrics`` of a LightningDataModule, task name to names, are those of ``MultiTask``.

    Args:
        source: A LightningDataModule; or a DataLoader, or task name to DataLoader, which serve
            every split. The loaders of a LightningDataModule may be by task name too.
        trainer: The Trainer that the data are for, if there is one yet.
    """

    def __init__(self, source: LightningDataModule | Loaders, trainer: Trainer | None) -> None:
        self.where = f"--data: {type(source).__name__}"
        if isinstance(source, LightningDataModule):
            found = self._of_module(source, trainer)
        else:
            found = dict.fromkeys(_HOOKS, self._by_task(source))
        names = dict.fromkeys(name for loaders in found.values() for name in loaders)
        if not names:
            raise UserError(
                f"{self.where} names no tasks; use MultiTask, or give it a train_dataloader, "
                "val_dataloader or test_dataloader"
            )
        super().__init__({
            name: _LoaderTask(
                self.where,
                {split: own[name] for split, own in found.items() if name in own},
                _given(source, "labels").get(name, ()),
            )
            for name in names
        })
        for name, metrics in _given(source, "metrics").items():
            if name in self.tasks:
                self.tasks[name].metrics = metrics
        every = [one for loaders in found.values() for one in loaders.values()]
        self.batch_size = max(_batch_size(one) for one in every)

    def fingerprint(self, task: str, split: Split) -> str:
        """Hashes a task's examples.

        Args:
            task: The task.
            split: Which examples.

        Returns:
            The SHA-256 digest of their contents in order, in hexadecimal.
        """
        found = hashlib.sha256()
        for example in self.tasks[task].examples(split):
            _add(found, example)
        return found.hexdigest()

    def train_dataloader(self) -> dict[str, DataLoader[Example]]:
        """Makes the loaders of the train split.

        Returns:
            Task name to loader.
        """
        return self.loaders("train")

    def _read(self, name: str, split: Split) -> Sequence[Example]:
        found = self.tasks[name].examples(split)
        if not len(found):
            raise UserError(f"task '{name}': its {split} split is empty")
        return found

    def _loader(
        self,
        name: str,
        split: Split,
        examples: int | None,
        seed: int,
        shuffled: bool,
        block: int | None,
    ) -> DataLoader[Example]:
        available = self._read(name, split)
        order = torch.randperm(len(available), generator=torch.Generator().manual_seed(seed))
        chosen = order[:examples].tolist()
        task = self.tasks[name]
        assert isinstance(task, _LoaderTask)
        own = task.loaders[split]
        dataset: Any = Subset(own.dataset, chosen if shuffled else sorted(chosen))
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=unrepeated_sampler(self.trainer, dataset),
            num_workers=own.num_workers,
            collate_fn=partial(self._named, make=own.collate_fn, task=name),
        )

    def _named(self, examples: Sequence[Any], make: Callable[[Any], Any], task: str) -> Any:
        """Makes a batch by a loader's own function, and fits it to a task module."""
        module = None if self.trainer is None else self.trainer.lightning_module
        # a pass has the collate of the module that it runs
        owner = getattr(getattr(module, "collate", None), "__self__", module)
        fit: Callable[[Any, str], Any] | None = getattr(owner, "named_batch", None)
        batch = make(examples)
        return batch if fit is None else fit(batch, task)

    def _blocks(self, name: str, split: Split) -> list[list[Example]]:
        raise UserError("--optimizer.racing: needs the labels of MultiTask; leave it out")

    def _of_module(
        self, source: LightningDataModule, trainer: Trainer | None
    ) -> dict[Split, dict[str, DataLoader[Any]]]:
        source.trainer = trainer
        if trainer is None or trainer.local_rank == 0:
            source.prepare_data()
        found: dict[Split, dict[str, DataLoader[Any]]] = {}
        for split, (stage, hook) in _HOOKS.items():
            # a hook that is not there raises
            if getattr(type(source), hook) is not getattr(LightningDataModule, hook):
                source.setup(stage)
                found[split] = self._by_task(getattr(source, hook)())
        return found

    def _by_task(self, given: Any) -> dict[str, DataLoader[Any]]:
        if isinstance(given, list | tuple) and len(given) == 1:
            given = given[0]
        named = dict(given) if isinstance(given, Mapping) else {ONLY: given}
        for one in named.values():
            if not isinstance(one, DataLoader) or isinstance(one.dataset, IterableDataset):
                kind = type(one.dataset if isinstance(one, DataLoader) else one).__name__
                raise UserError(
                    f"{self.where}: gives {kind}, but a DataLoader of a dataset with a length is "
                    "needed, or several by task name"
                )
        return named


def _given(source: object, attribute: str) -> Mapping[str, Sequence[str]]:
    """What a LightningDataModule says of its tasks, if it does."""
    found = getattr(source, attribute, None)
    return found if isinstance(found, Mapping) else {}


def _batch_size(loader: DataLoader[Any]) -> int:
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else 1


def _add(found: Any, value: Any) -> None:
    """Adds a value of any nesting to a hash."""
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(value, Mapping):
        for key in value:
            _add(found, key)
            _add(found, value[key])
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)}:".encode())
        for one in value:
            _add(found, one)
    else:
        found.update(pickle.dumps(value))
