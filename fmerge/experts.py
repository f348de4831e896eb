"""Experts, base and Fishers of a merge: read, and proved to belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from fmerge.errors import UserError, known
from fmerge.kinship import check_related, check_same_function
from fmerge.methods import MergeMethod
from fmerge.modules import TaskModule
from fmerge.params import Params, check_finite, check_same_layout, fingerprint, params_of
from fmerge.store import load_tokenizer, read_fisher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Expert:
    """One fine-tuned model that takes part in a merge.

    Attributes:
        path: Hugging Face folder, hub id, or Lightning ``.ckpt``.
        fisher: Its Fisher, a file that ``fmerge fisher`` wrote.
    """

    path: str
    fisher: Path | None = None


@dataclass(frozen=True)
class Ensemble:
    """What a merge starts from; every dictionary is by expert, the target's first.

    Attributes:
        models: The networks; their heads are used as they are.
        bodies: The experts' bodies θₘ, all of one layout.
        base: The base's body θ₀, where one was given.
        fishers: The experts' diagonal Fishers over the body, where they were given.
        tokenizer: The tokenizer of the first expert.
        sources: Where each expert was read from.
        base_source: Where the base was read from.
    """

    models: Mapping[str, nn.Module]
    bodies: Mapping[str, Params]
    base: Params | None
    fishers: Mapping[str, Params] | None
    tokenizer: "PreTrainedTokenizerBase"
    sources: Mapping[str, str]
    base_source: str | None

    @property
    def names(self) -> list[str]:
        """The experts' names, in the order of the coefficients."""
        return list(self.bodies)


def target_first(experts: Mapping[str, str | Expert], target: str | None) -> dict[str, Expert]:
    """Orders the experts as the methods want them.

    Args:
        experts: Task name to expert, or to its path alone.
        target: The task that is scored alone, if there is one.

    Returns:
        Task name to expert: the target's first, the others as they were.
    """
    whole = {
        name: Expert(expert) if isinstance(expert, str) else expert
        for name, expert in experts.items()
    }
    return dict(sorted(whole.items(), key=lambda item: item[0] != target))


def load_ensemble(
    experts: Mapping[str, Expert],
    base: str | None,
    method: MergeMethod,
    module: TaskModule,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Ensemble:
    """Reads everything a merge needs and checks it before any long work.

    Args:
        experts: Task name to expert, the target's first.
        base: Where the base is; needed by methods on task vectors.
        method: What the merge will compute.
        module: Reads the networks and knows what their tasks share.
        labels: Task name to class names, where the data are known.

    Returns:
        The ensemble; the bodies are not those of the networks that ``module`` will run on.

    Raises:
        UserError: If experts and tasks differ, the base is missing, layouts or functions differ,
            an expert is of another base, a tensor is not finite, or a Fisher is missing or
            belongs to another model.
    """
    if len(experts) < 2:
        raise UserError(f"--experts: names {known(experts)}; a merge needs at least two experts")
    if labels is not None and set(labels) != set(experts):
        raise UserError(
            f"--experts: are for {known(experts)}, but the data's tasks are {known(labels)}; "
            "give each task one expert of the same name"
        )
    if method.needs_base and base is None:
        raise UserError(
            f"--base: is not set, but {type(method).__name__} needs the pretrained model"
        )
    fisher_files = _fisher_files(experts)
    models = {
        name: module.read(expert.path, name, None if labels is None else labels[name])
        for name, expert in experts.items()
    }
    bodies = {name: module.body(model) for name, model in models.items()}
    first = next(iter(bodies))  # the live network's weights will change
    bodies[first] = {name: tensor.clone() for name, tensor in bodies[first].items()}
    reference, reference_name = next(iter(bodies.values())), next(iter(experts.values())).path
    origin, ancestor = None, models[first]
    if base is not None:
        ancestor = module.read(base, "base", fresh_head=True)
        origin = module.body(ancestor)
        check_finite(origin, base)
        reference, reference_name = origin, f"the base {base}"
    for name, expert in experts.items():
        check_same_function(ancestor, models[name], reference_name, expert.path)
        check_same_layout(reference, bodies[name], reference_name, expert.path)
        check_finite(params_of(models[name]), expert.path)
        check_related(reference, bodies[name], reference_name, expert.path)
    fishers = {
        name: _fisher(file, models[name], experts[name].path, list(bodies[name]))
        for name, file in fisher_files.items()
    }
    sources = {name: expert.path for name, expert in experts.items()}
    tokenizer = load_tokenizer(next(iter(sources.values())))
    return Ensemble(models, bodies, origin, fishers or None, tokenizer, sources, base)


def _fisher_files(experts: Mapping[str, Expert]) -> dict[str, Path]:
    files = {name: Path(expert.fisher) for name, expert in experts.items() if expert.fisher}
    if files and len(files) != len(experts):
        raise UserError(
            f"--experts: {len(experts)} experts but {len(files)} Fishers; none is given for "
            f"{known(set(experts) - set(files))}: give every expert its Fisher, or none"
        )
    return files


def _fisher(file: Path, model: nn.Module, source: str, body: Sequence[str]) -> Params:
    values, provenance = read_fisher(file)
    check_same_layout(params_of(model), values, source, str(file))
    if provenance.get("model_sha256") != fingerprint(params_of(model)):
        raise UserError(
            f"{file}: is the Fisher of another model ({provenance.get('model', 'unknown')}), "
            f"not of {source}; compute it with 'fmerge fisher --expert {source}'"
        )
    return {name: values[name] for name in body}
