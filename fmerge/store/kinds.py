"""What a source is: a model of the wanted kind, of another kind, or no model at all."""

import re
from pathlib import Path
from typing import Any, Final

from fmerge.errors import UserError
from fmerge.store.adapter_kinds import INSTEAD
from fmerge.store.folders import WEIGHTS

WANTED: Final = {
    "AutoModelForSequenceClassification": "a text classifier",
    "AutoModelForQuestionAnswering": "a question-answering model",
    "AutoModelForTokenClassification": "a token classifier",
    "AutoModel": "an embedding model",
    "AutoModelForImageClassification": "an image classifier",
    "AutoModelForZeroShotImageClassification": "a model of images and texts, as CLIP",
    "AutoModelForSeq2SeqLM": "a text-to-text model",
    "AutoModelForCausalLM": "a causal language model",
}
"""What each Auto class reads, in words."""

_FOREIGN: Final = {
    "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING": "a vision model",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING": "a vision model",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING": "a speech model",
    "MODEL_FOR_CTC_MAPPING": "a speech model",
}
_LATER: Final = (
    "not supported yet; fmerge reads classifiers of texts, tokens and images, question-answering "
    "and language models, and fmerge.merge in Python merges any tensors"
)
_CLIP: Final = "give --model ClipClassifier"
_IMAGES: Final = "give --model ImageClassifier"
_WORDS: Final = {
    "TokenClassification": (
        "a token classifier, as for named entities (NER)",
        "give --model TokenClassifier",
    ),
    "MultipleChoice": ("a multiple-choice model", _LATER),
    "SequenceClassification": ("a text classifier", "give --model TextClassifier"),
    "ImageClassification": ("an image classifier", _IMAGES),
    "QuestionAnswering": ("a question-answering model", "give --model SpanAnswers"),
    "CausalLM|LMHead|ConditionalGeneration": (
        "a language model",
        "give --model RankChoice or TextGenerator",
    ),
}
_PRETRAINED: Final = r"Model$|MaskedLM$|PreTraining$|LMHead|CausalLM$|ConditionalGeneration$"
"""Architectures that are bodies, or bodies under heads that are replaced by fine-tuning."""

_FORMER: Final = {"t5withlmheadmodel": "t5forconditionalgeneration"}


def check_format(path: Path) -> None:
    """Refuses a file or folder that is no whole Hugging Face model, and says what it is.

    Args:
        path: An existing file or folder.

    Raises:
        UserError: If it is an adapter, a GGUF file, a file of weights alone, or a folder of
            sentence-transformers whose model is in a folder inside.
    """
    if path.is_dir():
        _check_folder(path)
    elif _is_gguf(path):
        raise UserError(f"{path}: {_GGUF}")
    elif path.name.startswith("adapter_model."):
        raise UserError(f"{path}: {_ADAPTER}")
    elif path.suffix in {".safetensors", ".bin", ".pt", ".pth"}:
        raise UserError(
            f"{path}: is a file of weights alone; give the folder that holds it beside its "
            "config.json"
        )


_GGUF: Final = (
    "is a GGUF model, the quantized format of llama.cpp, but a merge needs the weights "
    "themselves; give the Hugging Face folder that it was converted from"
)
_ADAPTER: Final = (
    "is an adapter (PEFT, LoRA), not a whole model; only experts can be adapters, given by their "
    f"folders: for all else {INSTEAD}"
)


def _check_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    weights = not names.isdisjoint(WEIGHTS)
    if "adapter_config.json" in names and not weights:
        raise UserError(f"{folder}: {_ADAPTER}")
    if "adapter_config.json" in names:  # transformers would add it to the weights, or not
        raise UserError(
            f"{folder}: holds an adapter (adapter_config.json) beside the weights of a model; "
            "remove it if the weights contain it already, else merge it into them first, by "
            "peft's merge_and_unload()"
        )
    if not weights and any(name.endswith(".gguf") for name in names):
        raise UserError(f"{folder}: {_GGUF}")
    if "modules.json" in names and "config.json" not in names:
        raise UserError(
            f"{folder}: is an embedding model of sentence-transformers, whose network is in a "
            "folder inside, such as 0_Transformer; give that one, as a base or for 'fmerge fit'"
        )


def _is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def check_kind(source: str, config: Any, auto: str, any_head: bool) -> None:
    """Refuses a model of another kind, whose weights would be run by a class of other meaning.

    Args:
        source: Where the model is, for the message.
        config: Its config.
        auto: The Auto class of transformers that will read it.
        any_head: Whether its head is left out, so that the body alone counts.

    Raises:
        UserError: If transformers has no such class for the model, or its config names an
            architecture that computes something else.
    """
    from transformers.models.auto import modeling_auto

    found = [name for name in config.architectures or [] if isinstance(name, str)]
    classes = getattr(modeling_auto, auto)._model_mapping
    if type(config) not in classes:
        named = f"{found[0]}, " if found else ""
        what, do = _described(config, bool(found))
        raise UserError(f"{source}: is a {named}{what}, not {WANTED[auto]}; {do}")
    run = classes[type(config)]
    runs = [one.__name__ for one in (run if isinstance(run, tuple | list) else [run])]
    if not found or any(_plain(name) in map(_plain, runs) for name in found):
        return
    name, family = found[0], _family(found[0])
    if family is not None and not issubclass(type(config), family):
        raise UserError(
            f"{source}: its config names the architecture {name}, but its model_type is "
            f"{config.model_type}, which {runs[0]} would run; correct the wrong one in config.json"
        )
    if any_head or (family is not None and re.search(_PRETRAINED, name)):
        return  # whether the head that is wanted is there is seen from the weights
    what, do = next((both for part, both in _WORDS.items() if re.search(part, name)), ("", _LATER))
    if family is None:
        what, do = "an architecture unknown to transformers", "correct its name in config.json"
    raise UserError(f"{source}: is a {name}{what and ', '}{what}, not a {runs[0]}; {do}")


def head_facts(source: str, config: Any, run_as: str = "") -> str:
    """Says what a model without the wanted head is.

    Args:
        source: Where it is.
        config: Its config.
        run_as: The class that it is read as, of which nothing is to be said.

    Returns:
        For instance ``, as it is a BertModel``; empty where it is not known.
    """
    marks = ("modules.json", "config_sentence_transformers.json")
    if any((Path(source) / name).is_file() for name in marks):
        return ", as it is an embedding model of sentence-transformers"
    found = [name for name in config.architectures or [] if isinstance(name, str)]
    return f", as it is a {found[0]}" if found and found[0] != run_as else ""


def _plain(name: str) -> str:
    """A class's name without its framework, as in TFBertModel, and in any case."""
    plain = name.removeprefix("TF").removeprefix("Flax").casefold()
    return _FORMER.get(plain, plain)


def _family(name: str) -> type | None:
    """The config class of an architecture that transformers has."""
    import transformers

    for known in (name, name.removeprefix("TF").removeprefix("Flax")):
        found = getattr(getattr(transformers, known, None), "config_class", None)
        if isinstance(found, type):
            return found
    return None


def _described(config: Any, named: bool) -> tuple[str, str]:
    """What a model is by its config, and what to do with it."""
    from transformers.models.auto import modeling_auto

    kind = "" if named else f"{config.model_type}, "
    if type(config) in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return f"{kind}a vision model", _IMAGES
    if type(config) in modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING:
        return f"{kind}a model of images and texts", _CLIP
    for mapping, words in _FOREIGN.items():
        if type(config) in getattr(modeling_auto, mapping):
            return kind + words, _LATER
    return f"model of type {config.model_type}", _LATER
