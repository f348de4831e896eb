"""A tokenizer beside its model: ids that have embeddings, and one padding token for both."""

import logging
from typing import TYPE_CHECKING, Any

from fmerge.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)


def check_tokenizer(model: Any, tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
    """Checks that a model has an embedding for every id that its tokenizer can give.

    Args:
        model: The network.
        tokenizer: Its tokenizer. Nothing is checked where either is not of transformers.
        source: Where they are from, for the message.

    Raises:
        UserError: If a token of the vocabulary, or one that is added to every text, has an id
            without an embedding.
    """
    rows = _embeddings(model, tokenizer)
    if rows is None:
        return
    vocabulary = tokenizer.get_vocab()
    outside = {token: i for token, i in vocabulary.items() if not 0 <= i < rows}
    if not outside:
        names = {i: token for token, i in vocabulary.items()}
        ids: list[int] = tokenizer("a")["input_ids"]
        # ids that the post-processor adds are numbers of its own
        outside = {names.get(i, "of the post-processor"): i for i in ids if not 0 <= i < rows}
    if outside:
        first = min(outside, key=lambda token: (outside[token], token))
        more = f", and {len(outside) - 1} more tokens are outside" if len(outside) > 1 else ""
        raise UserError(
            f"{source}: its tokenizer gives the token '{first}' the id {outside[first]}, but its "
            f"model has embeddings for the ids 0 to {rows - 1} alone{more}; give the tokenizer "
            "that the model was trained with, or save the model again after "
            "resize_token_embeddings"
        )


def _embeddings(model: Any, tokenizer: Any) -> int | None:
    """Counts a model's token embeddings; None where ids are not looked up in a table."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not (isinstance(model, PreTrainedModel) and isinstance(tokenizer, PreTrainedTokenizerBase)):
        return None
    try:
        weight = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):  # CANINE hashes characters
        return None
    return int(weight.shape[0])  # type: ignore[index]


def give_padding(
    model: Any, tokenizer: "PreTrainedTokenizerBase", source: str, needed: bool = True
) -> None:
    """Gives a model and its tokenizer one padding token, where either lacks it.

    Many classifiers find the end of a text by the config's ``pad_token_id``. The tokenizer's token
    is taken for it, or the config's for the tokenizer; where there is none, the end of a sequence,
    as is usual, if the tokenizer does not put it behind every text.

    Args:
        model: The network, whose config is changed.
        tokenizer: Its tokenizer, which is changed. Both are left where either is not of
            transformers.
        source: Where they are from, for the message.
        needed: Whether a batch cannot do without.

    Raises:
        UserError: If it is needed and there is none to take.
    """
    rows = _embeddings(model, tokenizer)
    if rows is None:
        return
    configs = {id(one): one for one in (model.config, model.config.get_text_config())}.values()
    own = next((i for one in configs if _within(i := _padding(one), rows)), None)
    pad = tokenizer.pad_token_id if own is None else own
    if pad is None and needed:
        pad = tokenizer.eos_token_id
        ends = tokenizer("a")["input_ids"][-1:] == [pad]
        if pad is None or ends:
            raise UserError(
                f"{source}: neither its config.json (pad_token_id) nor its tokenizer (pad_token) "
                "has a padding token, without which texts of several lengths make no batch; name "
                "one in tokenizer_config.json"
            )
        _LOG.warning("%s: has no padding token; '%s' is taken for it", source, tokenizer.eos_token)
    if pad is None:
        return
    for one in configs:
        if not _within(_padding(one), rows):
            one.pad_token_id = pad
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)


def _padding(config: Any) -> Any:
    return getattr(config, "pad_token_id", None)


def _within(number: Any, rows: int) -> bool:
    # some configs say -1 for none
    return isinstance(number, int) and 0 <= number < rows
