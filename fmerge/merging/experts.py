"""Experts, base and Fishers of a merge: read, and checked to belong together."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from fmerge.errors import UserError, known
from fmerge.merging.buffers import (
    check_no_nan,
    moving_buffers,
    persistent_buffers,
    shared_buffers,
)
from fmerge.merging.compatibility import FIELDS, check_related, check_same_function
from fmerge.merging.expert_fishers import Expert, fisher_files, read_fishers
from fmerge.merging.poolers import keep_poolers_apart
from fmerge.merging.tokenizers import tokenizers_of
from fmerge.methods import MergeMethod
from fmerge.modules import TaskModule
from fmerge.params import Params, check_finite, check_same_layout, params_of
from fmerge.store import reading_headers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ensemble:
    """What a merge starts from; every dictionary is by expert, the target's first, donors last.

    Attributes:
        models: The networks of all but donors; their heads are used as they are.
        bodies: The experts' bodies θₘ, all of one layout: parameters, then moving buffers.
        base: The base's body θ₀, where one was given.
        fishers: The experts' diagonal Fishers over the body, where they were given.
        tokenizers: Each task's tokenizer, of one vocabulary; one object where they are the same.
        sources: Where each expert was read from.
        base_source: Where the base was read from.
        fisher_origins: What the files of the experts' Fishers say of themselves, if given.
        moving: The names of the bodies' buffers that differ between the models.
        constants: The bodies' other persistent buffers, as the first expert has them.
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

    @property
    def names(self) -> list[str]:
        """The experts' names, in the order of the coefficients."""
        return list(self.bodies)

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
        UserError: If the target is a donor.
    """
    whole = {
        name: Expert(expert) if isinstance(expert, str) else expert
        for name, expert in experts.items()
    }
    if target in whole and whole[target].donor:
        raise UserError(f"--optimizer.target: '{target}' is a donor, which has no task to score")
    return dict(sorted(whole.items(), key=lambda item: (item[0] != target, item[1].donor)))


def load_ensemble(
    experts: Mapping[str, Expert],
    base: str | None,
    method: MergeMethod,
    module: TaskModule,
    labels: Mapping[str, Sequence[str]] | None = None,
    values: bool = True,
) -> Ensemble:
    """Reads everything a merge needs and checks it before any long work.

    Args:
        experts: Task name to expert, the target's first.
        base: Where the base is, if there is one.
        method: What the merge will compute.
        module: Reads the networks and knows what their tasks share.
        labels: Task name to class names, where the data are known.
        values: Whether numbers are read; else headers alone are, and tensors have only shapes.

    Returns:
        The ensemble; its bodies are not those of the networks that ``module`` runs on.

    Raises:
        UserError: If anything is missing, is not finite, or does not fit all else.
    """
    files = _checked_files(experts, labels, method, base)
    sources = {name: expert.path for name, expert in experts.items()}
    read, ancestor = _read(experts, base, module, labels or {}, values)
    whole = keep_poolers_apart(module, read, ancestor, sources)
    bodies = _bodies(module, read, values)
    first = next(iter(bodies))
    origin = None if ancestor is None else _base(module, ancestor, str(base), values)
    relative = origin or _Relative(read[first], bodies[first], experts[first].path)
    for name, expert in experts.items():
        relative.check(expert, read[name], bodies[name], values)
    fishers, origins = read_fishers(files, experts, read, whole, values)  # of poolers too
    buffers = {name: shared_buffers(model, bodies[name]) for name, model in read.items()}
    moving = relative.moving(experts, buffers, values)
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
    )


def _read(
    experts: Mapping[str, Expert],
    base: str | None,
    module: TaskModule,
    labels: Mapping[str, Sequence[str]],
    values: bool,
) -> tuple[dict[str, nn.Module], nn.Module | None]:
    """Reads the networks of the experts and of the base, or what their headers tell of them."""
    with nullcontext() if values else reading_headers():
        read = {
            # a donor like a base: complete but for a head
            name: module.read(one.path, name, labels.get(name), fresh_head=one.donor)
            for name, one in experts.items()
        }
        ancestor = None if base is None else module.read(base, "base", fresh_head=True)
    return read, ancestor


def _bodies(module: TaskModule, read: Mapping[str, nn.Module], values: bool) -> dict[str, Params]:
    bodies = {name: module.body(model) for name, model in read.items()}
    first = next(iter(bodies))
    if values:  # these are the live network's weights, which passes will change
        bodies[first] = {name: tensor.clone() for name, tensor in bodies[first].items()}
    return bodies


def _copies(buffers: Params, names: Collection[str]) -> Params:
    # the live network's buffers change with every body that is written to it
    return {name: one.clone() for name, one in buffers.items() if name in names}


@dataclass(frozen=True)
class _Relative:
    """What experts must have in common with: the base, or the first expert where there is none."""

    model: nn.Module
    body: Params
    name: str

    @property
    def buffers(self) -> Params:
        """Its body's persistent buffers."""
        return shared_buffers(self.model, self.body)

    def moving(
        self, experts: Mapping[str, Expert], buffers: Mapping[str, Params], values: bool
    ) -> list[str]:
        """Names the buffers to be merged; none where no numbers are read."""
        found = {experts[name].path: own for name, own in buffers.items()}
        return moving_buffers({**found, self.name: self.buffers}) if values else []

    def check(self, expert: Expert, model: nn.Module, body: Params, values: bool) -> None:
        """Checks config, layout and, where they are read, values of an expert."""
        check_same_function(self.model, model, self.name, expert.path, FIELDS)
        buffers = shared_buffers(model, body)
        check_same_layout(self.body | self.buffers, body | buffers, self.name, expert.path)
        check_same_function(self.model, model, self.name, expert.path)
        if values:
            check_finite(body if expert.donor else params_of(model), expert.path)
            check_no_nan(buffers if expert.donor else persistent_buffers(model), expert.path)
            check_related(self.body, body, self.name, expert.path)


def _base(module: TaskModule, ancestor: nn.Module, source: str, values: bool) -> _Relative:
    made = _Relative(ancestor, module.body(ancestor), f"the base {source}")
    if values:
        check_finite(made.body, source)
        check_no_nan(made.buffers, source)
    return made


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
