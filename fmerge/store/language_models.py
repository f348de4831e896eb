"""Reads text-to-text and causal language models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fmerge.errors import UserError
from fmerge.store.kinds import check_kind, head_facts
from fmerge.store.module_kinds import other_module
from fmerge.store.sources import (
    hyperparameters,
    is_lightning,
    load_lightning,
    read_config,
)
from fmerge.store.weights import read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "model."  # of a task module's one model in its checkpoints
_OTHERS = ("Classification", "MaskedLM", "PreTraining", "QuestionAnswering")


def load_language_model(source: str) -> "PreTrainedModel":
    """Reads a language model in float32 on the CPU, with every weight from the source.

    Args:
        source: A Hugging Face folder, a hub id, ``package:name/folder``, or a Lightning
            ``.ckpt`` of a fit.

    Returns:
        An ``AutoModelForSeq2SeqLM`` if the config has an encoder and a decoder, else an
        ``AutoModelForCausalLM``.

    Raises:
        UserError: If the source cannot be read, is a model of another kind, or lacks weights.
    """
    state: dict[str, Tensor] | None = None
    folder = source
    if is_lightning(source):
        folder, state = fitted_state(Path(source))
    config = read_config(source, folder)
    _check_kind(config, source)
    kind = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    check_kind(source, config, kind, any_head=False)
    model, lacking = read_weights(source, kind, config, folder, state)
    if lacking:
        first, wrong = next(iter(sorted(lacking.items())))
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        facts = head_facts(folder, config, type(model).__name__) if wrong == "missing" else ""
        raise UserError(f"{source}: tensor '{first}' is {wrong}{more}{facts}")
    return model


def fitted_state(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Reads the weights of a fit that trained one model for all tasks.

    Args:
        path: The ``.ckpt``.

    Returns:
        The folder or hub id that the fit started from, and the weights.

    Raises:
        UserError: If it holds no such model.
    """
    folder = hyperparameters(path)["path"]
    state = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in load_lightning(path)["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    if not state:
        raise UserError(f"{path}: holds no language model: no tensor is named '{_PREFIX}...'")
    return folder, state


def _check_kind(config: Any, source: str) -> None:
    # transformers would load an encoder as a causal model, whose tokens attend to later ones
    for name in config.architectures or []:
        if any(other in name for other in _OTHERS):
            other = other_module(config, "RankChoice")
            raise UserError(
                f"{source}: is a {name}, which generates no text; "
                + (other or "give a text-to-text model (such as T5) or a causal language model ")
                + ("" if other else "(such as GPT-2)")
            )
