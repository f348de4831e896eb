"""Reads tokenizers, and names the package that one needs."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fmerge.errors import UserError
from fmerge.store.part_folder import holds, part_folder
from fmerge.store.sources import hyperparameters, is_lightning, read_part
from fmerge.store.tokenizer_parts import note_defaults

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)

_FILES = (
    "tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json", "tekken.json",
    "*.model", "*.spm", "*.tiktoken",
)  # fmt: skip
"""Names of the files that tokenizers consist of."""


class _MissingError(UserError):
    """A source that was saved without a tokenizer."""


def load_tokenizer(source: str) -> "PreTrainedTokenizerBase":
    """Reads the tokenizer that belongs to a checkpoint.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

    Returns:
        The tokenizer.

    Raises:
        UserError: If it cannot be read, its files are missing, or a package that reads them is.
    """
    folder = hyperparameters(Path(source))["path"] if is_lightning(source) else source
    place = part_folder(folder, *_FILES)
    try:
        tokenizer: PreTrainedTokenizerBase = read_part(
            source,
            "tokenizer",
            lambda auto: auto.AutoTokenizer.from_pretrained(place, trust_remote_code=False),
            place,
        )
    except UserError as error:
        none = Path(place).is_dir() and not holds(place, *_FILES)
        better = _missing(source) if none else _without_package(source, place, error)
        raise better from error
    # without its files transformers makes an empty tokenizer, to which every word is unknown
    files = {*tokenizer.vocab_files_names.values(), "tokenizer.json"}
    if tokenizer.vocab_files_names and Path(place).is_dir() and not holds(place, *files):
        better = _missing(source)
        raise better
    note_defaults(tokenizer)
    return tokenizer


def find_tokenizer(source: str) -> "PreTrainedTokenizerBase | None":
    """Reads a checkpoint's tokenizer, if it was saved with one.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

    Returns:
        The tokenizer; None where the folder has none, or a hub id gives none, which is logged.

    Raises:
        UserError: If there is one that cannot be read.
    """
    try:
        return load_tokenizer(source)
    except _MissingError:
        return None
    except UserError as error:
        if is_lightning(source) or Path(part_folder(source, *_FILES)).is_dir():
            raise
        _LOG.warning("%s; another expert's is used", error)
        return None


def _missing(source: str) -> _MissingError:
    return _MissingError(
        f"{source}: holds no tokenizer, such as tokenizer.json; copy the files of the model's "
        "own tokenizer into the folder"
    )


def _without_package(source: str, place: str, error: UserError) -> UserError:
    """Words the error of a tokenizer that a missing package would read."""
    from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

    if holds(place, "tokenizer.json"):
        return error
    if holds(place, "tiktoken.model", "*.tiktoken"):
        if find_spec("tiktoken") is not None:
            return error
        return UserError(f"{source}: its tokenizer is one of tiktoken; run: pip install tiktoken")
    pieces = sorted(path.name for end in ("model", "spm") for path in Path(place).glob(f"*.{end}"))
    # of a hub id the files are not known; transformers tries tiktoken where sentencepiece is
    # missing, and then asks for that
    words = str(error).lower()
    hinted = not Path(place).is_dir() and ("sentencepiece" in words or "tiktoken" in words)
    if not (pieces or hinted):
        return error
    what = f"its tokenizer is of SentencePiece ({', '.join(pieces) or 'without tokenizer.json'})"
    if not (is_sentencepiece_available() and is_protobuf_available()):
        return UserError(
            f"{source}: {what}, which needs the packages sentencepiece and protobuf; run: "
            "pip install 'fmerge[sentencepiece]', or: pip install sentencepiece protobuf"
        )
    if pieces and "tiktoken" in words:
        return UserError(f"{source}: {what}, but that file holds none; get it again")
    return error
