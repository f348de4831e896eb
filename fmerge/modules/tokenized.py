"""The base of modules that read texts: each task's tokenizer, and what a network takes of it."""

import inspect
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.modules.preprocessed import PreprocessedModule
from fmerge.modules.truncation import TruncationCounter
from fmerge.store import check_tokenizer, give_padding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizedModule(PreprocessedModule, ABC):
    """A task module whose inputs are texts, tokenized for each task by its own tokenizer.

    Attributes:
        truncation: How many inputs of each task were truncated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.truncation = TruncationCounter()

    @property
    def tokenizers(self) -> "dict[str, PreTrainedTokenizerBase]":
        """Task name to its tokenizer; empty until the weights are read."""
        return self.preprocessors

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The first task's tokenizer; None until the weights are read. Setting it sets all."""
        return next(iter(self.tokenizers.values()), None)

    @tokenizer.setter
    def tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.preprocessors = dict.fromkeys(self.preprocessors, tokenizer)

    def double(self) -> Self:
        """Casts all to float64, as ``64-true`` does.

        The experts of a mixture then run one after the other: PyTorch's grouped matrix products,
        which transformers takes by default, have no float64.

        Returns:
            The module.
        """
        for one in self.modules():
            config = getattr(one, "config", None)
            if getattr(config, "_experts_implementation", None) == "grouped_mm":
                config._experts_implementation = "eager"  # type: ignore[union-attr]
        return super().double()

    def needs_padding(self, model: Any) -> bool:
        """Tells whether a network cannot do without a padding token.

        Args:
            model: The network.

        Returns:
            True, unless a module overrides it.
        """
        return True

    def check_preprocessor(
        self, model: Any, preprocessor: "PreTrainedTokenizerBase", source: str
    ) -> None:
        """Checks that a tokenizer fits a network, and gives both one padding token.

        Args:
            model: The network.
            preprocessor: The tokenizer.
            source: Where the network is from, for errors.
        """
        check_tokenizer(model, preprocessor, source)
        give_padding(model, preprocessor, source, self.needs_padding(model))

    def tokenizer_of(self, task: str) -> "PreTrainedTokenizerBase":
        """Finds a task's tokenizer.

        Args:
            task: The task's name.

        Returns:
            Its own tokenizer.
        """
        tokenizer: PreTrainedTokenizerBase = self.preprocessor_of(task)
        return tokenizer

    def encode(
        self,
        texts: Sequence[Sequence[str]],
        limit: int,
        task: str,
        truncation: bool | str = True,
    ) -> Any:
        """Tokenizes n texts or pairs of texts, and pads them as the task's network needs it.

        Args:
            texts: One or two texts for each example (n,).
            limit: Tokens to which an input is truncated.
            task: The task's name.
            truncation: How pairs are truncated, as transformers names it.

        Returns:
            The tokenizer's tensors (n, t) with ``attention_mask``, as a ``BatchEncoding``.
        """
        tokenizer, model = self.tokenizer_of(task), self.task_model(task)
        encoded = tokenizer(
            *map(list, zip(*texts, strict=True)),
            truncation=truncation,
            max_length=limit,
            padding=True,
            padding_side="left" if reads_last_position(model) else "right",
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask: Tensor = encoded["attention_mask"]
        pad = getattr(getattr(model, "config", None), "pad_token_id", None)
        if pad is not None and pad != tokenizer.pad_token_id:
            # a network looks for its own padding token, to find the end of a text
            encoded["input_ids"] = encoded["input_ids"].masked_fill(mask == 0, pad)
        _check_types(model, encoded, task)
        self.truncation.count(tokenizer, texts, mask.sum(1).tolist(), [limit] * len(texts), task)
        return encoded


def reads_last_position(model: nn.Module) -> bool:
    """Tells whether a network sums a text up in its last position, be it padding or not.

    Padding then has to stand on the left. Everywhere else it stands on the right, where it leaves
    every token the position that it has without padding.

    Args:
        model: A Hugging Face model.

    Returns:
        Whether it does, as XLNet.
    """
    return any(getattr(one, "summary_type", None) == "last" for one in model.modules())


def model_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the inputs of a network from a batch.

    Args:
        model: The network.
        batch: What ``collate`` made.

    Returns:
        The tokenizer's tensors (n, t) that the network's ``forward`` names.
    """
    taken = inspect.signature(model.forward).parameters
    named = "input_ids" in taken  # else a wrapper, which passes on all that it gets
    return {
        key: one
        for key, one in batch.items()
        if key not in {"labels", "task", "answers"} and (key in taken or not named)
    }


def _check_types(model: nn.Module, encoded: Mapping[str, Any], task: str) -> None:
    """Refuses types of tokens that a network has no embedding for."""
    types: Any = getattr(getattr(model, "config", None), "type_vocab_size", None)
    if "token_type_ids" not in encoded or not isinstance(types, int) or types < 1:
        return
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return
    most = int(torch.max(encoded["token_type_ids"]))
    if most >= types:
        raise UserError(
            f"task '{task}': its tokenizer gives the token type {most}, but its model has "
            f"type_vocab_size {types}; give the tokenizer that the model was trained with"
        )
