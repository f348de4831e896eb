"""Rank classification: ℓ, loss and Fisher against loops over one example and choice at a time."""

import logging

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BlenderbotConfig,
    FSMTConfig,
    FSMTForConditionalGeneration,
    LongT5Config,
    NllbMoeConfig,
    PreTrainedTokenizerFast,
    SwitchTransformersConfig,
)

from fmerge.errors import UserError
from fmerge.fisher import FisherAccumulator
from fmerge.modules import RankChoice, TextClassifier
from fmerge.modules.answers import _shifted, bare, continuation_tokens
from fmerge.params import params_of
from fmerge.store import load_language_model, load_tokenizer
from tests import oracle, tiny
from tests.compare import assert_same


def t5():
    return AutoModelForSeq2SeqLM.from_config(tiny.t5_config()), "$A [EOS]"


def t5_gated_untied():
    model = AutoModelForSeq2SeqLM.from_config(tiny.t5_config(feed_forward_proj="gated-gelu"))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model, "$A [EOS]"


def bart():
    return AutoModelForSeq2SeqLM.from_config(tiny.bart_config()), "[BOS] $A [EOS]"


def blenderbot():
    """It has no method of its own that makes decoder inputs of labels."""
    return AutoModelForSeq2SeqLM.from_config(tiny.bart_config(BlenderbotConfig)), "$A [EOS]"


def gpt2():
    return AutoModelForCausalLM.from_config(tiny.gpt2_config()), "$A"


def llama():
    return AutoModelForCausalLM.from_config(tiny.llama_config()), "[BOS] $A"


def switch():
    """Its encoder's output has router logits, which the decoder's call reads."""
    sizes = {"d_model": 12, "d_ff": 16, "d_kv": 6, "num_layers": 2, "num_heads": 2}
    config = SwitchTransformersConfig(
        **tiny.TEXT, **sizes, decoder_start_token_id=0, num_experts=2,
        relative_attention_num_buckets=8, num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1, expert_capacity=64,
    )  # fmt: skip
    return AutoModelForSeq2SeqLM.from_config(config), "$A [EOS]"


def nllb_moe():
    config = NllbMoeConfig(
        **tiny.TEXT, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_experts=2,
        expert_capacity=64, encoder_sparse_step=2, decoder_sparse_step=2, decoder_start_token_id=2,
        max_position_embeddings=24, moe_eval_capacity_token_fraction=1.0,
    )  # fmt: skip
    return AutoModelForSeq2SeqLM.from_config(config), "$A [EOS]"


def long_t5():
    config = LongT5Config(
        **tiny.TEXT, d_model=12, d_ff=16, d_kv=6, num_layers=1, num_heads=2, local_radius=3,
        relative_attention_num_buckets=8, decoder_start_token_id=0,
    )  # fmt: skip
    return AutoModelForSeq2SeqLM.from_config(config), "$A [EOS]"


ROUTED = ("switch", "nllb_moe")
MODELS = {
    model.__name__: model
    for model in (
        t5, t5_gated_untied, bart, blenderbot, switch, nllb_moe, long_t5, gpt2, llama
    )
}  # fmt: skip


def make(kind, side="right", **options):
    torch.manual_seed(0)
    model, template = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokenizer = tiny.text_tokenizer(template)
    tokenizer.padding_side = side
    module = RankChoice(**options)
    module.adopt({"one": model, "two": model}, tokenizer)
    return module.double().eval()


def questions(counts, seed=0):
    """Prompts of many lengths, and as many choices for each as ``counts`` says."""
    prompts = tiny.sentences(len(counts), seed)
    examples = []
    for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        choices = [one[: 4 * (k + 2)].strip() for k, one in enumerate(tiny.sentences(count, i))]
        examples.append({"text": prompt, "choices": choices, "label": (i * 7) % count})
    return examples


COUNTS = [2, 5, 8, 3, 2]


def loop(module, example):
    """ℓ of one example: every choice alone, without padding."""
    model, tokenizer = module.model, module.tokenizer
    prompt = tokenizer(example["text"])["input_ids"]
    values = []
    for choice in example["choices"]:
        if model.config.is_encoder_decoder:
            answer = tokenizer(text_target=choice)["input_ids"]
            start = model.config.decoder_start_token_id
            logits = model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([[start, *answer[:-1]]]),
            ).logits[0]
        else:
            answer = [*tokenizer(choice, add_special_tokens=False)["input_ids"], 2]
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]
        terms = [logits[t].log_softmax(0)[token] for t, token in enumerate(answer)]
        assert answer[-1] == tokenizer.eos_token_id
        values.append(sum(terms) / len(answer))
    return torch.stack(values)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MODELS)
def test_log_likelihoods_are_those_of_one_choice_at_a_time(kind, side):
    module = make(kind, side).requires_grad_(False)
    examples = questions(COUNTS)
    found = module.label_log_probs(module.collate(examples, "one"))
    assert found.shape == (5, 8)
    for row, example in zip(found, examples, strict=True):
        expected = loop(module, example)
        here = len(expected)
        assert_same({"ℓ": row[:here]}, {"ℓ": expected}, rtol=0, atol=1e-8)
        assert (row[here:] == -torch.inf).all()
        assert int(row.argmax()) == int(expected.argmax())


@pytest.mark.parametrize("kind", ["t5", "switch"])
def test_a_decoder_without_start_starts_as_in_generation_or_is_refused(kind):
    module = make(kind)
    batch = module.collate(questions([2, 3]), "one")
    expected = module.label_log_probs(batch)
    config = module.model.config
    del config.decoder_start_token_id  # as in a config that does not name it
    with pytest.raises(UserError, match="has neither decoder_start_token_id nor bos_token_id"):
        module.label_log_probs(batch)
    config.bos_token_id = 0
    torch.testing.assert_close(module.label_log_probs(batch), expected)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_encoder_runs_once_for_each_example(kind):
    module = make(kind)
    rows = {"encoder": [], "decoder": []}
    for part, seen in rows.items():
        getattr(module.model.base_model, part).register_forward_hook(
            lambda _, args, output, seen=seen: seen.append(len(output[0]))
        )
    module.label_log_probs(module.collate(questions(COUNTS), "one"))
    assert rows == {"encoder": [5], "decoder": [5 * 8]}


def test_logits_of_prompts_are_not_computed():
    module = make("gpt2")
    widths = []
    module.model.lm_head.register_forward_hook(
        lambda _, args, output: widths.append(output.shape[1])
    )
    example = {"text": "red cat blue dog sky sea", "choices": ["one", "two three"], "label": 0}
    module.label_log_probs(module.collate([example] * 2, "one"))
    assert widths == [4]  # two words, the end, and one that no token follows


@pytest.mark.parametrize("kind", MODELS)
def test_the_training_loss_is_that_of_transformers(kind):
    module = make(kind).requires_grad_(False)
    examples = questions(COUNTS)
    batch = module.collate(examples, "one")
    total, tokens = 0.0, 0
    for example in examples:
        prompt = module.tokenizer(example["text"])["input_ids"]
        true = example["choices"][example["label"]]
        answer = module.tokenizer(true, add_special_tokens=False)["input_ids"]
        if module.model.config.is_encoder_decoder:
            labels = torch.tensor([module.tokenizer(text_target=true)["input_ids"]])
            inputs = {"input_ids": torch.tensor([prompt])}
        else:
            labels = torch.tensor([[-100] * len(prompt) + answer + [2]])
            inputs = {"input_ids": torch.tensor([[*prompt, *answer, 2]])}
        count = int((labels != -100).sum())
        total += count * module.model(**inputs, labels=labels).loss
        tokens += count
    expected = {"loss": total / tokens}
    assert_same({"loss": module.task_loss(batch)}, expected, rtol=1e-7)
    logged = {}
    module.log = lambda name, value, **options: logged.update({name: value})
    other = module.collate(questions([2, 3], seed=5), "two")
    both = module.training_step({"one": batch, "two": other}, 0)
    assert_same({"loss": both}, {"loss": (expected["loss"] + module.task_loss(other)) / 2})
    # validation in batches of unlike sizes is the mean over the tokens of them all
    module.log_dict = logged.update
    for part in (examples[:2], examples[2:]):
        module.validation_step(module.collate(part, "one"), 0)
    module.on_validation_epoch_end()
    assert_same({"loss": logged["val/loss"]}, expected, rtol=1e-6)
    right = [int(loop(module, one).argmax()) == one["label"] for one in examples]
    assert float(logged["one/accuracy"]) == pytest.approx(sum(right) / len(right))
    assert "two/accuracy" not in logged


def test_half_precision_logits_give_float32_log_likelihoods():
    module = make("t5")
    batch = module.collate(questions(COUNTS), "one")
    exact = module.label_log_probs(batch)
    found = module.to(torch.bfloat16).label_log_probs(batch)
    assert found.dtype == torch.float32
    present = torch.isfinite(exact)
    assert float((found[present] - exact[present]).detach().abs().max()) < 0.1


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=pytest.mark.slow if k in {"switch", "nllb_moe"} else ())
        for k in MODELS
    ],
)
def test_fishers_are_the_definition(kind, estimator, caplog):
    module = make(kind)
    examples = questions([2, 4, 3, 2])
    fallback = "loop" if kind in ROUTED else "error"  # a router picks tokens of all examples
    accumulator = FisherAccumulator(
        module.task_model("one"), module.label_log_probs, estimator, fallback=fallback
    )
    for part in (examples[:3], examples[3:]):
        accumulator.add(module.collate(part, "one"))
    told = [one for one in caplog.records if one.name.startswith("fmerge")]
    assert bool(told) == (kind in ROUTED)

    def weights(values, n):
        if estimator == "exact":
            return values.softmax(0)
        return torch.eye(len(values), dtype=values.dtype)[examples[n]["label"]]

    expected, _ = oracle.fisher(
        module.model, examples, lambda one: loop(module, one)[None], weights
    )
    expected = {
        name: value + torch.zeros_like(module.model.get_parameter(name))
        for name, value in expected.items()
    }
    rounding = 1e-12 * max(float(value.max()) for value in expected.values())
    assert rounding > 0
    assert_same(accumulator.estimate().values, expected, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("estimator", ["sampled", "rademacher"])
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_random_estimators_run_without_a_fallback(kind, estimator):
    module = make(kind)
    accumulator = FisherAccumulator(
        module.model, module.label_log_probs, estimator, fallback="error"
    )
    accumulator.add(module.collate(questions([2, 4, 3]), "one"))
    values = accumulator.estimate().values
    assert all(torch.isfinite(value).all() for value in values.values())
    assert sum(float(value.sum()) for value in values.values()) > 0


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_saved_is_read_again(kind, tmp_path):
    module = make(kind).float()
    own = {name: value.clone() for name, value in module.body(module.model).items()}
    batch = module.collate(questions(COUNTS), "one")
    expected = module.label_log_probs(batch)
    module.save(tmp_path / "expert")
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": {**module.hparams, "path": str(tmp_path / "expert")},
        },
        tmp_path / "best.ckpt",
    )
    for source in ("expert", "best.ckpt"):
        other = RankChoice()
        path = str(tmp_path / source)
        other.adopt({"one": other.read(path, "one")}, load_tokenizer(path))
        assert_same(params_of(other.model), own, rtol=0, atol=0)
        assert other.model.training
        again = other.eval().collate(questions(COUNTS), "one")
        assert torch.equal(other.label_log_probs(again), expected)


def test_a_checkpoint_brings_its_own_weights_into_the_layout_at_its_path(tmp_path):
    module = make("t5_gated_untied").float()
    module.save(tmp_path / "base")
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.mul_(2)
    path = tmp_path / "best.ckpt"
    hyperparameters = {"path": str(tmp_path / "base")}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": hyperparameters}, path)
    assert_same(params_of(load_language_model(str(path))), module.body(module.model), 0, 0)


class Questions(LightningDataModule):
    """Two tasks whose few answers can be learned by heart."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.tasks = {"one": questions([2, 3, 4, 2, 2]), "two": questions([3, 3, 2], seed=4)}
        self.labels = {"one": [], "two": []}
        self.metrics = {"one": ["accuracy"], "two": ["accuracy"]}

    def loader(self, task):
        collate = self.module.collate
        return DataLoader(
            self.tasks[task], batch_size=3, collate_fn=lambda rows: collate(rows, task)
        )

    def train_dataloader(self):
        return {task: self.loader(task) for task in self.tasks}

    def val_dataloader(self):
        return self.train_dataloader()


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_fit_learns_its_answers_and_its_checkpoint_is_read(kind, tmp_path):
    make(kind).float().save(tmp_path / "base")
    module = RankChoice(str(tmp_path / "base"), learning_rate=1e-2, warmup_fraction=0.1)
    trainer = Trainer(
        max_epochs=30,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=30,
    )
    data = Questions(module)
    trainer.validate(module, data, verbose=False)
    before = dict(trainer.callback_metrics)
    trainer.fit(module, data)
    after = trainer.callback_metrics
    assert before["val/score"] < 0.6 and after["val/score"] > 0.8
    assert after["val/loss"] < before["val/loss"] / 2
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = RankChoice()
    path = str(tmp_path / "last.ckpt")
    other.adopt({"one": other.read(path, "one")}, load_tokenizer(path))
    assert_same(params_of(other.model), module.body(module.model), rtol=0, atol=0)


def test_what_is_no_language_model_is_refused(zoo, tmp_path):
    with pytest.raises(UserError, match=r"is a BertForSequenceClassification, which .* no text"):
        load_language_model(zoo.base)
    make("t5").float().save(tmp_path / "t5")
    file = tmp_path / "t5" / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as lacking:
        load_language_model(str(tmp_path / "t5"))
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert str(lacking.value) == f"{tmp_path / 't5'}: tensor '{name}' is missing"
    tensors[name] = torch.zeros(2, 2)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is \(2, 2\) where its config says \(12, 12\)$"):
        load_language_model(str(tmp_path / "t5"))
    state = {"state_dict": {"models.a.x": torch.zeros(1)}, "hyper_parameters": {"path": "t5"}}
    torch.save(state, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="holds no language model: no tensor is named 'model"):
        load_language_model(str(tmp_path / "other.ckpt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["one"]}, r"has the choices \['one'\], but a list of at least 2 is needed"),
        ({"choices": "one"}, "has the choices 'one', but a list of at least 2"),
        ({"label": 2}, "has label 2, but its 2 choices have the numbers 0 to 1"),
        ({"label": -1}, "has label -1, but its 2 choices have the numbers 0 to 1"),
        ({"text": ""}, "has a prompt or choice without any token"),
    ],
)
def test_examples_that_cannot_be_asked_are_named(change, message):
    example = {"text": "red\ncat", "choices": ["one", "two"], "label": 0} | change
    with pytest.raises(UserError, match=message) as error:
        make("gpt2").collate([example], "one")
    assert "\n" not in str(error.value) and str(error.value).startswith("task 'one': the example")


PIECES = ["[UNK]", "[EOS]", "red", "two", "Ġtwo", "Ċ", "▁red", "▁two", "Ġ", "▁", " two"]


@pytest.mark.parametrize(
    ("pre_tokenizer", "prompt", "choice", "expected"),
    [
        (ByteLevel(add_prefix_space=False), "red", "two", ["Ġtwo"]),
        (ByteLevel(add_prefix_space=False), "red  ", "two", ["Ġtwo"]),
        (ByteLevel(add_prefix_space=False), "red", " two", ["Ġtwo"]),
        (ByteLevel(add_prefix_space=False), "red\n", "two", ["two"]),
        (ByteLevel(add_prefix_space=False), "", "two", ["two"]),
        (Metaspace(prepend_scheme="first"), "red", "two", ["▁two"]),
        (Metaspace(prepend_scheme="first"), "red ", "two", ["▁two"]),
        (None, "red", "two", [" two"]),  # "red two" is one word, and no answer after "red"
    ],
)
def test_an_answer_s_first_word_has_one_space(pre_tokenizer, prompt, choice, expected):
    words = Tokenizer(WordLevel({chunk: i for i, chunk in enumerate(PIECES)}, unk_token="[UNK]"))
    if pre_tokenizer is not None:
        words.pre_tokenizer = pre_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]"
    )
    [[ids]] = continuation_tokens(tokenizer, [bare(prompt)], [[choice]])
    assert tokenizer.convert_ids_to_tokens(ids) == [*expected, "[EOS]"]
    tokenizer.eos_token = None
    [[ids]] = continuation_tokens(tokenizer, [bare(prompt)], [[choice]])
    assert tokenizer.convert_ids_to_tokens(ids) == expected


def test_an_end_that_a_tokenizer_adds_to_prompts_is_not_between_prompt_and_answer():
    module = make("gpt2")
    example = {"text": "red", "choices": ["one", "two"], "label": 0}
    plain = module.collate([example], "one")
    module.tokenizer = tiny.text_tokenizer("$A [EOS]")
    ended = module.collate([example], "one")
    assert torch.equal(plain["input_ids"], ended["input_ids"])
    assert torch.equal(plain["choice_ids"], ended["choice_ids"])
    assert (ended["choice_ids"][..., -1] == module.tokenizer.eos_token_id).all()


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_prompts_are_cut_and_counted(kind, caplog):
    module = make(kind, max_length=4)
    short, long = {"text": "red cat"}, {"text": "red cat blue dog sky sea"}
    rest = {"choices": ["one", "two three four"], "label": 1}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            batch = module.collate([short | rest, long | rest, long | rest], "one")
            module.collate([short | rest], "two")
    assert batch["input_ids"].shape == (3, 4) and batch["choice_ids"].shape == (3, 2, 4)
    assert (
        module.truncation.truncated == {"one": 4, "two": 0} and module.truncation.seen["one"] == 6
    )
    assert [record.getMessage() for record in caplog.records] == [
        "task 'one': 2 of the first 3 prompts are longer than 4 tokens and were cut; "
        "later ones are cut silently"
    ]


def test_a_prompt_of_exactly_the_length_is_not_cut(zoo):
    module = TextClassifier(max_length=2)
    module.adopt(
        {"colour": module._load(zoo.base, "colour", ["a", "b", "c"], True)}, tiny.tokenizer()
    )
    module.collate([{"text": "red cat", "label": 0}, {"text": "red", "label": 0}], "colour")
    assert not module.truncation.truncated["colour"] and module.truncation.seen["colour"] == 2
    pair = {"text": "red cat", "text_pair": "blue", "label": 0}
    module.collate([pair], "colour")
    assert module.truncation.truncated["colour"] == 1


def test_an_answer_finds_room_among_a_causal_model_s_positions():
    module = make("gpt2", max_length=512)
    example = {"text": "red " * 40, "choices": ["one", "two " * 9], "label": 0}
    batch = module.collate([example, {**example, "choices": ["one", "two"]}], "one")
    assert batch["attention_mask"].sum(1).tolist() == [24 - 10, 24 - 2]
    assert torch.isfinite(module.label_log_probs(batch)).all()
    with pytest.raises(UserError, match="takes 24 tokens, but an answer alone has 31"):
        module.collate([{**example, "choices": ["one", "two " * 30]}], "one")


def test_what_is_used_too_early_is_said():
    with pytest.raises(RuntimeError, match="configure_model or adopt"):
        RankChoice().collate([], "one")
    with pytest.raises(UserError, match=r"--model\.path: is not set"):
        RankChoice().configure_model()


def fsmt():
    config = FSMTConfig(
        src_vocab_size=22, tgt_vocab_size=22, langs=["a", "b"], d_model=12, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return FSMTForConditionalGeneration(config).eval()


def test_answers_are_left_as_they_are_where_a_model_shifts_them_itself():
    """FSMT's own method puts padding into the labels that it is given."""
    targets = torch.tensor([[5, 6, 2], [7, 2, -100]])
    shifted = _shifted(fsmt(), targets)
    assert targets.tolist() == [[5, 6, 2], [7, 2, -100]]
    assert shifted.tolist() == [[2, 5, 6], [2, 7, 2]]


def test_later_tokens_are_masked_where_a_model_does_so_for_whole_inputs_alone():
    """FSMT has no causal mask where it is given the encoder's outputs without its inputs."""
    module = RankChoice()
    model = fsmt()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    module.adopt({"one": model}, tiny.text_tokenizer("$A [EOS]"))
    module.eval()
    example = {"text": "red cat", "choices": ["one two three", "red"], "label": 0}
    batch = module.collate([example], "one")
    answer = batch["choice_ids"][0, :1]
    with torch.no_grad():
        found = module.label_log_probs(batch)[0, 0]
        start = torch.tensor([[2, *answer[0, :-1].tolist()]])
        logits = model(batch["input_ids"], decoder_input_ids=start, use_cache=False).logits
    expected = logits.log_softmax(-1).gather(-1, answer[..., None]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
