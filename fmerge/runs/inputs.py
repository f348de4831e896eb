"""What a command is given: checked before any long work, and hashed to be known again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from fmerge import modules
from fmerge.data import MultiTask, Split
from fmerge.data.own import OwnData
from fmerge.errors import UserError, known, object_of
from fmerge.evaluation.batch_size import check_automatic
from fmerge.evaluation.evaluator import by_accuracy
from fmerge.evaluation.head_refit import check_refitting
from fmerge.evaluation.statistics import statistic_of
from fmerge.fisher import FisherSettings
from fmerge.merging.buffers import network_state
from fmerge.merging.racing import check_racing
from fmerge.modules import TaskModule
from fmerge.params import fingerprint
from fmerge.search import Fixed, Search

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


def task_module(model: LightningModule) -> TaskModule:
    """Checks that a model can be merged.

    Args:
        model: What the command line gave.

    Returns:
        The model.

    Raises:
        UserError: If it does not say what its tasks share.
    """
    if isinstance(model, str | type):  # from Python: a name, or the class itself
        return object_of("model", model, TaskModule, modules)  # type: ignore[type-abstract]
    if not isinstance(model, TaskModule):
        raise UserError(
            f"--model: {type(model).__name__} does not say what its tasks share, so it cannot be "
            "merged; use TextClassifier, or derive from fmerge.modules.OwnModule a class whose "
            "network(self, outputs) returns it (docs/own_modules.md)"
        )
    return model


def check_settings(settings: object) -> None:
    """Checks what says how Fishers are estimated.

    Args:
        settings: What was given.

    Raises:
        UserError: If it is something else.
    """
    if not isinstance(settings, FisherSettings):
        raise UserError(
            f"fisher: is {settings!r}, but must be FisherSettings, such as "
            "dataclasses.replace(MERGE_DEFAULTS, examples=100)"
        )


def tasks_of(
    datamodule: object, trainer: Trainer | None = None, dry_run: bool = False
) -> MultiTask:
    """Finds the tasks of data, of the user's own too.

    Args:
        datamodule: ``MultiTask``, or a LightningDataModule or loaders of the user's own.
        trainer: The Trainer that the data are for, if there is one yet.
        dry_run: Whether a command is only priced.

    Returns:
        The data.

    Raises:
        UserError: If they are of another kind, or priced although they are the user's own.
    """
    if isinstance(datamodule, MultiTask):
        return datamodule
    if not isinstance(datamodule, LightningDataModule | DataLoader | Mapping):
        raise UserError(
            f"--data: is {type(datamodule).__name__}, but must be MultiTask, a "
            "LightningDataModule, or a DataLoader for each task"
        )
    if dry_run:
        raise UserError("--dry_run: knows the examples of MultiTask alone; leave it out")
    return OwnData(datamodule, trainer)


@contextmanager
def explaining_texts(model: object, datamodule: object) -> Iterator[None]:
    """Explains the errors of a module that has no ``collate`` and is given texts.

    Args:
        model: The module.
        datamodule: Its data.

    Yields:
        Nothing.

    Raises:
        UserError: If the module fails on a batch of texts.
    """  # noqa: DOC501 - errors of other modules pass through
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        fields = _text_fields(datamodule)
        if not isinstance(model, LightningModule) or hasattr(model, "collate") or not fields:
            raise
        name, reason = type(model).__name__, " ".join(str(error).split())
        raise UserError(
            f"--model: {name} has no collate(examples, task), so that it gets {known(fields)} as "
            f"lists of strings, on which it fails ({type(error).__name__}: {reason}); add collate, "
            "which makes tensors of them"
        ) from error


def _text_fields(datamodule: object) -> list[str]:
    """The fields of the first example of MultiTask that are strings."""
    if not isinstance(datamodule, MultiTask) or isinstance(datamodule, OwnData):
        return []
    splits: tuple[Split, ...] = ("validation", "test", "train")
    for task in datamodule.tasks.values():
        for split in splits:
            if task.has(split):
                return [key for key, one in task.examples(split)[0].items() if isinstance(one, str)]
    return []


def check_data(datamodule: object) -> None:
    """Checks that data have what fitting and scoring need.

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


def check_merge(run: "MergeRun", search: Search, grouped: bool, racing: bool = False) -> None:
    """Checks that the data have what a merge will need, before its long part.

    Args:
        run: The merge.
        search: The search.
        grouped: Whether an expert has several coefficients.
        racing: Whether trials are pruned on parts of the validation split.

    Raises:
        UserError: If data are needed and missing, or a split is, or a curve of Fishers is
            wanted along several coefficients, or heads that cannot be are to be refitted, or
            a task cannot be raced.
    """
    _check_together(run, search, grouped)
    check_refitting(run.refitting, run.module, run.data, run.ensemble.models, run.probed)
    statistic = run.estimated
    if run.data is None:
        name = type(run.method).__name__
        if statistic is not None:
            raise UserError(f"{name}: needs data to estimate {statistic.label} on; give --data")
        if run.method.calibrates:
            raise UserError(f"{name}: needs data to calibrate the merge on; give --data")
        return
    run.data.check_splits("validation", "test")
    if racing:
        check_racing(run.trainer, run.data)
    if statistic is not None or run.method.calibrates:
        try:
            run.data.check_splits(run.settings.split)
        except UserError as error:
            use = "calibration" if statistic is None else statistic.label
            raise UserError(f"{error}; --fisher.split names the split of the {use}") from error
    if statistic is not None:
        wanted = run.settings.errors is not None
        check_automatic(run.trainer, run.data, run.settings.estimator, wanted)
        if statistic.cost == "Fisher":
            for task in run.data.tasks:
                run.module.check_estimator(task, run.settings.estimator)
    else:
        # scores do not depend on batches, but several processes cannot agree on a size
        check_automatic(run.trainer, run.data, "exact", False)
    for task in run.data.tasks:
        if search.needs_errors and not by_accuracy(run.data, task):
            raise UserError(
                f"{type(search).__name__}: binomial noise is that of an accuracy, but task "
                f"'{task}' is scored by {', '.join(run.data.metrics[task])}; use noise infer"
            )


def _check_together(run: "MergeRun", search: Search, grouped: bool) -> None:
    if run.settings.curve and grouped:
        raise UserError(
            "--fisher.curve: a Fisher is a curve over one coefficient, but --optimizer.groups "
            "gives each expert several; leave one of the two out"
        )
    given = search.coefficients if isinstance(search, Fixed) else None
    reach = search.space.box if given is None else {name: (x, x) for name, x in given.items()}
    coefficients = {name: one for name, one in reach.items() if name not in search.space.numbers}
    outside = [name for name, (low, high) in coefficients.items() if low < 0 or high > 1]
    statistic = statistic_of(run.method)
    if run.settings.curve and statistic is not None and statistic.moves and outside:
        raise UserError(
            f"--fisher.curve: its nodes lie in [0, 1], but the coefficient of '{outside[0]}' may "
            "leave it; leave out the curve, or give bounds and coefficients in [0, 1]"
        )
    if run.ensemble.heads_merged and run.refitting.wanted:
        raise UserError(
            f"--refit_heads: is {run.refitting.when}, but --heads is merge, so that no task has a "
            "head of its own; leave one of the two out"
        )


def fingerprints(
    run: "MergeRun",
) -> dict[str, Any]:
    """Hashes the models and the data of a merge, which a resumed run must have again.

    Args:
        run: The merge.

    Returns:
        Hashes by expert and by task.
    """
    whole = run.ensemble.models
    models = {  # of a donor the body alone takes part
        name: fingerprint(network_state(whole[name]) if name in whole else body)
        for name, body in run.ensemble.bodies.items()
    }
    base = run.ensemble.base
    data = run.data
    splits: dict[str, Split] = {"data": "validation"}
    if run.refitting.when == "trials":
        splits["training data"] = "train"
    return {
        "expert": models,
        "base": None if base is None else fingerprint(base),
        **{
            name: {} if data is None else {t: data.fingerprint(t, split) for t in data.tasks}
            for name, split in splits.items()
        },
    }
