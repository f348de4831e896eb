"""Merges that are only scored: no training file is asked for, and doubtful experts are named."""

import json
import logging
import shutil
from dataclasses import replace

import pytest

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from tests import tiny


def merge(zoo, output, labels=tiny.LABELS, splits=("validation", "test"), **options):
    tasks = {
        name: TextFiles(**{split: files[split] for split in splits}, labels=labels[name])
        for name, files in zoo.tasks.items()
    }
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    data = MultiTask(tasks, batch_size=8)
    module = fmerge.modules.TextClassifier()
    return trainer.merge(module, data, experts=zoo.experts, output=output, **options)


def test_no_training_file_is_asked_for(zoo, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        report = merge(zoo, tmp_path / "out", base=zoo.base)
    assert [row.name for row in report.rows] == ["base", "experts", "plain average"]
    warning = "task 'colour' has no train split: the table will lack the base with"
    assert caplog.text.count(warning) == 1
    with pytest.raises(UserError, match="--refit_heads: is end, but task 'colour' has no train "):
        merge(zoo, tmp_path / "refit", refit_heads="end")
    with pytest.raises(
        UserError, match=r"task 'colour': .* train split; set train; --fisher.split"
    ):
        merge(
            zoo,
            tmp_path / "fisher",
            method=fmerge.methods.FisherMerge(),
            fisher=fmerge.fisher.FisherSettings(split="train"),
        )


def test_an_expert_below_chance_is_named_in_the_report(zoo, tmp_path, caplog):
    tested = merge(zoo, tmp_path / "right").rows[0].scores["animal"]
    # two classes: in the other order the expert is right where it was wrong
    swapped = tiny.LABELS | {"animal": tiny.LABELS["animal"][::-1]}
    labels = tiny.LABELS if tested < 0.5 else swapped
    with caplog.at_level(logging.WARNING):
        report = _unnamed(zoo, tmp_path, labels)
    score = report.rows[0].scores["animal"]
    assert score == pytest.approx(min(tested, 1 - tested)) and score < 0.5
    said = f"task 'animal': its expert scores {score:.4f} on the test examples, below chance (0.50"
    assert said in caplog.text and said in report.markdown()


def _unnamed(zoo, tmp_path, labels):
    """A merge of experts that name no labels, so that their order cannot be found."""
    experts = {}
    for name, path in zoo.experts.items():
        experts[name] = str(shutil.copytree(path, tmp_path / f"unnamed_{name}"))
        config = tmp_path / f"unnamed_{name}" / "config.json"
        found = json.loads(config.read_text())
        names = [f"LABEL_{i}" for i in range(len(tiny.LABELS[name]))]
        found |= {
            "id2label": dict(enumerate(names)),
            "label2id": {n: i for i, n in enumerate(names)},
        }
        config.write_text(json.dumps(found))
    return merge(replace(zoo, experts=experts), tmp_path / "swapped", labels)
