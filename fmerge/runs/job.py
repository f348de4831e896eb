"""One ``merge`` command: checked, locked, then searched, built from a trial, or only priced."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from rich.console import Console

from fmerge.data import MultiTask
from fmerge.data.own import Loaders
from fmerge.data.task_names import check_task_names
from fmerge.errors import UserError, counted
from fmerge.evaluation.head_refit import Refitting, warn_untrained
from fmerge.fisher import MERGE_DEFAULTS, FisherSettings
from fmerge.merging.adapter_output import Rank, check_rank
from fmerge.merging.adapters import base_of
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import target_first
from fmerge.merging.merged_heads import HeadMode, check_mode
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import Auto, Average, MergeMethod
from fmerge.modules import TaskModule
from fmerge.report.merge_report import MergeReport
from fmerge.report.write import show
from fmerge.runs.build import find_trial
from fmerge.runs.clock import seconds_of
from fmerge.runs.described import merge_config
from fmerge.runs.dry_run import show_merge_plan
from fmerge.runs.guards import AverageBaseline
from fmerge.runs.inputs import check_merge, check_settings, fingerprints, task_module, tasks_of
from fmerge.runs.labels import Asked, Labels
from fmerge.runs.learning import training_stages
from fmerge.runs.left_out import checked_stages, polishing_of
from fmerge.runs.loading import loaded
from fmerge.runs.merge import MergeRun
from fmerge.runs.pass_plan import Baselines, PassPlan
from fmerge.runs.polish_stage import Polishing
from fmerge.runs.pools import check_parallel
from fmerge.runs.portfolio import search_of
from fmerge.runs.recipes import write_recipe
from fmerge.runs.redo import with_redo
from fmerge.runs.stages import Stage
from fmerge.runs.streamed import StreamedRun, identity_of, may_stream, streamed_run
from fmerge.runs.trial_log import TrialLog, without_loggers
from fmerge.search import Fixed, Search
from fmerge.store import Dtype, RunFolder, check_dtype, lock_of, only_run, parse_size
from fmerge.system.signals import catch_signals
from fmerge.system.slurm import is_requeued
from fmerge.system.watchdog import check_strategy


@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """What ``FMergeTrainer.merge`` was asked for; its docstring explains the options.

    Attributes:
        trainer: The Trainer, whose passes score and whose strategy the processes share.
        model: The kind of model.
        datamodule: The experts' tasks, if any.
        experts: Task name to expert, or to its path alone.
        output: The run's folder.
        method: The formula.
        base: Where the base is read from, if it is given.
        fisher: How Fishers and Grams that no file gives are estimated.
        baselines: Which rows the table has beside the merge.
        refitting: When heads are refitted, and on what.
        overwrite: Whether a run in the folder is replaced.
        dry_run: Whether to price the run instead of making it.
        build: Index of the trial to build, if one is.
        heads: Whether heads are merged like the body, or trained where coefficients are learned.
        polishing: Whether and how the best merge's weights are trained at the end.
        dtype: The dtype that merged models are written in; the experts' if None.
        max_shard_size: The largest size of a shard of theirs; as the experts' if None.
        coefficients: Those of the merge, where they are given instead of a search.
        labels: Which labels may be read before the test.
        budget: How long the search and the stages may take.
        adapter_rank: The rank of the adapter that the merge is saved as; a whole model if None.
        command: The exact command line; empty from Python.
        config: The resolved configuration, which the run's folder keeps; None describes the job.
    """

    trainer: Trainer
    model: LightningModule
    datamodule: LightningDataModule | Loaders | None
    experts: Mapping[str, str | Expert]
    output: Path
    method: MergeMethod
    base: str | None
    fisher: FisherSettings
    baselines: Baselines
    refitting: Refitting
    overwrite: bool
    dry_run: bool
    build: int | None
    config: str | None
    heads: HeadMode = "keep"
    polishing: Polishing = Polishing()
    dtype: Dtype | None = None
    max_shard_size: int | str | None = None
    coefficients: dict[str, float] | None = None
    labels: Labels = "all"
    budget: str | None = None
    adapter_rank: Rank | None = None
    command: str = ""

    def run(self) -> MergeReport | None:
        """Does the job, alone in its folder.

        Returns:
            What was saved and the test scores; None of a dry run.
        """
        assert self.began  # from here on the time is taken
        # before there is a folder
        check_task_names(target_first(self.experts, None), "--experts")
        with only_run(lock_of(self.output, folder=True), on=self.trainer.is_global_zero):
            defaults = {"fisher": asdict(MERGE_DEFAULTS)}
            folder = RunFolder(self.output, self.config or merge_config(self), defaults)
            resuming, records = self._look_into(folder)
            # before any model is read, which may take minutes
            check_strategy(self.trainer)
            run, search = self._prepare()
            if self.dry_run:
                assert isinstance(run, MergeRun)
                plan = PassPlan(run, search.budget, self.optimizer.needs_experts, resuming)
                show_merge_plan(run, search, plan, self.output)
                return None
            if self.build is not None:
                assert isinstance(run, MergeRun)
                return self._build(run, search, folder, records)
            return self._search(run, search, folder, resuming)

    @cached_property
    def optimizer(self) -> MergeOptimizer:
        """The Trainer's ``MergeOptimizer``; one with its defaults where there is none."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        found = [one for one in callbacks if isinstance(one, MergeOptimizer)]
        return found[0] if found else MergeOptimizer()

    @cached_property
    def began(self) -> float:
        """When the job began, in seconds."""
        return time.monotonic()

    @cached_property
    def stages(self) -> Sequence[Stage]:
        """What follows the search, in order."""
        given = self.coefficients is not None or isinstance(self.optimizer.search, Fixed)
        searched = not (given and self.method.uses_coefficients)
        scored = self._data() is not None
        held = isinstance(self.method, Average | Auto)  # which try the average themselves
        compared = [AverageBaseline()] if scored and searched and not held else []
        polishing = polishing_of(self.method, self.polishing, self.labels, self.model)
        return [*compared, *training_stages(self.optimizer, polishing, self.heads)]

    @cached_property
    def ordered(self) -> Mapping[str, Expert]:
        """The experts, the target's first: formulas want it so; coefficients keep their order."""
        return target_first(self.experts, self.optimizer.target)

    @cached_property
    def base_source(self) -> str | None:
        """Where the base is: as it was given, or as the adapters among the experts name it."""
        return base_of(self.ordered, self.base)

    def _look_into(self, folder: RunFolder) -> tuple[bool, Sequence[Mapping[str, Any]]]:
        """Whether a run is resumed; or the records of the trials, one of which is built."""
        if not self.trainer.is_global_zero:
            return False, []  # the first process will broadcast what it found
        if self.build is not None:
            return False, find_trial(folder, self.build, self.overwrite, self.dry_run)
        return folder.check(self.overwrite and not is_requeued(self.trainer)), []

    def _prepare(self) -> tuple[MergeRun | StreamedRun, Search]:
        """Reads the inputs and checks all that can be checked before the long part."""
        module: TaskModule = task_module(self.model)
        self._check_options(module)
        data = self._data()
        tasks = [name for name, one in self.ordered.items() if not one.donor]
        names = list(self.experts)
        search = self._checked_search(names, tasks, scored=data is not None)
        streams = data is None and may_stream(self, module)
        run = loaded(self, module, data, "places" if streams else not self.dry_run)
        streamed = streamed_run(run, self) if streams else None
        if streams and streamed is None:  # what the files hold is not the parameters themselves
            run = loaded(self, module, data, True)
        space = self.optimizer.space(self.method, names, run.ensemble.tensors)
        search.start(space, self.optimizer.goal(tasks))
        warn_untrained(run.data, run.ensemble.models, run.probed)
        for one in run.members.values():
            check_merge(one, search, self.optimizer.groups != "whole", self.optimizer.racing)
        stages = checked_stages(run, unasked=not self.polishing.steps)
        return streamed or replace(run, stages=stages), search

    def _check_options(self, module: TaskModule) -> None:
        """Checks, before models are read, what no model is needed for."""
        check_mode(self.heads)
        assert self.stages is not None  # raises where its options do not go together
        seconds_of(self.budget)
        check_dtype(self.dtype, {})
        check_rank(self.adapter_rank, self.dtype)
        parse_size(self.max_shard_size)
        check_settings(self.fisher)
        check_parallel(self.optimizer, self.trainer)
        asked = Asked(self.optimizer, self.polishing, self.refitting, self.fisher)
        asked.check(self.labels, module)

    def _checked_search(self, names: Sequence[str], tasks: Sequence[str], scored: bool) -> Search:
        based = self.base_source is not None  # an adapter's base is asked for with any method
        if isinstance(self.method, Auto):
            self.method.with_base(based)
        return self.optimizer.check(
            *(self.method, names, tasks, scored),
            given=self.coefficients,
            portfolio=search_of(self.method, self.optimizer),
        )

    def _data(self) -> MultiTask | None:
        given = self.datamodule
        data = None if given is None else tasks_of(given, self.trainer, self.dry_run)
        return data if data is not None and data.tasks else None

    def _build(
        self, run: MergeRun, search: Search, folder: RunFolder, records: Sequence[Mapping[str, Any]]
    ) -> MergeReport:
        assert (index := self.build) is not None
        if self.trainer.is_global_zero:
            folder.check_inputs(fingerprints(run))
            folder.begin_point(index)
        report = self._long(run, lambda: run.build(self.optimizer, search, folder, index, records))
        return self._shown(report, folder, folder.point(index))

    def _search(
        self, run: MergeRun | StreamedRun, search: Search, folder: RunFolder, resuming: bool
    ) -> MergeReport:
        # the first process alone reads and writes the folder; run() broadcasts what it read
        done: list[dict[str, Any]] = []
        if self.trainer.is_global_zero and resuming:
            done = folder.resume(identity_of(run))
            made = counted(len(done), "trial")
            Console().print(f"Resuming after {made}: {folder.path}", soft_wrap=True)
        elif self.trainer.is_global_zero:
            folder.start(identity_of(run))
        log = TrialLog(folder, self.trainer.loggers)
        log.recall(done)
        folder.listeners = [log]
        try:
            with catch_signals(self.trainer) as stop, without_loggers(self.trainer):
                report = self._long(
                    run, lambda: run.run(self.optimizer, search, folder, done, stop)
                )
        except UserError:
            # refused before its first trial, which leaves the run that it was to replace
            if self.trainer.is_global_zero and folder.replaces and not search.history:
                folder.discard()
            raise
        except SystemExit:
            if self.trainer.is_global_zero:
                sys.stderr.write(
                    f"fmerge: stopped after {counted(len(search.history), 'trial')}, all saved; "
                    f"the same command resumes: {folder.path}\n"
                )
            raise
        if self.trainer.is_global_zero:
            write_recipe(run.whole if isinstance(run, StreamedRun) else run, report, folder.path)
            log.conclude(report)
        report = self._shown(report, folder, folder.path, len(done))
        if self.trainer.is_global_zero:
            folder.settle()
        return report

    def _long(self, run: MergeRun | StreamedRun, part: Callable[[], MergeReport]) -> MergeReport:
        """Runs the long part as Lightning runs its own, with its handling of interrupts."""
        # the live module now holds the experts' networks, whose tensors passes overwrite
        run.module.adopt(run.ensemble.networks, run.ensemble.tokenizer)
        # Lightning sets these in fit or validate; a search starts outside of both
        trainer = self.trainer
        trainer.strategy._lightning_module = run.module
        trainer.state.fn, trainer.state.status = TrainerFn.VALIDATING, TrainerStatus.RUNNING
        report: MergeReport = call._call_and_handle_interrupt(trainer, part)
        return report

    def _shown(
        self, report: MergeReport, folder: RunFolder, output: Path, before: int = 0
    ) -> MergeReport:
        if self.trainer.is_global_zero:
            seconds = time.monotonic() - self.began
            report = with_redo(report, self.trainer, folder, self.command, seconds, before)
            show(report, output)
        # no process may leave before the files are complete
        self.trainer.strategy.barrier("the merge is written")
        return report
