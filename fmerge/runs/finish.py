"""What a run does to every merge that was assembled: it calibrates it, where the method asks."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fmerge.evaluation.calibration import calibrate
from fmerge.methods.calibrated import Calibrated
from fmerge.modules import Bodies
from fmerge.params import Params

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


def finish_of(run: "MergeRun") -> Callable[[Params], Params] | None:
    """Finds how a run's merges end.

    Args:
        run: The merge.

    Returns:
        From an assembled body to the finished one; None where it stays as it is.
    """
    method, ensemble = run.method, run.ensemble
    if not isinstance(method, Calibrated):
        return None
    tasks = {name: run.task_of(name) for name in ensemble.names}

    def finish(body: Params) -> Params:
        bodies = Bodies(body, ensemble.base, ensemble.bodies)
        return calibrate(run.evaluator, method, run.settings, tasks, bodies)

    return finish
