"""Runs every text architecture of transformers through fmerge's commands: ``make sweep``.

    python -m tests.architectures.sweep [--only KIND/TYPE ...] [--log FILE] [--table FILE]

Each line of the log is one architecture; those that are there already are not run again. The
table is written from the log.
"""

import argparse
import contextlib
import csv
import io
import json
import logging
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import yaml
from safetensors.torch import load_file

from fmerge import load_params
from fmerge.cli.app import main as command_line
from fmerge.errors import UserError
from fmerge.modules import RankChoice, TextClassifier
from fmerge.store import read_fisher
from tests import tiny
from tests.architectures import exactness, table
from tests.architectures.tiny_configs import KINDS, NotBuilt, build, model_types, one_line

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


class Models:
    """A base, two experts and their data on the disk.

    Args:
        kind: classifier, seq2seq or causal.
        model_type: The architecture, as its configuration names it.
        folder: Where.
    """

    def __init__(self, kind: str, model_type: str, folder: Path) -> None:
        self.kind, self.model_type, self.folder = kind, model_type, folder
        base = build(kind, model_type, 0)
        _check_runs(kind, base)
        for name, seed in {"base": 0, "a": 1, "b": 2}.items():
            model = build(kind, model_type, seed)
            with torch.no_grad():
                for own, origin in zip(model.parameters(), base.parameters(), strict=True):
                    own.copy_(origin + 0.1 * (own - origin))
            model.save_pretrained(folder / name)
            self.tokenizer().save_pretrained(folder / name)
        self.config, self.only = folder / "data.yaml", folder / "one.yaml"
        for path, names in ((self.config, "ab"), (self.only, "a")):
            path.write_text(yaml.safe_dump(self._settings(names)))

    def _settings(self, names: str) -> dict:
        model = "TextClassifier" if self.kind == "classifier" else "RankChoice"
        tasks = {name: self._task(name) for name in names}
        return {"model": {"class_path": model}, "data": {"batch_size": 4, "tasks": tasks}}

    def _task(self, name: str) -> dict:
        files = {}
        for split, count in {"train": 8, "validation": 6, "test": 6}.items():
            files[split] = str(self.folder / f"{name}_{split}.csv")
            texts = tiny.sentences(count, seed=len(files) + 10 * (name == "b"))
            with open(files[split], "w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["text", "label"])
                rows.writerows([text, f"LABEL_{n % 3}"] for n, text in enumerate(texts))
        if self.kind == "classifier":
            labels = [f"LABEL_{n}" for n in range(3)]
            return {"class_path": "TextFiles", "init_args": {**files, "labels": labels}}
        template = {"text": "{{ text }}", "choices": exactness.CHOICES, "label": "{{ label[-1] }}"}
        return {"class_path": "Prompted", "init_args": {"splits": files, **template}}

    def tokenizer(self):
        """A tokenizer; where a prompt is continued, it ends no sequence."""
        return tiny.text_tokenizer("$A" if self.kind == "causal" else "$A [EOS]")

    def tensors(self, folder: Path) -> dict[str, torch.Tensor]:
        """A saved model's parameters as transformers reads them, by its own names."""
        return dict(KINDS[self.kind][1].from_pretrained(folder).named_parameters())

    def module(self):
        """A module of the two experts, as a merge has it."""
        module = TextClassifier() if self.kind == "classifier" else RankChoice()
        module.adopt({"one": module.read(str(self.folder / "a"), "one")}, self.tokenizer())
        return module


def _check_runs(kind: str, model) -> None:
    ids = torch.tensor([[4, 5, 6, 7, 2]])
    try:
        with torch.no_grad():
            output = model(
                input_ids=ids, **({"decoder_input_ids": ids} if kind == "seq2seq" else {})
            )
    except Exception as error:  # whatever transformers says of its own model
        raise NotBuilt(one_line(error)) from error
    if not torch.isfinite(output.logits).all():
        raise NotBuilt("its logits are not finite")


class Steps:
    """The commands of the table; each returns its cell, or raises.

    Args:
        models: What they run on.
    """

    def __init__(self, models: Models) -> None:
        self.models, self.folder = models, models.folder
        self.experts = [f"--experts.{name}={self.folder / name}" for name in "ab"]

    def _merge(self, method: str) -> str:
        command_line([
            *["merge", "--config", str(self.models.config), *self.experts, f"--method={method}"],
            *["--optimizer.search=Fixed", "--baselines=experts", f"--base={self.folder / 'base'}"],
            *["--fisher.examples=4", f"--output={self.folder / method}", *QUIET],
        ])
        return "works"

    def _on_one(self, command: str, *options: str) -> str:
        command_line([command, "--config", str(self.models.only), *options, *QUIET])
        return "works"

    def read(self) -> str:
        """Reads an expert's tensors."""
        expected = load_file(self.folder / "a/model.safetensors")
        found = load_params(self.folder / "a")
        assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        return "works"

    def average(self) -> str:
        """Averages, and compares the saved tensors with the mean in float64."""
        self._merge("Average")
        a, b = (self.models.tensors(self.folder / name) for name in "ab")
        body = build(self.models.kind, self.models.model_type, 1).base_model_prefix + "."
        for config in (self.folder / "Average/merged").rglob("config.json"):
            own = {"a": a, "b": b}.get(config.parent.name)
            for name, value in self.models.tensors(config.parent).items():
                mean = ((a[name].double() + b[name].double()) / 2).to(value.dtype)
                head = own is not None and not name.startswith(body)
                if not torch.equal(value, own[name] if head else mean):
                    raise AssertionError(f"{name}: not {'its own head' if head else 'the mean'}")
        return "exact"

    def fisher(self) -> str:
        """Runs the command, and compares a Fisher in float64 with a loop."""
        file = self.folder / "f.safetensors"
        self._on_one("fisher", f"--expert={self.folder / 'a'}", "--examples=4", f"--output={file}")
        assert sum(float(value.sum()) for value in read_fisher(file)[0].values())
        return exactness.compare(self.models.kind, self.models.module())

    def fit(self) -> str:
        """Fine-tunes the base for two steps."""
        options = ["--trainer.max_steps=2", f"--output={self.folder / 'fit'}"]
        return self._on_one("fit", f"--model.path={self.folder / 'base'}", *options)

    def test(self) -> str:
        """Scores what was fine-tuned."""
        return self._on_one("test", f"--model.path={self.folder / 'fit/expert'}")

    def all(self) -> dict[str, Callable[[], str]]:
        """The steps by the table's names, in order."""
        return {
            "read": self.read,
            "Average": self.average,
            "fisher": self.fisher,
            "FisherMerge": lambda: self._merge("FisherMerge"),
            "RegMean": lambda: self._merge("RegMean"),
            "fit": self.fit,
            "test": self.test,
        }


def cell(step: Callable[[], str], log: Path) -> str:
    """Runs a step; returns what it says, a refusal's line, or TRACEBACK with the error."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            return step()
    except SystemExit as end:
        lines = errors.getvalue().strip().splitlines()
        lines = [line for line in lines if line.startswith("fmerge: error: ")]
        if end.code == 2 and len(lines) == 1:
            return "refused: " + lines[0].removeprefix("fmerge: error: ")
        return f"TRACEBACK: exit {end.code}, {errors.getvalue()[-300:]!r}"
    except UserError as error:
        return f"refused: {error}"
    except Exception as error:  # the table is there to show them
        with log.open("a") as file:
            file.write(traceback.format_exc())
        return f"TRACEBACK: {one_line(error)}"


def sweep_one(kind: str, model_type: str, log: Path) -> dict[str, str]:
    """Runs all steps on one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            models = Models(kind, model_type, Path(folder))
        except NotBuilt as error:
            return {"not built": str(error)}
        return {
            name: cell(step, log).replace(folder, "…") for name, step in Steps(models).all().items()
        }


def main() -> None:
    """Runs the architectures that are not in the log yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=[f"{k}/{t}" for k in KINDS for t in model_types(k)]
    )
    parser.add_argument("--log", type=Path, default=Path("runs/sweep.jsonl"))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    options.log.touch()
    done = {row["name"]: row for row in map(json.loads, options.log.read_text().splitlines())}
    for name in options.only:
        if name not in done:
            done[name] = {
                "name": name,
                **sweep_one(*name.split("/"), options.log.with_suffix(".err")),
            }
            with options.log.open("a") as file:
                file.write(json.dumps(done[name], ensure_ascii=False) + "\n")
        print(name, {k: v for k, v in done[name].items() if k != "name"}, flush=True)
    if options.table:
        table.write(done, options.table)


if __name__ == "__main__":
    main()
