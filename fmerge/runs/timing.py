"""The time of one batch, measured on a model of random weights: time does not depend on them."""

import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from fmerge.data import MultiTask
from fmerge.data.excerpts import typical
from fmerge.evaluation.calibration import Calibration, calibrate
from fmerge.evaluation.evaluator import Evaluator
from fmerge.fisher import FisherSettings
from fmerge.modules import Bodies, TaskModule
from fmerge.params import params_of

AUTOMATIC = 16
"""Examples in the measured batch where the size is yet to be found."""

Clock = Callable[[], float]


def seconds_of_pass(
    trainer: Trainer,
    module: LightningModule,
    data: MultiTask,
    task: str,
    settings: FisherSettings | None = None,
    calibration: Calibration | None = None,
    clock: Clock = time.perf_counter,
) -> float:
    """Measures a pass over one batch of examples of middling length, after one that warms up.

    Args:
        trainer: The Trainer of the pass.
        module: What is run; a task module has adopted a network of the task.
        data: The tasks.
        task: The task.
        settings: How a Fisher is estimated; None scores on the validation split instead.
        calibration: How a merge is calibrated, which is then measured instead, but for its solves.
        clock: Tells the time in seconds.

    Returns:
        Seconds, what Lightning does before and after a pass included.
    """
    trainer.loggers = []  # nothing may be written
    batch = typical(data, task, examples_in_batch(data), trainer.world_size)
    evaluator = Evaluator(trainer, module, batch)

    def once() -> None:
        if calibration is not None and isinstance(module, TaskModule):
            network = module.task_model(task)
            body = params_of(network) | dict(network.named_buffers())
            whole = FisherSettings(split="validation")
            one = Calibration(calibration.method, whole, {task: task})
            calibrate(evaluator, one, Bodies(body, body, {task: body}), solving=False)
        elif settings is not None:
            evaluator.fisher(task, settings)
        elif isinstance(module, TaskModule):
            evaluator.score(params_of(module.task_model(task)), "validation", [task])

    once()
    begun = clock()
    once()
    return clock() - begun


def adopt_random(module: TaskModule, task: str, model: nn.Module, tokenizer: Any) -> None:
    """Gives a module a network of the kind that was read, with random weights.

    Args:
        module: The module.
        task: The task.
        model: A network that ``module.read`` gave, possibly from headers alone.
        tokenizer: Its tokenizer.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        kind: Callable[..., nn.Module] = type(model)
        model = kind(model.config)
    module.adopt({task: model}, tokenizer)


def batches(examples: int, data: MultiTask, processes: int) -> int:
    """Counts the batches of a pass.

    Args:
        examples: How many examples it is over.
        data: The data, which know the batch size.
        processes: How many share them.

    Returns:
        Batches of the process that has most.
    """
    return math.ceil(math.ceil(examples / processes) / examples_in_batch(data))


def examples_in_batch(data: MultiTask) -> int:
    """Returns the batch size that estimates assume.

    Args:
        data: The data.

    Returns:
        Examples.
    """
    return AUTOMATIC if data.automatic else data.batch_size
