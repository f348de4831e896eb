"""A merge without data of models that need not fit into memory: made tensor by tensor."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmerge.errors import UserError
from fmerge.merging.expert_fishers import fisher_files
from fmerge.merging.experts import Ensemble
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.outputs import outputs_of
from fmerge.merging.pool import InProcess
from fmerge.merging.stream_pass import Found
from fmerge.merging.streaming import Streaming
from fmerge.modules import TaskModule, TokenizedModule
from fmerge.params import Params
from fmerge.report.merge_report import MergeReport
from fmerge.report.model_card import loader_of, model_card
from fmerge.report.parts import TestOutcome
from fmerge.runs.conclude import Chosen, Conclusion
from fmerge.runs.inputs import fingerprints
from fmerge.runs.save import save_common_card
from fmerge.runs.stages import Candidate
from fmerge.search import Fixed, Search, Trial
from fmerge.search.objective import Scores
from fmerge.store import PARTS, RunFolder, is_adapter, stored_folder

if TYPE_CHECKING:
    from fmerge.runs.job import MergeJob
    from fmerge.runs.merge import MergeRun


def may_stream(job: "MergeJob", module: TaskModule) -> bool:
    """Tells whether a merge can be made tensor by tensor, as far as its options tell.

    Args:
        job: What was asked for, without data.
        module: What reads the networks.

    Returns:
        False where something needs whole models: a dry run, a trial that is built again, stages,
        merged heads, an adapter to write, coefficients by group, several processes, statistics
        without files, and models that are no folders on this machine.
    """
    method, optimizer, experts = job.method, job.optimizer, job.ordered
    files = [one.fisher for one in experts.values()]
    statistics = method.statistic is None or (
        method.statistic == "fisher"
        and all(file is not None and Path(file).suffix != ".ckpt" for file in files)
    )
    plain = not (job.dry_run or job.stages or job.build is not None or job.heads != "keep")
    plain = plain and job.adapter_rank is None
    single = job.trainer.world_size == 1 and optimizer.groups == "whole"
    fixed = optimizer.search is None or isinstance(optimizer.search, Fixed)
    sources = [*(one.path for one in experts.values()), *([job.base] if job.base else [])]
    return (
        plain
        and single
        and fixed
        and statistics
        and method.streams
        and not method.calibrates
        and isinstance(module, TokenizedModule)
        and all(_is_stored(one) for one in sources)
    )


def _is_stored(source: str) -> bool:
    """Whether a source is a folder of weights, not a checkpoint or an adapter."""
    plain = not source.endswith(".ckpt") and not is_adapter(source)
    return plain and stored_folder(source) is not None


def streamed_run(run: "MergeRun", job: "MergeJob") -> "StreamedRun | None":
    """Plans a merge tensor by tensor, and checks that the disk has room for it.

    Args:
        run: The merge, of headers and buffers alone.
        job: What was asked for.

    Returns:
        The run; None where transformers makes a model's parameters of the tensors in its files
        otherwise than by their names.
    """
    ensemble, weights = run.ensemble, set(run.ensemble.tensors)
    places = [*ensemble.places.items(), *([("", ensemble.base_places)] if job.base else [])]
    for name, own in places:
        model = ensemble.models.get(name)
        needed = weights if model is None else dict(model.named_parameters()).keys()
        if not run.forms or not needed <= own.keys():
            return None
    dtypes = next(iter(run.forms.values())).dtypes
    outputs = outputs_of(ensemble, run.forms)
    if outputs is None or not dtypes:
        return None
    streaming = Streaming(
        ensemble=ensemble,
        method=run.method,
        outputs=outputs,
        fishers=fisher_files(job.ordered, run.method),
        dtypes=dtypes,
    )
    streaming.check_dtype(job.dtype)
    streaming.check_room(job.output / PARTS)
    # the base is in no memory: what the report tells of it is found on the way
    return StreamedRun(replace(run, ensemble=replace(ensemble, base=None)), streaming)


@dataclass(frozen=True)
class StreamedRun:
    """The long part of a merge that is made tensor by tensor.

    Attributes:
        whole: The merge.
        streaming: Its models in their files.
    """

    whole: "MergeRun"
    streaming: Streaming

    @property
    def ensemble(self) -> Ensemble:
        """The experts, of headers and buffers alone."""
        return self.whole.ensemble

    @property
    def module(self) -> TaskModule:
        """What reads and saves the networks."""
        return self.whole.module

    def inputs(self) -> dict[str, Any]:
        """Tells the models' files, which a resumed run must have again.

        Returns:
            Sizes and times by file.
        """
        return {"files": self.streaming.files(), "data": {}}

    def run(
        self,
        optimizer: MergeOptimizer,
        search: Search,
        folder: RunFolder,
        done: Sequence[Mapping[str, Any]] = (),
        stop: Callable[[], int] = lambda: 0,
    ) -> MergeReport:
        """Merges, writes and reports.

        Args:
            optimizer: Makes the one trial.
            search: A started search of one trial.
            folder: The run's folder.
            done: Records of the trials of an interrupted run.
            stop: Tells the number of the signal that asked to stop, or 0.

        Returns:
            The merge that was saved.

        Raises:
            UserError: If the models or Fishers hold what cannot be merged, or the disk is full.
        """
        trainer = self.whole.trainer
        trainer.strategy.setup_environment()
        goal = optimizer.goal(self.ensemble.tasks)
        search.start(search.space, goal)
        for record in done:
            search.replay(Trial.from_record(record))
        # the trial names the coefficients; its weights are made at the end alone
        best = optimizer.optimize(
            trainer, search, InProcess(_Later(), lambda _: Scores()), folder.append, stop
        )
        parts = folder.path / PARTS
        try:
            found = self.streaming.merge(best.coefficients, parts, stop)
        except UserError:
            # what the inputs hold is refused, so that no one can resume the run; the parts are
            # left where a full disk took no more of them
            if not done and not parts.exists():
                folder.discard()
            raise
        for key, value in found.hashes.items():
            folder.note(key, value)
        chosen = Chosen(search=search, goal=goal, candidate=Candidate(best), trials=search.history)
        report = self._report(chosen, folder, found)
        self._save(report, folder.path / "merged", parts)
        return report

    def _report(self, chosen: Chosen, folder: RunFolder, found: Found) -> MergeReport:
        conclusion = Conclusion(run=self.whole, evaluator=None, refitter=None)
        provenance = conclusion.provenance(chosen, folder, found.fishers, list(found.facts))
        return MergeReport(
            search=conclusion.search_outcome(chosen, None),
            tests=TestOutcome(
                rows=[],
                comparisons=[],
                refit_heads=self.whole.refitting.when,
                refit_examples=self.whole.refitting.most,
            ),
            provenance=replace(provenance, vectors=found.vectors, distances=found.distances),
        )

    def _save(self, report: MergeReport, folder: Path, parts: Path) -> None:
        written = {one.task: parts / str(n) for n, one in enumerate(self.streaming.outputs)}
        cards, forms, loader = {}, {}, None
        for name, head in self.whole.heads.items():
            model = self.module.task_model(name)
            headed = head.keys() & dict(model.named_parameters()).keys()
            loader = loader_of(model, self.module.reads)
            cards[name] = model_card(report, loader, name if headed else None)
            own = written.get(name, parts / "0")  # of one model for all tasks
            forms[name] = replace(self.whole.forms[name], written=own)
        self.module.forms = forms
        self.module.save(folder, cards)
        save_common_card(folder, report, cards, loader)
        shutil.rmtree(parts, ignore_errors=True)


def identity_of(run: "MergeRun | StreamedRun") -> dict[str, Any]:
    """Tells a merge's inputs from others, to refuse a run that is resumed with other ones.

    Args:
        run: The merge.

    Returns:
        Plain values.
    """
    return run.inputs() if isinstance(run, StreamedRun) else fingerprints(run)


class _Later:
    """Stands for the merge of a trial, which is made when the trial is known to be the best."""

    def of(self, method: str) -> Any:
        """Gives this one for every method."""
        return self

    def assemble(self, coefficients: Mapping[str, float]) -> Params:
        """Gives no tensors."""
        return {}
