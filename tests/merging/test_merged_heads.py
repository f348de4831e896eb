"""``heads: merge``: soups of one task, whose heads are merged like their bodies."""

import json

import pytest
import torch
from torch import nn

from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.fisher import FisherSettings
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.merged_heads import check_heads
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import TIES, Average, FisherMerge, Isotropic, RegMean, TaskArithmetic
from fmerge.modules import RankChoice, SpanAnswers, TextClassifier
from fmerge.params import params_of, select
from fmerge.search import Fixed, Sobol
from fmerge.store import load_classifier
from fmerge.store.params_file import load_params
from fmerge.trainer import FMergeTrainer
from tests import hub_layout, tiny
from tests.merging.small_models import Network

LABELS = ["warm", "cold", "none"]


class Headless(nn.Module):
    """A network of a body alone."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)


class Soup:
    """Three classifiers of one task, a base with such a head, and the task's data."""

    def __init__(self, root):
        self.root = root
        origin = tiny.classifier(tiny.bert_config(LABELS), seed=1)
        self.base = tiny.save(origin, root / "base")
        self.experts = {
            name: tiny.save(self.near(origin, seed), root / name)
            for seed, name in enumerate(("a", "b", "c"), 10)
        }
        self.files = {
            split: tiny.write_csv(root / f"{split}.csv", LABELS, 12, seed)
            for seed, split in enumerate(("train", "validation", "test"))
        }

    def near(self, origin, seed, labels=LABELS):
        model = tiny.fine_tuned(origin, labels, seed)
        if len(labels) == len(LABELS):
            with torch.no_grad():
                model.classifier.weight.copy_(
                    origin.classifier.weight + 0.1 * model.classifier.weight
                )
        return model

    def data(self, *names, labels=LABELS):
        return MultiTask({n: TextFiles(**self.files, labels=labels) for n in names or "abc"}, 4)

    def params(self, name):
        return load_params(self.base if name == "base" else self.experts[name])


@pytest.fixture(scope="module")
def soup(tmp_path_factory):
    return Soup(tmp_path_factory.mktemp("soup"))


def merge(output, experts, data=None, search=None, model=None, **options):
    trainer = FMergeTrainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[MergeOptimizer(search)],
    )  # fmt: skip
    options = {"heads": "merge", "baselines": "experts"} | options
    return trainer.merge(model or TextClassifier(), data, experts=experts, output=output, **options)


def refusal(*args, **options):
    with pytest.raises(UserError) as refused:
        merge(*args, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def assert_tensors(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key, one in expected.items():
        torch.testing.assert_close(found[key], one, **(tolerance or {"rtol": 1e-6, "atol": 1e-7}))


def averaged(models, weights):
    total = sum(weights)
    return {
        key: sum(w * m[key].double() for w, m in zip(weights, models, strict=True))
        .div(total)
        .float()
        for key in models[0]
    }


def test_the_plain_soup_is_the_average_of_whole_models(soup, tmp_path):
    report = merge(tmp_path / "out", soup.experts, soup.data())
    # one model, in the folder itself
    assert {path.name for path in (tmp_path / "out/merged").iterdir()} >= {"config.json"}
    found = load_params(tmp_path / "out/merged")
    expected = averaged([soup.params(name) for name in "abc"], [1, 1, 1])
    assert_tensors(found, expected)
    assert not found["classifier.weight"].equal(soup.params("a")["classifier.weight"])
    model = load_classifier(
        str(tmp_path / "out/merged"), "a", LABELS
    )  # complete, and of its labels
    assert list(model.config.id2label.values()) == LABELS
    # all tasks are this one: scored by one model, they have one score
    own = {row.name: row.scores for row in report.tests.rows}
    assert len(set(own["plain average"].values())) == 1
    card = (tmp_path / "out/merged/README.md").read_text()
    assert "It has the head of the task" not in card
    assert (
        "heads: merged by the same method as the body" in (tmp_path / "out/report.md").read_text()
    )


@pytest.mark.slow
def test_experts_are_scored_under_their_own_heads(soup, tmp_path):
    report = merge(tmp_path / "out", soup.experts, soup.data())
    experts = next(row.scores for row in report.tests.rows if row.name == "experts")
    for name, path in soup.experts.items():
        single = FMergeTrainer(accelerator="cpu", logger=False, enable_progress_bar=False,
                               enable_model_summary=False)  # fmt: skip
        (found,) = single.test(TextClassifier(path), datamodule=soup.data(name), verbose=False)
        assert experts[name] == pytest.approx(found[f"{name}/accuracy"], abs=1e-6)


METHODS = [(Isotropic(), False), (TIES(density=1.0), True)]
AT = {"a": 0.5, "b": 0.25, "c": 1.0}


@pytest.mark.parametrize(("method", "based"), METHODS)
def test_every_method_merges_the_head_by_its_formula(soup, tmp_path, method, based):
    base = soup.base if based else None
    merge(tmp_path / "out", soup.experts, None, Fixed(AT), method=method, base=base)
    models = [soup.params(name) for name in "abc"]
    expected = method.merge(soup.params("base") if based else None, models, list(AT.values()))
    assert_tensors(load_params(tmp_path / "out/merged"), expected)


def test_task_arithmetic_by_hand(soup, tmp_path):
    at = {"a": 0.5, "b": 1.0}
    two = {name: soup.experts[name] for name in at}
    merge(tmp_path / "out", two, None, Fixed(at), method=TaskArithmetic(), base=soup.base)
    base = soup.params("base")
    expected = {
        key: one + 0.5 * (soup.params("a")[key] - one) + (soup.params("b")[key] - one)
        for key, one in base.items()
    }
    assert_tensors(load_params(tmp_path / "out/merged"), expected, rtol=1e-5, atol=1e-6)


def test_fishers_of_the_head_are_estimated_and_weigh_it(soup, tmp_path):
    settings = FisherSettings(split="validation", examples=6)
    method = FisherMerge(floor=0.0, favor_target=False, normalize=False)
    two = {name: soup.experts[name] for name in "ab"}
    merge(
        tmp_path / "out",
        two,
        soup.data(*"ab"),
        Fixed({"a": 0.5, "b": 0.5}),
        method=method,
        fisher=settings,
    )
    found = load_params(tmp_path / "out/merged")
    fishers = []
    for name in "ab":
        trainer = FMergeTrainer(accelerator="cpu", logger=False, enable_progress_bar=False,
                                enable_model_summary=False)  # fmt: skip
        estimate = trainer.fisher(
            TextClassifier(), soup.data(name), soup.experts[name],
            output=tmp_path / f"{name}.safetensors", split="validation", examples=6,
        )  # fmt: skip
        fishers.append(estimate.values)
    for key in ("classifier.weight", "classifier.bias", "bert.pooler.dense.weight"):
        weights = [fisher[key].double() for fisher in fishers]
        models = [soup.params(name)[key].double() for name in "ab"]
        expected = sum(w * m for w, m in zip(weights, models, strict=True)) / sum(weights)
        known = sum(weights) > 1e-12
        torch.testing.assert_close(
            found[key].double()[known], expected[known], rtol=1e-4, atol=1e-6
        )
    # the same Fishers, from files
    files = {n: Expert(two[n], tmp_path / f"{n}.safetensors") for n in two}
    merge(tmp_path / "given", files, None, Fixed({"a": 0.5, "b": 0.5}), method=method)
    assert_tensors(load_params(tmp_path / "given/merged"), found, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_search_and_its_best_trial(soup, tmp_path):
    report = merge(tmp_path / "out", soup.experts, soup.data(), Sobol(trials=3), method=Isotropic(),
                   baselines="all")  # fmt: skip
    assert [trial.stage for trial in report.trials] == ["", "", "", "average"]
    weights = [report.best.coefficients[name] for name in "abc"]
    expected = averaged([soup.params(name) for name in "abc"], weights)
    assert_tensors(load_params(tmp_path / "out/merged"), expected)
    names = [row.name for row in report.tests.rows]
    assert names == ["experts", "plain average", "runner-up", "this merge"]


def test_donors_of_the_task_give_their_heads_too(soup, tmp_path):
    experts = {"a": soup.experts["a"], "b": Expert(soup.experts["b"], donor=True)}
    merge(
        tmp_path / "out", experts, soup.data("a"), Fixed({"a": 0.5, "b": 0.5}), method=Isotropic()
    )
    expected = averaged([soup.params("a"), soup.params("b")], [1, 1])
    assert_tensors(load_params(tmp_path / "out/merged"), expected)


@pytest.mark.parametrize("given", [pytest.param(True, marks=pytest.mark.slow), False])
def test_labels_in_another_order_are_put_in_order(soup, tmp_path, given):
    model = load_classifier(soup.experts["b"], "b")
    order = [2, 0, 1]
    with torch.no_grad():
        for one in model.classifier.parameters():
            one.copy_(one.clone()[order])
    names = [LABELS[i] for i in order]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    turned = tiny.save(model, tmp_path / "turned")
    merge(
        tmp_path / "out", {"a": soup.experts["a"], "b": turned}, soup.data(*"ab") if given else None
    )
    expected = averaged([soup.params("a"), soup.params("b")], [1, 1])
    assert_tensors(load_params(tmp_path / "out/merged"), expected)


@pytest.mark.slow
def test_heads_are_kept_unless_asked(soup, tmp_path):
    merge(tmp_path / "out", soup.experts, None, heads="keep")
    for name in "abc":
        found = load_params(tmp_path / "out/merged" / name)
        assert found["classifier.weight"].equal(soup.params(name)["classifier.weight"])


def test_heads_that_differ_are_refused_by_their_first_difference(soup, tmp_path):
    origin = tiny.classifier(tiny.bert_config(LABELS), seed=1)
    two = tiny.save(soup.near(origin, 20, ["pet", "wild"]), tmp_path / "two")
    other = tiny.save(soup.near(origin, 21, ["x", "y", "z"]), tmp_path / "other")
    out, a = tmp_path / "out", soup.experts["a"]
    line = refusal(out, {"a": a, "two": two})
    assert "its labels are ['pet', 'wild'], but the task's are ['warm', 'cold', 'none']" in line
    assert "its labels are ['x', 'y', 'z']" in refusal(out, {"a": a, "other": other})
    # tasks whose data have other labels, before any model is read
    data = MultiTask({"a": TextFiles(**soup.files, labels=LABELS),
                      "b": TextFiles(**soup.files, labels=["warm", "none", "cold"])})  # fmt: skip
    line = refusal(out, {"a": "absent", "b": "absent"}, data)
    assert line == (
        "--heads: is merge, but task 'b' has 'none' as label 1, not 'cold', that of task 'a'; "
        "leave --heads out to keep each expert's own"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Network(1, outputs=3), "(3, 3) 'head.weight' in its head and made/a has (2, 3)"),
        (Headless(), "no 'head.weight' in its head and made/a has (2, 3)"),
    ],
)
def test_heads_of_another_shape_are_refused(other, words):
    one = Network(0)
    body = select(params_of(one), "body.")
    check_heads(one, Network(2), body, "made/a", "made/b")
    with pytest.raises(UserError) as refused:
        check_heads(one, other, body, "made/a", "made/b")
    assert str(refused.value) == (
        f"--heads: is merge, but made/b has {words}; leave --heads out to keep each expert's own"
    )


def test_a_base_without_such_a_head_is_refused(soup, tmp_path):
    base = tiny.save(tiny.classifier(tiny.bert_config(("x", "y")), seed=1), tmp_path / "base")
    line = refusal(tmp_path / "out", soup.experts, method=TaskArithmetic(), base=base)
    assert line.startswith("--heads: is merge, to which the base's head belongs: ")
    assert "its labels are ['x', 'y']" in line


def test_options_that_contradict_are_refused(soup, tmp_path):
    line = refusal(tmp_path / "out", soup.experts, soup.data(), refit_heads="end")
    assert line.startswith("--refit_heads: is end, but --heads is merge")
    assert "must be keep, merge or train" in refusal(tmp_path / "out", soup.experts, heads="mix")


@pytest.mark.slow
def test_a_regression_and_spans_have_heads_to_merge_too(soup, tmp_path):
    origin = tiny.classifier(tiny.bert_config(("score",)), seed=1)
    paths = {}
    for seed, name in enumerate("xy", 5):
        model = tiny.classifier(tiny.bert_config(("score",)), seed)
        paths[name] = tiny.save(tiny.moved_near(model, origin), tmp_path / name)
    merge(tmp_path / "numbers", paths)
    expected = averaged([load_params(path) for path in paths.values()], [1, 1])
    assert_tensors(load_params(tmp_path / "numbers/merged"), expected)
    spans = {
        n: hub_layout.answering_roberta(tmp_path / f"span_{n}", seed)
        for seed, n in enumerate("xy", 5)
    }
    merge(tmp_path / "spans", spans, model=SpanAnswers())
    expected = averaged([load_params(path) for path in spans.values()], [1, 1])
    assert_tensors(load_params(tmp_path / "spans/merged"), expected)


@pytest.mark.slow
def test_a_language_model_is_merged_whole_either_way(tmp_path):
    from transformers import T5ForConditionalGeneration

    def saved(name, seed):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(tiny.t5_config())
        torch.manual_seed(seed)
        with torch.no_grad():
            for one in model.parameters():
                one.add_(0.01 * torch.randn_like(one))
        model.save_pretrained(tmp_path / name)
        tiny.text_tokenizer().save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    paths = {name: saved(name, seed) for seed, name in enumerate("ab", 1)}
    for mode in ("keep", "merge"):
        merge(tmp_path / mode, paths, model=RankChoice(), heads=mode)
    assert_tensors(
        *(load_params(tmp_path / mode / "merged") for mode in ("keep", "merge")), rtol=0, atol=0
    )


@pytest.mark.slow
def test_regmean_averages_or_solves_the_head(soup, tmp_path):
    two = {name: soup.experts[name] for name in "ab"}
    settings = FisherSettings(split="validation", examples=6)
    at = Fixed({"a": 0.5, "b": 0.5})
    merge(tmp_path / "out", two, soup.data(*"ab"), at, method=RegMean(), fisher=settings)
    found = load_params(tmp_path / "out/merged")
    expected = averaged([soup.params("a"), soup.params("b")], [1, 1])
    torch.testing.assert_close(found["classifier.bias"], expected["classifier.bias"])


def test_a_dry_run_prices_one_model(soup, tmp_path, capsys):
    merge(tmp_path / "out", soup.experts, soup.data(), dry_run=True)
    assert "(1 merged models)" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_run_is_known_again(soup, tmp_path):
    merge(tmp_path / "out", soup.experts, soup.data(), method=Average())
    noted = json.loads((tmp_path / "out/inputs.json").read_text())
    assert set(noted["expert"]) == {"a", "b", "c"}
