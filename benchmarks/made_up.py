"""Three made-up text-to-text tasks, and experts for them trained from a T5 of random weights.

Each object is warm or cold, small or large, old or new; the answer for three objects is
the majority.
"""

import itertools
import json
import random
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from fmerge.cli.app import main

TASKS = {"heat": ("warm", "cold"), "size": ("small", "large"), "age": ("old", "new")}
THINGS = [f"thing{i}" for i in range(40)]
SIZES = {"train": 600, "validation": 200, "test": 200}


def write_tasks(folder: Path) -> None:
    """Writes the data.

    Args:
        folder: Where to.
    """
    generator = random.Random(0)
    for task, answers in TASKS.items():
        second = {thing: generator.randrange(2) for thing in THINGS}
        rows: set[tuple[str, ...]] = set()
        while len(rows) < sum(SIZES.values()):
            rows.add(tuple(generator.sample(THINGS, 3)))
        left = iter(generator.sample(sorted(rows), len(rows)))
        for split, size in SIZES.items():
            with (folder / f"{task}_{split}.jsonl").open("w") as file:
                for things in itertools.islice(left, size):
                    answer = answers[sum(second[thing] for thing in things) >= 2]
                    file.write(json.dumps({"things": " ".join(things), "answer": answer}) + "\n")


def write_random_model(folder: Path) -> None:
    """Writes a tiny T5 with random weights, and a tokenizer of the tasks' words.

    Args:
        folder: Where to.
    """
    words = ["[PAD]", "[UNK]", "[EOS]", ":", *TASKS, *itertools.chain(*TASKS.values()), *THINGS]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [("[EOS]", 2)]
    tokenizer.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=ends)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(  # type: ignore[call-arg]
            vocab_size=len(words),
            d_model=64,
            d_ff=128,
            d_kv=16,
            num_heads=4,
            num_layers=2,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        model_max_length=32,
    ).save_pretrained(folder)


def config(folder: Path, *tasks: str) -> str:
    """Writes a configuration for some of the tasks.

    Args:
        folder: Where the data are.
        tasks: The tasks.

    Returns:
        Its path.
    """
    content = {
        "model": {"class_path": "RankChoice"},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "data": {
            "batch_size": 32,
            "tasks": {
                task: {
                    "class_path": "Prompted",
                    "init_args": {
                        "splits": {split: str(folder / f"{task}_{split}.jsonl") for split in SIZES},
                        "text": task + " : {{ things }}",
                        "choices": list(TASKS[task]),
                        "label": "{{ answer }}",
                    },
                }
                for task in tasks
            },
        },
    }
    path = folder / f"{'_'.join(tasks)}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def fit(folder: Path, name: str, path: Path, steps: int, rate: float, *tasks: str) -> Path:
    """Fine-tunes an expert.

    Args:
        folder: Where the data are.
        name: Its name there.
        path: The model to start from.
        steps: Training steps.
        rate: Learning rate.
        tasks: The tasks to train on.

    Returns:
        The expert's folder.
    """
    main([
        *["fit", "--config", config(folder, *tasks), "--model.path", str(path)],
        *["--model.learning_rate", str(rate), "--trainer.max_steps", str(steps)],
        *["--output", str(folder / name)],
    ])
    return folder / name / "expert"


def make(folder: Path, steps: int = 250, rate: float = 3e-3) -> tuple[Path, dict[str, Path]]:
    """Makes data, a base trained a little on all tasks, as a pretrained one would be, and experts.

    Args:
        folder: Where to; takes a minute and a half.
        steps: Training steps of an expert.
        rate: Learning rate of an expert.

    Returns:
        The base, and the experts by task.
    """
    write_tasks(folder)
    write_random_model(folder / "random")
    base = fit(folder, "base", folder / "random", 30, 3e-3, *TASKS)
    return base, {task: fit(folder, task, base, steps, rate, task) for task in TASKS}
