"""What a fit refuses, when it ends, and which weights and checkpoints it leaves."""

import math

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.modules import RankChoice, TextClassifier
from fmerge.runs.described import described
from fmerge.trainer import FMergeTrainer
from tests import tiny


def trainer(*callbacks, epochs=2, **options):
    return FMergeTrainer(
        **{"max_epochs": epochs, "enable_progress_bar": False} | options,
        accelerator="cpu", logger=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip


def data(zoo, batch_size=10, **files):
    given = zoo.tasks["colour"] | files
    return MultiTask({"colour": TextFiles(**given, labels=tiny.LABELS["colour"])}, batch_size)


def classifier(zoo, rate=0.01, **options):
    settings = {"scheduler": "constant", "warmup_fraction": 0.0} | options
    return TextClassifier(zoo.base, learning_rate=rate, **settings)


def best(**options):
    settings = {"monitor": "val/score", "mode": "max", "filename": "best", "save_last": True}
    return ModelCheckpoint(**settings | options)


def unteachable(tmp_path):
    """Equal texts of different classes: the score never improves."""
    path = tmp_path / "same.csv"
    path.write_text("text,label\n" + "red cat,warm\nred cat,cold\n" * 6)
    return dict.fromkeys(["train", "validation", "test"], str(path))


def epoch_of(path):
    return torch.load(path, weights_only=True)["epoch"]


class Spoil(Callback):
    """Makes a weight infinite, a loss NaN or nothing, at a step counted from 1."""

    def __init__(self, what, step):
        self.what, self.step = what, step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.what == "weight" and trainer.global_step + 1 == self.step:
            next(pl_module.parameters()).data[0, 0] = torch.inf

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.what == "loss" and trainer.global_step + 1 == self.step:
            pl_module.task_loss = lambda batch: (
                sum(p.sum() for p in pl_module.parameters()) * (torch.nan)
            )


def test_a_fit_that_diverges_says_at_which_step_and_saves_no_expert(zoo, tmp_path):
    with pytest.raises(UserError) as raised:
        trainer(best(), epochs=3).fit(
            classifier(zoo, rate=1e30), datamodule=data(zoo), output=tmp_path / "out"
        )
    line = str(raised.value)
    # two batches an epoch: the first step spoils the weights, the second loss shows it
    assert line.startswith("fit: the loss is nan at step 2 (epoch 0, batch 1): the training has")
    assert "no expert is saved; lower --model.learning_rate (it is 1e+30)" in line
    assert "\n" not in line and "best epoch" not in line
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["config.yaml"]


def test_a_fit_that_diverges_later_keeps_the_best_epoch_before(zoo, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(UserError, match=r"the loss is nan at step 4 .epoch 1, batch 1.*before it"):
        trainer(best(), Spoil("loss", 4)).fit(classifier(zoo), datamodule=data(zoo), output=output)
    assert not (output / "expert").exists()
    assert epoch_of(output / "checkpoints" / "best.ckpt") == 0
    assert epoch_of(output / "checkpoints" / "last.ckpt") == 0


@pytest.mark.parametrize(
    ("validated", "message"),
    [(1.0, "the validation loss is nan after step 2"), (0, "' are not finite after step 2")],
)
def test_the_last_step_of_a_fit_may_diverge(zoo, tmp_path, validated, message):
    options = {"limit_val_batches": validated, "num_sanity_val_steps": 0, "epochs": 1}
    with pytest.raises(UserError, match=message):
        trainer(Spoil("weight", 2), **options).fit(
            classifier(zoo), datamodule=data(zoo), output=tmp_path / "out"
        )
    assert not (tmp_path / "out" / "expert").exists()
    assert not list((tmp_path / "out").rglob("*.ckpt")) or not validated


class Own(LightningModule):
    """Diverges at its third step; makes its weights where it is told to."""

    def __init__(self, late=False):
        super().__init__()
        self.layer = None if late else torch.nn.Linear(2, 1)

    def configure_model(self):
        if self.layer is None:
            self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        return loss / (2 - batch_idx) if batch_idx == 2 else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_module_of_ones_own_that_diverges(tmp_path):
    loader = DataLoader(torch.ones(8, 2), batch_size=1)
    with pytest.raises(UserError, match=r"the loss is inf at step 3 .epoch 0, batch 2"):
        trainer(default_root_dir=tmp_path).fit(Own(), loader)
    assert not list(tmp_path.iterdir())


def test_a_fit_that_is_overwritten_leaves_no_expert_of_the_run_before(zoo, tmp_path):
    output = tmp_path / "out"
    (output / "expert").mkdir(parents=True)
    with pytest.raises(UserError, match="diverged"):
        trainer(epochs=1).fit(
            classifier(zoo, rate=1e30), datamodule=data(zoo), output=output, overwrite=True
        )
    assert not (output / "expert").exists()


@pytest.mark.parametrize(
    ("options", "epochs", "last", "best_epoch"),
    [
        ({}, 3, 2, 0),
        pytest.param({"every_n_epochs": 2}, 3, 1, 1, marks=pytest.mark.slow),
        pytest.param({"save_top_k": 0}, 2, 1, None, marks=pytest.mark.slow),
        pytest.param({"monitor": None}, 2, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_last_is_of_the_last_finished_epoch(zoo, tmp_path, options, epochs, last, best_epoch):
    output = tmp_path / "out"
    trainer(best(**options), epochs=epochs).fit(
        classifier(zoo, rate=1e-5), datamodule=data(zoo, **unteachable(tmp_path)), output=output
    )
    assert epoch_of(output / "checkpoints" / "last.ckpt") == last
    kept = output / "checkpoints" / "best.ckpt"
    assert (epoch_of(kept) if kept.exists() else None) == best_epoch


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"val_check_interval": 1}, {"check_val_every_n_epoch": 2}])
def test_last_is_of_the_last_epoch_however_often_it_is_validated(zoo, tmp_path, options):
    output = tmp_path / "out"
    trainer(best(), epochs=3, **options).fit(
        classifier(zoo, rate=1e-5), datamodule=data(zoo, **unteachable(tmp_path)), output=output
    )
    assert epoch_of(output / "checkpoints" / "last.ckpt") == 2


@pytest.mark.slow
def test_a_fit_resumed_from_its_last_epoch_has_made_every_step(zoo, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "out"
    last = output / "checkpoints" / "last.ckpt"
    for epochs, place, resumed in ((4, whole, None), (3, output, None), (4, output, last)):
        seed_everything(3)
        files = data(zoo, **unteachable(tmp_path))
        trainer(best(), epochs=epochs).fit(
            classifier(zoo), datamodule=files, output=place, ckpt_path=resumed
        )
    states = [torch.load(one, weights_only=True) for one in (last, whole / "checkpoints/last.ckpt")]
    assert [one["global_step"] for one in states] == [8, 8]
    assert all(
        torch.equal(v, states[1]["state_dict"][k]) for k, v in states[0]["state_dict"].items()
    )


class Averaging(StochasticWeightAveraging):
    """Records what is averaged: the weights at the start of each epoch from the second on."""

    def on_train_epoch_start(self, trainer, pl_module):
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.current_epoch >= 1:
            self.seen = [*getattr(self, "seen", []), {
                name: value.clone() for name, value in pl_module.state_dict().items()
            }]  # fmt: skip


def test_the_expert_is_the_average_that_a_callback_makes(zoo, tmp_path):
    averaging, output = Averaging(swa_lrs=1e-3, swa_epoch_start=2), tmp_path / "out"
    with pytest.warns(UserWarning, match="SWA is currently only supported every epoch"):
        trainer(averaging, best(), epochs=4).fit(
            classifier(zoo), datamodule=data(zoo), output=output
        )
    expert = load_file(output / "expert" / "model.safetensors")
    assert len(averaging.seen) == 3
    for name, value in expert.items():
        mean = sum(one[f"models.colour.{name}"] for one in averaging.seen) / 3
        torch.testing.assert_close(value, mean)
    assert not torch.equal(
        expert["classifier.weight"], averaging.seen[-1]["models.colour.classifier.weight"]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_a_running_average_of_every_step(zoo, tmp_path):
    averaging, output = WeightAveraging(), tmp_path / "out"
    trainer(averaging, best(monitor=None), epochs=2).fit(
        classifier(zoo), datamodule=data(zoo), output=output
    )
    expert = load_file(output / "expert" / "model.safetensors")
    averaged = dict(averaging._average_model.module.named_parameters())
    for name, value in expert.items():
        torch.testing.assert_close(value, averaged[f"models.colour.{name}"].detach())


class Freeze(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.models["colour"].bert)

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


def test_a_callback_that_freezes_the_body_at_setup_freezes_it(zoo, tmp_path):
    trainer(Freeze(), epochs=1).fit(classifier(zoo), datamodule=data(zoo), output=tmp_path / "out")
    expert = load_file(tmp_path / "out" / "expert" / "model.safetensors")
    base = load_file(f"{zoo.base}/model.safetensors")
    for name, value in expert.items():
        assert torch.equal(value, base[name]) == name.startswith("bert."), name


class Count(Callback):
    def setup(self, trainer, pl_module, stage):
        self.found = sum(1 for _ in pl_module.parameters())


@pytest.mark.parametrize("command", ["validate", "test"])
def test_callbacks_of_other_commands_see_the_weights_too(zoo, tmp_path, command):
    count = Count()
    made = trainer(count, default_root_dir=tmp_path)
    getattr(made, command)(
        TextClassifier(zoo.experts["colour"]), datamodule=data(zoo), verbose=False
    )
    assert count.found == 41 and made.callbacks[0] is count


def test_a_language_model_is_read_first_too(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(tiny.gpt2_config()).save_pretrained(folder)
    tiny.text_tokenizer().save_pretrained(folder)
    module, count = RankChoice(str(folder)), Count()
    from fmerge.data import Prompted

    table = tmp_path / "t.csv"
    table.write_text("text,label\nred cat,0\nblue dog,1\n")
    task = Prompted(
        source=None, splits={"validation": str(table)}, text="{{ text }}",
        choices=["one", "two"], label="{{ label }}",
    )  # fmt: skip
    trainer(count).validate(module, datamodule=MultiTask({"a": task}), verbose=False)
    assert count.found == sum(1 for _ in module.parameters()) > 0


def test_a_callback_that_would_average_nothing_is_refused(tmp_path):
    loader = DataLoader(torch.ones(2, 2), batch_size=1)
    averaging = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    with pytest.raises(UserError, match="StochasticWeightAveraging has copied Own before conf"):
        trainer(averaging, default_root_dir=tmp_path).fit(Own(late=True), loader)


@pytest.mark.parametrize(
    "options", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}]
)
def test_a_fit_without_a_step_is_refused(zoo, tmp_path, options):
    (name,) = options
    with pytest.raises(UserError, match=f"--trainer.{name}: is 0.*, so nothing would be trained"):
        trainer(**options).fit(classifier(zoo), datamodule=data(zoo), output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_fit_that_made_no_step_saves_no_expert(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(TextClassifier, "on_train_batch_start", lambda self, *batch: -1)
    with pytest.raises(UserError, match="fit: no training step was made, so no expert is saved"):
        trainer(epochs=1).fit(classifier(zoo), datamodule=data(zoo), output=tmp_path / "out")
    assert not (tmp_path / "out" / "expert").exists()


@pytest.mark.slow
def test_a_resumed_fit_with_no_step_left_saves_its_expert(zoo, tmp_path):
    output = tmp_path / "out"
    files = data(zoo)
    trainer(best(), epochs=1).fit(classifier(zoo), datamodule=files, output=output)
    last = output / "checkpoints" / "last.ckpt"
    before = load_file(output / "expert" / "model.safetensors")
    trainer(best(), epochs=1).fit(
        classifier(zoo), datamodule=files, output=output, ckpt_path=str(last)
    )
    after = load_file(output / "expert" / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("below", "--checkpoint.dirpath .*: .*f.csv is a file, so nothing can be made below it"),
        ("/proc/fmerge", "--checkpoint.dirpath /proc/fmerge: nothing can be written in /proc"),
    ],
)
def test_a_place_of_checkpoints_that_cannot_be_made(zoo, tmp_path, place, message):
    (tmp_path / "f.csv").write_text("")
    place = str(tmp_path / "f.csv" / "x") if place == "below" else place
    for output in (None, tmp_path / "out"):
        with pytest.raises(UserError, match=message):
            trainer(best(dirpath=place)).fit(classifier(zoo), datamodule=data(zoo), output=output)
    with pytest.raises(UserError, match="--trainer.default_root_dir .*f.csv is a file"):
        trainer(default_root_dir=tmp_path / "f.csv" / "x").fit(
            classifier(zoo), datamodule=data(zoo)
        )
    assert not (tmp_path / "out").exists()


def test_a_fit_from_python_describes_itself(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trainer(best(), epochs=1).fit(
        classifier(zoo, scheduler="cosine"), datamodule=data(zoo), output="~/out"
    )
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["model"]["class_path"] == "fmerge.modules.TextClassifier"
    assert config["model"]["init_args"]["scheduler"] == "cosine"
    assert config["trainer"]["max_epochs"] == 1 and math.isclose(
        config["trainer"]["limit_val_batches"], 1
    )
    task = config["data"]["tasks"]["colour"]
    assert task["class_path"] == "fmerge.data.TextFiles"
    assert task["init_args"]["train"] == zoo.tasks["colour"]["train"]
    assert described(data(zoo).tasks["colour"]) | {"init_args": 0} == task | {"init_args": 0}
    assert (tmp_path / "out" / "checkpoints" / "last.ckpt").is_file()
