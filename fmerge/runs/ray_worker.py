"""A worker of a Ray cluster: it holds a merge's models, and makes and scores its trials."""

import copy
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.plugins import Precision
from torch import Tensor

from fmerge.data import MultiTask
from fmerge.merging.assembler import Assembler
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.trials import Proposal, attempt
from fmerge.runs.merge import MergeRun
from fmerge.runs.portfolio import assembler_of
from fmerge.search import SearchSpace, Trial
from fmerge.search.objective import Objective
from fmerge.store import RunFolder


@dataclass(frozen=True)
class _Numbers:
    """A tensor as an array of bytes, which processes of a machine share in Ray's store."""

    bytes: np.ndarray[Any, Any]
    dtype: torch.dtype
    shape: Sequence[int]


def as_arrays(tree: Any) -> Any:
    """Replaces the tensors of nested mappings and dataclasses, which Ray would copy.

    Args:
        tree: Mappings, dataclasses, tensors and other values.

    Returns:
        The same, with arrays in the places of tensors.
    """
    if isinstance(tree, Tensor):
        flat = tree.detach().cpu().contiguous().reshape(-1)
        return _Numbers(flat.view(torch.uint8).numpy(), tree.dtype, tuple(tree.shape))
    return _within(tree, as_arrays)


def as_tensors(tree: Any) -> Any:
    """Undoes ``as_arrays``, without a copy: the tensors must not be written to.

    Args:
        tree: What it gave.

    Returns:
        What it was given.
    """
    if isinstance(tree, _Numbers):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # arrays of the store are read-only; nobody writes
            return torch.from_numpy(tree.bytes).view(tree.dtype).reshape(tree.shape)
    return _within(tree, as_tensors)


def _within(tree: Any, change: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: change(one) for name, one in tree.items()}
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{one.name: change(getattr(tree, one.name)) for one in fields(tree)})
    return tree


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """What a worker is told of a merge, beside the numbers of its models.

    Attributes:
        run: The merge, without its Trainer, bodies and base.
        goal: What is maximised.
        space: The space of the coefficients.
        sizes: Batch sizes by kind of pass, where they are found.
        accelerator: ``cpu`` or ``cuda``.
        precision: The Trainer's.
        options: Options of the Trainer.
        callbacks: Those that may change what a pass computes.
        threads: How many threads of the CPU it has.
    """

    run: MergeRun
    goal: Objective
    space: SearchSpace
    sizes: Mapping[str, int]
    accelerator: str
    precision: Precision
    options: Mapping[str, Any]
    callbacks: Sequence[Callback]
    threads: int

    @classmethod
    def of(
        cls, run: MergeRun, goal: Objective, space: SearchSpace, assembler: Assembler, threads: int
    ) -> tuple["RemoteJob", Any]:
        """Takes a merge apart.

        Args:
            run: The merge.
            goal: What is maximised.
            space: The space of the coefficients.
            assembler: Assembles its merges.
            threads: How many threads a worker has.

        Returns:
            What is copied for each worker, and what workers of a machine share: bodies, base and
            statistics, as arrays.
        """
        trainer, ensemble, data = run.trainer, run.ensemble, run.data
        job = cls(
            run=replace(
                run,
                trainer=None,  # type: ignore[arg-type]  # a worker has its own
                data=None if data is None else _detached(data),
                ensemble=replace(ensemble, bodies={}, base=None, fishers=None),
                stages=(),
                adapter=None,
            ),
            goal=goal,
            space=space,
            sizes={} if data is None else dict(run.evaluator.sizes.found),
            accelerator="cuda" if isinstance(trainer.accelerator, CUDAAccelerator) else "cpu",
            precision=trainer.precision_plugin,
            options={
                name: getattr(trainer, name)
                for name in ("limit_val_batches", "limit_predict_batches", "limit_train_batches")
            },
            callbacks=[one for one in _callbacks(trainer) if not isinstance(one, _OF_THE_DRIVER)],
            threads=threads,
        )
        return job, as_arrays({
            "bodies": ensemble.bodies,
            "base": ensemble.base,
            "statistics": assembler.statistics,
        })

    def trainer(self) -> Trainer:
        """Makes a Trainer of one device."""
        return Trainer(
            accelerator=self.accelerator,
            devices=1,
            plugins=[self.precision],
            callbacks=list(self.callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            **self.options,
        )


def _detached(data: MultiTask) -> MultiTask:
    """Copies data without what belongs to this process: their Trainer, and loaders."""
    one = copy.copy(data)
    one.trainer, one._cache = None, {}
    return one


_OF_THE_DRIVER = (ProgressBar, Checkpoint, ModelSummary, MergeOptimizer)


def _callbacks(trainer: Trainer) -> Sequence[Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


class TrialWorker:
    """Makes trials of one merge; an actor of Ray."""

    def ready(self) -> None:
        """Tells that it was given room, and has started."""

    def begin(self, job: RemoteJob, numbers: Any) -> None:
        """Puts a merge together again.

        Args:
            job: What it is told of it.
            numbers: The rest.
        """
        torch.set_num_threads(job.threads)
        numbers, trainer = as_tensors(numbers), job.trainer()
        ensemble = replace(job.run.ensemble, bodies=numbers["bodies"], base=numbers["base"])
        run = replace(job.run, trainer=trainer, ensemble=ensemble)
        trainer.strategy._lightning_module = run.module  # see MergeJob
        run.evaluator.sizes.found |= job.sizes
        if run.labels == "none":
            run.agreement.ask({task: ensemble.bodies[task] for task in ensemble.tasks})
        # its folder is where Fishers go that have no room in memory
        folder = RunFolder(Path(tempfile.gettempdir()))
        self._assembler = assembler_of(run, job.space, folder, numbers["statistics"])
        self._run, self._goal = run, job.goal

    def attempt(self, proposal: Proposal) -> Trial:
        """Makes a trial; see ``trials.attempt``.

        Args:
            proposal: What is tried.

        Returns:
            The trial.
        """
        merge, goal = self._assembler.assemble, self._goal
        return attempt(
            proposal.index,
            proposal.coefficients,
            merge,
            lambda body: self._run.validate(body, goal),
            method=proposal.method,
        )
