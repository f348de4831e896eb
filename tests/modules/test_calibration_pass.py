"""Calibrations against a loop over layers, experts and single examples, without padding."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from fmerge.methods import FeatCal, RegMeanPP
from fmerge.modules import Bodies, CalibrationPass, TextClassifier
from fmerge.params import params_of
from tests import tiny
from tests.compare import assert_same
from tests.modules.layer_by_layer import calibrated

TASKS = ("one", "two")
TEXTS = {task: tiny.sentences(9, seed) for task, seed in zip(TASKS, (4, 5), strict=True)}
SENTENCES = {task: [{"text": t, "label": 0} for t in texts] for task, texts in TEXTS.items()}
METHODS = {
    "RegMeanPP": (RegMeanPP(double=True), {"off_diagonal": 0.9}),
    "FeatCal": (
        FeatCal(double=True),
        {"a": 0.3, "rho": 2.0, "r": 0.05, "c": True, "biases": True, "norms": True},
    ),
}
BERT_BLOCK = [
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "attention.output.LayerNorm",
    "intermediate.dense", "output.dense", "output.LayerNorm",
]  # fmt: skip
BERT = [
    "bert.embeddings.LayerNorm",
    *(f"bert.encoder.layer.{i}.{name}" for i in range(2) for name in BERT_BLOCK),
    "bert.pooler.dense",
]


def moved(model, seed, scale=0.1):
    """A model near another, as if fine-tuned from it."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return other.eval()


def averaged(models):
    merged = copy.deepcopy(models[0])
    with torch.no_grad():
        for parameter, *others in zip(*(m.parameters() for m in [merged, *models]), strict=True):
            parameter.copy_(sum(others) / len(others))
    return merged


def fitted(module, method, models, base, examples, batch_size=4, skipping=True):
    """The body that the pass fits to the experts' from their average."""
    own = {name: module.body(model) for name, model in zip(TASKS, models, strict=False)}
    start = module.body(averaged(models))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    loaders = [
        DataLoader(
            examples[task], batch_size=batch_size,
            collate_fn=lambda some, task=task: module.collate(some, task),
        )
        for task in own
    ]  # fmt: skip
    network = module.task_model("one")
    network.load_state_dict(start, strict=False)
    bodies = Bodies(start, None if base is None else module.body(base), own)
    one = CalibrationPass(module, method, {task: task for task in own}, bodies)
    one.skipping = skipping
    trainer.predict(one, dataloaders=loaders, return_predictions=False)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    assert not any("forward" in vars(m) for m in network.modules())
    assert one.skipping == skipping
    found = start | one.fitted
    live = params_of(network)
    assert_same({name: live[name] for name in found}, found)
    return found


def classifiers():
    base = tiny.classifier(tiny.bert_config(), seed=1).double()
    return base, [moved(base, 10), moved(base, 11)]


def headed(models):
    module = TextClassifier()
    module.adopt(
        {task: copy.deepcopy(model) for task, model in zip(TASKS, models, strict=False)},
        tiny.tokenizer(),
    )
    return module.double().eval()


def one_text(text):
    return lambda model: model(**tiny.tokenizer()(text, return_tensors="pt"))


RUNS = [[one_text(text) for text in TEXTS[task]] for task in TASKS]


@pytest.mark.parametrize("name", METHODS)
def test_of_classifiers(name):
    method, options = METHODS[name]
    base, models = classifiers()
    module = headed(models)
    found = fitted(module, method, models, base, SENTENCES)
    expected = calibrated(averaged(models), models, base, BERT, RUNS, **options)
    assert_same(found, module.body(expected), rtol=1e-6)
