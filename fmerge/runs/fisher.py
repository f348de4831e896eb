"""One Fisher from an expert and its data to a file."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch import nn

from fmerge import __version__
from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.evaluation.batch_size import check_automatic
from fmerge.evaluation.evaluator import Evaluator
from fmerge.fisher import FisherEstimate, FisherSettings
from fmerge.merging.buffers import check_no_nan, network_state, persistent_buffers
from fmerge.modules import PreprocessedModule, Saving, TaskModule, read_network
from fmerge.modules.sharding import check_split_fisher
from fmerge.params import check_finite, check_same_layout, fingerprint, params_of
from fmerge.report.sections import layer_table
from fmerge.report.tables import to_rich
from fmerge.runs.described import described
from fmerge.runs.dry_run import show_fisher_plan
from fmerge.runs.inputs import explaining_texts
from fmerge.store import (
    check_fisher_path,
    check_new_file,
    checkpoint_order,
    in_checkpoint_order,
    load_lightning,
    lock_of,
    only_run,
    reading_headers,
    remove_leftovers,
    remove_partial,
    write_fisher,
)
from fmerge.system.fsdp2 import is_split
from fmerge.system.signals import catch_signals
from fmerge.system.watchdog import check_strategy


@dataclass(frozen=True)
class FisherJob:
    """What ``FMergeTrainer.fisher`` was asked for.

    Attributes:
        trainer: The Trainer whose prediction pass is used.
        module: The kind of model; a LightningModule with ``label_log_probs`` if no task module.
        data: The data.
        settings: Estimator and examples.
        output: The file to write.
        save_every: Seconds between two savings of what is unfinished.
    """

    trainer: Trainer
    module: LightningModule
    data: MultiTask
    settings: FisherSettings
    output: Path
    save_every: float

    def run(
        self, expert: str | None, task: str | None, *, overwrite: bool, dry_run: bool
    ) -> FisherEstimate | None:
        """Does the job, alone with its output file.

        Args:
            expert: Where the weights are; those the module was made with when None.
            task: The task; the only one when None.
            overwrite: Whether the output file is replaced.
            dry_run: Whether to price the pass instead of making it.

        Returns:
            The Fisher, by parameter name, and the number of examples used; None of a dry run.
        """
        if self.trainer.is_global_zero:
            check_fisher_path(self.output)
            check_new_file(self.output, overwrite)
        check_strategy(self.trainer, split=True)
        wanted = self.settings.errors is not None
        if is_split(self.trainer):
            check_split_fisher(self.trainer, self.module, self.settings)
        check_automatic(self.trainer, self.data, self.settings.estimator, wanted)
        run = FisherRun(self, self.data.only_task(task))
        if isinstance(self.module, TaskModule):
            self.module.check_estimator(run.task, self.settings.estimator)
        with (
            only_run(lock_of(self.output, folder=False), on=self.trainer.is_global_zero),
            explaining_texts(self.module, self.data),
        ):
            if dry_run:
                run.describe(expert)
                return None
            return run.run(expert)


class FisherRun:
    """The Fisher of one expert on one task, saved at intervals so that it can be resumed.

    Args:
        job: What was asked for.
        task: The task.
    """

    def __init__(self, job: FisherJob, task: str) -> None:
        self.trainer = job.trainer
        self.module = job.module
        self.data = job.data
        self.task = task
        self.settings = job.settings
        self.output = job.output
        self.save_every = job.save_every
        self._network: nn.Module = job.module

    def run(self, expert: str | None) -> FisherEstimate:
        """Reads the expert, makes the pass and writes the Fisher in the first process.

        Args:
            expert: Where the weights are; those the module was made with when None.

        Returns:
            The Fisher, by parameter name, and the number of examples used.

        Raises:
            SystemExit: If a signal asked to stop, once the sums are saved.
        """
        self.data.check_splits(self.settings.split)
        provenance = self._provenance(expert, self._load(expert))
        belongs_to = {
            **provenance,
            "examples": self.settings.examples,
            "until": self.settings.until,
            "standard_error": self.settings.standard_error,  # it sets the examples' order
            "module": {name: str(described(value)) for name, value in self.module.hparams.items()},
            "processes": self.trainer.world_size,
            **({"split": True} if is_split(self.trainer) else {}),
            "data_sha256": self.data.fingerprint(self.task, self.settings.split),
        }
        evaluator = Evaluator(self.trainer, self.module, self.data)
        path = self._unfinished(self.trainer.global_rank)
        try:
            with catch_signals(self.trainer, "batch", together=False) as stop:
                saving = Saving(path, belongs_to, self.save_every, stop)
                estimate = evaluator.fisher(self.task, self.settings, bar=True, saving=saving)
        except SystemExit:
            if self.trainer.is_global_zero and path.is_file():
                sys.stderr.write(f"fmerge: stopped; the same command resumes from {path}\n")
            raise
        if self.trainer.is_global_zero:
            self._write(estimate, provenance)
        self.trainer.strategy.barrier("the Fisher is written")
        remove_partial(path)
        return estimate

    def describe(self, expert: str | None) -> None:
        """Checks what headers tell, measures a batch and prints what the run would take.

        Args:
            expert: Where the weights are.
        """
        self.data.check_splits(self.settings.split)
        network, tokenizer = self.module, None
        if isinstance(self.module, TaskModule):
            with reading_headers():
                network = self._read(self.module, expert)
            tokenizer = self.module.reads.load(str(expert))
            if isinstance(self.module, PreprocessedModule):
                self.module.adopt_preprocessors({self.task: network}, tokenizer)
        else:
            _check_own(self.module)
            if expert is not None:
                state = load_lightning(_lightning(self.module, expert))["state_dict"]
                own = type(self.module).__name__
                check_same_layout(self.module.state_dict(), state, own, expert)
        show_fisher_plan(self, network, tokenizer)

    def _read(self, module: TaskModule, expert: str | None) -> Any:
        if expert is None:
            raise UserError("--expert: required but not given; name the fine-tuned model")
        return read_network(module, expert, self.task, self.data.labels[self.task])

    def _load(self, expert: str | None) -> dict[str, Any]:
        """Fills the module with the expert's weights; returns their hashes and labels."""
        if isinstance(self.module, TaskModule):
            model = self._read(self.module, expert)
            expert = str(expert)
            _check_numbers(model, expert)
            # the body's own, as a donor's head is not read in a merge
            labels = self.data.labels[self.task]
            order = checkpoint_order(model, len(labels))
            # the checkpoint's own order: a file must not depend on how the data list the labels
            facts = {
                "model_sha256": fingerprint(in_checkpoint_order(model, network_state(model))),
                "body_sha256": fingerprint(network_state(model, self.module.body(model))),
                "labels": [labels[i] for i in order],
            }
            self._network = model
            self.module.adopt({self.task: model}, self.module.reads.load(expert))
            return facts
        _check_own(self.module)
        if expert is not None:
            _restore(self.module, expert)
        _check_numbers(self.module, expert or type(self.module).__name__)
        return {"model_sha256": fingerprint(network_state(self.module))}

    def _provenance(self, expert: str | None, facts: dict[str, Any]) -> dict[str, Any]:
        settings = self.settings
        return {
            "fmerge": __version__,
            "model": expert or type(self.module).__name__,
            **facts,
            "task": self.task,
            "split": settings.split,
            "estimator": settings.estimator,
            "samples": settings.samples,
            "seed": settings.seed,
            "precision": str(self.trainer.precision),
        }

    def _unfinished(self, rank: int) -> Path:
        name = f"{self.output.stem}.unfinished-{rank}-of-{self.trainer.world_size}.safetensors"
        return self.output.with_name(name)

    def _write(self, estimate: FisherEstimate, provenance: dict[str, Any]) -> None:
        provenance = {**provenance, "examples": estimate.count}
        error, interval = estimate.relative_error, estimate.relative_interval
        shown = "not known from a single batch"
        if error is not None and interval is not None and math.isfinite(error):
            provenance["relative_standard_error"] = error
            provenance["relative_95_percent_interval"] = interval
            shown = f"{100 * error:.1f}%; 95% interval: ± {100 * interval:.1f}%, by Student's t"
        remove_leftovers(self.output)
        values = in_checkpoint_order(self._network, estimate.values)
        write_fisher(self.output, values, provenance)
        settings, console = self.settings, Console()
        title = f"Fisher of {self.task}: {settings.estimator}, {estimate.count} {settings.split}"
        console.print(to_rich(layer_table(estimate.values, f"{title} examples")))
        if error is not None:
            console.print(f"Standard error of the total: {shown}", highlight=False)
        console.print(f"Fisher: {self.output}", soft_wrap=True, highlight=False)


def _check_numbers(network: nn.Module, source: str) -> None:
    check_finite(params_of(network), source)
    check_no_nan(persistent_buffers(network), source)


def _check_own(module: LightningModule) -> None:
    if not hasattr(module, "label_log_probs"):
        raise UserError(
            f"--model: {type(module).__name__} has no label_log_probs(batch), which gives "
            "the log-likelihoods (n, c) of the candidate answers; add it, or use TextClassifier"
        )


def _lightning(module: LightningModule, expert: str) -> Path:
    if not expert.endswith(".ckpt"):
        raise UserError(
            f"--expert {expert}: a {type(module).__name__} is read from a Lightning .ckpt"
        )
    return Path(expert)


def _restore(module: LightningModule, expert: str) -> None:
    """Loads a Lightning checkpoint of the module's own class."""
    path = _lightning(module, expert)
    try:
        module.load_state_dict(load_lightning(path)["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{expert}: does not fit {type(module).__name__}: {reason}") from error
