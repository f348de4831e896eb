"""Calibrates a merged body on the tasks' examples."""

from collections.abc import Mapping
from dataclasses import dataclass

from fmerge.data import MultiTask
from fmerge.evaluation.batch_size import in_memory
from fmerge.evaluation.evaluator import Evaluator, silent
from fmerge.evaluation.passes import Pass, Passes
from fmerge.fisher import FisherSettings
from fmerge.methods.calibrated import Calibrated
from fmerge.modules import Bodies, CalibrationPass, TaskModule
from fmerge.params import Params


@dataclass(frozen=True)
class Calibration:
    """What is fitted, and on which examples.

    Attributes:
        method: How layers are fitted; None computes the running statistics of batch norms alone.
        settings: Which examples; the rest of it is of Fishers alone. Labels are not used.
        tasks: Expert's name to the task on whose examples it is asked.
    """

    method: Calibrated | None
    settings: FisherSettings
    tasks: Mapping[str, str]

    def passes(self, data: MultiTask) -> Passes:
        """Counts the passes of one merge.

        Args:
            data: The tasks.

        Returns:
            One for each task.
        """
        split, most = self.settings.split, self.settings.examples
        names = dict.fromkeys(self.tasks.values())
        return Passes(
            Pass("calibration", task, split, data.size(task, split, most)) for task in names
        )


def calibrate(
    evaluator: Evaluator, calibration: Calibration, bodies: Bodies, solving: bool = True
) -> Params:
    """Fits a merged body's layers, in forward order, to those of its experts.

    Args:
        evaluator: Runs the pass; its module gets the fitted body.
        calibration: What is fitted, and on which examples.
        bodies: The experts', the start's and the base's.
        solving: Whether layers are fitted; False only measures what the examples cost.

    Returns:
        The fitted body, of the start's dtypes.

    Raises:
        TypeError: If the module's tasks do not share a body.
    """
    module = evaluator.module
    if not isinstance(module, TaskModule):
        raise TypeError(f"{type(module).__name__} is no TaskModule: it shares no body")
    settings, tasks = calibration.settings, calibration.tasks
    names = list(dict.fromkeys(tasks.values()))

    def whole() -> Params:
        evaluator.write_body(bodies.start)  # also where a pass is made again with smaller batches
        one = CalibrationPass(module, calibration.method, tasks, bodies, solving)
        loaders = evaluator.data.loaders(settings.split, names, settings.examples, settings.seed)
        with silent(evaluator.trainer):
            evaluator.trainer.predict(
                one, dataloaders=list(loaders.values()), return_predictions=False
            )
        return one.fitted

    fitted = in_memory(evaluator.trainer, evaluator.data, whole)
    evaluator.note("calibration", settings.split, names, settings.examples)
    return {name: fitted.get(name, one).to(one) for name, one in bodies.start.items()}
