"""The Trainer with two more jobs: ``fisher`` and ``merge``; and a ``fit`` that saves an expert."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from fmerge import methods
from fmerge.data import Split
from fmerge.data.own import Loaders
from fmerge.errors import object_of
from fmerge.evaluation.chance import check_results
from fmerge.evaluation.head_refit import Refit, Refitting
from fmerge.fisher import MERGE_DEFAULTS, Estimator, Fallback, FisherEstimate, FisherSettings
from fmerge.merging.adapter_output import Rank
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.merged_heads import HeadMode
from fmerge.methods import Average, MergeMethod
from fmerge.modules import Loss, TaskModule
from fmerge.report.merge_report import MergeReport
from fmerge.runs.described import fit_config
from fmerge.runs.divergence import DivergenceGuard
from fmerge.runs.fisher import FisherJob
from fmerge.runs.fit import ConfigWriter, check_limits, check_places, save_experts, say_unsaved
from fmerge.runs.fit_callbacks import LastEpoch, checked_resume, first_callbacks, with_callbacks
from fmerge.runs.inputs import check_data, explaining_texts, tasks_of
from fmerge.runs.job import MergeJob
from fmerge.runs.labels import Labels
from fmerge.runs.pass_plan import Baselines
from fmerge.runs.polish_stage import Polishing
from fmerge.store import (
    Dtype,
    adapters_on,
    check_new_folder,
    lock_of,
    only_run,
    recover_folder,
)
from fmerge.system.paths import path_of
from fmerge.system.slurm import RequeueCallback, requeued_checkpoint


class FMergeTrainer(Trainer):
    """Lightning's Trainer, which also estimates Fishers and merges experts.

    Attributes:
        resolved_config: What ``fit`` and ``merge`` save as ``config.yaml``; they describe their
            arguments where it is None.
        command: The command line that they were called from; empty from Python.

    Examples:
        >>> import fmerge
        >>> trainer = fmerge.Trainer(logger=False, enable_model_summary=False)
        >>> report = trainer.merge(
        ...     fmerge.modules.TextClassifier(),
        ...     fmerge.data.MultiTask(),
        ...     experts={"a": "path/to/model_a", "b": "path/to/model_b"},
        ...     method=fmerge.methods.Average(),
        ...     output="averaged",
        ... )
        Searching ...
        Trials: averaged/trials.jsonl
        Merged: averaged/merged
        Report: averaged/report.html
        >>> fmerge.load_params("averaged/merged/a")["classifier.weight"].shape
        torch.Size([3, 16])
    """

    resolved_config: str | None = None
    command: str = ""

    def fit(  # type: ignore[override]
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """Fine-tune a model on a task and save it as an expert.

        Args:
            model: What is trained.
            train_dataloaders: Training data, where there is no datamodule.
            val_dataloaders: Validation data, where there is no datamodule.
            datamodule: The data.
            ckpt_path: Lightning checkpoint to resume from.
            output: Folder of the run: checkpoints and expert/, a Hugging Face folder.
            overwrite: Write into the output folder although it is not empty.
        """
        check_limits(self)
        check_data(datamodule)
        ckpt_path = checked_resume(self, ckpt_path)
        data = (train_dataloaders, val_dataloaders, datamodule)
        if output is None:
            check_places(self, None)
            with explaining_texts(model, datamodule):
                self._fit(model, data, ckpt_path)
            if self.resolved_config is not None and self.is_global_zero:
                say_unsaved(self)
            return
        output = path_of(output)
        with (
            only_run(lock_of(output, folder=True), on=self.is_global_zero),
            RequeueCallback().catching_signal(self),
            explaining_texts(model, datamodule),
        ):
            if (saved := requeued_checkpoint(self, overwrite)) is not None:
                ckpt_path = checked_resume(self, str(saved))
            check_places(self, output)
            last = []
            if self.is_global_zero:
                recover_folder(output / "expert")
                check_new_folder(output, overwrite or ckpt_path is not None)
                config = self.resolved_config or fit_config(self, model, datamodule, output)
                last = [ConfigWriter(output, config, fresh=ckpt_path is None)]
            self._fit(model, data, ckpt_path, last)
            if isinstance(model, TaskModule):
                save_experts(self, model, output)

    def _fit(
        self,
        model: LightningModule,
        data: tuple[Any, Any, LightningDataModule | None],
        ckpt_path: str | None,
        last: Sequence[Callback] = (),
    ) -> None:
        """Lightning's own fit, with the callbacks of every fit; ``last`` run after all others."""
        if any(getattr(one, "save_last", None) is True for one in self.checkpoint_callbacks):
            last = [*last, LastEpoch()]
        with with_callbacks(self, [*first_callbacks(ckpt_path), DivergenceGuard()], last):
            super().fit(model, *data, ckpt_path)

    def validate(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
    ) -> list[Mapping[str, float]]:
        """Score a model on the validation split of its tasks.

        Args:
            model: What is scored.
            dataloaders: The data, where there is no datamodule.
            ckpt_path: Lightning checkpoint whose weights are used.
            verbose: Print the scores.
            datamodule: The data.

        Returns:
            One dictionary of metrics per loader.
        """
        check_data(datamodule)
        ckpt_path = checked_resume(self, ckpt_path)
        with with_callbacks(self, first_callbacks(ckpt_path)), explaining_texts(model, datamodule):
            results = super().validate(model, dataloaders, ckpt_path, verbose, datamodule)
        check_results(datamodule, results, "validation")
        return results

    def test(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
    ) -> list[Mapping[str, float]]:
        """Score a model on the test split of its tasks.

        Args:
            model: What is scored.
            dataloaders: The data, where there is no datamodule.
            ckpt_path: Lightning checkpoint whose weights are used.
            verbose: Print the scores.
            datamodule: The data.

        Returns:
            One dictionary of metrics per loader.
        """
        check_data(datamodule)
        ckpt_path = checked_resume(self, ckpt_path)
        with with_callbacks(self, first_callbacks(ckpt_path)), explaining_texts(model, datamodule):
            results = super().test(model, dataloaders, ckpt_path, verbose, datamodule)
        check_results(datamodule, results, "test")
        return results

    def fisher(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | Loaders,
        expert: str | None = None,
        *,
        output: Path,
        task: str | None = None, base: str | None = None,
        estimator: Estimator = FisherSettings.estimator,
        split: Split = FisherSettings.split,
        examples: int | None = FisherSettings.examples,
        samples: int = FisherSettings.samples,
        until: float | None = FisherSettings.until,
        standard_error: bool = FisherSettings.standard_error,
        fallback: Fallback = FisherSettings.fallback,
        seed: int = FisherSettings.seed,
        save_every: float = 60.0, overwrite: bool = False, dry_run: bool = False,
    ) -> FisherEstimate | None:  # fmt: skip
        """Estimate the diagonal Fisher of one expert on one task.

        Args:
            model: The kind of model; or a LightningModule of your own with label_log_probs.
            datamodule: The data of the task; or a LightningDataModule or DataLoader of your own.
            expert: The fine-tuned model: Hugging Face or PEFT folder, hub id or Lightning .ckpt.
            output: File to write, .safetensors or .h5.
            task: Which of the data's tasks, if it has several.
            base: Where the base of a PEFT adapter is, if not where its config says.
            estimator: exact: every class, by its probability; sampled: classes drawn from the
                model; empirical: the true class; rademacher: random signs, unbiased for exact.
            split: Split that the examples come from.
            examples: How many examples, chosen at random; all of the split if left out.
            samples: Draws per example of sampled; backward passes of rademacher.
            until: Stop below this relative standard error of the Fisher's total; 0.05 is 5%.
            standard_error: Print that standard error without stopping by it.
            fallback: How to differentiate what no rule covers: exactly by vmap or loop, or error.
            seed: Seed of the choice and of the draws.
            save_every: Seconds between savings; the same command resumes from the last.
            overwrite: Replace the output file if it exists.
            dry_run: Check headers, time one batch, print the plan, and write nothing.

        Returns:
            The Fisher by parameter name, and the examples used; None of a dry run.
        """
        settings = FisherSettings(estimator=estimator, split=split, examples=examples, seed=seed,
            samples=samples, until=until, standard_error=standard_error, fallback=fallback,
        )  # fmt: skip
        data = tasks_of(datamodule, self, dry_run)
        job = FisherJob(self, model, data, settings, path_of(output), save_every)
        with adapters_on(base):
            return job.run(expert, task, overwrite=overwrite, dry_run=dry_run)

    def merge(
        self, model: LightningModule, datamodule: LightningDataModule | Loaders | None = None, *,
        experts: dict[str, str | Expert], output: Path, method: MergeMethod | None = None,
        coefficients: dict[str, float] | None = None, fisher: FisherSettings = MERGE_DEFAULTS,
        base: str | None = None, refit_examples: int | None = 512, adapter_rank: Rank | None = None,
        baselines: Baselines = "all", refit_heads: Refit = "off", polish_loss: Loss = "experts",
        heads: HeadMode = "keep", overwrite: bool = False, build: int | None = None,
        refit_seed: int = 0, polish_steps: int = 0, dry_run: bool = False, labels: Labels = "all",
        polish_anchor: float = 0.0, dtype: Dtype | None = None, budget: str | None = None,
        polish_learning_rate: float = 3e-4, max_shard_size: int | str | None = None,
    ) -> MergeReport | None:  # fmt: skip
        """Merge experts into one model, with the best coefficients that a search finds.

        Args:
            model: The kind of model.
            datamodule: The tasks, or a LightningDataModule whose loaders are by task name, if any.
            experts: Task to folder, of PEFT too, hub id or .ckpt; or {path: it, fisher: its file}.
            output: Folder for the merged model, the trials and the report.
            method: The formula, such as Average, TaskArithmetic, TIES, FisherMerge or DFMerge.
            coefficients: By expert, without a search; below 0 for what an expert is to unlearn.
            base: The pretrained model of the experts; the adapters' own if they are such.
            fisher: How Fishers without a file are estimated, and the examples of RegMean's Grams.
            baselines: all: a table with base, average and runner-up; experts alone: faster.
            heads: keep each task's; merge them, of one task, into one; train with coefficients.
            refit_heads: Refit classifiers' last linear layers: off, at the end, or in trials too.
            refit_examples: Training examples of a task that heads are fitted on; null: all.
            refit_seed: Seed of their choice.
            polish_steps: Steps that train all weights of the best merge at the end; 0 for none.
            polish_loss: What they learn from: experts, without labels; labels; both; or entropy.
            polish_anchor: How strongly exact Fishers hold weights to the merge; 0: not at all.
            polish_learning_rate: Adam's.
            dtype: What merged models are written in; the experts' own dtype if left out.
            max_shard_size: Largest shard of a merged model, such as 5GB; as the experts' if unset.
            adapter_rank: Save an adapter of the base, of this rank or of the sum of the experts'.
            overwrite: Replace a run in the output folder; without it the run is resumed.
            dry_run: Check headers, time one batch, print the plan, and write nothing.
            build: Build this trial of the finished run in points/<index>/, and nothing else.
            labels: none: read no label before the test, but score trials by the experts' answers.
            budget: Time for the search and the stages after it, such as 10min; no limit if unset.

        Returns:
            The report: the merge that was saved and its test scores; None of a dry run.
        """
        return MergeJob(trainer=self, model=model, datamodule=datamodule, experts=experts,
            output=path_of(output), method=_made(method), base=base, fisher=fisher, heads=heads,
            refitting=Refitting(refit_heads, refit_examples, refit_seed), baselines=baselines,
            polishing=Polishing(polish_steps, polish_loss, polish_anchor, polish_learning_rate),
            dtype=dtype, max_shard_size=max_shard_size, adapter_rank=adapter_rank, labels=labels,
            overwrite=overwrite, dry_run=dry_run, build=build, config=self.resolved_config,
            budget=budget, coefficients=coefficients, command=self.command).run()  # fmt: skip


def _made(method: MergeMethod | str | type[MergeMethod] | None) -> MergeMethod:
    return object_of("method", method or Average(), MergeMethod, methods)  # type: ignore[type-abstract]
