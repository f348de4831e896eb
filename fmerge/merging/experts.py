"""Experts, base and Fishers of a merge: read, and checked to belong together."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from fmerge.errors import UserError, known
from fmerge.merging.buffers import persistent_buffers
from fmerge.merging.expert_fishers import Expert, expert_of, fisher_files, read_fishers
from fmerge.merging.merged_heads import HeadMode, check_one_task, labels_of, merged_part
from fmerge.merging.poolers import keep_poolers_apart
from fmerge.merging.relative import Relative, base_origin
from fmerge.merging.tokenizers import tokenizers_of
from fmerge.methods import MergeMethod
from fmerge.modules import TaskModule, read_network
from fmerge.params import Params, params_of
from fmerge.store import StoredTensor, places_in, reading_headers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ensemble:
    """What a merge starts from; every dictionary is by expert, the target's first, donors last.

    Attributes:
        models: The networks of all but donors; their heads are used as they are, unless merged.
        bodies: The experts' bodies θₘ, all of one layout: parameters, then moving buffers.
        base: The base's body θ₀, where one was given.
        fishers: The experts' diagonal Fishers over the body, where they were given.
        tokenizers: Each task's tokenizer, of one vocabulary; one object where they are the same.
        sources: Where each expert was read from.
        base_source: Where the base was read from.
        fisher_origins: What the files of the experts' Fishers say of themselves, if given.
        moving: The names of the bodies' buffers that differ between the models.
        constants: The bodies' other persistent buffers, as the first expert has them.
        heads_merged: Whether the heads are merged too: the bodies are then whole networks.
        places: Where the parameters of each expert's network lie, if headers alone were read.
        base_places: Where the base's lie.
    """

    models: Mapping[str, nn.Module]
    bodies: Mapping[str, Params]
    base: Params | None
    fishers: Mapping[str, Params] | None
    tokenizers: Mapping[str, "PreTrainedTokenizerBase"]
    sources: Mapping[str, str]
    base_source: str | None
    fisher_origins: Mapping[str, str] | None = None
    moving: Sequence[str] = ()
    constants: Params = field(default_factory=dict)
    heads_merged: bool = False
    places: Mapping[str, Mapping[str, StoredTensor]] = field(default_factory=dict)
    base_places: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that the tasks run on: the first one for all, where heads are merged."""
        if not self.heads_merged:
            return self.models
        return dict.fromkeys(self.models, next(iter(self.models.values())))

    @property
    def names(self) -> list[str]:
        """The experts' names, in the order of the coefficients."""
        return list(self.bodies)

    @property
    def device(self) -> torch.device:
        """Where the bodies are."""
        return next(iter(next(iter(self.bodies.values())).values())).device

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase]":
        """The tokenizer that the tasks share, or each task's own where they differ."""
        first, *others = self.tokenizers.values()
        return first if all(one is first for one in others) else self.tokenizers

    def heads(self) -> dict[str, Params]:
        """Copies the experts' heads, as they are now.

        Returns:
            Task name to the parameters and persistent buffers of its network that are not merged;
            those that the tasks share are the first expert's.
        """
        return {
            name: {
                key: self.constants.get(key, tensor).clone()
                for key, tensor in (params_of(model) | persistent_buffers(model)).items()
                if key not in self.bodies[name]
            }
            for name, model in self.models.items()
        }

    @property
    def tensors(self) -> list[str]:
        """The names of the body's parameters, in the order of the model."""
        return [name for name in next(iter(self.bodies.values())) if name not in self.moving]

    @property
    def tasks(self) -> list[str]:
        """The names of all experts but donors: their heads are kept and scored."""
        return list(self.models)


def target_first(experts: Mapping[str, str | Expert], target: str | None) -> dict[str, Expert]:
    """Orders the experts as the methods want them.

    Args:
        experts: Task name to expert, or to its path alone.
        target: The task that is scored alone, if there is one.

    Returns:
        Task name to expert: the target's first, donors last, the others as they were.

    Raises:
        UserError: If the target is a donor, or what is given is no expert.
    """
    if not isinstance(experts, Mapping):
        raise UserError(f"--experts: is {experts!r}, but must map each task's name to its expert")
    whole = {name: expert_of(name, expert) for name, expert in experts.items()}
    if target in whole and whole[target].donor:
        raise UserError(f"--optimizer.target: '{target}' is a donor, which has no task to score")
    return dict(sorted(whole.items(), key=lambda item: (item[0] != target, item[1].donor)))


def load_ensemble(
    experts: Mapping[str, Expert],
    base: str | None,
    method: MergeMethod,
    module: TaskModule,
    labels: Mapping[str, Sequence[str]] | None = None,
    values: bool | Literal["places"] = True,
    heads: HeadMode = "keep",
) -> Ensemble:
    """Reads everything a merge needs and checks it before any long work.

    Args:
        experts: Task name to expert, the target's first.
        base: Where the base is, if there is one.
        method: What the merge will compute.
        module: Reads the networks and knows what their tasks share.
        labels: Task name to class names, where the data are known.
        values: Whether numbers are read, not headers alone; ``places``: those of buffers.
        heads: Whether heads are merged like the body.

    Returns:
        The ensemble; an error where anything is missing, is not finite, or does not fit all else.
    """
    files, whole = _checked_files(experts, labels, method, base), heads == "merge"
    numbers, sources = values is True, {name: expert.path for name, expert in experts.items()}
    with nullcontext() if numbers else reading_headers(places=values == "places"):
        read, ancestor = _read(experts, base, module, labels or {}, whole)
    complete = keep_poolers_apart(module, read, ancestor, sources, whole)
    first, bodies = next(iter(experts)), _bodies(module, read, numbers, whole)
    origin = None if ancestor is None else base_origin(module, ancestor, str(base), numbers, whole)
    shared = set(module.body(read[first]))
    relative = origin or Relative(read[first], bodies[first], experts[first].path, shared)
    buffers, moving = relative.check_all(experts, read, bodies, numbers)
    fishers, origins = read_fishers(files, experts, read, complete, numbers)  # of poolers too
    models = {name: read[name] for name in _tasks(experts)}
    return Ensemble(
        models=models,
        bodies={name: body | _copies(buffers[name], moving) for name, body in bodies.items()},
        base=None if origin is None else origin.body | _copies(origin.buffers, moving),
        fishers={k: {n: one[n] for n in bodies[k]} for k, one in fishers.items()} or None,
        tokenizers=tokenizers_of(module, sources, models, base),
        sources=sources,
        base_source=base,
        fisher_origins=origins,
        moving=moving,
        constants=_copies(buffers[first], set(buffers[first]) - set(moving)),
        heads_merged=whole,
        places={name: places_in(model) for name, model in read.items()},
        base_places={} if ancestor is None else places_in(ancestor),
    )


def _read(
    experts: Mapping[str, Expert],
    base: str | None,
    module: TaskModule,
    labels: Mapping[str, Sequence[str]],
    whole: bool,
) -> tuple[dict[str, nn.Module], nn.Module | None]:
    """Reads the networks of the experts and of the base, or what their headers tell of them."""
    if whole:
        check_one_task(labels)
    read: dict[str, nn.Module] = {}
    common: Sequence[str] | None = None
    for name, one in experts.items():
        # a donor like a base: complete but for a head
        own = labels.get(name, common)
        fresh = one.donor and not whole
        read[name] = read_network(module, one.path, name, own, fresh_head=fresh)
        if whole and common is None:  # in one order of the outputs, whatever the files have
            common = own or labels_of(read[name])
    if base is None:
        return read, None
    try:
        return read, read_network(module, base, "base", common, fresh_head=not whole)
    except UserError as error:
        if not whole:
            raise
        raise UserError(f"--heads: is merge, to which the base's head belongs: {error}") from error


def _bodies(
    module: TaskModule, read: Mapping[str, nn.Module], values: bool, whole: bool
) -> dict[str, Params]:
    bodies = {name: merged_part(module, model, whole) for name, model in read.items()}
    first = next(iter(bodies))
    if values:  # these are the live network's weights, which passes will change
        bodies[first] = {name: tensor.clone() for name, tensor in bodies[first].items()}
    return bodies


def _copies(buffers: Params, names: Collection[str]) -> Params:
    # the live network's buffers change with every body that is written to it
    return {name: one.clone() for name, one in buffers.items() if name in names}


def _checked_files(
    experts: Mapping[str, Expert],
    labels: Mapping[str, Sequence[str]] | None,
    method: MergeMethod,
    base: str | None,
) -> dict[str, Path]:
    """Checks all that needs no reading; lists the files of Fishers."""
    _check_names(experts, labels)
    _check_needs(method, len(experts), base)
    return fisher_files(experts, method)


def _check_needs(method: MergeMethod, count: int, base: str | None) -> None:
    method.check_count(count)
    if method.needs_base and base is None:
        raise UserError(
            f"--base: is not set, but {type(method).__name__} needs the pretrained model"
        )


def _tasks(experts: Mapping[str, Expert]) -> list[str]:
    return [name for name, expert in experts.items() if not expert.donor]


def _check_names(experts: Mapping[str, Expert], labels: Mapping[str, Sequence[str]] | None) -> None:
    if len(experts) < 2:
        raise UserError(f"--experts: names {known(experts)}; a merge needs at least two experts")
    tasks = _tasks(experts)
    if not tasks:
        raise UserError(
            f"--experts: {known(experts)} are all donors; a merge needs at least one expert that "
            "has a task"
        )
    if labels is not None and set(labels) != set(tasks):
        raise UserError(
            f"--experts: are for {known(tasks)}, but the data's tasks are {known(labels)}; "
            "give each task one expert of the same name, or make an expert without data a donor"
        )
