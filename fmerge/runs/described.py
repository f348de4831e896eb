"""The configuration of a run that was started from Python, in the form the command line has it."""

import dataclasses
import enum
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from fmerge.data import MultiTask
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.system.recorded import arguments_of

if TYPE_CHECKING:
    from fmerge.runs.job import MergeJob

_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
_FIT_LIMITS = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val")


def described(value: Any) -> Any:
    """Describes a value in plain values, the same for two objects that were made alike.

    Args:
        value: A plain value, or an object.

    Returns:
        Numbers, texts, lists and mappings; of an object its ``class_path`` and ``init_args``.
    """
    if value is None or isinstance(value, bool | int | float | str):
        # a subclass, such as a number of NumPy, has no form in YAML
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        return None
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return {_key(key): described(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [described(one) for one in value]
    if isinstance(value, Set):
        return sorted((described(one) for one in value), key=str)
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [one.name for one in dataclasses.fields(value)]
        return {name: described(getattr(value, name)) for name in names}
    if hasattr(value, "item") and hasattr(value, "dtype"):  # a scalar or array of NumPy
        return described(value.tolist())
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _of_object(value)


def _key(key: Any) -> Any:
    return key if isinstance(key, bool | int | float | str) else str(key)


def _of_tensor(tensor: Tensor) -> Any:
    if tensor.ndim == 0:
        return described(tensor.item())
    plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.sha256(plain.numpy().tobytes()).hexdigest()
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "sha256": digest}


def _of_object(one: object) -> dict[str, Any]:
    if isinstance(one, functools.partial):
        parts = {"func": one.func, "args": one.args, "keywords": one.keywords}
        return {"class_path": "functools.partial", "init_args": described(parts)}
    if isinstance(one, LightningModule):
        given = dict(one.hparams_initial)
        made = given.pop("_class_path", None)
        given.pop("_instantiator", None)
        return {"class_path": made or class_path(type(one)), "init_args": described(given)}
    return {"class_path": class_path(type(one)), "init_args": described(arguments_of(one))}


def class_path(kind: type) -> str:
    """Names a class by the shortest of the paths by which it can be imported.

    Args:
        kind: The class.

    Returns:
        Such as ``fmerge.methods.TIES``.
    """
    package = ""
    for part in kind.__module__.split("."):
        package = f"{package}.{part}" if package else part
        if getattr(sys.modules.get(package), kind.__qualname__, None) is kind:
            return f"{package}.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def merge_config(job: "MergeJob") -> str:
    """Writes the configuration of a merge.

    Args:
        job: What was asked for.

    Returns:
        YAML, which ``fmerge merge --config`` reads if all classes in it can be imported.
    """
    optimizer = job.optimizer
    search = described(optimizer)
    if type(optimizer) is MergeOptimizer:  # the command line knows no other class here
        search = search["init_args"]
    return _yaml({
        "trainer": _trainer(job.trainer, _LIMITS),
        "model": described(job.model),
        "data": _data(job.datamodule),
        "optimizer": search,
        "experts": described(job.experts),
        "output": str(job.output),
        "method": described(job.method),
        "coefficients": job.coefficients,
        "base": job.base,
        "fisher": described(job.fisher),
        "baselines": job.baselines,
        "refit_heads": job.refitting.when,
        "refit_examples": job.refitting.most,
        "refit_seed": job.refitting.seed,
        "heads": job.heads,
        **{f"polish_{name}": one for name, one in described(job.polishing).items()},
        "dtype": job.dtype,
        "max_shard_size": job.max_shard_size,
        "labels": job.labels,
        "budget": job.budget,
        "adapter_rank": job.adapter_rank,
    })


def fit_config(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None, output: Path
) -> str:
    """Writes the configuration of a fit.

    Args:
        trainer: The Trainer.
        model: What is trained.
        datamodule: The data, where there is a datamodule.
        output: The fit's folder.

    Returns:
        YAML.
    """
    return _yaml({
        "trainer": _trainer(trainer, _LIMITS + _FIT_LIMITS),
        "model": described(model),
        "data": _data(datamodule),
        "output": str(output),
    })


def _trainer(trainer: Trainer, names: Sequence[str]) -> dict[str, Any]:
    """The Trainer's options that change results, which it keeps under their names."""
    found = {name: getattr(trainer, name) for name in names}
    return {"precision": str(trainer.precision), **described(found)}


def _data(data: Any) -> Any:
    if data is None:
        return None
    if type(data) is not MultiTask:
        return described(data)
    size = "auto" if data.automatic else data.batch_size
    tasks = described(data.tasks)
    return {"tasks": tasks, "batch_size": size, "num_workers": data.num_workers}


def _yaml(tree: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(_given(tree), sort_keys=False, allow_unicode=True)
    return text


def _given(tree: Any) -> Any:
    """Leaves out what is None, as the command line does."""
    if isinstance(tree, list):
        return [_given(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: _given(one) for key, one in tree.items() if one is not None}
