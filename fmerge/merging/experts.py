"""Experts, base and Fishers of a merge: read, and proved to belong together."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from fmerge.errors import UserError, known
from fmerge.merging.compatibility import check_related, check_same_function
from fmerge.methods import MergeMethod
from fmerge.modules import TaskModule
from fmerge.params import Params, check_finite, check_same_layout, fingerprint, params_of
from fmerge.store import (
    load_tokenizer,
    read_fisher,
    read_fisher_header,
    read_second_moments,
    reading_headers,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Expert:
    """One fine-tuned model that takes part in a merge.

    Attributes:
        path: Hugging Face folder, hub id, or Lightning ``.ckpt``.
        fisher: Its Fisher, a file that ``fmerge fisher`` wrote; or the ``.ckpt`` of its fit, whose
            second moments of Adam are taken for one.
        donor: Its body alone takes part: it has no task among the data, and its head, of
            whatever kind, is left out.
    """

    path: str
    fisher: Path | None = None
    donor: bool = False


@dataclass(frozen=True)
class Ensemble:
    """What a merge starts from; every dictionary is by expert, the target's first, donors last.

    Attributes:
        models: The networks of all but donors; their heads are used as they are.
        bodies: The experts' bodies θₘ, all of one layout.
        base: The base's body θ₀, where one was given.
        fishers: The experts' diagonal Fishers over the body, where they were given.
        tokenizer: The tokenizer of the first expert.
        sources: Where each expert was read from.
        base_source: Where the base was read from.
        fisher_origins: What the files of the experts' Fishers say of themselves, if given.
    """

    models: Mapping[str, nn.Module]
    bodies: Mapping[str, Params]
    base: Params | None
    fishers: Mapping[str, Params] | None
    tokenizer: "PreTrainedTokenizerBase"
    sources: Mapping[str, str]
    base_source: str | None
    fisher_origins: Mapping[str, str] | None = None

    @property
    def names(self) -> list[str]:
        """The experts' names, in the order of the coefficients."""
        return list(self.bodies)

    @property
    def tasks(self) -> list[str]:
        """The names of those that are no donors: their heads are kept and scored."""
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
        base: Where the base is; needed by methods on task vectors.
        method: What the merge will compute.
        module: Reads the networks and knows what their tasks share.
        labels: Task name to class names, where the data are known.
        values: Whether numbers are read; without them all is checked that headers tell, and the
            tensors of the ensemble have shapes alone.

    Returns:
        The ensemble; the bodies are not those of the networks that ``module`` will run on.

    Raises:
        UserError: If experts and tasks differ, the method takes another number of them, the base
            is missing, layouts or functions differ, an expert is of another base, a tensor is not
            finite, or a Fisher is missing or belongs to another model.
    """
    _check_names(experts, labels)
    method.check_count(len(experts))
    if method.needs_base and base is None:
        raise UserError(
            f"--base: is not set, but {type(method).__name__} needs the pretrained model"
        )
    files = _fisher_files(experts) if method.statistic in {"fisher", "moving fisher"} else {}
    with nullcontext() if values else reading_headers():
        read = {
            # a donor like a base: complete but for a head
            name: module.read(one.path, name, (labels or {}).get(name), fresh_head=one.donor)
            for name, one in experts.items()
        }
        ancestor = None if base is None else module.read(base, "base", fresh_head=True)
    bodies = {name: module.body(model) for name, model in read.items()}
    first = next(iter(bodies))  # the live network's weights will change
    if values:
        bodies[first] = {name: tensor.clone() for name, tensor in bodies[first].items()}
    reference, reference_name = next(iter(bodies.values())), next(iter(experts.values())).path
    origin = None
    if base is not None and ancestor is not None:
        origin = module.body(ancestor)
        reference, reference_name = origin, f"the base {base}"
    if values and origin is not None:
        check_finite(origin, str(base))
    for name, expert in experts.items():
        kin = read[first] if ancestor is None else ancestor
        check_same_function(kin, read[name], reference_name, expert.path)
        check_same_layout(reference, bodies[name], reference_name, expert.path)
        if values:
            check_finite(bodies[name] if expert.donor else params_of(read[name]), expert.path)
            check_related(reference, bodies[name], reference_name, expert.path)
    given = {
        name: _moments(file, name, bodies[name], experts[name], values)
        if file.suffix == ".ckpt"
        else _fisher(file, read[name], bodies[name], experts[name], values)
        for name, file in files.items()
    }
    fishers = {name: fisher for name, (fisher, _) in given.items()}
    origins = {name: origin for name, (_, origin) in given.items()}
    models = {name: model for name, model in read.items() if not experts[name].donor}
    sources = {name: expert.path for name, expert in experts.items()}
    return Ensemble(
        models, bodies, origin, fishers or None, _tokenizer(sources), sources, base, origins
    )


def _check_names(experts: Mapping[str, Expert], labels: Mapping[str, Sequence[str]] | None) -> None:
    if len(experts) < 2:
        raise UserError(f"--experts: names {known(experts)}; a merge needs at least two experts")
    tasks = [name for name, expert in experts.items() if not expert.donor]
    if not tasks:
        raise UserError(f"--experts: {known(experts)} are donors; a merge needs one that is none")
    if labels is not None and set(labels) != set(tasks):
        raise UserError(
            f"--experts: are for {known(tasks)}, but the data's tasks are {known(labels)}; "
            "give each task one expert of the same name, or make an expert without data a donor"
        )


def _tokenizer(sources: Mapping[str, str]) -> "PreTrainedTokenizerBase":
    """Reads the first expert's tokenizer and proves that the others' numbers mean the same."""
    (_, first), *rest = sources.items()
    tokenizer = load_tokenizer(first)
    vocabulary = tokenizer.get_vocab()
    for _, source in rest:
        try:
            other = load_tokenizer(source).get_vocab()
        except UserError:
            continue  # saved without one: the first expert's is used for all
        if other != vocabulary:
            differing = sorted(set(other.items()) ^ set(vocabulary.items()))
            raise UserError(
                f"{source}: its tokenizer differs from that of {first} in "
                f"{len({token for token, _ in differing})} tokens, such as '{differing[0][0]}'; "
                "merge models of one tokenizer only"
            )
    return tokenizer


def _fisher_files(experts: Mapping[str, Expert]) -> dict[str, Path]:
    files = {name: Path(expert.fisher) for name, expert in experts.items() if expert.fisher}
    if files and len(files) != len(experts):
        raise UserError(
            f"--experts: {len(experts)} experts but {len(files)} Fishers; none is given for "
            f"{known(set(experts) - set(files))}: give every expert its Fisher, or none"
        )
    return files


def _fisher(
    file: Path, model: nn.Module, body: Params, expert: Expert, whole: bool
) -> tuple[Params, str]:
    """Reads a Fisher of a model's body, and of what; a donor's head is of a kind of its own."""
    values, provenance = read_fisher(file) if whole else read_fisher_header(file)
    if expert.donor:
        weights, key = body, "body_sha256"
        values = {name: value for name, value in values.items() if name in body}
    else:
        weights, key = params_of(model), "model_sha256"
    check_same_layout(weights, values, expert.path, str(file))
    recorded = provenance.get(key)
    if recorded != fingerprint(weights) if whole else not isinstance(recorded, str):
        raise UserError(
            f"{file}: is the Fisher of another model ({provenance.get('model', 'unknown')}), "
            f"not of {expert.path}; compute it with 'fmerge fisher --expert {expert.path}'"
        )
    examples, split = provenance.get("examples"), provenance.get("split")
    origin = f"{file}, by its own account of {examples} examples of a {split} split"
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
