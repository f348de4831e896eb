"""Calibrations of convolutions and batch norms against a loop over layers and single images."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from fmerge.errors import UserError
from fmerge.methods import FeatCal, RegMeanPP
from fmerge.modules import Bodies, CalibrationPass
from tests.compare import assert_same
from tests.modules.layer_by_layer import calibrated

TASKS = ("one", "two")
ORDER = ["first", "norm", "second", "after", "last"]


class Network(nn.Module):
    """Convolutions with strides and padding, one of them by channel; two kinds of batch norm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, (1, 2), bias=False)
        self.apart = nn.Conv2d(3, 3, 1, groups=3)
        self.after = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = self.apart(self.second(self.norm(self.first(x)).relu())).tanh()
        return self.last(self.after(x.mean(dim=(2, 3))))


class Images(LightningModule):
    """A module of one network: what a calibration asks of a task module."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def task_model(self, task):
        return self.network

    def label_log_probs(self, batch):
        return self.network(batch["x"]).log_softmax(1)

    def collate(self, examples, task):
        return {"x": torch.stack(list(examples)), "task": task}


def trained(seed):
    """A network near the first, whose batch norms saw other images."""
    torch.manual_seed(1)
    network = Network().double()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        network.train()
        network(seed + torch.randn(20, 2, 6, 7, dtype=torch.float64))
    return network.eval()


def images(seed):
    torch.manual_seed(seed)
    return list(torch.randn(7, 2, 6, 7, dtype=torch.float64) + seed / 10)


def state(network):
    return {name: t.detach().clone() for name, t in network.state_dict().items() if t.ndim}


def average(networks):
    merged = copy.deepcopy(networks[0])
    states = [state(one) for one in networks]
    merged.load_state_dict(
        {name: sum(one[name] for one in states) / len(states) for name in states[0]}, strict=False
    )
    return merged


def fitted(method, networks, base, examples, batch_size=3):
    module = Images(average(networks))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    loaders = [
        DataLoader(
            some, batch_size=batch_size,
            collate_fn=lambda rows, task=task: module.collate(rows, task),
        )
        for task, some in examples.items()
    ]  # fmt: skip
    start = state(module.network)
    bodies = Bodies(start, state(base), dict(zip(TASKS, map(state, networks), strict=True)))
    one = CalibrationPass(module, method, dict(zip(TASKS, TASKS, strict=True)), bodies)
    trainer.predict(one, dataloaders=loaders, return_predictions=False)
    return start | one.fitted


NETWORKS = [trained(2), trained(3)]
IMAGES = {task: images(k) for k, task in enumerate(TASKS)}
RUNS = [[lambda m, x=x: m(x[None]) for x in some] for some in IMAGES.values()]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (RegMeanPP(double=True), {"off_diagonal": 0.9}),
        (
            FeatCal(double=True),
            {"a": 0.3, "rho": 2.0, "r": 0.05, "c": True, "biases": True, "norms": True},
        ),
    ],
)
def test_convolutions_are_fitted_as_their_patches(method, options, caplog):
    base = trained(4)
    expected = calibrated(average(NETWORKS), NETWORKS, base, ORDER, RUNS, **options)
    found = fitted(method, NETWORKS, base, IMAGES)
    assert_same(found, state(expected), rtol=1e-6)
    assert "leaves 1 weights as the start merged them, such as 'apart.weight'" in caplog.text


@pytest.mark.parametrize("batch_size", [1, 7])
def test_running_statistics_alone(batch_size):
    """Each batch norm reads what the merged network gives it, whose earlier ones are right."""
    expected = calibrated(average(NETWORKS), NETWORKS, None, ["norm", "after"], RUNS)
    found = fitted(None, NETWORKS, NETWORKS[0], IMAGES, batch_size)
    assert_same(found, state(expected), rtol=1e-9)
    start = state(average(NETWORKS))
    changed = {name for name in start if not found[name].equal(start[name])}
    assert changed == {f"{n}.running_{s}" for n in ("norm", "after") for s in ("mean", "var")}


def test_texts_without_a_mask_are_refused():
    module = Images(average(NETWORKS))
    bodies = Bodies(
        state(module.network), None, dict(zip(TASKS, map(state, NETWORKS), strict=True))
    )
    one = CalibrationPass(module, RegMeanPP(), dict(zip(TASKS, TASKS, strict=True)), bodies)
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "task": "one"}
    with pytest.raises(UserError, match="have no attention_mask, so that their padding is not"):
        one.predict_step(batch, 0)
