"""What a merge starts from: experts in order, checked against the base and each other."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble, target_first
from fmerge.methods import SLERP, Average, FisherMerge, TaskArithmetic
from fmerge.params import fingerprint, params_of
from fmerge.store import preprocessors, write_fisher
from tests.compare import assert_same
from tests.merging.small_models import Module, Network, near


class Words:
    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


@pytest.fixture
def tokenizers(monkeypatch):
    """Path to tokenizer; a path without one is one that was saved without."""
    known = {path: Words("a", "b", "c") for path in ("one", "two", "three")}

    monkeypatch.setattr(preprocessors, "find_tokenizer", known.get)
    return known


@pytest.fixture
def module():
    base = Network(1)
    return Module(base=base, one=near(base, 2), two=near(base, 3, 5), three=near(base, 4))


EXPERTS = {"x": Expert("one"), "y": Expert("two")}
DONOR = {**EXPERTS, "z": Expert("three", donor=True)}


def test_the_targets_expert_comes_first_and_donors_last():
    given = {"a": "1", "b": Expert("2", donor=True), "c": "3", "d": Expert("4"), "e": "5"}
    assert list(target_first(given, None)) == ["a", "c", "d", "e", "b"]
    found = target_first(given, "d")
    assert list(found) == ["d", "a", "c", "e", "b"]
    assert found["a"] == Expert("1") and found["b"] is given["b"]
    with pytest.raises(UserError, match="target: 'b' is a donor, which has no task to score"):
        target_first(given, "b")


def test_everything_is_by_expert_in_order(module, tokenizers):
    labels = {"x": ["p", "q"], "y": list("pqrst")}
    found = load_ensemble(DONOR, "base", TaskArithmetic(), module, labels)
    assert found.names == ["x", "y", "z"] and found.tasks == ["x", "y"]
    assert found.tensors == ["body.weight", "body.bias"]
    assert module.asked == [
        ("one", "x", labels["x"], False),
        ("two", "y", labels["y"], False),
        ("three", "z", None, True),  # a donor's head is left out
        ("base", "base", None, True),
    ]
    for name, path in {"x": "one", "y": "two", "z": "three"}.items():
        assert_same(found.bodies[name], module.body(module.networks[path]))
    assert_same(found.base, module.body(module.networks["base"]))
    assert found.models == {"x": module.networks["one"], "y": module.networks["two"]}
    assert found.sources == {"x": "one", "y": "two", "z": "three"} and found.base_source == "base"
    assert found.tokenizer is tokenizers["one"] and found.fishers is None


def test_the_first_body_is_a_copy_since_passes_write_to_its_network(module, tokenizers):
    found = load_ensemble(EXPERTS, "base", TaskArithmetic(), module)
    before = fingerprint(found.bodies["x"])
    with torch.no_grad():
        module.networks["one"].body.weight.zero_()
    assert fingerprint(found.bodies["x"]) == before
    own = module.networks["two"].body.weight
    assert found.bodies["y"]["body.weight"].data_ptr() == own.data_ptr()


def test_heads_are_copies_of_what_the_bodies_do_not_have(module, tokenizers):
    found = load_ensemble(DONOR, None, Average(), module)
    heads = found.heads()
    assert list(heads) == ["x", "y"]
    before = {k: t.clone() for k, t in params_of(module.networks["two"].head).items()}
    assert_same(heads["y"], {f"head.{key}": tensor for key, tensor in before.items()})
    with torch.no_grad():
        module.networks["two"].head.weight.zero_()
    assert_same(heads["y"], {f"head.{key}": tensor for key, tensor in before.items()})
    assert not found.heads()["y"]["head.weight"].any()  # as they are now


def test_names_have_to_be_those_of_the_tasks(module, tokenizers):
    with pytest.raises(UserError, match="are for x, y, but the data's tasks are x, z; give each"):
        load_ensemble(EXPERTS, None, Average(), module, {"x": ["p"], "z": ["p"]})
    with pytest.raises(UserError, match="are for x, y, but the data's tasks are x; give each"):
        load_ensemble(EXPERTS, None, Average(), module, {"x": ["p"]})
    with pytest.raises(UserError, match="names x; a merge needs at least two experts"):
        load_ensemble({"x": Expert("one")}, None, Average(), module)
    donors = {name: Expert("one", donor=True) for name in "xy"}
    with pytest.raises(UserError, match="x, y are all donors; a merge needs at least one"):
        load_ensemble(donors, None, Average(), module)
    assert module.asked == []  # refused before anything is read
    load_ensemble(DONOR, None, Average(), module, {"x": ["p"], "y": ["q"]})  # a donor has no task


def test_a_method_without_what_it_needs_is_refused_before_anything_is_read(module, tokenizers):
    with pytest.raises(UserError, match="--base: is not set, but TaskArithmetic needs"):
        load_ensemble(EXPERTS, None, TaskArithmetic(), module)
    with pytest.raises(UserError, match="SLERP"):
        load_ensemble(DONOR, None, SLERP(), module)
    assert module.asked == []


@pytest.mark.parametrize(
    ("path", "make", "message"),
    [
        ("two", lambda base: Network(1, model_type="large"), "two: its config says model_type"),
        ("two", lambda base: Network(1, width=4), r"'body.weight' is \(3, 4\), but \(3, 3\) in"),
        ("two", lambda base: near(base, 5, step=9.0), "two: lies .* the norm of the base base"),
    ],
)
def test_an_expert_that_does_not_fit_the_base_is_named(module, tokenizers, path, make, message):
    module.networks[path] = make(module.networks["base"])
    with pytest.raises(UserError, match=message):
        load_ensemble(EXPERTS, "base", TaskArithmetic(), module)


def test_without_a_base_experts_are_compared_with_the_first(module, tokenizers):
    module.networks["two"] = near(module.networks["base"], 5, step=9.0)
    with pytest.raises(UserError, match="two: lies .* times the norm of one away from it"):
        load_ensemble(EXPERTS, None, Average(), module)


@pytest.mark.parametrize("part", ["body", "head"])
def test_bad_numbers_are_refused_in_body_and_head(module, tokenizers, part):
    with torch.no_grad():
        getattr(module.networks["two"], part).bias[0] = torch.nan
    with pytest.raises(UserError, match=f"two: tensor '{part}.bias' holds 1 NaN"):
        load_ensemble(EXPERTS, "base", TaskArithmetic(), module)


def test_of_a_donor_and_a_base_the_body_alone_counts(module, tokenizers):
    with torch.no_grad():
        for name in ("three", "base"):
            module.networks[name].head.bias[0] = torch.nan
    load_ensemble(DONOR, "base", TaskArithmetic(), module)
    with torch.no_grad():
        module.networks["base"].body.bias[0] = torch.inf
    with pytest.raises(UserError, match="base: tensor 'body.bias' holds 1 NaN or infinite"):
        load_ensemble(DONOR, "base", TaskArithmetic(), module)


def test_headers_alone_check_layouts_and_no_numbers(module, tokenizers):
    with torch.no_grad():
        module.networks["two"].body.bias[0] = torch.nan
    load_ensemble(EXPERTS, "base", TaskArithmetic(), module, values=False)
    module.networks["two"] = Network(1, width=4)
    with pytest.raises(UserError, match="two: tensor 'body.weight'"):
        load_ensemble(EXPERTS, "base", TaskArithmetic(), module, values=False)


def test_tokenizers_have_one_vocabulary(module, tokenizers):
    del tokenizers["two"]  # saved without one: the first expert's is used
    load_ensemble(EXPERTS, None, Average(), module)
    tokenizers["two"] = Words("a", "c", "b")
    with pytest.raises(UserError) as refused:
        load_ensemble(EXPERTS, None, Average(), module)
    assert str(refused.value) == (
        "two: its tokenizer differs from that of one in 2 tokens, such as 'b'; "
        "merge models of one tokenizer only"
    )


def test_fishers_of_files_come_with_their_origins(module, tokenizers, tmp_path):
    experts, expected = {}, {}
    for seed, (name, path) in enumerate({"x": "one", "y": "two"}.items()):
        weights = params_of(module.networks[path])
        torch.manual_seed(seed)
        values = {key: torch.rand_like(tensor) for key, tensor in weights.items()}
        provenance = {"model_sha256": fingerprint(weights), "examples": 7, "split": "train"}
        file = tmp_path / f"{name}.safetensors"
        write_fisher(file, values, provenance)
        experts[name] = Expert(path, file)
        expected[name] = {key: values[key] for key in ("body.weight", "body.bias")}
    found = load_ensemble(experts, None, FisherMerge(), module)
    for name, file in experts.items():
        assert_same(found.fishers[name], expected[name])
        assert found.fisher_origins[name] == (
            f"{file.fisher}, recorded as of 7 examples of a train split"
        )
    # a method that needs no Fisher reads none
    assert load_ensemble(experts, None, Average(), module).fishers is None
