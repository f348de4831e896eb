"""Data sets in folders of exactly the hub's layout, and tiny RoBERTas, made on the spot."""

from pathlib import Path

import datasets
import torch
from datasets import ClassLabel, Features, Value
from transformers import AutoModelForQuestionAnswering, RobertaConfig

from tests import tiny

TEXT = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "stsb": ["sentence1", "sentence2"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
    "rte": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "stsb": ["score"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}


def write(folder: Path, name: str, splits: dict[str, datasets.Dataset]) -> None:
    """One configuration: parquet files in its folder, and the card that lists all of them."""
    (folder / name).mkdir(parents=True)
    for split, table in splits.items():
        table.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    lines = ["---", "configs:"]
    for one in names:
        lines += [f"- config_name: {one}", "  data_files:"]
        for path in sorted((folder / one).iterdir()):
            split = path.name.partition("-")[0]
            lines += [f"  - split: {split}", f"    path: {one}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def glue(folder: Path, task: str, sizes: tuple[int, int, int] = (8, 6, 4)) -> str:
    """A task of GLUE; the test labels are hidden, as they are on the hub."""
    label = Value("float32") if task == "stsb" else ClassLabel(names=LABELS[task])
    fields = {column: Value("string") for column in TEXT[task]}
    features = Features(fields | {"label": label, "idx": Value("int32")})
    names = {"train": 0, "validation": 1, "test": 2}
    if task == "mnli":
        names = {"train": 0, "validation_matched": 1, "validation_mismatched": 1}
        names |= {"test_matched": 2, "test_mismatched": 2}
    splits = {}
    for seed, (split, kind) in enumerate(names.items()):
        n = sizes[kind]
        columns = {c: tiny.sentences(n, 10 * seed + k) for k, c in enumerate(TEXT[task])}
        labels = [1.4 * i % 5 if task == "stsb" else i % len(LABELS[task]) for i in range(n)]
        columns["label"] = [-1] * n if kind == 2 else labels
        columns["idx"] = list(range(n))
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    write(folder, task, splits)
    return str(folder)


def squad2(folder: Path, n: int = 6) -> str:
    """Questions on texts, every third without an answer."""
    splits = {}
    for seed, split in enumerate(("train", "validation")):
        texts = [f"{one} green moon" for one in tiny.sentences(n, seed)]
        answers = [
            {"text": [], "answer_start": []}
            if i % 3 == 0
            else {"text": ["green moon"], "answer_start": [len(text) - 10]}
            for i, text in enumerate(texts)
        ]
        columns = {
            "id": [f"{split}{i}" for i in range(n)],
            "title": ["t"] * n,
            "context": texts,
            "question": tiny.sentences(n, 50 + seed),
            "answers": answers,
        }
        splits[split] = datasets.Dataset.from_dict(columns)
    write(folder, "squad_v2", splits)
    return str(folder)


def roberta_config(labels=("a", "b"), **options) -> RobertaConfig:
    settings = {
        "vocab_size": len(tiny.WORDS) + 2,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 34,
        "pad_token_id": 0,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    return RobertaConfig(**(settings | options))


def roberta(folder: Path, labels=("a", "b"), seed: int = 0) -> str:
    model = tiny.classifier(roberta_config(labels), seed)
    return tiny.save(tiny.moved_near(model, _origin()), folder)


def _origin():
    """What all of these models seem to be fine-tuned from."""
    return tiny.classifier(roberta_config(), seed=77)


def answering_roberta(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    model = AutoModelForQuestionAnswering.from_config(roberta_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return tiny.save(tiny.moved_near(model, _origin()), folder)
