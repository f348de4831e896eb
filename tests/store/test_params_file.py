"""``fmerge.load_params``: every kind of file gives the tensors that are in it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from fmerge.errors import UserError
from fmerge.store.params_file import load_params

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "ids": torch.arange(4)}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_a_folder(zoo):
    model = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    found = load_params(zoo.base)
    assert found.keys() == model.state_dict().keys()
    same(found, model.state_dict())


def test_a_folder_in_shards(zoo, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    same(load_params(tmp_path), model.state_dict())


def test_files(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    torch.save({"state_dict": TENSORS}, tmp_path / "last.ckpt")
    for path in (*tmp_path.iterdir(), tmp_path):  # the folder holds a .bin
        same(load_params(path), TENSORS)


def test_half_precision_stays(tmp_path):
    half = {"a": torch.ones(2, dtype=torch.bfloat16)}
    save_file(half, tmp_path / "x.safetensors")
    same(load_params(str(tmp_path / "x.safetensors")), half)


def test_a_saved_merge_is_read_by_transformers(zoo, tmp_path):
    params = {name: 2 * tensor for name, tensor in load_params(zoo.base).items()}
    model = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    model.config.save_pretrained(tmp_path)
    save_file(params, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same(AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict(), params)
    same(load_file(tmp_path / "model.safetensors"), params)


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"no header", "not a readable safetensors file"),
        ("x.bin", b"no pickle", "is damaged or holds more than tensors"),
        ("x.bin", Evil(), "is damaged or holds more than tensors"),
        ("x.bin", [1], "holds a list, but tensors by name are needed"),
        ("x.bin", {"a": 1}, "'a' is no tensor; save the weights alone"),
        ("x.ckpt", {"a": 1}, "it has no 'state_dict'"),
        ("x.txt", b"text", "is neither a Hugging Face folder nor a .safetensors"),
        ("model.safetensors.index.json", b"{}", "is neither"),
    ],
)
def test_what_cannot_be_read_is_refused(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_params(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".bin", ".ckpt"])
def test_nothing_there(suffix, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / f"x{suffix}")


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"it holds no model.safetensors"):
        load_params(tmp_path)


def test_an_index_cannot_lead_outside(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    inside = tmp_path / "inside"
    inside.mkdir()
    index = '{"metadata": {}, "weight_map": {"a": "../x.safetensors"}}'
    (inside / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="a shard is a .safetensors file in the same folder"):
        load_params(inside)
