"""The same classifier from every layout, and clear refusals of what is none."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from fmerge.errors import UserError
from fmerge.params import params_of
from fmerge.store import load_classifier, load_tokenizer, save_models
from fmerge.store.sources import package_folder
from tests import tiny
from tests.compare import assert_same

LABELS = tiny.LABELS["colour"]


@pytest.fixture
def expert(zoo):
    return AutoModelForSequenceClassification.from_pretrained(zoo.experts["colour"])


def same(found, expert):
    assert_same(params_of(found), params_of(expert), rtol=0, atol=0)
    assert all(parameter.dtype == torch.float32 for parameter in found.parameters())


def test_folders_sharded_folders_and_bin_files(zoo, expert, tmp_path):
    same(load_classifier(zoo.experts["colour"], "colour", LABELS), expert)
    expert.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    same(load_classifier(str(tmp_path / "sharded"), "colour", LABELS), expert)
    (tmp_path / "bin").mkdir()
    shutil.copy(f"{zoo.experts['colour']}/config.json", tmp_path / "bin")
    torch.save(expert.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    same(load_classifier(str(tmp_path / "bin"), "colour", LABELS), expert)


def test_links_to_files_elsewhere_are_followed_as_in_the_hubs_cache(zoo, expert, tmp_path):
    for path in Path(zoo.experts["colour"]).iterdir():
        (tmp_path / path.name).symlink_to(path)
    same(load_classifier(str(tmp_path), "colour", LABELS), expert)
    assert load_tokenizer(str(tmp_path)).get_vocab() == tiny.tokenizer().get_vocab()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="cannot read its weights: it holds no"):
        load_classifier(str(tmp_path), "colour", LABELS)


def test_half_precision_files_become_float32(expert, tmp_path):
    expert.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    same(load_classifier(str(tmp_path / "half"), "colour", LABELS), expert.float())


def test_lightning_checkpoints(zoo, expert, tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save(lightning(zoo, expert), path)
    same(load_classifier(str(path), "colour", LABELS), expert)
    assert load_classifier(str(path), "colour").config.id2label == dict(enumerate(LABELS))
    assert load_tokenizer(str(path)).get_vocab() == tiny.tokenizer().get_vocab()
    with pytest.raises(UserError, match="no head for task 'animal'; it has: colour"):
        load_classifier(str(path), "animal")


def lightning(zoo, expert):
    return {
        "state_dict": {f"models.colour.{k}": v for k, v in expert.state_dict().items()},
        "hyper_parameters": {"path": zoo.base, "tasks": {"colour": LABELS}},
    }


def test_a_base_gets_a_new_head_only_when_asked(zoo, tmp_path):
    model = load_classifier(zoo.base, "x", ["p", "q"], fresh_head=True)
    assert model.config.num_labels == 2 and model.config.id2label == {0: "p", 1: "q"}
    base = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    body = {k: v for k, v in params_of(model).items() if k.startswith("bert.")}
    assert_same(body, {k: params_of(base)[k] for k in body}, rtol=0, atol=0)
    base.bert.save_pretrained(tmp_path / "body")  # an encoder without any head, as hubs have them
    load_classifier(str(tmp_path / "body"), "x", ["p", "q"], fresh_head=True)
    with pytest.raises(UserError, match=r"has no trained classification head \('classifier"):
        load_classifier(str(tmp_path / "body"), "x", ["a", "b", "c"])


def test_saved_folders_are_whole_and_replace_what_was_there(expert, tmp_path):
    folder = tmp_path / "out"
    save_models(folder, {"a": expert, "b": expert}, tiny.tokenizer())
    save_models(folder, {"": expert}, tiny.tokenizer())
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    same(AutoModelForSequenceClassification.from_pretrained(folder), expert)


def test_package_folders():
    assert package_folder("roberta-base") == "roberta-base"
    assert Path(package_folder("package:transformers/models/bert")).is_dir()
    with pytest.raises(UserError, match="package 'nope_nope' is not installed"):
        package_folder("package:nope_nope/model")


def truncate(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


def drop_body(folder: Path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    state = model.state_dict()
    del state["bert.pooler.dense.weight"], state["bert.pooler.dense.bias"]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "expert: no such file or folder"),
        (lambda f: (f / "config.json").unlink(), "expert: holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "expert/config.json: is no JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "expert: cannot read its weights"),
        (truncate, "expert/model.safetensors: not a readable safetensors file"),
        (drop_body, "expert: body tensor 'bert.pooler.dense.*' is missing, and 1 more"),
    ],
)
def test_damaged_folders_are_refused(zoo, tmp_path, damage, message):
    folder = tmp_path / "expert"
    shutil.copytree(zoo.experts["colour"], folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_classifier(str(folder), "colour", LABELS)


class Payload:
    def __reduce__(self):
        import os

        return os.system, ("touch " + str(self.path),)


def test_checkpoints_that_would_run_code_are_refused_and_run_nothing(zoo, expert, tmp_path):
    payload = Payload()
    payload.path = tmp_path / "ran"
    torch.save(lightning(zoo, expert) | {"callbacks": payload}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="evil.ckpt: refused"):
        load_classifier(str(tmp_path / "evil.ckpt"), "colour", LABELS)
    assert not payload.path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ([1], "is no Lightning checkpoint"),
        ({"state_dict": {}}, "is no checkpoint of 'fmerge fit'"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, content, message):
    path = tmp_path / "x.ckpt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"x.ckpt: {message}"):
        load_classifier(str(path), "colour", LABELS)


def test_other_labels_are_refused(zoo):
    with pytest.raises(UserError, match=r"labels are \['warm', 'cold', 'none'\], but the task's"):
        load_classifier(zoo.experts["colour"], "colour", ["cold", "warm", "hot"])
    with pytest.raises(UserError, match="labels are"):
        load_classifier(zoo.experts["colour"], "colour", ["cold", "warm"])


KINDS = {
    "bert": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    "roberta": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    "distilbert": {"dim": 16, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_head": 2, "pad_token_id": 0},
    "xlnet": {"d_model": 16, "n_head": 2, "d_inner": 24},
    "t5": {"d_model": 16, "num_heads": 2, "d_ff": 24, "d_kv": 8, "decoder_start_token_id": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_in_another_order_are_mapped_by_name(kind, tmp_path):
    """Every architecture's last layer: the outputs stand in the order that was asked for."""
    own = ["not entailment", "Entailment", "neutral"]
    layers = "n_layer" if kind in {"gpt2", "xlnet"} else "num_hidden_layers"
    sizes = {"vocab_size": 20, layers: 1, "eos_token_id": 3}
    config = AutoConfig.for_model(kind, **sizes, **KINDS[kind], id2label=dict(enumerate(own)))
    model = tiny.classifier(config)
    model.save_pretrained(tmp_path)
    asked = ["entailment", "neutral", "Not_Entailment"]
    found = load_classifier(str(tmp_path), "x", asked)
    tokens = torch.tensor([[4, 5, 6, 3], [7, 8, 9, 3]])
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, model(tokens).logits[:, [1, 2, 0]])
        found.save_pretrained(tmp_path / "again")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
        assert again.config.id2label == dict(enumerate(asked))
        torch.testing.assert_close(again(tokens).logits, found(tokens).logits)


def test_unnamed_labels_stand_in_the_order_of_the_task(zoo, expert, tmp_path):
    expert.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    expert.save_pretrained(tmp_path)
    same(load_classifier(str(tmp_path), "x", ["cold", "warm", "hot"]), expert)
    with pytest.raises(UserError, match="labels are"):
        load_classifier(str(tmp_path), "x", ["cold", "warm"])
