"""Networks of one's own through ``OwnModule``: reading, scoring, Fishers, merges, refusals."""

import json
from collections import OrderedDict

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file, save_file
from torch import nn

import fmerge
from fmerge.data import MultiTask, TaskData
from fmerge.errors import UserError
from fmerge.modules import OwnModule, read_network
from fmerge.store import LabelNames
from tests.compare import assert_same

NAMES = {"a": ["no", "yes"], "b": ["red", "green", "blue"]}


class Net(nn.Module):
    """A body with a normalization, a head, and a config that is none of transformers."""

    def __init__(self, outputs):
        super().__init__()
        self.config = {"width": 5}
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.second = nn.Linear(5, 5)
        self.out = nn.Linear(5, outputs)

    def forward(self, x):
        return self.out(self.second(self.norm(self.first(x)).tanh()).tanh())


class Lit(LightningModule):
    """A LightningModule around the network, as a training script has it."""

    def __init__(self, outputs=2):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(outputs)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(outputs))


class Mine(OwnModule):
    def network(self, outputs):
        return Net(outputs)


class Points(TaskData):
    """Points whose inputs are lists of numbers."""

    def __init__(self, task, labels=None):
        self.task, self.names = task, NAMES[task] if labels is None else labels

    @property
    def labels(self):
        return self.names

    def examples(self, split):
        torch.manual_seed(len(self.task + split))
        x = torch.randn(7, 4)
        return [{"inputs": one.tolist(), "label": int(one.argmax()) % len(self.names)} for one in x]


def net(task, seed=0):
    """An expert near the common start, whose batch norm saw other data."""
    torch.manual_seed(0)
    model = Net(len(NAMES[task]))
    torch.manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05 * torch.randn_like(one))
        model.norm.running_mean.add_(0.1 * seed)
    return model.eval()


def save_experts(folder):
    """Task name to the file of its expert's state_dict."""
    found = {}
    for seed, task in enumerate(NAMES, 1):
        found[task] = str(folder / f"{task}.pt")
        torch.save(net(task, seed).state_dict(), found[task])
    return found


@pytest.fixture
def experts(tmp_path):
    return save_experts(tmp_path)


def data():
    return MultiTask({task: Points(task) for task in NAMES}, batch_size=3)


def trainer():
    return fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )


def saved(state, folder, form):
    """A state_dict in one of the files that are read."""
    path = folder / {"safetensors": "x.safetensors", "ckpt": "x.ckpt", "folder": "x"}.get(
        form, "x.pt"
    )
    if form == "folder":
        path.mkdir()
        save_file(state, path / "model.safetensors")
    elif form == "safetensors":
        save_file(state, path)
    elif form == "ckpt":
        inside = {f"net.{name}": one for name, one in state.items()}
        torch.save(
            {
                "state_dict": inside | {"criterion.weight": torch.ones(3)},
                "hyper_parameters": {"outputs": 3},
            },
            path,
        )
    else:
        compiled = {f"_orig_mod.{name}": one for name, one in state.items()}
        torch.save({"model": OrderedDict(compiled), "epoch": 3} if form == "model" else state, path)
    return str(path)


@pytest.mark.parametrize("form", ["pt", "safetensors", "folder", "ckpt", "model"])
@pytest.mark.parametrize("labels", [NAMES["b"], None])
def test_a_network_is_read_from_any_file_of_its_weights(tmp_path, form, labels, caplog):
    expected = net("b", 1).state_dict()
    model = Mine().read(saved(expected, tmp_path, form), "b", labels)
    assert_same(model.state_dict(), expected, rtol=0, atol=0)
    left = "left out what is not of Net: criterion.weight"
    assert (left in caplog.text) == (form == "ckpt")


def test_a_new_head_where_there_is_none_that_fits(tmp_path):
    source = saved(net("b", 1).state_dict(), tmp_path, "pt")
    model = Mine().read(source, "a", NAMES["a"], fresh_head=True)
    assert model.out.weight.shape == (2, 5)
    assert model.second.weight.equal(net("b", 1).second.weight)
    with pytest.raises(UserError, match=r"x.pt: tensor 'out.weight' is \(3, 5\), but \(2, 5\) in"):
        Mine().read(source, "a", NAMES["a"])


def fisher_by_hand(model, examples):
    """F = mean of Σ p(c) (∂ log p(c) / ∂θ)², example by example, without any hook."""
    model = model.double().eval()
    total = {name: torch.zeros_like(one) for name, one in model.named_parameters()}
    for one in examples:
        log_probs = model(torch.tensor([one["inputs"]]).double())[0].log_softmax(0)
        for answer in log_probs:
            found = torch.autograd.grad(answer, list(model.parameters()), retain_graph=True)
            for name, gradient in zip(total, found, strict=True):
                total[name] += answer.exp().detach() * gradient.square() / len(examples)
    return {name: one.float() for name, one in total.items()}


def test_the_fisher_is_its_definition_and_the_merge_takes_it(tmp_path, experts):
    fishers = {}
    for seed, task in enumerate(NAMES, 1):
        found = trainer().fisher(
            Mine(), data(), task=task, expert=experts[task], split="validation",
            output=tmp_path / f"{task}.safetensors",
        )  # fmt: skip
        fishers[task] = fisher_by_hand(net(task, seed), Points(task).examples("validation"))
        assert_same(found.values, fishers[task], rtol=1e-4, atol=1e-8)
    given = {
        task: {"path": path, "fisher": tmp_path / f"{task}.safetensors"}
        for task, path in experts.items()
    }
    trainer().merge(
        Mine(), MultiTask(), experts=given, method=fmerge.methods.FisherMerge(normalize=False),
        output=tmp_path / "merged", coefficients={"a": 0.5, "b": 0.5},
    )  # fmt: skip
    merged = load_file(tmp_path / "merged/merged/a/model.safetensors")
    states = [net(task, seed).state_dict() for seed, task in enumerate(NAMES, 1)]
    weights = [{**one} for one in fishers.values()]
    for name in ("first.weight", "second.bias"):
        above = sum(f[name] * s[name] for f, s in zip(weights, states, strict=True))
        torch.testing.assert_close(
            merged[name], above / sum(f[name] for f in weights), rtol=1e-3, atol=1e-5
        )
    assert merged["out.weight"].equal(states[0]["out.weight"])


@pytest.mark.parametrize("scored", [True, False])
def test_the_average(tmp_path, experts, scored):
    report = trainer().merge(
        Mine(), data() if scored else MultiTask(), experts=experts, method="Average",
        output=tmp_path / "out", baselines="experts",
    )  # fmt: skip
    states = [net(task, seed).state_dict() for seed, task in enumerate(NAMES, 1)]
    for own, task in zip(states, NAMES, strict=True):
        merged = load_file(tmp_path / "out/merged" / task / "model.safetensors")
        assert merged.keys() == own.keys()
        for name, one in merged.items():
            if name.startswith("out."):
                expected = own[name]
            elif name.startswith("norm.running") and scored:
                continue  # computed anew on training examples
            else:
                expected = (states[0][name] + states[1][name]) / 2
            torch.testing.assert_close(one, expected.to(one))
        card = (tmp_path / "out/merged" / task / "README.md").read_text()
        assert "library_name" not in card
        model = Mine().read(str(tmp_path / "out/merged" / task), task)
        assert_same(dict(model.state_dict()), merged, rtol=0, atol=0)
    rows = {row.name: dict(row.scores) for row in report.rows}
    assert bool(rows) == scored
    if scored:  # by hand
        for seed, task in enumerate(NAMES, 1):
            examples = Points(task).examples("test")
            logits = net(task, seed)(torch.tensor([one["inputs"] for one in examples]))
            labels = torch.tensor([one["label"] for one in examples])
            right = (logits.argmax(1) == labels).double().mean()
            assert rows["experts"][task] == pytest.approx(float(right))


def test_networks_share_one_body_with_its_buffers():
    module = Mine()
    models = {task: net(task, 1) for task in NAMES}
    module.adopt(models, ())
    a, b = (module.task_model(task) for task in NAMES)
    assert a.first is b.first and a.norm is b.norm and a.out is not b.out
    assert len(list(module.parameters())) == 8 + 2


def test_without_heads_there_is_one_network(tmp_path):
    class Whole(Mine):
        head = ()

    module = Whole()
    module.adopt({"x": net("a", 1), "y": net("a", 2)}, ())
    assert module.task_model("x") is module.task_model("y")
    module.save(tmp_path / "x", {"x": "the card"})
    assert (tmp_path / "x/README.md").read_text() == "the card"
    expected = net("a", 1).state_dict()
    assert_same(load_file(tmp_path / "x/model.safetensors"), expected, rtol=0, atol=0)


class Ordinal(Mine):
    """Answers of its own: the logit of each class is minus its distance from the only output."""

    def label_log_probs(self, batch):
        place = self.task_model(batch["task"])(batch["inputs"])[:, :1]
        return -(place - torch.arange(3)).abs().log_softmax(1)


def test_all_follows_from_log_likelihoods_of_ones_own():
    module = Ordinal()
    module.adopt({"b": net("b", 1)}, ())
    module.add_metrics({"b": NAMES["b"]}, {})
    examples = Points("b").examples("test")
    batch = module.collate(examples, "b")
    losses, predictions = module.outcome(batch)
    expected = module.label_log_probs(batch)
    assert predictions.equal(expected.argmax(1))
    assert losses.equal(-expected[torch.arange(7), batch["labels"]])
    assert module.lists_answers("b", "sampled")


def test_labels_and_numbers_as_of_every_classifier():
    module = Mine()
    module.adopt({"b": net("b", 1), "n": net("b", 1)}, ())
    module.add_metrics({"b": LabelNames(NAMES["b"], "labels")}, {"b": ["macro_f1"]})
    batch = {
        "inputs": torch.ones(2, 4),
        "labels": torch.tensor([[0, 1, 1], [1, 0, 0]]),
        "task": "b",
    }
    module.eval()
    losses, predictions = module.outcome(batch)
    logits = module.outputs(batch)
    torch.testing.assert_close(predictions, logits.sigmoid())
    expected = nn.functional.binary_cross_entropy_with_logits(
        logits, batch["labels"].float(), reduction="none"
    ).sum(1)
    torch.testing.assert_close(losses, expected)


class Wrong(Mine):
    def network(self, outputs):
        return {"not": "a network"}


class Headless(Mine):
    def network(self, outputs):
        return nn.Conv1d(3, outputs, 1)


class Misnamed(Mine):
    head = ("classifier",)


class Narrow(Mine):
    def network(self, outputs):
        return Net(2)


def test_what_cannot_serve_is_refused(tmp_path, experts):
    def refused(module, match, source=experts["a"]):
        with pytest.raises(UserError, match=match):
            module.read(source, "a", NAMES["a"])

    refused(Wrong(), r"--model Wrong: its network\(outputs\) gives a dict, but must give an nn.Mod")
    refused(Headless(), r"--model Headless: its network has no linear layer .* head = \('classi")
    refused(Misnamed(), "no parameters 'classifier', which head names; its parts: first, norm, se")
    refused(Mine(), "absent.pt: no such file", str(tmp_path / "absent.pt"))
    other = str(tmp_path / "other.pt")
    torch.save(net("a"), other)  # a pickle of the whole network
    refused(
        Mine(), r"other.pt: refused, .*tests.modules.test_own.Net.*network.state_dict\(\)", other
    )
    torch.save({"step": 3, "loss": 0.5}, other)
    refused(Mine(), "holds a dictionary of loss, step, but tensors by name are needed; save", other)
    torch.save([1], other)
    refused(Mine(), "holds a list, but tensors by name are needed", other)
    state = net("a").state_dict()
    torch.save({"wrong": state["first.bias"]} | state, other)
    refused(Mine(), "other.pt: holds 'wrong', which Net has not", other)
    torch.save({k: one for k, one in state.items() if k != "second.bias"}, other)
    refused(Mine(), "tensor 'second.bias' is missing, but .5,. in Net", other)
    torch.save(state | {"first.weight": torch.zeros(5, 4, dtype=torch.int8)}, other)
    refused(Mine(), "'first.weight' is of torch.int8, but torch.float32 in Net; .*quantized", other)
    both = {f"{part}.{name}": one for name, one in state.items() for part in ("net", "ema")}
    torch.save(both, other)
    refused(
        Mine(), "other.pt: holds several networks, ema., net.; save the one that is meant", other
    )


def test_what_a_read_or_a_body_of_ones_own_gives_is_checked():
    class Reads(Mine):
        def read(self, source, task, labels=None, fresh_head=False):
            return net("a").state_dict()

    class Bodies(Mine):
        def __init__(self, given):
            super().__init__()
            self.given = given

        def read(self, source, task, labels=None, fresh_head=False):
            return net("a")

        def body(self, model):
            return self.given

    with pytest.raises(UserError, match="--model Reads: its read gives a OrderedDict of x.pt, but"):
        read_network(Reads(), "x.pt", "a")
    for given, what in [
        ({"first.wait": torch.ones(1)}, "'first.wait', which is no parameter"),
        ({}, "0 names"),
        (["first.weight"], "1 names"),
    ]:
        with pytest.raises(UserError, match=f"Bodies: its body gives {what} of the network of"):
            read_network(Bodies(given), "x.pt", "a")


def test_wrong_inputs_and_outputs_are_explained():
    module = Narrow()
    module.adopt({"b": Net(2)}, ())
    module.add_metrics({"b": NAMES["b"]}, {})
    with pytest.raises(
        UserError, match=r"gives \(2, 2\) for 2 examples of task 'b', but \(2, 3\) is"
    ):
        module.outputs({"inputs": torch.ones(2, 4), "task": "b"})
    with pytest.raises(UserError, match=r"examples have text, label, .* write transform\(self, ex"):
        module.collate([{"text": "x", "label": 0}], "b")
    with pytest.raises(UserError, match=r"transform\(example\) must give tensors of one shape"):
        module.collate([{"inputs": [1.0], "label": 0}, {"inputs": [1.0, 2.0], "label": 0}], "b")


def test_a_lightning_module_alone_cannot_be_merged(tmp_path, experts):
    with pytest.raises(UserError, match=r"Lit does not say what .* fmerge.modules.OwnModule"):
        trainer().merge(Lit(), data(), experts=experts, output=tmp_path / "out")


def test_the_file_of_a_lightning_fit_is_an_expert(tmp_path):
    """A checkpoint of Lightning's own, whole: the network is the LightningModule itself."""

    class Whole(OwnModule):
        head = ("net.out",)

        def network(self, outputs):
            return Lit(outputs)

    made = Lit(3)
    one = trainer()
    one.strategy.connect(made)
    one.save_checkpoint(tmp_path / "x.ckpt")
    model = Whole().read(str(tmp_path / "x.ckpt"), "b")
    assert_same(model.state_dict(), made.state_dict(), rtol=0, atol=0)
    assert json.dumps(sorted(Whole().body(model))) == json.dumps(
        sorted(name for name, _ in made.named_parameters() if "out" not in name)
    )
