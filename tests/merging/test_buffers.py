"""Buffers in a merge: those that training moves are merged, all others stay as they are."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV3Config

import fmerge
from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.merging import experts as experts_module
from fmerge.merging.assembler import Assembler
from fmerge.merging.buffers import (
    moving_buffers,
    nearest,
    network_state,
    persistent_buffers,
    shared_buffers,
)
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble
from fmerge.methods import (
    TIES,
    Average,
    DFMerge,
    FisherMerge,
    Isotropic,
    TaskArithmetic,
)
from fmerge.modules import TaskModule
from fmerge.params import fingerprint, params_of, select
from fmerge.store import write_fisher
from tests import tiny
from tests.compare import assert_same
from tests.evaluation.tiny_tasks import Given


class Network(nn.Module):
    """A body with running statistics, a range, constants and counters; a head with a buffer."""

    def __init__(self, seed=0, classes=2):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.body[2].register_buffer("table", torch.tensor([0.1, 1 / 3, -torch.inf]))
        self.body[2].register_buffer("range", torch.tensor([-1.0, 1.0], dtype=torch.float64))
        self.body[2].register_buffer("scratch", torch.rand(2), persistent=False)
        self.head = nn.Linear(4, classes)
        self.head.register_buffer("prior", 0.1 * torch.rand(classes))
        nn.init.normal_(self.head.weight)  # so that predictions depend on the features
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.body(x)) + self.head.prior


def expert(base, seed, classes=2):
    """A network near the base, whose batch norm saw other data."""
    model = Network(seed, classes)
    with torch.no_grad():
        for own, origin in zip(model.body.parameters(), base.body.parameters(), strict=True):
            own.copy_(origin + 0.1 * own)
        model.train()
        for _ in range(seed):
            model.body[1](0.4 * seed * torch.tensor([1.0, -1, 2, -2]) + torch.randn(8, 4))
        model.body[2].range.mul_(seed)
    return model.eval()


class Own(TaskModule):
    """A user's own module: networks by name, one body for all tasks."""

    def __init__(self, **networks):
        super().__init__()
        self.known, self.models = networks, nn.ModuleDict()

    def read(self, source, task, labels=None, fresh_head=False):
        return copy.deepcopy(self.known[source])

    def body(self, model):
        return select(params_of(model), "body.")

    def adopt(self, models, tokenizer):
        first = next(iter(models.values()))
        for task, model in models.items():
            model.body = first.body
            self.models[task] = model

    def task_model(self, task):
        return self.models[task]

    def collate(self, examples, task):
        x = torch.tensor([[float(word) for word in one["text"].split()] for one in examples])
        return {"x": x, "labels": torch.tensor([one["label"] for one in examples]), "task": task}

    def label_log_probs(self, batch):
        return self.models[batch["task"]](batch["x"]).log_softmax(dim=1)

    def save(self, folder, cards=None):
        folder.mkdir(parents=True)
        for task, model in self.models.items():
            torch.save(model.state_dict(), folder / f"{task}.pt")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(
        experts_module, "tokenizers_of", lambda own, sources, models, base: dict.fromkeys(models)
    )
    base = Network(1)
    return Own(base=base, one=expert(base, 2), two=expert(base, 3, 3), three=expert(base, 4))


EXPERTS = {"x": Expert("one"), "y": Expert("two")}
MOVING = ["body.1.running_mean", "body.1.running_var", "body.2.range"]
COUNTER = "body.1.num_batches_tracked"


def buffers(network):
    return {name: one.clone() for name, one in persistent_buffers(network).items()}


def test_buffers_belong_to_the_body_or_to_a_head():
    network = Network()
    body = [name for name, _ in network.named_parameters() if name.startswith("body")]
    assert list(persistent_buffers(network)) == [
        *[*MOVING[:2], COUNTER, "body.2.table", "body.2.range", "head.prior"]
    ]
    assert list(shared_buffers(network, body)) == [
        *MOVING[:2],
        COUNTER,
        *["body.2.table"],
        MOVING[2],
    ]
    # of a module without parameters inside one that has both: it is not known to be shared
    network.offset = nn.BatchNorm1d(2, affine=False)
    assert "offset.running_mean" not in shared_buffers(network, body)
    everything = [name for name, _ in network.named_parameters()]  # as of a language model
    assert "offset.running_mean" in shared_buffers(network, everything)


def test_the_coefficients_of_the_nearest_weight():
    weights = ["a.norm.weight", "a.dense.weight", "b.norm.weight", "out"]
    assert nearest("a.norm.act.x_max", weights) == "a.norm.weight"
    assert nearest("b.norm.running_mean", weights) == "b.norm.weight"
    assert nearest("b.other.x", weights) == "b.norm.weight"
    assert nearest("c.x", weights) == "a.norm.weight"


B0, B1, B2 = ({"b": torch.tensor([one, 0.1])} for one in (1.0, 2.0, 6.0))


@pytest.mark.parametrize(
    ("method", "base", "coefficients", "expected"),
    [
        (Average(), None, [], 4.0),
        (Average(), B0, [0.9, 0.1], 4.0),
        (Isotropic(), None, [0.25, 0.75], 5.0),
        (Isotropic(), B0, [0.1, 0.3], 5.0),
        (FisherMerge(), None, [0.5, 0.5], 4.0),
        (TaskArithmetic(), B0, [0.25, 0.5], 1 + 0.25 * 1 + 0.5 * 5),  # as of a weight
        (TaskArithmetic(), B0, [0.0, 0.0], 1.0),
        (TaskArithmetic(), B0, [1.0, 0.0], 2.0),
        (TaskArithmetic(), B0, [1.0, 1.0], 4.0),  # 7 would be outside of what was measured
        (TaskArithmetic(), B0, [0.6, -0.2], 1.6),  # what is subtracted has no variance to give
        (TaskArithmetic(), B0, [-0.5, -0.2], 1.0),
        (DFMerge(), B0, [0.25, 0.5], 3.75),
        (TIES(), B0, [0.1, 0.3], 5.0),  # the λ of a mean count by their ratios
    ],
)
def test_the_rule_of_each_method(method, base, coefficients, expected):
    merged = method.merge_buffers(base, [B1, B2], coefficients)
    torch.testing.assert_close(merged["b"][0], torch.tensor(expected))
    assert merged["b"][1] == torch.tensor(0.1)  # equal everywhere, and so bit for bit


def test_a_variance_stays_positive_where_a_weight_would_not():
    base, low = {"v": torch.tensor([1.0])}, {"v": torch.tensor([0.1])}
    assert TaskArithmetic().merge(base, [low, low], [1, 1])["v"] < 0
    assert TaskArithmetic().merge_buffers(base, [low, low], [1, 1])["v"] == low["v"]


def test_what_is_read(module):
    found = load_ensemble(EXPERTS, "base", TaskArithmetic(), module)
    assert list(found.moving) == MOVING
    assert found.tensors == [name for name in found.bodies["x"] if name not in MOVING]
    for name, path in {"x": "one", "y": "two"}.items():
        own = buffers(module.known[path])
        assert_same({k: found.bodies[name][k] for k in MOVING}, {k: own[k] for k in MOVING}, 0, 0)
        assert found.heads()[name]["head.prior"].equal(own["head.prior"])
    first = buffers(module.known["one"])
    assert found.heads()["y"][COUNTER] == first[COUNTER]
    assert list(found.constants) == [COUNTER, "body.2.table"]
    assert found.constants[COUNTER] == first[COUNTER] != buffers(module.known["two"])[COUNTER]
    # equal experts on another base: the base alone makes them move
    same = {"x": Expert("one"), "y": Expert("one")}
    assert list(load_ensemble(same, "base", TaskArithmetic(), module).moving) == MOVING
    assert not load_ensemble(same, None, Average(), module).moving


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: net.body[1].running_mean.__setitem__(0, torch.nan),
            "three: tensor 'body.1.ru",
        ),
        (lambda net: net.body[1].running_var.__setitem__(0, torch.inf), "three: tensor 'body.1.ru"),
        (lambda net: net.body[2].table.__setitem__(0, torch.nan), "three: tensor 'body.2.table' h"),
        (
            lambda net: net.head.prior.__setitem__(0, torch.nan),
            "three: tensor 'head.prior' holds 1",
        ),
        (
            lambda net: net.body.register_buffer("range", torch.zeros(3)),
            "three: tensor 'body.range' is .3,., but no such tensor in one",
        ),
    ],
)
def test_bad_buffers_are_refused_by_name(module, change, message):
    change(module.known["three"])
    with pytest.raises(UserError, match=message):
        load_ensemble({"x": Expert("one"), "y": Expert("three")}, None, Average(), module)


def test_integers_have_to_be_equal():
    one = {"ids": torch.arange(3), "bn.num_batches_tracked": torch.tensor(4)}
    other = {"ids": torch.arange(3), "bn.num_batches_tracked": torch.tensor(5)}
    assert moving_buffers({"a": one, "b": other}) == []
    other["ids"] = torch.tensor([0, 2, 1])
    with pytest.raises(UserError) as refused:
        moving_buffers({"a": one, "b": other})
    assert str(refused.value) == (
        "b: buffer 'ids' of int64 differs from that in a; only floating-point numbers can be "
        "merged: merge models in which it is the same"
    )


def test_groups_and_moving_fishers_take_buffers_along(module):
    found = load_ensemble(EXPERTS, "base", TaskArithmetic(), module)
    parts = {"deep": found.tensors[2:], "rest": found.tensors[:2]}  # batch norm; linear
    seen = []

    def fisher_of(name, body):
        seen.append((name, body[MOVING[0]].clone()))
        return {key: torch.ones_like(body[key]) for key in found.tensors}

    assembler = Assembler(
        DFMerge(), found.base, found.bodies, fisher_of, parts=parts, buffers=found.moving
    )
    low = {f"{name}/deep": 0.25 for name in "xy"} | {f"{name}/rest": 0.0 for name in "xy"}
    merged = assembler.assemble(low)
    assert list(merged) == list(found.bodies["x"])
    origin, (x, y) = found.base, found.bodies.values()
    expected = {k: 0.5 * origin[k] + 0.25 * x[k] + 0.25 * y[k] for k in MOVING[:2]}
    assert_same({k: merged[k] for k in expected}, expected, rtol=1e-6, atol=1e-7)
    assert merged["body.0.weight"].equal(origin["body.0.weight"])
    # each Fisher is taken where its own buffers are, too: b₀ + λₘ(bₘ − b₀)
    for name, at in seen:
        own = found.bodies[name][MOVING[0]]
        torch.testing.assert_close(at, torch.lerp(origin[MOVING[0]], own, 0.25))


def examples(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, 3, generator=generator).tolist()
    return [{"text": " ".join(map(str, row)), "label": i % classes} for i, row in enumerate(rows)]


def tasks(train=False):
    kinds = {"x": ["a", "b"], "y": ["a", "b", "c"]}
    splits = ["validation", "test", *(["train"] if train else [])]
    return {
        name: Given(
            labels, **{s: examples(200, len(labels), i) for i, s in enumerate(splits, start=1)}
        )
        for name, labels in kinds.items()
    }


def accuracy(network, examples):
    batch = Own().collate(examples, "x")
    with torch.no_grad():
        return float((network(batch["x"]).argmax(1) == batch["labels"]).float().mean())


@pytest.mark.parametrize("train", [False, True])
def test_a_whole_merge_scores_saves_and_builds_them(module, tmp_path, train):
    """Running statistics are averaged, or computed where there are training examples."""
    found, data = dict(module.known), tasks(train)
    search = fmerge.search.Grid(points=3)

    def run(**options):
        trainer = fmerge.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[fmerge.MergeOptimizer(search, objective="retained")],
        )
        trainer.resolved_config = "method: Isotropic\n"
        return trainer.merge(
            Own(**found),
            MultiTask(tasks(train), batch_size=100),
            experts={"x": "one", "y": "two"},
            method=Isotropic(),
            output=tmp_path / "run",
            **options,
        )

    report = run()
    rows = {row.name: row.scores for row in report.rows}
    for task, path in {"x": "one", "y": "two"}.items():  # each expert under its own buffers
        own = accuracy(found[path], data[task].examples("test"))
        assert rows["experts"][task] == pytest.approx(own)
    swapped = copy.deepcopy(found["two"])
    swapped.body[1].load_state_dict(found["one"].body[1].state_dict())
    assert accuracy(swapped, data["y"].examples("test")) != pytest.approx(rows["experts"]["y"])

    def expected(coefficients):
        return by_hand(found, coefficients, data if train else {})

    for trial in report.trials:
        merged = expected(trial.coefficients)
        for task, network in merged.items():
            score = accuracy(network, data[task].examples("validation"))
            assert trial.metrics[task] == pytest.approx(score)
    check_saved(tmp_path / "run" / "merged", expected(report.best.coefficients))
    other = next(t for t in report.trials if t.coefficients != report.best.coefficients)
    run(build=other.index)
    folder = tmp_path / "run" / "points" / str(other.index) / "merged"
    check_saved(folder, expected(other.coefficients))


def by_hand(networks, coefficients, data):
    """Weights and moving buffers by their coefficients; all else of the first, heads their own.

    Where there are data, the running statistics are those of the training examples of both tasks.
    """
    one, two = (copy.deepcopy(networks[name]) for name in ("one", "two"))
    share = coefficients["x"] / sum(coefficients.values())
    first, second = one.state_dict(), two.state_dict()
    for name in first:
        if name.startswith("body.") and (name in MOVING or name in params_of(one)):
            merged = share * first[name].double() + (1 - share) * second[name].double()
            first[name].copy_(merged), second[name].copy_(merged)
        elif name.startswith("body."):
            second[name].copy_(first[name])
    if data:
        texts = [example for task in data.values() for example in task.examples("train")]
        with torch.no_grad():
            seen = one.body[0](Own().collate(texts, "")["x"])
        for network in (one, two):
            network.body[1].running_mean.copy_(seen.mean(0))
            network.body[1].running_var.copy_(seen.var(0, correction=0))
    return {"x": one, "y": two}


def check_saved(folder, expected):
    for task, network in expected.items():
        saved, own = torch.load(folder / f"{task}.pt"), network.state_dict()
        floats = [name for name in own if name != "body.2.table"]
        assert_same({k: saved[k] for k in floats}, {k: own[k] for k in floats}, 1e-6, 1e-7)
        assert all(saved[name].dtype == own[name].dtype for name in own)
        for name in (COUNTER, "body.2.table", "head.prior", "head.weight"):
            assert saved[name].equal(own[name])
        assert "body.2.scratch" not in saved


def test_a_fisher_and_a_run_belong_to_the_buffers_too():
    network = Network()
    before = fingerprint(network_state(network))
    network.body[1].running_mean.add_(1)
    assert fingerprint(network_state(network)) != before
    body = {name: one for name, one in params_of(network).items() if name.startswith("body")}
    assert list(network_state(network, body)) == [*body, *MOVING[:2], "body.2.table", MOVING[2]]
    plain = nn.Linear(2, 2)  # as before, where there are no buffers
    assert fingerprint(network_state(plain)) == fingerprint(params_of(plain))


def test_a_fisher_of_other_buffers_is_of_another_model(module, tmp_path):
    experts = {}
    for name, path in {"x": "one", "y": "two", "z": "three"}.items():
        network = module.known[path]
        states = {"model_sha256": network_state(network)}
        states["body_sha256"] = network_state(network, module.body(network))
        values = {key: torch.ones_like(one) for key, one in params_of(network).items()}
        provenance = {key: fingerprint(state) for key, state in states.items()}
        file = tmp_path / f"{name}.safetensors"
        write_fisher(file, values, provenance | {"examples": 7, "split": "train"})
        experts[name] = Expert(path, file, donor=name == "z")
    found = load_ensemble(experts, None, FisherMerge(), module)
    assert list(found.fishers) == ["x", "y", "z"]
    assert all(list(one) == found.tensors for one in found.fishers.values())
    for path in ("two", "three"):
        module.known[path].body[1].running_mean.add_(1e-3)
        with pytest.raises(UserError, match="is the Fisher of another model"):
            load_ensemble(experts, None, FisherMerge(), module)
        module.known[path].body[1].running_mean.sub_(1e-3)


def test_the_biases_of_a_router(tmp_path, monkeypatch):
    monkeypatch.setattr(
        experts_module, "tokenizers_of", lambda own, sources, models, base: dict.fromkeys(models)
    )
    config = DeepseekV3Config(
        **tiny.TEXT, hidden_size=8, intermediate_size=8, moe_intermediate_size=4,
        num_hidden_layers=1, first_k_dense_replace=0, num_attention_heads=2, n_routed_experts=4,
        num_key_value_heads=2, n_group=1, topk_group=1, num_experts_per_tok=2, kv_lora_rank=4,
        q_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
    )  # fmt: skip
    for shift, path in enumerate(("base", "one", "two")):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        bias = dict(model.named_buffers())["model.layers.0.mlp.gate.e_score_correction_bias"]
        bias.copy_(shift * torch.tensor([1.0, 0.0, -1.0, 2.0]))
        model.save_pretrained(tmp_path / path)
    experts = {
        name: Expert(str(tmp_path / path)) for name, path in {"x": "one", "y": "two"}.items()
    }
    method = TaskArithmetic()
    found = load_ensemble(experts, str(tmp_path / "base"), method, fmerge.modules.RankChoice())
    assert list(found.moving) == ["model.layers.0.mlp.gate.e_score_correction_bias"]
    assembler = Assembler(method, found.base, found.bodies, never, buffers=found.moving)
    merged = assembler.assemble({"x": 0.25, "y": 0.5})
    assert merged[found.moving[0]].tolist() == [1.25, 0.0, -1.25, 2.5]


def never(name, body):
    raise AssertionError(f"a statistic of {name} was estimated")


def test_dictionaries_of_tensors():
    shared = {"table": torch.tensor([0.1, 0.2, 0.7])}
    given = [
        {**shared, "mean": torch.tensor([mean]), "num_batches_tracked": torch.tensor(steps)}
        for mean, steps in ((1.0, 7), (2.0, 9), (6.0, 8))
    ]
    merged = fmerge.merge(given, "Average")
    assert merged["table"].equal(shared["table"])  # a third three times is not the whole
    assert merged["mean"].tolist() == [3.0] and merged["num_batches_tracked"] == 7
    steps = given[0]["num_batches_tracked"]
    assert merged["num_batches_tracked"].data_ptr() != steps.data_ptr()
