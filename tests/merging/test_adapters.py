"""Adapters as experts of a merge: by every linear method the merge of the models peft makes."""

import pytest
import torch
from peft import PeftModel  # noqa: F401  # conftest leaves this file out where peft is missing
from torch.func import functional_call

from fmerge.errors import UserError
from fmerge.fisher import estimate_fisher
from fmerge.merging.adapters import base_of
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble
from fmerge.merging.saved_forms import saved_forms
from fmerge.methods import Average, DFMerge, FisherMerge, Isotropic, TaskArithmetic
from fmerge.modules import TextClassifier
from fmerge.params import params_of
from fmerge.store import adapters_on, load_classifier
from tests import tiny
from tests.adapters import make_adapter

LORA = {
    "a": {"r": 2, "target_modules": ["query", "value"], "lora_alpha": 4},
    "b": {"r": 3, "target_modules": ["query", "output.dense"], "use_rslora": True},
    "c": {"r": 1, "target_modules": ["word_embeddings", "key"]},
}
LAMBDAS = [0.5, 0.3, 0.9]
LINEAR = [Average(), Isotropic(), TaskArithmetic(), FisherMerge(favor_target=False), DFMerge()]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base, adapters of other ranks and targets, and the models that peft merges of them."""
    root = tmp_path_factory.mktemp("family")
    base = tiny.classifier(tiny.bert_config(num_hidden_layers=1), seed=1)
    folder = tiny.save(base, root / "base")
    merged = {
        name: make_adapter(folder, root / name, seed=i, task_type="SEQ_CLS", **lora)
        for i, (name, lora) in enumerate(LORA.items())
    }
    return folder, {name: str(root / name) for name in LORA}, merged


def ensemble_of(family, method=None, values=True, base=None):
    experts = {name: Expert(path) for name, path in family[1].items()}
    base = base_of(experts, base)
    with adapters_on(base):
        given = (experts, base, method or Average(), TextClassifier())
        return load_ensemble(*given, values=values)


@pytest.fixture(scope="module")
def found(family):
    return ensemble_of(family)


@pytest.mark.parametrize("method", LINEAR, ids=lambda one: type(one).__name__)
def test_linear_methods_equal_the_merges_of_merged_models(family, found, method):
    bodies = [
        {name: params_of(model)[name] for name in found.tensors} for model in family[2].values()
    ]
    generator = torch.Generator().manual_seed(0)
    fishers = None
    if method.statistic:
        fishers = [
            {name: torch.rand(one.shape, generator=generator) for name, one in body.items()}
            for body in bodies
        ]
    base = params_of(load_classifier(family[0], "x"))
    base = {name: base[name] for name in found.tensors}
    expected = method.merge(base, bodies, LAMBDAS, fishers)
    merged = method.merge(found.base, list(found.bodies.values()), LAMBDAS, fishers)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


def test_a_target_that_an_adapter_lacks_does_not_move(found):
    name = "bert.encoder.layer.0.attention.self.value.weight"
    assert found.base is not None
    assert found.bodies["b"][name].equal(found.base[name])
    assert not found.bodies["a"][name].equal(found.base[name])


def test_the_base_is_what_adapters_name(family, found, tmp_path):
    assert found.base_source == family[0]
    assert {form.folder for form in saved_forms(found).values()} == {saved_forms(found)["a"].folder}
    assert ensemble_of(family, values=False).base_source == family[0]
    other = tiny.save(tiny.classifier(tiny.bert_config(num_hidden_layers=1), 3), tmp_path / "o")
    make_adapter(other, tmp_path / "x", task_type="SEQ_CLS", **LORA["a"])
    mixed = {"a": Expert(family[1]["a"]), "whole": Expert(other), "x": Expert(str(tmp_path / "x"))}
    with pytest.raises(UserError, match="x: is an adapter of the base .*o, but .* if both are th"):
        base_of(mixed, None)
    assert base_of(mixed, "given") == "given"
    assert base_of({"whole": Expert(other)}, None) is None


def test_the_fisher_is_that_of_the_change_at_base_plus_change(family):
    expert = load_classifier(family[1]["a"], "x").double()
    base = load_classifier(family[0], "x").double()
    ids = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9], [3, 9, 2, 11]])
    found = estimate_fisher(
        expert, [{"ids": ids}], lambda batch: expert(batch["ids"]).logits.log_softmax(-1)
    )
    own, origin = params_of(expert), params_of(base)
    names = [name for name in own if name.endswith(("query.weight", "value.weight"))]
    change = {name: (own[name] - origin[name]).requires_grad_() for name in names}
    expected = {name: torch.zeros_like(one) for name, one in change.items()}
    for row in ids:
        weights = own | {name: origin[name] + one for name, one in change.items()}
        logits = functional_call(base, weights, (row[None],)).logits
        for answer in logits.log_softmax(-1)[0]:
            grads = torch.autograd.grad(answer, list(change.values()), retain_graph=True)
            for name, grad in zip(names, grads, strict=True):
                expected[name] += answer.exp().detach() * grad.square() / len(ids)
    for name in names:
        torch.testing.assert_close(found.values[name], expected[name], rtol=1e-5, atol=1e-10)
