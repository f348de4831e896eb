"""Adam's second moment for a Fisher, against the state of the optimizer that made it."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble
from fmerge.methods import FisherMerge
from fmerge.modules import TextClassifier
from fmerge.store import read_second_moments
from fmerge.trainer import FMergeTrainer
from tests import tiny
from tests.compare import assert_same


class Spy(Callback):
    """Notes the optimizer's own state by the module's names, found by the parameter itself."""

    def on_train_end(self, trainer, pl_module):
        state = trainer.optimizers[0].state
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        self.moments = {
            names[parameter]: own["exp_avg_sq"] / (1 - 0.999 ** float(own["step"]))
            for parameter, own in state.items()
        }


def fit(zoo, folder, task, path=None):
    torch.manual_seed(0)
    spy = Spy()
    trainer = FMergeTrainer(
        accelerator="cpu", logger=False, max_steps=3, callbacks=[spy], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = MultiTask({task: TextFiles(**zoo.tasks[task], labels=tiny.LABELS[task])}, batch_size=4)
    module = TextClassifier(path or zoo.experts[task], learning_rate=1e-3)
    trainer.fit(module, datamodule=data)
    checkpoint = folder / f"{task}.ckpt"
    trainer.save_checkpoint(checkpoint)
    return checkpoint, spy.moments


@pytest.fixture(scope="module")
def fits(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    return {task: fit(zoo, folder, task) for task in zoo.tasks}


def ensemble(experts):
    return load_ensemble(experts, None, FisherMerge(), TextClassifier())


def test_an_experts_moments_are_its_optimizers(fits):
    experts = {task: Expert(str(path), path) for task, (path, _) in fits.items()}
    found = ensemble(experts)
    for task, (_, moments) in fits.items():
        body = found.bodies[task]
        # 2 layers of 16 tensors, 5 of the embeddings and 2 of the pooler: both groups' order
        assert list(found.fishers[task]) == list(body) and len(body) == 39
        expected = {name: moments[f"models.{task}.{name}"] for name in body}
        assert_same(found.fishers[task], expected, rtol=1e-6)
        assert len({float(value.sum()) for value in expected.values()}) > 30


def test_a_donor_of_another_name_has_its_own(fits, zoo):
    (path, moments), other = fits["animal"], fits["colour"][0]
    experts = {"colour": Expert(str(other), other), "else": Expert(str(path), path, donor=True)}
    # a donor's source is read under its own name, its folder here: the body alone counts
    folder = zoo.root / "expert_of_animal"
    state = torch.load(path, weights_only=True)["state_dict"]
    model = tiny.fine_tuned(tiny.classifier(tiny.bert_config(), seed=1), tiny.LABELS["animal"])
    model.load_state_dict({k.removeprefix("models.animal."): v for k, v in state.items()})
    experts["else"].path = tiny.save(model, folder)
    found = ensemble(experts).fishers["else"]
    assert_same(found, {name: moments[f"models.animal.{name}"] for name in found}, rtol=1e-6)


def changed(fits, folder, change):
    content = torch.load(fits["colour"][0], weights_only=True)
    change(content)
    path = folder / "changed.ckpt"
    torch.save(content, path)
    return path


def sgd(content):
    weight = torch.nn.Parameter(torch.ones(2))
    content["optimizer_states"] = [torch.optim.SGD([("w", weight)], lr=0.1).state_dict()]


def frozen(content):
    optimizer = content["optimizer_states"][0]
    place = optimizer["param_groups"][0]["param_names"].index(FIRST)
    del optimizer["state"][optimizer["param_groups"][0]["params"][place]]


def group(content, number=0):
    return content["optimizer_states"][0]["param_groups"][number]


FIRST = "models.colour.bert.embeddings.word_embeddings.weight"
BAD = {
    "of SGD": (sgd, "its optimizer has no second moment, as Adam has; give a .ckpt"),
    "weights only": (
        lambda content: content.pop("optimizer_states"),
        "was saved without its optimizer's state; give a .ckpt of 'fmerge fit'",
    ),
    "without names": (
        lambda content: group(content).pop("param_names"),
        "its optimizer does not name its parameters",
    ),
    "frozen": (
        frozen,
        "has no Adam state of 'bert.embeddings.word_embeddings.weight', which was frozen",
    ),
    "of another shape": (
        lambda content: group(content)["param_names"].reverse(),
        "the Adam state of 'bert.embeddings.word_embeddings.weight' is (",
    ),
    "names without numbers": (
        lambda content: group(content)["param_names"].pop(),
        "its optimizer's state is damaged (ValueError",
    ),
    "twice": (
        lambda content: group(content)["param_names"].__setitem__(1, FIRST),
        f"its optimizer names '{FIRST}' twice",
    ),
    "two optimizers": (
        lambda content: content["optimizer_states"].append({}),
        "has the states of 2 optimizers, not of one Adam",
    ),
    "no state at all": (
        lambda content: content.update(optimizer_states=[3]),
        "its optimizer's state is damaged (TypeError",
    ),
    "negative": (
        lambda content: content["optimizer_states"][0]["state"][0]["exp_avg_sq"].neg_(),
        "has negative entries; a Fisher has none",
    ),
    "of another run": (
        lambda content: content["state_dict"][FIRST].add_(1),
        "holds other weights than",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case, fits, tmp_path):
    change, message = BAD[case]
    path = changed(fits, tmp_path, change)
    experts = {task: Expert(str(good), good) for task, (good, _) in fits.items()}
    experts["colour"].fisher = path
    with pytest.raises(UserError) as raised:
        ensemble(experts)
    assert str(raised.value).startswith(f"{path}: ") and message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_of_several_tasks_has_to_have_this_one(fits, tmp_path):
    def two(content):
        state = content["state_dict"]
        state |= {k.replace("models.colour", "models.other"): v for k, v in state.items()}

    path = changed(fits, tmp_path, two)
    with pytest.raises(UserError, match="has the networks colour, other, but none of 'third'"):
        read_second_moments(path, "third", ["bert.pooler.dense.weight"])
