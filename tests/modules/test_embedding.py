"""Embeddings of texts: those of sentence-transformers, their losses, ranks and Fishers."""

import json

import pytest
import torch
from transformers import BertModel

from fmerge.errors import UserError
from fmerge.fisher import FisherSettings
from fmerge.modules import FisherPass, TextEmbedder
from fmerge.modules.metrics import make_metric
from fmerge.store import LabelNames, pooling_of
from tests import oracle, tiny
from tests.compare import assert_same

SCORES = LabelNames(["score"], "number")
MATCHES = LabelNames((), "matches")
PAIRS = list(zip(tiny.sentences(4, 5), tiny.sentences(4, 60), strict=True))
SCORED = [5.0, 2.0, 0.0, 4.0]


def folder(path, mode="mean_tokens", seed=3, **options):
    """A folder of sentence-transformers, of the layout that hub models have."""
    torch.manual_seed(seed)
    model = BertModel(tiny.bert_config(num_hidden_layers=1, hidden_size=8, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tiny.save(model, path)
    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    write(
        path / "modules.json",
        [
            {"idx": i, "name": str(i), "path": one, "type": f"sentence_transformers.models.{name}"}
            for i, (one, name) in enumerate(names.items())
        ],
    )
    write(path / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    write(path / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None})
    write(
        path / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": 8,
            **{
                f"pooling_mode_{one}": one == mode
                for one in ("cls_token", "mean_tokens", "max_tokens")
            },
        },
    )
    return str(path)


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def embedder(source, labels, **options):
    module = TextEmbedder(score_scale=5.0, **options)
    network = module.read(source, "t").double()
    module.adopt({"t": network}, tiny.tokenizer())
    module.add_metrics({"t": labels}, {})
    return module.eval(), network


def scored(pairs=PAIRS):
    return [
        {"text": a, "text_pair": b, "label": y} for (a, b), y in zip(pairs, SCORED, strict=True)
    ]


def matching(pairs=PAIRS):
    return [{"text": a, "text_pair": b} for a, b in pairs]


def cosine(network, pair):
    """The cosine of a pair, each text alone, mean over its tokens."""
    vectors = [
        network(**tiny.tokenizer()(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        for text in pair
    ]
    return torch.cosine_similarity(*vectors, dim=0)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
def test_embeddings_are_those_of_sentence_transformers(tmp_path, mode):
    home = pytest.importorskip("sentence_transformers")
    source = folder(tmp_path / "x", mode)
    module, _ = embedder(source, SCORES)
    found = module.embeddings(module.collate(scored(), "t"))
    model = home.SentenceTransformer(source, device="cpu")
    for side in (0, 1):
        expected = model.encode([pair[side] for pair in PAIRS], convert_to_tensor=True)
        torch.testing.assert_close(found[:, side].float(), expected, rtol=1e-4, atol=1e-5)


def test_losses_of_scores(tmp_path):
    module, network = embedder(folder(tmp_path / "x"), SCORES)
    losses, predictions = module.outcome(module.collate(scored(), "t"))
    cosines = torch.stack([cosine(network, pair) for pair in PAIRS])
    torch.testing.assert_close(predictions, cosines)
    y = torch.tensor(SCORED).double() / 5
    torch.testing.assert_close(losses, (y - cosines).square() / 2, rtol=1e-6, atol=1e-8)
    assert list(module.metrics["t"]) == ["pearson"]


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_the_fisher_of_scores(tmp_path, estimator):
    module, network = embedder(folder(tmp_path / "x"), SCORES)
    pass_ = FisherPass(module, "t", FisherSettings(estimator=estimator))
    accumulator = pass_._make()
    batch = module.collate(scored(), "t")
    accumulator.add(pass_._with_answers(batch, range(4)), range(4))

    def weigh(mean, n):
        return [1.0] if estimator == "exact" else [(SCORED[n] / 5 - float(mean)) ** 2]

    expected, _ = oracle.fisher(
        network, PAIRS, lambda pair: cosine(network, pair).view(1, 1), weigh
    )
    tolerance = {} if estimator == "exact" else {"rtol": 1e-4}  # the labels are float32
    found = accumulator.estimate().values
    for name in ("pooler.dense.weight", "pooler.dense.bias"):  # it takes no part
        assert not found.pop(name).any() and expected.pop(name) == 0
    assert_same(found, expected, **tolerance)


def test_retrieval_ranks_the_answers_of_all_batches(tmp_path):
    module, network = embedder(folder(tmp_path / "x"), MATCHES, similarity_scale=7.0)
    assert list(module.metrics["t"]) == ["recall_at_1"]
    losses, predictions = module.outcome(module.collate(matching(), "t"))
    table = torch.tensor([
        [float(cosine(network, (a, b)).detach()) for _, b in PAIRS] for a, _ in PAIRS
    ]).double()
    expected = -(7 * table).log_softmax(dim=1).diagonal()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    ranks = (table > table.diagonal()[:, None]).sum(1)
    for name, value in (
        ("recall_at_1", (ranks < 1).double().mean()),
        ("recall_at_10", 1.0),
        ("mrr", (1 / (1 + ranks)).double().mean()),
    ):
        metric = make_metric(name, MATCHES)
        for part in predictions.split(3):  # as of two batches
            metric.update(part, torch.zeros(len(part)))
        assert float(metric.compute()) == pytest.approx(float(value))
    twice = make_metric("recall_at_1", MATCHES)
    twice.update(torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2), torch.zeros(2))
    assert float(twice.compute()) == 1  # a copy of the own answer is the own answer


def test_pairs_without_scores_have_no_fisher(tmp_path):
    module, _ = embedder(folder(tmp_path / "x"), MATCHES)
    with pytest.raises(UserError, match="task 't': its loss compares the pairs of a batch with ea"):
        FisherPass(module, "t", FisherSettings())._make()


def test_other_answers_are_refused(tmp_path):
    module, _ = embedder(folder(tmp_path / "x"), SCORES)
    with pytest.raises(UserError, match="its answers are classes, but TextEmbedder needs pairs of"):
        module.add_metrics({"t": ["a", "b"]}, {})
    with pytest.raises(
        UserError, match="'accuracy': is of classes, but .* are number; use neg_mae"
    ):
        module.add_metrics({"t": SCORES}, {"t": ["accuracy"]})
    with pytest.raises(UserError, match="task 't': TextEmbedder needs pairs of texts; set text_pa"):
        module.collate([{"text": "red", "label": 1.0}], "t")
    other = TextEmbedder().read(folder(tmp_path / "y", "cls_token"), "u")
    first = TextEmbedder().read(folder(tmp_path / "z"), "t")
    with pytest.raises(UserError, match="task 'u': its model pools tokens by cls, but that of 't'"):
        module.adopt({"t": first, "u": other}, tiny.tokenizer())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "pools by pooling_mode_lastt"),
        ("1_Pooling/config.json", {}, "pools by nothing, but one of cls, max, mean is needed"),
        ("1_Pooling/config.json", [1], "is no file of sentence-transformers; get it again"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "has the module Dense"),
        ("modules.json", {}, "modules.json: is no file of sentence-transformers"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is true, which is"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name"),
    ],
)
def test_what_is_not_run_is_refused(tmp_path, file, content, message):
    source = folder(tmp_path / "x")
    write(tmp_path / "x" / file, content)
    with pytest.raises(UserError, match=message) as caught:
        TextEmbedder().read(source, "t")
    assert "\n" not in str(caught.value)


def test_a_body_alone_is_pooled_by_the_mean(tmp_path):
    bare = BertModel(tiny.bert_config(num_hidden_layers=1), add_pooling_layer=False)
    network = TextEmbedder().read(tiny.save(bare, tmp_path / "bare"), "t")
    assert pooling_of(network).mode == "mean"
    assert not network.pooler.dense.weight.any()  # it takes no part


def test_the_form_of_newer_versions(tmp_path):
    source = folder(tmp_path / "x")
    write(tmp_path / "x" / "1_Pooling/config.json", {"pooling_mode": "cls"})
    assert pooling_of(TextEmbedder().read(source, "t")).mode == "cls"
