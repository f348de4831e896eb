"""Experts, and the Fishers that files give of them, checked to be of their very weights."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from fmerge.errors import UserError, known
from fmerge.evaluation.statistics import statistic_of
from fmerge.merging.buffers import network_state
from fmerge.methods import MergeMethod
from fmerge.params import Params, check_same_layout, fingerprint, params_of
from fmerge.store import (
    in_checkpoint_order,
    read_fisher,
    read_fisher_header,
    read_second_moments,
)
from fmerge.system.paths import expand


@dataclass
class Expert:
    """One fine-tuned model that takes part in a merge.

    Attributes:
        path: Hugging Face folder, hub id, Lightning ``.ckpt``, or folder of a PEFT adapter.
        fisher: Its Fisher, a file that ``fmerge fisher`` wrote; or the ``.ckpt`` of its fit, whose
            second moments of Adam are taken for one.
        donor: Its body alone takes part: it has no task among the data, and its head, of
            whatever kind, is left out.
    """

    path: str
    fisher: Path | None = None
    donor: bool = False


def expert_of(name: str, value: object) -> Expert:
    """Takes an expert as it may be given in Python.

    Args:
        name: The task.
        value: An ``Expert``, its path alone, or a mapping of its attributes.

    Returns:
        The expert.

    Raises:
        UserError: If it is something else.
    """
    if isinstance(value, Expert):
        return value
    if isinstance(value, str | Path):
        return Expert(str(value))
    attributes = {one.name for one in fields(Expert)}
    if isinstance(value, Mapping) and "path" in value and value.keys() <= attributes:
        return Expert(**value)
    raise UserError(
        f"--experts.{name}: is {value!r}, but must be a path, an Expert, or a mapping of "
        "path, fisher and donor"
    )


def fisher_files(experts: Mapping[str, Expert], method: MergeMethod) -> dict[str, Path]:
    """Lists the Fishers that are given for a method.

    Args:
        experts: Task name to expert.
        method: What the merge will compute.

    Returns:
        Task name to file; none where the method needs no Fisher.

    Raises:
        UserError: If some experts have a Fisher and others do not.
    """
    statistic = statistic_of(method)
    if statistic is None or not statistic.from_files:
        return {}
    files = {name: Path(expand(expert.fisher)) for name, expert in experts.items() if expert.fisher}
    if files and len(files) != len(experts):
        raise UserError(
            f"--experts: {len(experts)} experts but {len(files)} Fishers; none is given for "
            f"{known(set(experts) - set(files))}: give every expert its Fisher, or none"
        )
    return files


def read_fishers(
    files: Mapping[str, Path],
    experts: Mapping[str, Expert],
    read: Mapping[str, nn.Module],
    bodies: Mapping[str, Params],
    values: bool,
) -> tuple[dict[str, Params], dict[str, str]]:
    """Reads the experts' Fishers.

    Args:
        files: Task name to file: what ``fmerge fisher`` wrote, or a ``.ckpt`` of a fit.
        experts: Task name to expert.
        read: Task name to the expert's network.
        bodies: Task name to its body.
        values: Whether numbers are read; without them headers alone are checked.

    Returns:
        Task name to the Fisher of the body; and to a sentence on where it comes from.
    """
    given = {
        name: _moments(file, name, bodies[name], experts[name], values)
        if file.suffix == ".ckpt"
        else _fisher(file, read[name], bodies[name], experts[name], values)
        for name, file in files.items()
    }
    fishers = {name: fisher for name, (fisher, _) in given.items()}
    return fishers, {name: origin for name, (_, origin) in given.items()}


def _fisher(
    file: Path, model: nn.Module, body: Params, expert: Expert, whole: bool
) -> tuple[Params, str]:
    """Reads a Fisher of a model's body and its origin; a donor's head is never compared."""
    values, provenance = read_fisher(file) if whole else read_fisher_header(file)
    if expert.donor and len(body) < len(params_of(model)):
        weights, key, state = body, "body_sha256", network_state(model, body)
        values = {name: value for name, value in values.items() if name in body}
    else:
        state = in_checkpoint_order(model, network_state(model))
        weights, key = params_of(model), "model_sha256"
    check_same_layout(weights, values, expert.path, str(file))
    recorded = provenance.get(key)
    right = recorded == fingerprint(state) if whole else isinstance(recorded, str)
    if not right and not expert.donor and whole and "labels" not in provenance:
        # a file of an earlier version has the head, and so the hash, in the order of its data
        right = recorded == fingerprint(network_state(model))
    if not right:
        raise UserError(
            f"{file}: is the Fisher of another model ({provenance.get('model', 'unknown')}), "
            f"not of {expert.path}; compute it with 'fmerge fisher --expert {expert.path}'"
        )
    examples, split = provenance.get("examples"), provenance.get("split")
    origin = f"{file}, recorded as of {examples} examples of a {split} split"
    return {name: values[name] for name in body}, origin


def _moments(
    file: Path, name: str, body: Params, expert: Expert, numbers: bool
) -> tuple[Params, str]:
    """Reads Adam's second moments of a body, from the checkpoint that holds this very body."""
    weights, moments = read_second_moments(file, name, body)
    check_same_layout(body, weights, expert.path, str(file))
    if numbers and fingerprint(weights) != fingerprint(body):
        raise UserError(
            f"{file}: holds other weights than {expert.path}; give the checkpoint whose weights "
            "the expert has, such as best.ckpt of its fit"
        )
    return moments, f"Adam's second moments in {file}, of the batches it was trained on"
