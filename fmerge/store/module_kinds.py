"""Which module of ``fmerge.modules`` runs a model: told by the architecture that it names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmerge.errors import UserError
from fmerge.store.sources import is_lightning, load_lightning, read_config

_MAPPINGS = {
    "TextClassifier": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "SpanAnswers": ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",),
    "TokenClassifier": ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",),
    "ImageClassifier": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",),
    "ClipClassifier": ("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",),
    "RankChoice": (
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    ),
}
"""Module to the tables of transformers that list its architectures."""

_IS_A = {
    "TextClassifier": "a text classifier",
    "SpanAnswers": "a question-answering model",
    "TokenClassifier": "a token classifier",
    "ImageClassifier": "an image classifier",
    "ClipClassifier": "a model of images and texts",
    "RankChoice": "a language model",
}


def module_of(config: Any) -> str | None:
    """Finds the module that runs a model.

    Args:
        config: The model's config.

    Returns:
        The name of its class; None where no architecture is named, it is of another kind, such as
        of masked words, or of several.
    """
    from transformers.models.auto import modeling_auto

    found: Any = getattr(config, "architectures", None)
    named = next((one for one in found or [] if isinstance(one, str)), "")
    fitting = [
        module
        for module, tables in _MAPPINGS.items()
        if any(_lists(getattr(modeling_auto, table).values(), named) for table in tables)
    ]
    if not named or len(fitting) != 1:
        return None
    # some of masked words are listed as causal too; Bart's text-to-text class is of both kinds
    masked = _lists(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(), named)
    both = _lists(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(), named)
    return None if masked and not both else fitting[0]


def _lists(values: Any, name: str) -> bool:
    return any(name == one or not isinstance(one, str) and name in one for one in values)


def class_path_of(source: str) -> str | None:
    """Finds the module that runs a model, before the model is read.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

    Returns:
        The class path; None where it is not known, or the source cannot be read, which is
        reported where it is read as a whole.
    """
    try:
        if is_lightning(source):
            own = load_lightning(Path(source)).get("hyper_parameters", {}).get("_class_path")
            return own if isinstance(own, str) and own.startswith("fmerge.") else None
        module = module_of(read_config(source, source))
    except UserError:
        return None
    return None if module is None else f"fmerge.modules.{module}"


def other_module(config: Any, *own: str) -> str:
    """Words that a model is one of another module.

    Args:
        config: The model's config.
        own: The modules that were to run it.

    Returns:
        A clause that names the right module; empty where there is none.
    """
    module = module_of(config)
    if module is None or module in own:
        return ""
    return f"it is {_IS_A[module]} ({config.architectures[0]}): --model {module}"


def first_class_path(sources: Sequence[str]) -> str | None:
    """Finds the module that runs some models of one kind.

    Args:
        sources: Where they are.

    Returns:
        The class path that the first of them tells; None if none does.
    """
    return next((path for path in map(class_path_of, sources) if path), None)
