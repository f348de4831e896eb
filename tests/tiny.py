"""Models of a few thousand weights in the layout of real ones, and tasks of a few sentences."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

WORDS = "red green blue cat dog fish sky sea sun moon tree stone one two three four".split()
LABELS = {"colour": ["warm", "cold", "none"], "animal": ["pet", "wild"]}


@dataclass(frozen=True)
class Zoo:
    """Paths of a base, two experts and two tasks.

    Attributes:
        root: The folder of it all.
        base: A Hugging Face folder.
        experts: Task name to a Hugging Face folder.
        tasks: Task name to split to a CSV file.
    """

    root: Path
    base: str
    experts: dict[str, str]
    tasks: dict[str, dict[str, str]]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )


def bert_config(labels=("a", "b", "c"), **options) -> BertConfig:
    settings = {
        "vocab_size": len(WORDS) + 2,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    return BertConfig(**(settings | options))


SPECIAL = ["[PAD]", "[UNK]", "[EOS]", "[BOS]"]


def text_tokenizer(template="$A [EOS]") -> PreTrainedTokenizerFast:
    """A tokenizer of a model that writes: an end of sequence, added where the template says."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    ends = [(token, vocabulary[token]) for token in ("[EOS]", "[BOS]")]
    words.post_processor = TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        model_max_length=32,
    )


def bert_like_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that tells the first text of a pair from the second by the type of tokens."""
    made = text_tokenizer()
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [EOS]", pair="$A [EOS] $B:1 [EOS]:1", special_tokens=[("[EOS]", 2)]
    )
    return made


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


TEXT = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, "eos_token_id": 2}


def t5_config(**options) -> T5Config:
    return T5Config(
        **TEXT,
        d_model=12,
        d_ff=16,
        d_kv=6,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        decoder_start_token_id=0,
        **options,
    )


def bart_config(kind=BartConfig):
    return kind(
        **TEXT,
        d_model=12,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=24,
        decoder_start_token_id=2,
    )


def gpt2_config() -> GPT2Config:
    return GPT2Config(**TEXT, n_embd=12, n_layer=2, n_head=2, n_positions=24)


def llama_config() -> LlamaConfig:
    return LlamaConfig(
        **TEXT,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        max_position_embeddings=24,
    )


def classifier(config, seed=0, scale=0.3):
    """A classifier with weights large enough that no gradient is negligible."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def language_model(config, seed=0, scale=0.3):
    """A text-to-text or causal language model with weights as large as a classifier's."""
    torch.manual_seed(seed)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def sentences(n: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (1,), generator=generator))

    return [" ".join(WORDS[draw(len(WORDS))] for _ in range(2 + draw(7))) for _ in range(n)]


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def fine_tuned(base, labels, seed=0):
    """A classifier of other labels whose body lies near that of a base."""
    return moved_near(classifier(bert_config(labels), seed=seed), base)


def moved_near(model, base):
    """Moves a model's body to a tenth of its distance from a base's: as if fine-tuned from it."""
    with torch.no_grad():
        own = dict(model.base_model.named_parameters())
        for name, origin in base.base_model.named_parameters():
            if name in own:
                own[name].copy_(origin + 0.1 * (own[name] - origin))
    return model


def make_zoo(root: Path) -> Zoo:
    base = classifier(bert_config(), seed=1)
    experts, tasks = {}, {}
    for k, (task, labels) in enumerate(LABELS.items()):
        experts[task] = save(fine_tuned(base, labels, 10 + k), root / f"expert_{task}")
        tasks[task] = {
            split: write_csv(root / f"{task}_{split}.csv", labels, n, seed=100 * k + i)
            for i, (split, n) in enumerate({"train": 20, "validation": 13, "test": 11}.items())
        }
    return Zoo(root, save(base, root / "base"), experts, tasks)


def write_csv(path: Path, labels, n: int, seed: int) -> str:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i, text in enumerate(sentences(n, seed)):
            # every class occurs, the rest follows the words
            number = i if i < len(labels) else len(text)
            rows.writerow([text, labels[number % len(labels)]])
    return str(path)
