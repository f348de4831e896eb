"""Models that were saved without a pooler as bases, donors and starts of a fit."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    ErnieConfig,
)

import fmerge
from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble
from fmerge.methods import Average, TaskArithmetic
from fmerge.modules import TextClassifier
from fmerge.params import params_of
from fmerge.store import load_classifier, new_pooler
from tests import tiny
from tests.compare import assert_same
from tests.merging.whole_merges import merge, near, save, task

V = len(tiny.WORDS) + 2
CONFIGS = {
    "bert": tiny.bert_config,
    "albert": lambda: AlbertConfig(
        vocab_size=V, embedding_size=8, hidden_size=12, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=32,
        id2label=dict(enumerate("abc")),
    ),
    "ernie": lambda: ErnieConfig(
        vocab_size=V, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
        id2label=dict(enumerate("abc")),
    ),
}  # fmt: skip
HEADS = {
    "masked words": AutoModelForMaskedLM,
    "entities": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
}


def made(root, kind="bert", head="masked words"):
    """A model without a pooler, and two experts that lie near it, with poolers of their own."""
    torch.manual_seed(0)
    base = HEADS[head].from_config(CONFIGS[kind]())
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    names = dict(base.named_parameters())
    assert not any(".pooler." in name for name in names)
    saved = {
        name: save(near(tiny.classifier(CONFIGS[kind](), seed=k), base), root / name,
                   tiny.tokenizer())
        for k, name in enumerate("xy", 3)
    }  # fmt: skip
    return base, save(base, root / "base", tiny.tokenizer()), saved


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_base_without_pooler_leaves_each_task_its_own(tmp_path, kind, head, caplog):
    base, where, saved = made(tmp_path, kind, head)
    experts = {name: Expert(path) for name, path in saved.items()}
    module = TextClassifier()
    found = load_ensemble(experts, where, TaskArithmetic(), module)
    poolers = {name for name in params_of(found.models["x"]) if ".pooler." in name}
    assert poolers and poolers == module.apart
    assert not poolers & found.bodies["x"].keys() and not poolers & found.base.keys()
    assert_same(found.base, {k: params_of(base)[k] for k in found.base}, rtol=0, atol=0)
    assert all(poolers <= found.heads()[name].keys() for name in "xy")
    assert len(caplog.messages) == 1 and "so that each task keeps its own" in caplog.messages[0]
    assert caplog.messages[0].startswith("the base: no pooler")


def test_a_merge_with_such_a_base_saves_the_experts_own_poolers(tmp_path):
    base, where, saved = made(tmp_path)
    tasks = {name: task("abc", 5 * k) for k, name in enumerate("xy")}
    report = merge(tmp_path, saved, tasks, base=where)
    assert report.best.status == "ok"
    own = {name: load_file(f"{path}/model.safetensors") for name, path in saved.items()}
    for name in "xy":
        merged = load_file(tmp_path / "out" / "merged" / name / "model.safetensors")
        for key, tensor in merged.items():
            if ".pooler." in key or key.startswith("classifier."):
                assert tensor.equal(own[name][key]), key
            else:
                torch.testing.assert_close(tensor, (own["x"][key] + own["y"][key]) / 2)


def test_live_tasks_share_all_but_the_pooler(tmp_path):
    _, where, saved = made(tmp_path)
    experts = {name: Expert(path) for name, path in saved.items()}
    module = TextClassifier()
    found = load_ensemble(experts, where, TaskArithmetic(), module)
    module.adopt(found.models, found.tokenizer)
    x, y = (module.task_model(name).base_model for name in "xy")
    assert x.encoder is y.encoder and x.embeddings is y.embeddings and x.pooler is not y.pooler
    text = [{"text": "red cat", "label": 0}]
    for name, path in saved.items():
        own = load_classifier(path, name)
        with torch.no_grad():  # under the expert's own body its own pooler and head
            for key, tensor in params_of(own).items():
                if key in found.bodies[name]:
                    params_of(module.task_model(name))[key].copy_(tensor)
            batch = module.eval().collate(text, name)
            expected = own.eval()(input_ids=batch["input_ids"]).logits.log_softmax(1)
            torch.testing.assert_close(module.label_log_probs(batch), expected)


def test_a_donor_without_pooler_gives_its_body(tmp_path):
    _, _, saved = made(tmp_path, head="entities")
    donor = Expert(str(tmp_path / "base"), donor=True)
    found = load_ensemble(
        {name: Expert(path) for name, path in saved.items()} | {"z": donor},
        None, Average(), TextClassifier(),
    )  # fmt: skip
    assert found.names == ["x", "y", "z"]
    assert not any(".pooler." in name for name in found.bodies["z"])


def test_with_a_pooler_everywhere_nothing_is_kept_apart(tmp_path):
    base = tiny.classifier(tiny.bert_config(), seed=1)
    where = save(base, tmp_path / "base", tiny.tokenizer())
    experts = {
        name: Expert(save(near(tiny.classifier(tiny.bert_config(), seed=k), base),
                          tmp_path / name, tiny.tokenizer()))
        for k, name in enumerate("xy", 2)
    }  # fmt: skip
    module = TextClassifier()
    module.apart = frozenset({"of a merge before"})
    found = load_ensemble(experts, where, TaskArithmetic(), module)
    assert module.apart == frozenset() and "bert.pooler.dense.weight" in found.base
    module.adopt(found.models, found.tokenizer)
    assert module.task_model("x").base_model is module.task_model("y").base_model


@pytest.mark.parametrize("head", HEADS)
def test_a_fit_starts_with_a_new_pooler_and_says_so(tmp_path, head, caplog):
    base, where, _ = made(tmp_path, head=head)
    read = load_classifier(where, "x", ["p", "q"], fresh_head=True)
    assert new_pooler(read) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    shared = {k: t for k, t in params_of(read).items() if k in params_of(base) and "bert." in k}
    assert_same(shared, {k: params_of(base)[k] for k in shared}, rtol=0, atol=0)
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        max_steps=2, enable_checkpointing=False,
    )  # fmt: skip
    data = MultiTask({"x": task(["p", "q"], 1)}, 4)
    trainer.fit(TextClassifier(path=where), datamodule=data, output=tmp_path / "out")
    assert [one for one in caplog.messages if "pooler" in one] == [
        f"{where}: has no pooler ('bert.pooler.dense.bias'); a new one starts from random numbers, "
        "as the head does"
    ]
    fitted = load_classifier(str(tmp_path / "out" / "expert"), "x", ["p", "q"])
    assert new_pooler(fitted) == frozenset()


def test_an_expert_still_needs_its_pooler(tmp_path):
    _, where, _ = made(tmp_path)
    with pytest.raises(UserError, match="base: has no trained classification head"):
        load_classifier(where, "x", ["a", "b", "c"])


def test_a_pooler_of_which_a_part_is_missing_is_damaged(tmp_path):
    base = tiny.classifier(tiny.bert_config())
    save(base, tmp_path, tiny.tokenizer())
    state = base.state_dict()
    del state["bert.pooler.dense.bias"]
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="body tensor 'bert.pooler.dense.bias' is missing"):
        load_classifier(str(tmp_path), "x", ["p", "q"], fresh_head=True)
