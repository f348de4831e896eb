"""Writes an untrained language model: a GPT-2 of two layers and a tokenizer of its own.

    python configs/language/start.py --output runs/language/start

The tokenizer learns its 2,000 tokens from the training sentences of the example's tasks, which
installed packages carry. Nothing is downloaded.
"""

import argparse

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from fmerge.data import DocsText
from fmerge.data.docs import TOPICS

END = "<|endoftext|>"
TOKENS = 2000
LENGTH = 64


def tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level tokenizer, whose texts begin with the end of the one before.

    Returns:
        The tokenizer.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [one["text"] for library in TOPICS for one in DocsText(library).examples("train")]
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        add_bos_token=True,
        model_max_length=LENGTH,
    )


def main() -> None:
    """Writes model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="the folder")
    output = parser.parse_args().output
    words = tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_positions=2 * LENGTH, n_embd=96, n_layer=2, n_head=4,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(output)
    words.save_pretrained(output)


if __name__ == "__main__":
    main()
