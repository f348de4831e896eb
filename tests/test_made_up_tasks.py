"""A T5 from scratch: what a searched DF-Merge keeps of three experts, and a plain average."""

import itertools
import json
import random

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from fmerge.cli import main

TASKS = {"heat": ("warm", "cold"), "size": ("small", "large"), "age": ("old", "new")}
THINGS = [f"thing{i}" for i in range(40)]
SIZES = {"train": 600, "validation": 200, "test": 200}


def write_tasks(folder):
    """Every thing is warm or cold, small or large, old or new; of three things the most count."""
    generator = random.Random(0)
    for task, answers in TASKS.items():
        second = {thing: generator.randrange(2) for thing in THINGS}
        rows = set()
        while len(rows) < sum(SIZES.values()):
            rows.add(tuple(generator.sample(THINGS, 3)))
        left = iter(generator.sample(sorted(rows), len(rows)))
        for split, size in SIZES.items():
            with (folder / f"{task}_{split}.jsonl").open("w") as file:
                for things in itertools.islice(left, size):
                    answer = answers[sum(second[thing] for thing in things) >= 2]
                    file.write(json.dumps({"things": " ".join(things), "answer": answer}) + "\n")


def write_random_model(folder):
    words = ["[PAD]", "[UNK]", "[EOS]", ":", *TASKS, *itertools.chain(*TASKS.values()), *THINGS]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [("[EOS]", 2)]
    tokenizer.post_processor = TemplateProcessing(single="$A [EOS]", special_tokens=ends)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
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


def config(folder, *tasks):
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


def fit(folder, name, path, steps, *tasks):
    main([
        *["fit", "--config", config(folder, *tasks), "--model.path", str(path)],
        *["--model.learning_rate", "3e-3", "--trainer.max_steps", str(steps)],
        *["--output", str(folder / name)],
    ])
    return folder / name / "expert"


@pytest.mark.slow
def test_searched_df_merge_keeps_more_than_the_plain_average(tmp_path, record_property):
    write_tasks(tmp_path)
    write_random_model(tmp_path / "random")
    # a base that knows a little of everything, as a pretrained one does
    base = fit(tmp_path, "base", tmp_path / "random", 30, *TASKS)
    experts = {task: fit(tmp_path, task, base, 250, task) for task in TASKS}
    bayes = ["--optimizer.search", "AxSearch", "--optimizer.search.trials", "30"]
    alone = {
        task: ["--optimizer.search", "Fixed", "--optimizer.search.coefficients", json.dumps(one)]
        for task in TASKS
        for one in [{name: float(name == task) for name in TASKS}]
    }
    runs = {"Average": [], "DFMerge": bayes} | alone
    best = {}
    for name, options in runs.items():
        main([
            *["merge", "--config", config(tmp_path, *TASKS), "--base", str(base)],
            *[f"--experts.{task}={path}" for task, path in experts.items()],
            *["--method", "Isotropic" if name in TASKS else name, *options],
            *["--references", "experts", "--output", str(tmp_path / f"merge_{name}")],
        ])
        lines = (tmp_path / f"merge_{name}" / "trials.jsonl").read_text().splitlines()
        best[name] = max(map(json.loads, lines), key=lambda trial: trial["objective"])
    own = sum(best[task]["metrics"][task] for task in TASKS) / len(TASKS)
    average, searched = best["Average"]["objective"], best["DFMerge"]["objective"]
    record_property(
        "figure",
        "T5 from scratch, three made-up tasks, mean validation accuracy: "
        f"experts {own:.3f}, searched DF-Merge {searched:.3f}, plain average {average:.3f}",
    )
    assert average < searched < own
