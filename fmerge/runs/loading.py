"""Reading the models that a merge is made of."""

from typing import TYPE_CHECKING, Literal

from fmerge.data import MultiTask
from fmerge.merging.adapter_output import adapter_output
from fmerge.merging.experts import load_ensemble
from fmerge.merging.saved_forms import saved_forms
from fmerge.modules import TaskModule
from fmerge.params import params_of
from fmerge.runs.clock import seconds_of
from fmerge.runs.merge import MergeRun
from fmerge.store import adapters_on, check_dtype

if TYPE_CHECKING:
    from fmerge.runs.job import MergeJob


def loaded(
    job: "MergeJob",
    module: TaskModule,
    data: MultiTask | None,
    values: bool | Literal["places"],
) -> MergeRun:
    """Reads the models of a merge, or what their headers tell of them.

    Args:
        job: What was asked for.
        module: The kind of model.
        data: The tasks, if any.
        values: Whether weights are read; ``places``: where they stand in the files instead.

    Returns:
        The run, before its checks.
    """
    labels = None if data is None else data.labels
    with adapters_on(job.base_source):
        ensemble = load_ensemble(
            *(job.ordered, job.base_source, job.method, module, labels),
            values=values,
            heads=job.heads,
        )
        # ΔW of a merge that was rounded to a narrower dtype would be of no low rank
        dtype = job.dtype if job.adapter_rank is None else "float32"
        forms = saved_forms(ensemble, dtype, job.max_shard_size)
    if values is True:
        models = {ensemble.sources[name]: one for name, one in ensemble.models.items()}
        check_dtype(job.dtype, {path: params_of(one) for path, one in models.items()})
    return MergeRun(
        trainer=job.trainer,
        module=module,
        data=data,
        ensemble=ensemble,
        method=job.method,
        settings=job.fisher,
        heads=ensemble.heads(),
        baselines=job.baselines,
        refitting=job.refitting,
        forms=forms,
        stages=job.stages,
        labels=job.labels,
        budget=seconds_of(job.budget),
        adapter=adapter_output(job.adapter_rank, ensemble),
    )
