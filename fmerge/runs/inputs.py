"""What a command is given, where Lightning's own types say too little."""

from lightning.pytorch import LightningDataModule, LightningModule

from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.modules import TaskModule


def task_module(model: LightningModule) -> TaskModule:
    """Proves that a model can be merged.

    Args:
        model: What the command line gave.

    Returns:
        The model.

    Raises:
        UserError: If it does not say what its tasks share.
    """
    if not isinstance(model, TaskModule):
        raise UserError(
            f"--model: {type(model).__name__} does not say what its tasks share, so it cannot be "
            "merged; use TextClassifier, or derive it from fmerge.modules.TaskModule"
        )
    return model


def tasks_of(datamodule: LightningDataModule) -> MultiTask:
    """Proves that data name their tasks.

    Args:
        datamodule: What the command line gave.

    Returns:
        The data.

    Raises:
        UserError: If they are of another kind.
    """
    if not isinstance(datamodule, MultiTask):
        raise UserError(f"--data: {type(datamodule).__name__} names no tasks; use MultiTask")
    return datamodule


def check_data(datamodule: object) -> None:
    """Proves that data have what fitting and scoring need.

    Args:
        datamodule: The data, if there are any.

    Raises:
        UserError: If there is no task, or the batch size is ``auto``.
    """
    if not isinstance(datamodule, MultiTask):
        return
    if datamodule.automatic:
        raise UserError(
            "--data.batch_size: is auto, which fisher and merge alone know; give a number "
            "(what fit learns depends on it)"
        )
    datamodule.check_named()
