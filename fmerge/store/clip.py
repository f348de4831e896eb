"""Reads models of images and texts, as CLIP and SigLIP, and vision towers that were saved alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fmerge.errors import UserError
from fmerge.store.kinds import check_kind
from fmerge.store.sources import (
    hyperparameters,
    is_lightning,
    load_lightning,
    local_folder,
    read_config,
    read_part,
)
from fmerge.store.weights import read_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_WHOLE: Final = "AutoModelForZeroShotImageClassification"


def load_clip(source: str) -> "PreTrainedModel":
    """Reads a whole model of images and texts, in float32 on the CPU.

    Args:
        source: A Hugging Face folder or a hub id.

    Returns:
        The model, with ``vision_model``, ``get_text_features`` and ``logit_scale``.

    Raises:
        UserError: If it cannot be read, lacks tensors, or is of another kind.
    """
    config = read_config(source, source)
    check_kind(source, config, _WHOLE, any_head=False)
    model, lacking = read_weights(source, _WHOLE, config, source, None)
    _check_complete(source, lacking)
    if not all(hasattr(model, name) for name in ("vision_model", "logit_scale")):
        raise UserError(
            f"{source}: is a {type(model).__name__}, which has no vision tower of its own; "
            "ClipClassifier runs models such as CLIPModel and SiglipModel"
        )
    return model


def load_clip_processor(source: str) -> Any:
    """Reads what makes the inputs of a model of images and texts.

    Args:
        source: A Hugging Face folder or a hub id.

    Returns:
        The processor, with a tokenizer and an ``image_processor``.
    """
    place = local_folder(source)
    return read_part(
        source,
        "processor",
        lambda auto: auto.AutoProcessor.from_pretrained(place, trust_remote_code=False),
        place,
    )


def is_tower(source: str) -> bool:
    """Tells whether a source holds a vision tower without its texts.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

    Returns:
        Whether it does.
    """
    if is_lightning(source):
        return False
    return str(read_config(source, source).model_type).endswith("_vision_model")


def load_tower(source: str) -> dict[str, "Tensor"]:
    """Reads a vision tower that was saved without the model of texts that it belongs to.

    Args:
        source: A Hugging Face folder or a hub id, of a CLIPVisionModel, one with projection, or a
            SiglipVisionModel.

    Returns:
        The tensors of the tower, and of the projection where there is one, by their names in the
        whole model.

    Raises:
        UserError: If it cannot be read or lacks tensors.
    """
    config: Any = read_config(source, source)
    named = [str(name) for name in config.architectures or []]
    kind = next((name for name in named if name.endswith("WithProjection")), "AutoModel")
    model, lacking = read_weights(source, kind, config, source, None)
    _check_complete(source, lacking)
    state = dict(model.state_dict())
    if not any(name.startswith("vision_model.") for name in state):
        state = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    return state


def fitted_tower(source: str, task: str) -> tuple[str, dict[str, "Tensor"]]:
    """Reads the vision tower of a fit's checkpoint.

    Args:
        source: A Lightning ``.ckpt`` of ``ClipClassifier``.
        task: The task.

    Returns:
        Where the whole model is that was fitted, and the tensors by their names in it.

    Raises:
        UserError: If the checkpoint is of another kind, or has no such task.
    """
    path = hyperparameters(Path(source)).get("path")
    prefix = f"models.{task}."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_lightning(Path(source))["state_dict"].items()
        if name.startswith(prefix)
    }
    if not isinstance(path, str) or not state:
        raise UserError(f"{source}: is no checkpoint of a ClipClassifier with the task '{task}'")
    return path, state


def _check_complete(source: str, lacking: dict[str, str]) -> None:
    if lacking:
        first = sorted(lacking)[0]
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(f"{source}: tensor '{first}' is {lacking[first]}{more}")
