"""Calibrations against a loop over layers, experts and single examples, without padding."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from fmerge.methods import FeatCal, RegMeanPP
from fmerge.modules import Bodies, CalibrationPass, TextClassifier
from fmerge.params import params_of
from tests import tiny
from tests.compare import assert_same
from tests.modules.layer_by_layer import calibrated
from tests.modules.test_rank_choice import make

TASKS = ("one", "two")
TEXTS = {task: tiny.sentences(9, seed) for task, seed in zip(TASKS, (4, 5), strict=True)}
SENTENCES = {task: [{"text": t, "label": 0} for t in texts] for task, texts in TEXTS.items()}
METHODS = {
    "RegMeanPP": (RegMeanPP(double=True), {"off_diagonal": 0.9}),
    "FeatCal": (
        FeatCal(double=True),
        {"a": 0.3, "rho": 2.0, "r": 0.05, "c": True, "biases": True, "norms": True},
    ),
}
BERT_BLOCK = [
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "attention.output.LayerNorm",
    "intermediate.dense", "output.dense", "output.LayerNorm",
]  # fmt: skip
BERT = [
    "bert.embeddings.LayerNorm",
    *(f"bert.encoder.layer.{i}.{name}" for i in range(2) for name in BERT_BLOCK),
    "bert.pooler.dense",
]


def moved(model, seed, scale=0.1):
    """A model near another, as if fine-tuned from it."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return other.eval()


def averaged(models):
    merged = copy.deepcopy(models[0])
    with torch.no_grad():
        for parameter, *others in zip(*(m.parameters() for m in [merged, *models]), strict=True):
            parameter.copy_(sum(others) / len(others))
    return merged


def fitted(module, method, models, base, examples, batch_size=3, skipping=True):
    """The body that the pass fits to the experts' from their average."""
    own = {name: module.body(model) for name, model in zip(TASKS, models, strict=False)}
    start = module.body(averaged(models))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    loaders = [
        DataLoader(
            examples[task], batch_size=batch_size,
            collate_fn=lambda some, task=task: module.collate(some, task),
        )
        for task in own
    ]  # fmt: skip
    network = module.task_model("one")
    network.load_state_dict(start, strict=False)
    bodies = Bodies(start, None if base is None else module.body(base), own)
    one = CalibrationPass(module, method, {task: task for task in own}, bodies)
    one.skipping = skipping
    trainer.predict(one, dataloaders=loaders, return_predictions=False)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    assert not any("forward" in vars(m) for m in network.modules())
    assert one.skipping == skipping
    found = start | one.fitted
    live = params_of(network)
    assert_same({name: live[name] for name in found}, found)
    return found


def classifiers():
    base = tiny.classifier(tiny.bert_config(), seed=1).double()
    return base, [moved(base, 10), moved(base, 11)]


def headed(models):
    module = TextClassifier()
    module.adopt(
        {task: copy.deepcopy(model) for task, model in zip(TASKS, models, strict=False)},
        tiny.tokenizer(),
    )
    return module.double().eval()


def one_text(text):
    return lambda model: model(**tiny.tokenizer()(text, return_tensors="pt"))


RUNS = [[one_text(text) for text in TEXTS[task]] for task in TASKS]


@pytest.mark.parametrize("name", METHODS)
def test_of_classifiers(name):
    method, options = METHODS[name]
    base, models = classifiers()
    module = headed(models)
    found = fitted(module, method, models, base, SENTENCES)
    expected = calibrated(averaged(models), models, base, BERT, RUNS, **options)
    assert_same(found, module.body(expected), rtol=1e-6)


GPT2_BLOCK = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
GPT2 = [
    *(f"transformer.h.{i}.{name}" for i in range(2) for name in GPT2_BLOCK),
    "transformer.ln_f",
]
T5_SELF = ["layer_norm", *(f"SelfAttention.{name}" for name in "qkvo")]
T5_CROSS = ["layer_norm", *(f"EncDecAttention.{name}" for name in "qkvo")]
T5_MLP = ["layer_norm", "DenseReluDense.wi", "DenseReluDense.wo"]


def t5_stack(stack, parts):
    inside = [f"layer.{k}.{name}" for k, names in enumerate(parts) for name in names]
    blocks = [f"{stack}.block.{i}.{name}" for i in range(2) for name in inside]
    return [*blocks, f"{stack}.final_layer_norm"]


T5 = [
    *t5_stack("encoder", [T5_SELF, T5_MLP]),
    *t5_stack("decoder", [T5_SELF, T5_CROSS, T5_MLP]),
]


def questions(task):
    """Prompts of two and three choices; some batches have prompts and answers of one length."""
    texts = TEXTS[task][:2]
    return [
        {"text": text, "choices": tiny.sentences(2 + i % 2, seed=20 + i), "label": 0}
        for i, text in enumerate(texts)
    ]


def t5_runs(module, task):
    """The encoder once for an example, the decoder once for each choice."""
    tokenizer = module.tokenizer

    def run(model, example):
        prompt = tokenizer(example["text"], return_tensors="pt")["input_ids"]
        states = model.get_encoder()(input_ids=prompt)
        for choice in example["choices"]:
            answer = tokenizer(text_target=choice)["input_ids"]
            ids = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
            model(encoder_outputs=states, decoder_input_ids=ids)

    return [lambda model, one=one: run(model, one) for one in questions(task)]


def gpt2_runs(module, task):
    tokenizer = module.tokenizer

    def run(model, example):
        prompt = tokenizer(example["text"])["input_ids"]
        for choice in example["choices"]:
            answer = [*tokenizer(choice, add_special_tokens=False)["input_ids"], 2]
            model(input_ids=torch.tensor([prompt + answer]))

    return [lambda model, one=one: run(model, one) for one in questions(task)]


@pytest.mark.parametrize(
    ("kind", "order", "runs", "name"),
    [
        ("gpt2", GPT2, gpt2_runs, "RegMeanPP"),
        ("gpt2", GPT2, gpt2_runs, "FeatCal"),
        pytest.param("t5", T5, t5_runs, "RegMeanPP", marks=pytest.mark.slow),
        pytest.param("t5", T5, t5_runs, "FeatCal", marks=pytest.mark.slow),
    ],
)
def test_of_language_models(kind, order, runs, name):
    """Conv1D and causal attention; an encoder, and a decoder that reads it, with RMS norms."""
    method, options = METHODS[name]
    module = make(kind)
    base = copy.deepcopy(module.model).eval()
    models = [moved(base, 10), moved(base, 11)]
    examples = {task: questions(task) for task in TASKS}
    found = fitted(module, method, models, base, examples)
    runs = [runs(module, task) for task in TASKS]
    expected = calibrated(averaged(models), models, base, order, runs, **options)
    assert_same(found, params_of(expected), rtol=1e-6)
    start = params_of(averaged(models))
    changed = {key for key in start if not found[key].equal(start[key])}
    norms = name == "FeatCal"
    assert len(changed) == sum(
        1 for key in start if key.rpartition(".")[0] in order and _is_fitted(key, start[key], norms)
    )


def _is_fitted(name, tensor, everything):
    return everything or (tensor.ndim == 2 and name.endswith("weight"))


def test_batches_padding_and_skipped_blocks_do_not_matter():
    base, models = classifiers()
    method, _ = METHODS["FeatCal"]
    whole = fitted(headed(models), method, models, base, SENTENCES, batch_size=9)
    for batch_size, skipping in ((1, True), (4, False)):
        module = headed(models)
        found = fitted(module, method, models, base, SENTENCES, batch_size, skipping)
        assert_same(found, whole, rtol=1e-7)


@pytest.mark.parametrize("method", [RegMeanPP(double=True), FeatCal(r=0, double=True)])
def test_identical_experts_give_the_expert_and_one_gives_itself(method):
    base, models = classifiers()
    body = TextClassifier().body(models[0])
    for experts in ([models[0]] * 2, models[:1]):
        assert_same(fitted(headed(experts), method, experts, None, SENTENCES), body)


def test_without_a_and_r_it_is_regmean_on_the_merged_inputs():
    """Up to cₘ, which is one number for two experts that are asked about the same examples."""
    base, models = classifiers()
    same = {task: SENTENCES["one"] for task in TASKS}
    plain = FeatCal(a=0, r=0, biases=False, norms=False, double=True)
    found = fitted(headed(models), plain, models, None, same)
    expected = fitted(headed(models), RegMeanPP(off_diagonal=1, double=True), models, None, same)
    assert_same(found, expected, rtol=1e-7)


def test_a_weight_of_two_layers_is_fitted_once_to_the_inputs_of_both():
    base, models = classifiers()
    for model in (base, *models):
        first, second = (layer.intermediate.dense for layer in model.bert.encoder.layer)
        second.weight = first.weight
    method, options = METHODS["RegMeanPP"]
    module = headed(models)
    found = fitted(module, method, models, base, SENTENCES)
    one, two = (f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2))
    order = [path for path in BERT if path != two]
    expected = calibrated(averaged(models), models, base, order, RUNS, tied={one: [two]}, **options)
    assert f"{two}.weight" not in found
    assert_same(found, module.body(expected), rtol=1e-6)
