"""Trials an hour against the number of workers on Ray, and their ratio.

    python benchmarks/parallel.py [--workers 1 2] [--trials 12] [--rounds 3] [--layers 6]

Two random BERTs and a base, in the layout of real ones, and made-up sentences: what is measured is
time, not scores. Each round makes the same Sobol search once with each number of workers, one
after the other, so that both meet the same load. Starting Ray, reading the models and the tests at
the end are not counted: time is taken from the last trial of the first batch to the last of all.
"""

import argparse
import csv
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from sections import write_section
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.store import RunFolder

WORDS = [f"word{i}" for i in range(500)]
TASKS = ("a", "b")
RESULTS = Path(__file__).parent / "results" / "parallel.md"


def make_inputs(folder: Path, layers: int, width: int, examples: int) -> None:
    """Writes a base, two experts and their data."""
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    config = BertConfig(
        vocab_size=len(WORDS) + 2, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=4, intermediate_size=4 * width, max_position_embeddings=64,
        pad_token_id=0, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
    )  # fmt: skip
    for number, name in enumerate(("base", *TASKS)):
        torch.manual_seed(number)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = torch.Generator().manual_seed(0)
    for task in TASKS:
        for split in ("validation", "test"):
            with (folder / f"{task}_{split}.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["text", "label"])
                for i in range(examples if split == "validation" else 8):
                    chosen = torch.randint(len(WORDS), (32,), generator=draw).tolist()
                    rows.writerow([" ".join(WORDS[j] for j in chosen), ("no", "yes")[i % 2]])


def seconds_a_trial(folder: Path, workers: int, trials: int) -> float:
    """Makes a search with so many workers; the seconds of a trial, from the second batch on."""
    ended: list[float] = []
    append = RunFolder.append

    def timed(self: RunFolder, record: dict) -> None:  # type: ignore[type-arg]
        append(self, record)
        if "stage" not in record:
            ended.append(time.monotonic())

    RunFolder.append = timed  # type: ignore[method-assign, assignment]
    try:
        data = MultiTask({
            task: TextFiles(
                validation=str(folder / f"{task}_validation.csv"),
                test=str(folder / f"{task}_test.csv"),
                labels=["no", "yes"],
            )
            for task in TASKS
        })
        search = fmerge.search.Sobol(trials=trials)
        fmerge.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[fmerge.MergeOptimizer(search, parallel=workers)],
        ).merge(
            fmerge.modules.TextClassifier(), data, method=fmerge.methods.TaskArithmetic(),
            experts={task: str(folder / task) for task in TASKS}, base=str(folder / "base"),
            baselines="experts", output=folder / "run", overwrite=True,
        )  # fmt: skip
    finally:
        RunFolder.append = append  # type: ignore[method-assign]
    return (ended[-1] - ended[workers - 1]) / (trials - workers)


def main() -> None:
    """Measures, and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="parallel-"))
    try:
        make_inputs(folder, given.layers, given.width, given.examples)
        found: dict[int, list[float]] = {count: [] for count in given.workers}
        for number in range(given.rounds):
            for count in given.workers:
                found[count].append(seconds_a_trial(folder, count, given.trials))
                print(f"round {number}, {count} workers: {found[count][-1]:.2f} s a trial")
    finally:
        shutil.rmtree(folder)
    first = found[given.workers[0]]
    lines = [
        f"{given.trials} trials of two BERTs of {given.layers} layers of width {given.width}, "
        f"{given.examples} sentences a task, on {os.cpu_count()} cores; load beside it "
        f"{os.getloadavg()[0]:.0f}. Medians of {given.rounds} rounds, side by side.",
        "",
        "| workers | seconds a trial | trials an hour | ratio, by round |",
        "|---|---|---|---|",
    ]
    for count, seconds in found.items():
        ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(first, seconds, strict=True))
        middle = median(seconds)
        lines.append(f"| {count} | {middle:.2f} | {3600 / middle:.0f} | {ratios} |")
    write_section(given.output, "Trials in parallel", "\n".join(lines))


if __name__ == "__main__":
    main()
