"""Loaders of one's own under task modules: pairs, mappings and lists of examples."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

import fmerge
from fmerge.data.own import OwnData
from fmerge.errors import UserError
from fmerge.modules import ImageClassifier
from fmerge.store import IMAGE_PROCESSORS
from tests import tiny_images
from tests.compare import assert_same
from tests.modules.test_generator import answered, make
from tests.modules.test_own import NAMES, Mine, Points, data, save_experts, trainer


class Pairs(LightningDataModule):
    """The points of each task as pairs of tensors, as most tutorials have them."""

    labels = NAMES

    def _loaders(self, split):
        found = {}
        for task in NAMES:
            examples = Points(task).examples(split)
            inputs = torch.tensor([one["inputs"] for one in examples])
            labels = torch.tensor([one["label"] for one in examples])
            found[task] = DataLoader(TensorDataset(inputs, labels), batch_size=3)
        return found

    def train_dataloader(self):
        return self._loaders("train")

    def val_dataloader(self):
        return self._loaders("validation")

    def test_dataloader(self):
        return self._loaders("test")


@pytest.fixture
def experts(tmp_path):
    return save_experts(tmp_path)


def test_pairs_of_tensors_give_the_fisher_of_examples(tmp_path, experts):
    found = [
        trainer().fisher(
            Mine(),
            one,
            task="b",
            expert=experts["b"],
            split="validation",
            output=tmp_path / f"{i}.safetensors",
        )  # fmt: skip
        for i, one in enumerate((data(), Pairs()))
    ]
    assert_same(found[0].values, found[1].values)  # the order of examples differs


@pytest.mark.slow
def test_pairs_of_tensors_are_scored_as_examples(tmp_path, experts):
    rows = []
    for i, one in enumerate((data(), Pairs())):
        report = trainer().merge(
            Mine(), one, experts=experts, method="Average", baselines="experts",
            output=tmp_path / f"out{i}",
        )  # fmt: skip
        rows.append({row.name: dict(row.scores) for row in report.rows})
    assert rows[0] == rows[1] and rows[0]


def test_a_list_of_examples_is_made_a_batch_by_the_module():
    module = Mine()
    examples = Points("b").examples("test")
    expected = module.collate(examples, "b")
    found = module.named_batch(list(examples), "b")
    assert found["inputs"].equal(expected["inputs"]) and found["task"] == "b"

    assert fmerge.modules.TaskModule.named_batch(Mine(), {"x": 1, "label": 2}, "a") == {
        "x": 1, "labels": 2, "task": "a",
    }  # fmt: skip


class Rows(LightningDataModule):
    """Examples as they are, and the name of a metric."""

    metrics: ClassVar = {"one": ["perplexity"]}

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def val_dataloader(self):
        return {"one": DataLoader(self.rows, batch_size=8, collate_fn=list)}


def pictured(folder):
    module = ImageClassifier()
    model = tiny_images.classifier(tiny_images.vit_config())
    module.adopt({"one": model}, IMAGE_PROCESSORS.load(tiny_images.save(model, folder)))
    pictures = tiny_images.pictures(3, seed=0, classes=3)
    return module, [{"image": one, "label": i} for i, one in enumerate(pictures)]


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_rows_for_the_modules_of_fmerge(kind, tmp_path):
    module, rows = (make("gpt2"), answered(3)) if kind == "texts" else pictured(tmp_path / "x")
    owner = SimpleNamespace(lightning_module=module, world_size=1, local_rank=0)
    own = OwnData(Rows(rows), owner)
    own.trainer = owner
    (batch,) = own.loaders("validation")["one"]
    expected = module.collate(rows, "one")
    assert batch.keys() == expected.keys()
    for key, one in expected.items():
        assert torch.equal(batch[key], one) if isinstance(one, torch.Tensor) else batch[key] == one
    assert own.metrics == {"one": ["perplexity"]} and own.labels == {"one": []}


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"pixels": 1}, "a mapping of pixels"),
        (torch.ones(2), "a Tensor"),
        ([torch.ones(2)] * 3, "a list"),
    ],
)
def test_other_batches_are_refused(batch, found):
    message = f"--data: the loader of task 'a' gives {found}, but Mine needs a mapping with 'lab"
    with pytest.raises(UserError, match=message):
        Mine().named_batch(batch, "a")
