"""The Trainer with two more jobs: ``fisher`` and ``merge``; and a ``fit`` that saves an expert."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from rich.console import Console

from fmerge.data import Split
from fmerge.evaluation.batch_size import check_automatic
from fmerge.evaluation.head_refit import Refit, Refitting
from fmerge.fisher import MERGE_DEFAULTS, Estimator, Fallback, FisherEstimate, FisherSettings
from fmerge.merging.experts import Expert, load_ensemble, target_first
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import Average, MergeMethod
from fmerge.modules import TaskModule
from fmerge.report.merge_report import MergeReport
from fmerge.report.pareto_front import find_trial
from fmerge.report.write import show
from fmerge.runs.conclude import Baselines
from fmerge.runs.dry_run import merge_passes, show_merge_plan
from fmerge.runs.fisher import FisherRun
from fmerge.runs.fit import ConfigWriter, save_experts, say_unsaved
from fmerge.runs.inputs import check_data, task_module, tasks_of
from fmerge.runs.merge import MergeRun
from fmerge.search import Search
from fmerge.store import (
    RunFolder,
    check_fisher_path,
    check_new_file,
    check_new_folder,
    check_resume,
    lock_of,
    only_run,
    recover_folder,
)
from fmerge.system.signals import asking_to_stop
from fmerge.system.slurm import RequeuedFit, is_requeued, requeued_checkpoint
from fmerge.system.watchdog import check_strategy


class FMergeTrainer(Trainer):
    """Lightning's Trainer, which also estimates Fishers and merges experts.

    Attributes:
        resolved_config: What ``fit`` and ``merge`` save as ``config.yaml``, if not None.
    """

    resolved_config: str | None = None

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
            ckpt_path: Lightning checkpoint to go on from.
            output: Folder of the run: checkpoints and expert/, a Hugging Face folder.
            overwrite: Write into the output folder although it is not empty.
        """
        check_data(datamodule)
        check_resume(ckpt_path)
        if output is None:
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)
            if self.resolved_config is not None and self.is_global_zero:
                say_unsaved(self)
            return
        output = Path(output)
        callback = RequeuedFit()
        with (
            only_run(lock_of(output, folder=True), on=self.is_global_zero),
            callback.listening(self),
        ):
            if (saved := requeued_checkpoint(self, overwrite)) is not None:
                check_resume(ckpt_path := str(saved))
            if self.is_global_zero:
                recover_folder(output / "expert")
                check_new_folder(output, overwrite or ckpt_path is not None)
                # written once data and weights have proved readable
                self.callbacks.append(ConfigWriter(output, self.resolved_config))  # type: ignore[attr-defined]
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)
            if isinstance(model, TaskModule):
                save_experts(self, model, output)

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
        check_resume(ckpt_path)
        return super().validate(model, dataloaders, ckpt_path, verbose, datamodule)

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
        check_resume(ckpt_path)
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule)

    def fisher(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        expert: str | None = None,
        *,
        output: Path,
        task: str | None = None,
        estimator: Estimator = FisherSettings.estimator,
        split: Split = FisherSettings.split,
        examples: int | None = FisherSettings.examples,
        samples: int = FisherSettings.samples,
        until: float | None = FisherSettings.until,
        standard_error: bool = FisherSettings.standard_error,
        fallback: Fallback = FisherSettings.fallback,
        seed: int = FisherSettings.seed,
        save_every: float = 60.0,
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> FisherEstimate | None:
        """Estimate the diagonal Fisher of one expert on one task.

        Args:
            model: The kind of model; or a LightningModule of your own with label_log_probs.
            datamodule: The data of the task.
            expert: The fine-tuned model: Hugging Face folder, hub id or Lightning .ckpt.
            output: File to write, .safetensors or .h5.
            task: Which of the data's tasks, if it has several.
            estimator: exact: every class, weighted by its probability; sampled: classes drawn
                from the model; empirical: the true class; rademacher: random signs over whole
                batches, unbiased for exact, for any architecture at little cost.
            split: Split that the examples come from.
            examples: How many examples, chosen at random; all of the split if left out.
            samples: Draws per example of sampled; backward passes of rademacher.
            until: Stop when the relative standard error of the Fisher's total is below this;
                0.05 is 5%.
            standard_error: Print that standard error without stopping by it.
            fallback: What is done about parameters that no rule covers: exact differentiation
                example by example, by vmap or a loop, or an error that names them.
            seed: Seed of the choice and of the draws.
            save_every: Seconds between savings of the unfinished sums; an interrupted command
                goes on from there when it is given again.
            overwrite: Replace the output file if it exists.
            dry_run: Check all that headers tell, measure one batch, print what would be done and
                what it would take, and write nothing.

        Returns:
            The Fisher, by parameter name, and the number of examples used; None of a dry run.
        """
        output = Path(output)
        if self.is_global_zero:
            check_fisher_path(output)
            check_new_file(output, overwrite)
        check_strategy(self)
        data = tasks_of(datamodule)
        settings = FisherSettings(
            estimator=estimator,
            split=split,
            examples=examples,
            samples=samples,
            seed=seed,
            until=until,
            standard_error=standard_error,
            fallback=fallback,
        )
        check_automatic(self, data, estimator, settings.errors is not None)
        run = FisherRun(self, model, data, data.only_task(task), settings, output, save_every)
        with only_run(lock_of(output, folder=False), on=self.is_global_zero):
            if dry_run:
                run.describe(expert)
                return None
            return run.run(expert)

    def merge(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        experts: dict[str, str | Expert],
        output: Path,
        method: MergeMethod | None = None,
        base: str | None = None,
        fisher: FisherSettings = MERGE_DEFAULTS,
        references: Baselines = "all",
        refit_heads: Refit = "off",
        refit_examples: int | None = 512,
        refit_seed: int = 0,
        overwrite: bool = False,
        dry_run: bool = False,
        build: int | None = None,
    ) -> MergeReport | None:
        """Merge experts into one model, with the best coefficients that a search finds.

        Args:
            model: The kind of model.
            datamodule: The experts' tasks; without data the merge is built but not scored.
            experts: Task name to expert: a Hugging Face folder, hub id or Lightning .ckpt; or
                {path: the same, fisher: its Fisher, a file, or the .ckpt of its fit for Adam's}.
            output: Folder for the merged model, the trials and the report.
            method: The formula, such as Average, TaskArithmetic, TIES, FisherMerge or DFMerge.
            base: The pretrained model the experts started from; for task vectors and the table.
            fisher: How Fishers that no file gives are estimated, and on what examples RegMean's
                Grams; 30 validation examples a task if left out.
            references: What the table compares with: all: the base, the base with refitted heads,
                the experts, their plain average and the second best trial; experts: the experts
                alone, which is faster.
            refit_heads: Whether classifiers' last linear layers are fitted to the merged body on
                training examples: off: the experts' heads are kept, end: the best merge's are
                fitted before it is tested and saved; trials: those of every trial's merge, too,
                so that the search maximises what fitted heads score.
            refit_examples: How many training examples of each task they are fitted on, as are
                those of the table's references; null: all. Without refit_heads the base's are
                fitted on all.
            refit_seed: Seed of their choice.
            overwrite: Begin anew in an output folder that is not empty. Without it, a command
                that was interrupted goes on after the last finished trial, and more trials can
                be added to a finished run.
            dry_run: Check all that headers tell, measure one batch, print what would be done and
                what it would take, and write nothing.
            build: Index of a trial of the finished run in the output folder, such as another
                point of its Pareto front: that merge is assembled, tested and saved in
                points/<index>/, and nothing else is done.

        Returns:
            What was kept and the test scores; None of a dry run.

        Raises:
            UserError: If an input is missing, does not fit the others, or is not finite.
        """
        output = Path(output)
        method = Average() if method is None else method
        refitting = Refitting(refit_heads, refit_examples, refit_seed)
        with only_run(lock_of(output, folder=True), on=self.is_global_zero):
            folder, resuming = RunFolder(output, self.resolved_config), False
            records: Sequence[Mapping[str, Any]] = []
            if self.is_global_zero and build is not None:
                records = find_trial(folder, build, overwrite, dry_run)
            elif self.is_global_zero:
                resuming = folder.check(overwrite and not is_requeued(self))
            check_strategy(self)
            module = task_module(model)
            data = tasks_of(datamodule) if datamodule is not None else None
            data = data if data is not None and data.tasks else None
            optimizer = self._merge_optimizer()
            ordered = target_first(experts, optimizer.target)
            tasks = [name for name, one in ordered.items() if not one.donor]
            search = optimizer.prepare(list(experts), method, data is not None, tasks)
            ensemble = load_ensemble(
                ordered,
                base,
                method,
                module,
                None if data is None else data.labels,
                values=not dry_run,
            )
            run = MergeRun(self, module, data, ensemble, method, fisher, references, refitting)
            run.check(search, optimizer.groups != "whole", optimizer.racing)
            optimizer.divide(search, method, list(next(iter(ensemble.bodies.values()))))
            if dry_run:
                own = optimizer.needs_experts
                passes = merge_passes(
                    module, ensemble, data, method, search, fisher, references, own, refitting
                )
                show_merge_plan(
                    self, module, ensemble, data, method, search, fisher, output, passes, resuming
                )
                return None
            if build is not None:
                return self._build(run, optimizer, search, folder, build, records)
            return self._search(run, optimizer, search, folder, resuming)

    def _build(
        self,
        run: MergeRun,
        optimizer: MergeOptimizer,
        search: Search,
        folder: RunFolder,
        index: int,
        records: Sequence[Mapping[str, Any]],
    ) -> MergeReport:
        if self.is_global_zero:
            folder.check_inputs(run.inputs())
            folder.begin_point(index)
        report = self._long(run, run.build, optimizer, search, folder, index, records)
        return self._shown(report, folder.point(index))

    def _search(
        self,
        run: MergeRun,
        optimizer: MergeOptimizer,
        search: Search,
        folder: RunFolder,
        resuming: bool,
    ) -> MergeReport:
        done: list[dict[str, Any]] = []
        if self.is_global_zero and resuming:
            done = folder.resume(run.inputs())
            Console().print(f"Going on after {len(done)} trials: {folder.path}", soft_wrap=True)
        elif self.is_global_zero:
            folder.start(run.inputs())
        try:
            with asking_to_stop(self) as stop:
                report = self._long(run, run.run, optimizer, search, folder, done, stop)
        except SystemExit:
            if self.is_global_zero:
                sys.stderr.write(
                    f"fmerge: stopped after {len(search.history)} trials, which are saved; "
                    f"the same command goes on with them: {folder.path}\n"
                )
            raise
        return self._shown(report, folder.path)

    def _long(self, run: MergeRun, job: Callable[..., MergeReport], *given: Any) -> MergeReport:
        run.module.adopt(run.ensemble.models, run.ensemble.tokenizer)
        self.strategy._lightning_module = run.module
        self.state.fn, self.state.status = TrainerFn.VALIDATING, TrainerStatus.RUNNING
        report: MergeReport = call._call_and_handle_interrupt(self, job, *given)
        return report

    def _shown(self, report: MergeReport, output: Path) -> MergeReport:
        if self.is_global_zero:
            show(report, output)
        self.strategy.barrier("the merge is written")
        return report

    def _merge_optimizer(self) -> MergeOptimizer:
        found = [one for one in self.callbacks if isinstance(one, MergeOptimizer)]  # type: ignore[attr-defined]
        return found[0] if found else MergeOptimizer()
