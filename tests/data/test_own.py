"""Data modules and loaders of the user's own: the Fisher is that of the batches they give."""

import sys
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fmerge
from fmerge.cli.app import main
from fmerge.data.own import OwnData
from fmerge.errors import UserError
from tests import tiny
from tests.cli.run import fails
from tests.data.test_files import write

X = torch.linspace(-1, 1, 21).reshape(7, 3)


class Data(LightningDataModule):
    """Pairs (x, y) in tuples, as most tutorials have them."""

    def __init__(self, rows: int = 7):
        super().__init__()
        self.rows = rows

    def setup(self, stage):
        self.sets = TensorDataset(X[: self.rows], torch.arange(self.rows) % 2)

    def val_dataloader(self):
        return DataLoader(self.sets, batch_size=3)


class Own(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 2)

    def label_log_probs(self, batch):
        return self.net(batch[0]).log_softmax(1)


def trainer():
    return fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )


def expected(model, x):
    """F = mean of Σᵧ p(y) (∂ log p(y) / ∂θ)², by its definition."""
    total = torch.zeros_like(model.net.weight)
    for one in x:
        for answer in model.label_log_probs([one[None]])[0]:
            (gradient,) = torch.autograd.grad(answer, model.net.weight, retain_graph=True)
            total += answer.exp().detach() * gradient.square() / len(x)
    return total


@pytest.mark.parametrize("given", ["module", "loader", "named", "list"])
def test_the_fisher_of_a_module_and_data_of_ones_own(tmp_path, given):
    model = Own()
    loader = DataLoader(TensorDataset(X, torch.arange(7) % 2), batch_size=2)
    listed = Data()
    listed.val_dataloader = lambda: [loader]
    data = {"module": Data(), "loader": loader, "named": {"a": loader}, "list": listed}[given]
    found = trainer().fisher(model, data, output=tmp_path / "f.safetensors", split="validation")
    assert found.count == 7
    torch.testing.assert_close(found.values["net.weight"], expected(model, X))


def test_chosen_examples_are_those_of_the_seed(tmp_path):
    model = Own()
    found = trainer().fisher(
        model, Data(), output=tmp_path / "f.safetensors", split="validation", examples=4, seed=3
    )
    chosen = torch.randperm(7, generator=torch.Generator().manual_seed(3))[:4]
    torch.testing.assert_close(found.values["net.weight"], expected(model, X[chosen]))


def test_examples_are_told_apart_by_their_values():
    hashes = {OwnData(Data(rows), trainer()).fingerprint("task", "validation") for rows in (6, 7)}
    again = OwnData(Data(7), trainer()).fingerprint("task", "validation")
    assert len(hashes) == 2 and again in hashes


def test_data_of_ones_own_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_of_a_test.py").write_text(
        "from tests.data.test_own import Data as Base, Own as Model\n"
        "class Data(Base):\n"
        "    def __init__(self, rows: int = 7):\n"
        "        super().__init__(rows)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    common = ["--model", "own_of_a_test.Model", "--split", "validation"]
    common += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    output = str(tmp_path / "a.safetensors")
    main(["fisher", "--data", "own_of_a_test.Data", *common, "--output", output])
    (tmp_path / "own.yaml").write_text(
        "data: {class_path: own_of_a_test.Data, init_args: {rows: 5}}\n"
    )
    config = ["--config", str(tmp_path / "own.yaml")]
    main(["fisher", *config, *common, "--output", str(tmp_path / "b.safetensors")])
    assert "7 validation examples" in (printed := capsys.readouterr().out)
    assert "5 validation examples" in printed
    line = fails(
        capsys, "fisher", *config, *common, "--output", tmp_path / "c.safetensors", "--dry_run=true"
    )
    assert "--dry_run: knows the examples of MultiTask alone" in line
    sys.modules.pop("own_of_a_test")


class Sentences(LightningDataModule):
    """The zoo's tasks, tokenized by a collate_fn of its own."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def _loaders(self, split):
        def collate(examples, task):
            texts = [one["text"] for one in examples]
            labels = torch.tensor([one["label"] for one in examples])
            encoded = tiny.tokenizer()(texts, padding=True, return_tensors="pt")
            return {**encoded, "labels": labels, "task": task}

        return {
            name: DataLoader(
                list(task.examples(split)), batch_size=4, collate_fn=partial(collate, task=name)
            )
            for name, task in self.data.tasks.items()
        }

    def val_dataloader(self):
        return self._loaders("validation")

    def test_dataloader(self):
        return self._loaders("test")


def test_a_merge_on_data_of_ones_own_scores_as_on_ours(zoo, tmp_path):
    tasks = {
        name: fmerge.data.TextFiles(**files, labels=tiny.LABELS[name])
        for name, files in zoo.tasks.items()
    }
    ours = fmerge.data.MultiTask(tasks, batch_size=4)
    rows = []
    for i, data in enumerate((ours, Sentences(ours))):
        report = trainer().merge(
            fmerge.modules.TextClassifier(),
            data,
            experts=zoo.experts,
            output=tmp_path / str(i),
            baselines="experts",
        )
        rows.append({row.name: dict(row.scores) for row in report.rows})
    assert rows[0] == rows[1] and set(rows[0]) == {"experts", "plain average"}


def test_what_cannot_serve_is_refused(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield X[0]

    for data, message in [
        ([1, 2], "--data: is list, but must be MultiTask, a LightningDataModule, or a DataLoader"),
        (DataLoader(Stream()), "gives Stream, but a DataLoader of a dataset with a length"),
        (
            LightningDataModule(),
            "LightningDataModule names no tasks; use MultiTask, or give it a train_d",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            trainer().fisher(Own(), data, output=tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="Data: has no train_dataloader, which the train split is"):
        trainer().fisher(Own(), Data(), output=tmp_path / "f.safetensors", split="train")


def test_texts_under_a_module_without_collate_are_explained(tmp_path):
    file = write(tmp_path / "x.csv", [("a", 0), ("b", 1)])
    data = fmerge.data.MultiTask({"a": fmerge.data.TextFiles(file, file, file)}, batch_size=2)

    class Mapped(Own):
        def label_log_probs(self, batch):
            return self.net(batch["x"]).log_softmax(1)

        def validation_step(self, batch, batch_idx):
            self.net(batch["text"])

        test_step = validation_step

    message = (
        r"--model: Mapped has no collate\(examples, task\), so that it gets text as lists of "
        "strings, on which it fails .*; add collate"
    )
    with pytest.raises(UserError, match=message):
        trainer().fisher(Mapped(), data, output=tmp_path / "f.safetensors", split="validation")
    for run in (trainer().validate, trainer().test):
        with pytest.raises(UserError, match=message):
            run(Mapped(), datamodule=data)

    class Reads(Own):
        def label_log_probs(self, batch):
            return super().label_log_probs([X[: len(batch["text"])]])

    found = trainer().fisher(Reads(), data, output=tmp_path / "f.safetensors", split="validation")
    assert found.count == 2
