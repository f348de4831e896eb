"""What a run does to every merge that was assembled: what is calibrated on examples."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.evaluation.calibration import Calibration, calibrate
from fmerge.fisher import FisherSettings
from fmerge.methods.calibrated import Calibrated
from fmerge.modules import Bodies, batch_norms
from fmerge.params import Params

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

BATCH_NORM_EXAMPLES: Final = 512
"""Training examples of each task, at most, that running statistics are computed on."""


def calibration_of(run: "MergeRun") -> Calibration | None:
    """Finds what is calibrated of a run's merges.

    Args:
        run: The merge.

    Returns:
        The layers, where the method asks for it; else the running statistics of batch norms, if
        they differ between the models and every task has training examples; else None.
    """
    method, ensemble, data = run.method, run.ensemble, run.data
    tasks = {name: run.task_of(name) for name in ensemble.names}
    if isinstance(method, Calibrated):
        return Calibration(method, run.settings, tasks)
    if data is None or not _has_batch_norms(run):
        return None
    if _lacking(data, ensemble.tasks):
        return None
    chosen = FisherSettings(split="train", examples=BATCH_NORM_EXAMPLES, seed=run.settings.seed)
    return Calibration(None, chosen, dict(zip(ensemble.tasks, ensemble.tasks, strict=True)))


def calibration_facts(run: "MergeRun") -> list[str]:
    """Says what became of the running statistics of batch norms.

    Args:
        run: The merge.

    Returns:
        A sentence where there are some that differ between the models.
    """
    if run.data is None or not _has_batch_norms(run):
        return []
    calibration = calibration_of(run)
    if calibration is None:
        lacking = _lacking(run.data, run.ensemble.tasks)
        how = f"averaged, as task '{lacking}' has no train split to compute them on"
    elif calibration.method is None:
        how = f"computed on at most {BATCH_NORM_EXAMPLES} training examples of each task"
    else:
        how = "computed on the examples of the calibration"
    return [f"batch norms: the merge's running statistics are {how}"]


def finish_of(run: "MergeRun") -> Callable[[Params], Params] | None:
    """Finds how a run's merges end.

    Args:
        run: The merge.

    Returns:
        From an assembled body to the finished one; None where it stays as it is.
    """
    calibration = calibration_of(run)
    if calibration is None:
        return None
    ensemble = run.ensemble

    def finish(body: Params) -> Params:
        bodies = Bodies(body, ensemble.base, ensemble.bodies)
        return calibrate(run.evaluator, calibration, bodies)

    return finish


def _has_batch_norms(run: "MergeRun") -> bool:
    """Whether there are batch norms whose running statistics differ between the models."""
    moving = run.ensemble.moving
    return bool(moving) and bool(batch_norms(next(iter(run.ensemble.models.values())), moving))


def _lacking(data: MultiTask, tasks: Sequence[str]) -> str:
    """Finds a task without training examples: the first one's name, or an empty text."""
    for task in tasks:
        try:
            if not data.tasks[task].has("train") or not data.size(task, "train"):
                return task
        except UserError:  # a split that cannot be read, which the report then says
            return task
    return ""
