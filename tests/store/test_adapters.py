"""What is refused of adapters, in one line, and what their configs say."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmerge.errors import UserError
from fmerge.store import (
    adapters_on,
    form_of,
    is_adapter,
    load_classifier,
    load_language_model,
    load_tokenizer,
    read_adapter,
    reading_headers,
)
from fmerge.store.adapter_weights import BASE_HASH, hash_of
from fmerge.store.adapters import LABELS
from fmerge.store.module_kinds import class_path_of
from tests import tiny

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
HEAD = "base_model.model.classifier"
CONFIG = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4}


def factors(r=2, out=16, inputs=16):
    torch.manual_seed(3)
    return {
        f"{QUERY}.lora_A.weight": torch.randn(r, inputs),
        f"{QUERY}.lora_B.weight": torch.randn(out, r),
    }


def head(labels=3):
    return {f"{HEAD}.weight": torch.randn(labels, 16), f"{HEAD}.bias": torch.randn(labels)}


def write(folder, base, tensors=None, metadata=None, **options):
    """Writes an adapter without the package peft, which reads none of these tests' folders."""
    folder.mkdir(exist_ok=True)
    config = CONFIG | {"base_model_name_or_path": str(base)} | options
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = factors() | head() if tensors is None else tensors
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"} | (metadata or {}))
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    model = tiny.classifier(tiny.bert_config(num_hidden_layers=1), seed=1)
    return tiny.save(model, tmp_path_factory.mktemp("base"))


def test_an_adapter_is_told_by_its_files(base, tmp_path):
    folder = write(tmp_path / "a", base)
    assert is_adapter(folder) and not is_adapter(base) and not is_adapter("bert-base-uncased")
    assert class_path_of(folder) == "fmerge.modules.TextClassifier"
    assert form_of(folder) == form_of(base)
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(base).get_vocab()


def test_the_change_is_s_b_a(base, tmp_path):
    tensors = factors()
    folder = write(tmp_path / "a", base, tensors | head(), use_rslora=True)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    origin = load_classifier(base, "x").get_parameter(name)
    found = load_classifier(folder, "x").get_parameter(name)
    a, b = tensors.values()
    torch.testing.assert_close(found, origin + 4 / 2**0.5 * b @ a)


def test_the_files_of_a_bin_and_of_a_body_alone(base, tmp_path):
    folder = write(tmp_path / "a", base)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    short = {name.replace("model.bert.", "model."): one for name, one in tensors.items()}
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    torch.save(short, tmp_path / "a" / "adapter_model.bin")
    expected = load_classifier(write(tmp_path / "b", base, tensors), "x").state_dict()
    found = load_classifier(folder, "x").state_dict()
    assert all(found[name].equal(one) for name, one in expected.items())


def test_outputs_are_named_by_the_task_unless_the_base_names_them(base, tmp_path):
    folder = write(tmp_path / "a", base)
    plain = load_classifier(folder, "x").classifier.weight
    named = load_classifier(folder, "x", ["warm", "cold", "none"])
    assert named.classifier.weight.equal(plain) and named.config.id2label[1] == "cold"
    turned = load_classifier(folder, "x", ["c", "b", "a"])
    assert turned.classifier.weight.equal(plain[[2, 1, 0]])
    for recorded, fails in (('["x", "y", "z"]', True), ('["none", "warm", "cold"]', False)):
        tensors = load_file(f"{folder}/adapter_model.safetensors")
        own = write(tmp_path / "b", base, tensors, {LABELS: recorded})
        if fails:
            with pytest.raises(UserError, match="its labels are .'x', 'y', 'z'., but the task"):
                load_classifier(own, "x", ["warm", "cold", "none"])
        else:
            found = load_classifier(own, "x", ["warm", "cold", "none"])
            assert found.classifier.weight.equal(plain[[1, 2, 0]])
    with pytest.raises(UserError, match="its labels are .'a', 'b', 'c'., but the task's are .'x'"):
        load_classifier(folder, "x", ["x", "y"])


def test_a_base_of_the_body_alone_has_no_head_of_its_own(base, tmp_path):
    body = load_classifier(base, "x").bert
    alone = tiny.save(body, tmp_path / "body")
    found = load_classifier(write(tmp_path / "a", alone), "x", ["a", "b", "c"])
    assert found.config.id2label == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(UserError, match="a2: has no trained classification head"):
        load_classifier(write(tmp_path / "a2", alone, factors()), "x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"peft_type": "IA3"}, "is an adapter of type IA3, but fmerge reads LoRA alone; merge it"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING adds no ΔW to weights, so it cannot be m"),
        ({"peft_type": None}, "is an adapter of type None, but"),
        ({"alora_invocation_tokens": [1]}, "it acts on some tokens alone .aLoRA., which fmerge"),
        ({"layer_replication": [[0, 1]]}, "it repeats layers of its base"),
        ({"target_parameters": ["x"]}, "it targets parameters that are no module's weight"),
        ({"trainable_token_indices": [1]}, "it trains single tokens"),
        ({"use_qalora": True}, "it is of a quantized base .use_qalora."),
        ({"loftq_config": {"loftq_bits": 4}}, "it is of a quantized base .loftq_config."),
        ({"init_lora_weights": "pissa_niter_4"}, "its init_lora_weights is 'pissa_niter_4', whi"),
        ({"init_lora_weights": "olora"}, "its init_lora_weights is 'olora', which changes the"),
        ({"kasa_config": {"x": 1}, "new": 1}, "has the option kasa_config, new, unknown to fme"),
        ({"base_model_name_or_path": None}, "names no base .base_model_name_or_path.; give it"),
        ({"base_model_name_or_path": "/no/where"}, "its base cannot be used: /no/where: no such"),
        ({"r": 3}, "query' is of rank 2, but adapter_config.json says 3"),
        ({"r": "x"}, "adapter_config.json: r is 'x', but must be a positive number"),
        ({"lora_alpha": None}, "lora_alpha is 'None', but must be a positive number"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern holds '.', which is no pattern"),
    ],
)
def test_configs_that_are_refused(base, tmp_path, options, says):
    folder = write(tmp_path / "a", base, **options)
    with pytest.raises(UserError, match=says) as error:
        load_classifier(folder, "x")
    assert "\n" not in str(error.value) and str(tmp_path / "a") in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (factors(out=15), "lora_B of '.*query' is .15, 2., but its base .* needs .16, 2."),
        (factors(inputs=15), "lora_A of '.*query' is .2, 15., but its base .* needs .2, 16."),
        ({"x.lora_A.weight": torch.ones(2, 2)}, "tensor 'x.lora_A.weight' is not named as peft"),
        (
            {f"base_model.model.{key}": one for key, one in factors().items()},
            "changes 'base_model.model.bert.encoder.layer.0.*', which its base .* does not have",
        ),
        (dict(list(factors().items())[:1]), "has no lora_B of '.*query'; get the file again"),
        (head() | {f"{HEAD}.bias": torch.ones(4)}, "its 'classifier.bias' is .4,., but .3,. in"),
        (head() | {f"{HEAD}.other": torch.ones(4)}, "changes 'classifier.other', which its base"),
        (
            {
                f"{HEAD.replace('classifier', 'bert.pooler')}.lora_A.weight": torch.ones(2, 16),
                f"{HEAD.replace('classifier', 'bert.pooler')}.lora_B.weight": torch.ones(16, 2),
            },
            "targets 'bert.pooler', a BertPooler, whose ΔW fmerge does not know",
        ),
        (
            factors() | {f"{QUERY}.lora_magnitude_vector": torch.ones(15)},
            "its '.*query.weight' is .15,., but .16, 16. in its base",
        ),
    ],
)
def test_tensors_that_are_refused(base, tmp_path, tensors, says):
    folder = write(tmp_path / "a", base, tensors)
    with pytest.raises(UserError, match=says) as error:
        load_classifier(folder, "x")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=says), reading_headers():
        load_classifier(folder, "x")


def test_files_that_are_missing_or_damaged(base, tmp_path):
    folder = write(tmp_path / "a", base)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match="adapter_model.safetensors: not a readable safetensors"):
        load_classifier(folder, "x")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="a: cannot read its weights: it holds no adapter_model"):
        load_classifier(folder, "x")
    (tmp_path / "a" / "adapter_config.json").write_text("[")
    with pytest.raises(UserError, match="adapter_config.json: is no JSON"):
        load_classifier(folder, "x")


def test_bases_that_are_adapters_or_quantized(base, tmp_path):
    first = write(tmp_path / "a", base)
    with pytest.raises(UserError, match="its base cannot be used: .*a: is an adapter .PEFT, LoRA"):
        load_classifier(write(tmp_path / "b", first), "x")
    small = tiny.save(tiny.classifier(tiny.bert_config(num_hidden_layers=1)), tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True}
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its base cannot be used: .* is of a quantized model"):
        load_classifier(write(tmp_path / "c", small), "x")


def test_a_given_base_counts_and_its_hash_is_compared(base, tmp_path):
    name = "bert.encoder.layer.0.attention.self.query.weight"
    origin = load_classifier(base, "x").get_parameter(name)
    metadata = {BASE_HASH: hash_of({name: origin})}
    folder = write(tmp_path / "a", "/no/where", metadata=metadata)
    with adapters_on(base):
        assert read_adapter(folder).base == base
        load_classifier(folder, "x")
    other = tiny.save(tiny.classifier(tiny.bert_config(num_hidden_layers=1), 5), tmp_path / "o")
    with adapters_on(other), pytest.raises(UserError, match="was made for another base than"):
        load_classifier(folder, "x")


def test_a_bias_that_the_base_lacks(tmp_path):
    config = tiny.llama_config()
    tiny.language_model(config).save_pretrained(tmp_path / "base")
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"lora_A.weight": (2, 12), "lora_B.weight": (12, 2), "lora_B.bias": (12,)}
    tensors = {f"{place}.{key}": torch.ones(shape) for key, shape in shapes.items()}
    folder = write(
        tmp_path / "a", tmp_path / "base", tensors, task_type="CAUSAL_LM", lora_bias=True
    )
    with pytest.raises(UserError, match="adds a bias to '.*q_proj' .lora_bias., which has none"):
        load_language_model(folder)
