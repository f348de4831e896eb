"""How models are stored, read from their headers; and the dtypes of merges."""

import pytest
import torch
from safetensors.torch import save_file

from fmerge.errors import UserError
from fmerge.store.saved_form import SavedForm, check_dtype, form_of, merged_dtypes, parse_size
from tests import tiny

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def folder(place, tensors, **options):
    place.mkdir()
    (place / "config.json").write_text("{}")
    if options.get("pickled"):
        torch.save(tensors, place / "pytorch_model.bin")
    else:
        save_file(tensors, place / "model.safetensors")
    return str(place)


@pytest.mark.parametrize("pickled", [False, True])
def test_dtypes_are_those_of_the_files(tmp_path, pickled):
    tensors = {
        "a": torch.ones(2, dtype=BF16), "b": torch.ones(2, dtype=F16), "c": torch.ones(2),
        "d": torch.ones(2, dtype=torch.float64), "ids": torch.arange(2),
    }  # fmt: skip
    form = form_of(folder(tmp_path / "x", tensors, pickled=pickled))
    # models are read in float32
    assert [form.dtype_of(name) for name in "abcd"] == [BF16, F16, F32, F32]
    assert form.shard_bytes is None and form.folder == tmp_path / "x"


def test_a_name_that_files_write_otherwise_gets_the_bodys_or_the_commonest():
    form = SavedForm({"layer.w": F16, "x": BF16, "y": BF16})
    assert form.dtype_of("bert.layer.w") == F16
    assert form.dtype_of("bert.other") == BF16
    assert SavedForm().dtype_of("w") == F32 and SavedForm().dtype_of("w", F16) == F16


def test_a_checkpoint_of_a_fit_has_its_own_dtypes_and_its_bases_side_files(tmp_path):
    base = folder(tmp_path / "base", {"w": torch.ones(2)})
    state = {"models.x.w": torch.ones(2, dtype=BF16), "models.y.w": torch.ones(2, dtype=F16)}
    torch.save({"state_dict": state, "hyper_parameters": {"path": base}}, tmp_path / "best.ckpt")
    for task, dtype in (("x", BF16), ("y", F16)):
        form = form_of(str(tmp_path / "best.ckpt"), task)
        assert form.dtype_of("w") == dtype and form.folder == tmp_path / "base"
    torch.save({"state_dict": {"model.w": torch.ones(2, dtype=F16)}}, tmp_path / "own.ckpt")
    assert form_of(str(tmp_path / "own.ckpt")) == SavedForm({"w": F16})


@pytest.mark.parametrize("size", [3_000, 9_000, 20_000])
def test_the_shards_bound_gives_the_same_shards_again(tmp_path, size):
    model = tiny.classifier(tiny.bert_config())
    model.save_pretrained(tmp_path / "one", max_shard_size=size)
    form = form_of(str(tmp_path / "one"))
    assert form.shard_bytes is not None
    model.save_pretrained(tmp_path / "two", max_shard_size=form.shard_bytes)
    shards = [sorted(p.name for p in (tmp_path / n).glob("*.safetensors")) for n in ("one", "two")]
    assert shards[0] == shards[1] and len(shards[0]) > 1


@pytest.mark.parametrize(
    ("stored", "expected"),
    [([BF16, BF16], BF16), ([F16, F16, F16], F16), ([BF16, F16], F32), ([BF16, F32, BF16], F32)],
)
def test_a_merge_has_the_narrowest_dtype_that_holds_all(stored, expected):
    assert merged_dtypes([SavedForm({"w": one}) for one in stored], ["w"]) == {"w": expected}


def test_dtypes_are_decided_tensor_by_tensor_and_can_be_given():
    forms = [SavedForm({"w": BF16, "norm": F32}), SavedForm({"w": BF16, "norm": BF16})]
    assert merged_dtypes(forms, ["w", "norm"]) == {"w": BF16, "norm": F32}
    assert merged_dtypes(forms, ["w", "norm"], "float16") == {"w": F16, "norm": F16}


def test_a_dtype_must_hold_the_numbers():
    tensors = {"made/a": {"small": torch.ones(2), "w": torch.tensor([1.0, -70000.0])}}
    for dtype in (None, "float32", "bfloat16"):
        check_dtype(dtype, tensors)
    with pytest.raises(UserError) as refused:
        check_dtype("float16", tensors)
    assert str(refused.value) == (
        "--dtype: float16 holds numbers up to 65504, but tensor 'w' of made/a has 70000; use "
        "bfloat16 or float32"
    )
    for wrong in ("fp16", "int8", "float8_e4m3fn", "auto"):
        with pytest.raises(UserError, match=f"--dtype: is '{wrong}', but must be one of bfloat16,"):
            check_dtype(wrong, {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (5, 5),
        ("5", 5),
        ("10KB", 10_000),
        ("2 mb", 2_000_000),
        ("1.5GB", 1_500_000_000),
    ],
)
def test_sizes(given, expected):
    assert parse_size(given) == expected


@pytest.mark.parametrize("wrong", ["", "five", "-1", "0", "5 apples", "GB", "0.0MB", 0])
def test_what_is_no_size(wrong):
    with pytest.raises(UserError, match="--max_shard_size: is .*, but must be a number of bytes"):
        parse_size(wrong)
