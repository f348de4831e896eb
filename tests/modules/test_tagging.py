"""Tags of words: where they stand, what is scored, and Fishers by their definition."""

import itertools

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from fmerge.errors import UserError
from fmerge.fisher import FisherAccumulator, FisherSettings
from fmerge.modules import FisherPass, TextClassifier, TokenClassifier
from fmerge.modules.losses import TARGETS, example_losses, expert_targets
from tests import oracle, tiny
from tests.compare import assert_same

PIECES = "[PAD] [UNK] [CLS] [SEP] sun ##set moon ##s red over the , ##less".split()
TAGS = ["B-X", "I-X", "O"]
# "sunset" and "moonless" have two pieces, "sea" is unknown
EXAMPLES = [
    {"words": ["the", "sunset", "red"], "label": [2, 0, 1]},
    {"words": ["moonless", "sea"], "label": [0, 2]},
    {"words": ["red", ",", "over", "the", "suns"], "label": [2, 2, 1, 0, 1]},
]


def pieces() -> PreTrainedTokenizerFast:
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    made = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )


def tagger(seed=3, **options):
    options = {"vocab_size": len(PIECES), "num_hidden_layers": 1, "hidden_size": 8} | options
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_config(tiny.bert_config(TAGS, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def case():
    """A tagger in float64, a batch of three examples, and each example by hand, alone."""
    model = tagger().double()
    module = TokenClassifier()
    module.adopt({"t": model}, pieces())
    module.eval()
    ids = [[2, 10, 4, 5, 8, 3], [2, 6, 12, 1, 3], [2, 8, 11, 9, 10, 4, 7, 3]]
    firsts = [[1, 2, 4], [1, 3], [1, 2, 3, 4, 5]]
    alone = [(torch.tensor([one]), at) for one, at in zip(ids, firsts, strict=True)]
    return module, model, module.collate(EXAMPLES, "t"), alone


def tag_log_probs(model, one):
    """log p (words, tags) of an example alone."""
    ids, firsts = one
    return model(input_ids=ids).logits[0, firsts].log_softmax(dim=1)


def fisher(module, batch, estimator, samples=1):
    pass_ = FisherPass(module, "t", FisherSettings(estimator=estimator, samples=samples))
    accumulator = pass_._make()
    accumulator.add(pass_._with_answers(batch, range(3)), range(3))
    return accumulator.estimate().values


def test_a_word_has_its_tag_on_its_first_token(case):
    module, _, batch, alone = case
    no = -100
    assert batch["labels"].tolist() == [
        [no, 2, 0, no, 1, no, no, no],
        [no, 0, no, 2, no, no, no, no],
        [no, 2, 2, 1, 0, 1, no, no],
    ]
    for row, (ids, _) in zip(batch["input_ids"], alone, strict=True):
        assert row[: ids.shape[1]].equal(ids[0])
    assert module.targets(batch).shape == (3, 32)


def test_truncated_words_do_not_count():
    module = TokenClassifier(max_length=4)
    module.adopt({"t": tagger()}, pieces())
    batch = module.collate(EXAMPLES[:1], "t")
    assert batch["labels"].tolist() == [[-100, 2, 0, -100]]
    # a tokenizer that drops a character, or a word, as an accent
    module.tokenizer.backend_tokenizer.normalizer = _without("\u0301")
    words = {"words": ["\u0301red", "\u0301", "sun"], "label": [0, 1, 2]}
    assert module.collate([words], "t")["labels"].tolist() == [[-100, 0, 2, -100]]
    nothing = {"words": ["\u0301"], "label": [1]}
    with pytest.raises(UserError, match="task 't': none of the words .* gives a token; remove"):
        module.collate([words, nothing], "t")


def _without(character):
    from tokenizers.normalizers import Replace

    return Replace(character, "")


def test_losses_and_tags(case):
    module, model, batch, alone = case
    losses, predictions = module.outcome(batch)
    total = 0.0
    for i, (one, example) in enumerate(zip(alone, EXAMPLES, strict=True)):
        log_p = tag_log_probs(model, one)
        own = -sum(log_p[k, tag] for k, tag in enumerate(example["label"]))
        torch.testing.assert_close(losses[i], own)
        assert predictions[i][one[1]].tolist() == log_p.argmax(1).tolist()
        assert (predictions[i] != -100).sum() == len(example["words"])
        total += own
    torch.testing.assert_close(module.task_loss(batch), total / 10)


def test_the_exact_fisher_of_tags(case):
    """Σ over words and tags of p (∂ log p)², each squared by itself."""
    module, model, batch, alone = case
    expected, _ = oracle.fisher(
        model,
        alone,
        lambda one: tag_log_probs(model, one).flatten()[None],
        lambda values, n: values.exp(),
    )
    assert_same(fisher(module, batch, "exact"), expected, rtol=1e-5)


def every_sequence(model, one):
    """ℓ (1, 3^T) of all sequences of tags of an example."""
    log_p = tag_log_probs(model, one)
    choices = itertools.product(range(3), repeat=len(log_p))
    return torch.stack([sum(log_p[k, c] for k, c in enumerate(own)) for own in choices])[None]


def test_it_is_the_fisher_over_all_sequences(case):
    module, model, _, alone = case
    batch = module.collate(EXAMPLES[:2], "t")
    accumulator = FisherAccumulator(model, module.label_log_probs, "exact")
    accumulator.add(batch)
    expected, _ = oracle.fisher(
        model, alone[:2], lambda one: every_sequence(model, one), lambda values, n: values.exp()
    )
    assert_same(accumulator.estimate().values, expected, rtol=1e-5)


def test_empirical_and_sampled_fishers_are_of_whole_sequences(case):
    module, model, batch, alone = case
    drawn = FisherPass(module, "t", FisherSettings(estimator="sampled", samples=2))
    answers = drawn._with_answers(batch, range(3))["answers"]
    tags = [[one["label"]] for one in EXAMPLES]
    for estimator, samples, chosen in (
        ("empirical", 1, tags),
        ("sampled", 2, [a[:, at].tolist() for a, (_, at) in zip(answers, alone, strict=True)]),
    ):
        expected, _ = oracle.fisher(
            model,
            list(zip(alone, chosen, strict=True)),
            lambda pair: torch.stack([
                sum(tag_log_probs(model, pair[0])[k, c] for k, c in enumerate(own))
                for own in pair[1]
            ])[None],
            lambda values, n: torch.full_like(values, 1 / len(values)),
        )
        assert_same(fisher(module, batch, estimator, samples), expected, rtol=1e-5)
    # draws belong to the example, whatever else is in its batch
    alone_ = module.collate(EXAMPLES[1:2], "t")
    again = drawn._with_answers(alone_, [1])["answers"]
    assert again.equal(answers[1:2, :, : again.shape[2]])
    many = FisherPass(module, "t", FisherSettings(estimator="sampled", samples=2000))
    shares = many._with_answers(batch, range(3))["answers"][1, :, 3]
    p = tag_log_probs(model, alone[1])[1].detach().exp()
    found = torch.stack([(shares == c).double().mean() for c in range(3)])
    assert float((found - p).abs().max()) < 0.045  # four standard errors


def test_experts_and_entropy_add_up_over_words(case):
    module, model, batch, alone = case
    batch = dict(batch)
    batch[TARGETS] = expert_targets(module, batch).detach()
    assert example_losses(module, batch, "experts").abs().max() < 1e-12
    log_p = [tag_log_probs(model, one) for one in alone]
    entropies = torch.stack([-(one.exp() * one).sum() for one in log_p])
    torch.testing.assert_close(example_losses(module, batch, "entropy"), entropies)
    torch.testing.assert_close(example_losses(module, batch, "labels"), module.outcome(batch)[0])


def test_modules_refuse_each_others_examples(case):
    module, *_ = case
    with pytest.raises(UserError, match="TokenClassifier needs words with tags, as of TagFiles"):
        module.collate([{"text": "red", "label": 0}], "t")
    texts = TextClassifier()
    texts.adopt({"t": tiny.classifier(tiny.bert_config())}, tiny.tokenizer())
    with pytest.raises(UserError, match="its answers are tags of words, .* --model TokenClassif"):
        texts.collate([{"words": ["red"], "text": "red", "label": [0]}], "t")
