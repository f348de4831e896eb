"""A whole merge in this process, from folders to folders."""

import torch

import fmerge
from fmerge.data import MultiTask
from fmerge.methods import Average
from fmerge.modules import TextClassifier
from tests.evaluation.tiny_tasks import Given, examples


def save(model, folder, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def near(model, base, scale=0.02):
    """Moves all of a model's tensors that a base has close to it."""
    origin = dict(base.named_parameters())
    with torch.no_grad():
        for name, own in model.named_parameters():
            if name in origin and origin[name].shape == own.shape:
                own.copy_(origin[name] + scale * own)
    return model


def task(labels, seed, **options):
    sizes = {"train": 6, "validation": 9, "test": 5}
    splits = {s: examples(n, len(labels), seed + i) for i, (s, n) in enumerate(sizes.items())}
    return Given(list(labels), **splits, **options)


def merge(tmp_path, experts, tasks, module=None, method=None, **options):
    """Merges, and returns the report."""
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    return trainer.merge(
        module or TextClassifier(),
        MultiTask(tasks, 4),
        experts=experts,
        method=method or Average(),
        output=tmp_path / "out",
        baselines="experts",
        **options,
    )
