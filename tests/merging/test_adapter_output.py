"""A merge as an adapter: exact for linear methods, opened by peft, and read again."""

import json

import pytest
import torch
from peft import PeftModel  # noqa: F401  # conftest leaves this file out where peft is missing

import fmerge
from fmerge.errors import UserError
from fmerge.merging.adapter_output import adapter_output, check_rank
from fmerge.merging.adapters import base_of
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble
from fmerge.methods import TIES, Average, TaskArithmetic
from fmerge.modules import RankChoice, TextClassifier
from fmerge.params import write_params
from fmerge.store import (
    SavedForm,
    adapters_on,
    load_classifier,
    load_language_model,
    save_models,
)
from tests import tiny
from tests.adapters import CAUSAL, causal_base, make_adapter, opened

LORA = {
    "a": {"r": 2, "target_modules": ["query", "word_embeddings"], "lora_alpha": 4},
    "b": {"r": 3, "target_modules": ["query", "output.dense"], "bias": "all"},
}
IDS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    base = tiny.classifier(tiny.bert_config(num_hidden_layers=1), seed=1)
    folder = tiny.save(base, root / "base")
    for i, (name, lora) in enumerate(LORA.items()):
        make_adapter(folder, root / name, seed=i, task_type="SEQ_CLS", **lora)
    return folder, {name: str(root / name) for name in LORA}


def ensemble_of(paths, module=None, base=None, heads="keep"):
    experts = {name: Expert(str(path)) for name, path in paths.items()}
    base = base_of(experts, base)
    with adapters_on(base):
        given = (experts, base, Average(), module or TextClassifier())
        return load_ensemble(*given, heads=heads)


@pytest.fixture(scope="module")
def found(family):
    return ensemble_of(family[1])


def merged_model(found, body):
    """The first task's network with a merged body; a new one, as networks are shared."""
    model = load_classifier(next(iter(found.sources.values())), "x")
    write_params(model, body)
    return model.eval()


def saved(found, lowered, folder, tokenizer=None):
    model = merged_model(found, lowered.body)
    form = SavedForm(adapter=lowered.saved)
    save_models(folder, {"": model}, tokenizer or tiny.tokenizer(), None, {"": form})
    return model


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.3, 1.2]])
def test_the_sum_of_ranks_is_exact_for_linear_methods(family, found, tmp_path, weights):
    body = TaskArithmetic().merge(found.base, list(found.bodies.values()), weights)
    lowered = adapter_output("sum", found).lower(body)
    assert lowered.fact.startswith("adapter: ranks 2 to 5, which keeps 100% of the squared norm")
    for name, tensor in body.items():
        torch.testing.assert_close(lowered.body[name], tensor, rtol=1e-6, atol=1e-6)
    model = saved(found, lowered, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == family[0]
    by_peft = opened(tmp_path / "out", merge=False)
    again = load_classifier(str(tmp_path / "out"), "x")
    with torch.no_grad():
        expected = merged_model(found, body)(IDS).logits
        for one in (model, by_peft, opened(tmp_path / "out"), again.eval()):
            torch.testing.assert_close(one(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_one_adapter_with_coefficient_1_gives_back_its_logits(family, found, tmp_path):
    body = TaskArithmetic().merge(found.base, list(found.bodies.values()), [0.0, 1.0])
    lowered = adapter_output("sum", found).lower(body)
    model = load_classifier(family[1]["b"], "x")
    form = SavedForm(adapter=lowered.saved)
    save_models(tmp_path / "out", {"": model}, tiny.tokenizer(), None, {"": form})
    with torch.no_grad():
        expected = opened(family[1]["b"], merge=False)(IDS).logits
        found_logits = opened(tmp_path / "out", merge=False)(IDS).logits
    torch.testing.assert_close(found_logits, expected, rtol=1e-5, atol=1e-5)


def test_a_lower_rank_keeps_what_its_singular_values_say(found, tmp_path):
    body = TaskArithmetic().merge(found.base, list(found.bodies.values()), [0.5, 0.7])
    lowered = adapter_output(1, found).lower(body)
    kept = {}
    for name, (b, a) in lowered.saved.factors.items():
        change = body[name].double() - found.base[name].double()
        values = torch.linalg.svdvals(change)
        kept[name] = float(values[0] ** 2), float(values.square().sum())
        turned = (b @ a).T if "embeddings" in name else b @ a
        torch.testing.assert_close(lowered.body[name], found.base[name] + turned)
        rest = torch.linalg.matrix_norm(change - turned.double())
        assert float(rest) == pytest.approx(float(values[1:].square().sum()) ** 0.5, abs=1e-6)
    assert lowered.kept.keys() == kept.keys()
    for name, norms in kept.items():
        assert lowered.kept[name] == pytest.approx(norms, rel=1e-6)
    share = sum(one for one, _ in kept.values()) / sum(whole for _, whole in kept.values())
    assert f"adapter: rank 1, which keeps {100 * share:.3f}% of the squared" in lowered.fact
    assert "; by layer: outside of layers " in lowered.fact
    assert ", bert.encoder.layer.0 " in lowered.fact
    model = saved(found, lowered, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(
            opened(tmp_path / "out", merge=False)(IDS).logits,
            model.eval()(IDS).logits, rtol=1e-5, atol=1e-5,
        )  # fmt: skip


def test_its_size_is_that_of_its_factors(found):
    output = adapter_output("sum", found)
    factors = output.lower(found.bodies["a"]).saved.factors.values()
    assert output.size == 4 * sum(b.numel() + a.numel() for b, a in factors)


def test_labels_and_the_base_are_recorded(family, found, tmp_path):
    body = TIES().merge(found.base, list(found.bodies.values()), [1.0, 1.0])
    lowered = adapter_output(2, found).lower(body)
    saved(found, lowered, tmp_path / "out")
    assert load_classifier(str(tmp_path / "out"), "x").config.id2label == {0: "a", 1: "b", 2: "c"}
    other = tiny.save(tiny.classifier(tiny.bert_config(num_hidden_layers=1), 7), tmp_path / "o")
    with adapters_on(other), pytest.raises(UserError, match="out: was made for another base than"):
        load_classifier(str(tmp_path / "out"), "x")


def test_whole_models_become_an_adapter_of_a_rank(family, tmp_path):
    base = load_classifier(family[0], "x")
    moved = tiny.moved_near(tiny.classifier(tiny.bert_config(num_hidden_layers=1), 5), base)
    whole = tiny.save(moved, tmp_path / "whole")
    found = ensemble_of({"w": whole, "a": family[1]["a"]}, base=family[0])
    with pytest.raises(UserError, match="--adapter_rank: is sum, but expert 'w' is no adapter"):
        adapter_output("sum", found)
    body = TaskArithmetic().merge(found.base, list(found.bodies.values()), [1.0, 0.0])
    lowered = adapter_output(16, found).lower(body)  # the full rank of every matrix
    assert {name.rpartition(".")[2] for name in lowered.saved.whole} == {"weight", "bias"}
    saved(found, lowered, tmp_path / "out")
    with torch.no_grad():
        expected = load_classifier(whole, "x").eval()(IDS).logits
        by_peft = opened(tmp_path / "out", merge=False)(IDS).logits
    torch.testing.assert_close(by_peft, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [tiny.gpt2_config(), tiny.llama_config()])
def test_language_models(tmp_path, config):
    base = causal_base(tmp_path / "base", config)
    targets = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "embed_tokens"]}[config.model_type]
    paths = {name: tmp_path / name for name in "ab"}
    for i, path in enumerate(paths.values()):
        lora = {"r": 2 + i, "target_modules": targets, "task_type": "CAUSAL_LM"}
        make_adapter(base, path, seed=i, kind=CAUSAL, **lora)
    found = ensemble_of(paths, RankChoice())
    body = TaskArithmetic().merge(found.base, list(found.bodies.values()), [0.6, 0.5])
    lowered = adapter_output("sum", found).lower(body)
    model = load_language_model(base)
    write_params(model, lowered.body)
    form = SavedForm(adapter=lowered.saved)
    save_models(tmp_path / "out", {"": model}, tiny.text_tokenizer(), None, {"": form})
    with torch.no_grad():
        expected = model.eval()(IDS).logits
        by_peft = opened(tmp_path / "out", CAUSAL, merge=False)(IDS).logits
    torch.testing.assert_close(by_peft, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(body, lowered.body, rtol=1e-6, atol=1e-6)


def test_what_no_adapter_can_hold_is_refused(family, tmp_path):
    for rank in (0, -1, True, 1.5, "all"):
        with pytest.raises(UserError, match="--adapter_rank: is .*, but must be a positive numb"):
            check_rank(rank, None)
    with pytest.raises(UserError, match="--dtype: is bfloat16, but an adapter .--adapter_rank. is"):
        check_rank(2, "bfloat16")
    check_rank(None, "bfloat16")
    check_rank("sum", "float32")
    whole = {"a": family[0], "b": family[0]}
    with pytest.raises(UserError, match="--adapter_rank: needs the base that the adapter is of"):
        adapter_output(2, ensemble_of(whole))
    with pytest.raises(UserError, match="--adapter_rank: needs the base"):
        fmerge.Trainer(logger=False).merge(
            TextClassifier(), experts=whole, adapter_rank=2, output=tmp_path / "out"
        )
    config = tiny.llama_config()
    config.tie_word_embeddings = True
    base = causal_base(tmp_path / "base", config)
    moved = tiny.language_model(config, seed=1)
    with torch.no_grad():
        moved.model.embed_tokens.weight.add_(0.01)
    moved.save_pretrained(tmp_path / "moved")
    tiny.text_tokenizer().save_pretrained(tmp_path / "moved")
    tied = {"a": tmp_path / "moved", "b": tmp_path / "moved"}
    with pytest.raises(UserError, match="experts change 'model.embed_tokens.weight', which is tie"):
        adapter_output(2, ensemble_of(tied, RankChoice(), base))


def test_a_merge_of_whole_models_without_data_is_written_as_an_adapter(family, tmp_path):
    """Such a merge would else be made tensor by tensor, which writes whole models."""
    base = load_classifier(family[0], "x")
    experts = {}
    for seed, name in enumerate("ab", 5):
        moved = tiny.moved_near(tiny.classifier(tiny.bert_config(num_hidden_layers=1), seed), base)
        experts[name] = tiny.save(moved, tmp_path / name)
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    options = {"base": family[0], "adapter_rank": 3, "output": tmp_path / "out"}
    report = trainer.merge(TextClassifier(), experts=experts, **options)
    assert "adapter: ranks 2 to 3, which keeps " in report.provenance.saved
    for name in experts:
        files = {path.name for path in (tmp_path / "out/merged" / name).iterdir()}
        assert files >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
        assert not files & {"model.safetensors", "config.json"}
