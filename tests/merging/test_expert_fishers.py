"""A Fisher from a file weights the expert it was computed from, and no other."""

from pathlib import Path

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging import expert_fishers
from fmerge.merging.expert_fishers import Expert, expert_of, fisher_files, read_fishers
from fmerge.methods import Average, DFMerge, FisherMedian, FisherMerge, RegMean
from fmerge.params import fingerprint, params_of
from fmerge.store import write_fisher
from tests.compare import assert_same
from tests.merging.small_models import Module, Network


def body_of(model):
    return Module().body(model)


def values_of(model, seed=0):
    torch.manual_seed(seed)
    return {name: torch.rand_like(tensor) for name, tensor in params_of(model).items()}


def read(file, model, values=True, **expert):
    made = Expert("place", file, **expert)
    found, origins = read_fishers(
        {"x": file}, {"x": made}, {"x": model}, {"x": body_of(model)}, values
    )
    return found["x"], origins["x"]


@pytest.fixture
def model():
    return Network(3)


@pytest.fixture
def written(model, tmp_path):
    file = tmp_path / "own.safetensors"
    hashes = {
        "model_sha256": fingerprint(params_of(model)),
        "body_sha256": fingerprint(body_of(model)),
        "model": "made/here",
        "examples": 12,
        "split": "validation",
    }
    write_fisher(file, values_of(model), hashes)
    return file


@pytest.mark.parametrize(
    ("method", "used"),
    [(FisherMerge(), True), (FisherMedian(), True), (DFMerge(), True), (RegMean(), False),
     (Average(), False)],
)  # fmt: skip
def test_files_are_used_by_methods_that_files_can_serve(method, used):
    experts = {"x": Expert("1", Path("f.h5")), "y": Expert("2", Path("g.h5"))}
    expected = {"x": Path("f.h5"), "y": Path("g.h5")} if used else {}
    assert fisher_files(experts, method) == expected


def test_every_expert_has_a_file_or_none_has():
    experts = {"x": Expert("1"), "y": Expert("2", Path("g.h5")), "z": Expert("3")}
    with pytest.raises(UserError) as refused:
        fisher_files(experts, FisherMerge())
    assert str(refused.value) == (
        "--experts: 3 experts but 1 Fishers; none is given for x, z: give every expert its "
        "Fisher, or none"
    )
    assert fisher_files(experts, Average()) == {}
    assert fisher_files({"x": Expert("1"), "y": Expert("2")}, FisherMerge()) == {}


def test_a_fisher_of_these_weights_is_read_over_the_body(model, written):
    found, origin = read(written, model)
    values = values_of(model)
    assert_same(found, {name: values[name] for name in ("body.weight", "body.bias")})
    assert list(found) == list(body_of(model))
    assert origin == f"{written}, recorded as of 12 examples of a validation split"


@pytest.mark.parametrize("part", ["body", "head"])
def test_a_fisher_of_another_model_is_refused(model, written, part):
    with torch.no_grad():
        getattr(model, part).bias[0] += 1e-3
    with pytest.raises(UserError) as refused:
        read(written, model)
    assert str(refused.value) == (
        f"{written}: is the Fisher of another model (made/here), not of place; compute it with "
        "'fmerge fisher --expert place'"
    )


def test_a_donors_head_is_never_compared(model, written):
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    model.head = torch.nn.Linear(3, 9)
    found, _ = read(written, model, donor=True)
    assert_same(found, {name: values_of(Network(3))[name] for name in body_of(model)})
    with torch.no_grad():
        model.body.bias[0] += 1e-3
    with pytest.raises(UserError, match="is the Fisher of another model"):
        read(written, model, donor=True)


def test_a_fisher_of_another_layout_is_named(written):
    with pytest.raises(UserError, match=r"'body.weight' is \(3, 3\), but \(3, 4\) in place"):
        read(written, Network(3, width=4))
    with pytest.raises(UserError, match=r"'head.weight' is \(2, 3\), but \(5, 3\) in place"):
        read(written, Network(3, outputs=5))


def test_headers_tell_layout_and_origin_but_not_whose_it_is(model, written, tmp_path):
    with torch.no_grad():
        model.body.bias[0] += 1.0
    found, origin = read(written, model, values=False)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "body.weight": (3, 3),
        "body.bias": (3,),
    }
    assert "12 examples of a validation split" in origin
    nameless = tmp_path / "nameless.safetensors"
    write_fisher(nameless, values_of(model), {"examples": 1})
    with pytest.raises(UserError, match=r"nameless.* another model \(unknown\), not of place"):
        read(nameless, model, values=False)


@pytest.fixture
def moments(model, monkeypatch):
    """What a checkpoint holds: the weights it was saved with, and Adam's second moments."""
    weights = {name: tensor.clone() for name, tensor in body_of(model).items()}
    second = {name: torch.rand_like(tensor) for name, tensor in weights.items()}
    asked = []

    def read_second_moments(file, name, body):
        asked.append((file, name, list(body)))
        return weights, second

    monkeypatch.setattr(expert_fishers, "read_second_moments", read_second_moments)
    return weights, second, asked


def test_adams_moments_serve_the_weights_they_were_saved_with(model, moments):
    file = Path("fit/best.ckpt")
    found, origin = read(file, model)
    assert_same(found, moments[1])
    assert moments[2] == [(file, "x", ["body.weight", "body.bias"])]
    assert origin == "Adam's second moments in fit/best.ckpt, of the batches it was trained on"
    with torch.no_grad():  # the head was trained too, but does not take part
        model.head.bias[0] += 1.0
    read(file, model)


def test_adams_moments_of_other_weights_are_refused(model, moments):
    moments[0]["body.bias"][0] += 1e-3
    with pytest.raises(UserError, match=r"last.ckpt: holds other weights than place; give the"):
        read(Path("last.ckpt"), model)
    read(Path("last.ckpt"), model, values=False)  # headers do not tell
    moments[0]["body.bias"] = torch.zeros(4)
    with pytest.raises(UserError, match=r"'body.bias' is \(4,\), but \(3,\) in place"):
        read(Path("last.ckpt"), model, values=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a", Expert("runs/a")),
        (Path("runs/a"), Expert("runs/a")),
        ({"path": "runs/a", "fisher": Path("f.h5")}, Expert("runs/a", Path("f.h5"))),
        ({"path": "runs/a", "donor": True}, Expert("runs/a", donor=True)),
        (Expert("runs/a"), Expert("runs/a")),
    ],
)
def test_an_expert_may_be_given_by_its_path(given, expected):
    assert expert_of("a", given) == expected


@pytest.mark.parametrize("given", [3, None, {}, {"paht": "x"}, {"path": "x", "fsher": "y"}, ["x"]])
def test_what_is_no_expert_is_said(given):
    with pytest.raises(UserError, match=r"^--experts\.a: is .*, but must be a path, an Expert, or"):
        expert_of("a", given)
