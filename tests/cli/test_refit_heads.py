"""``fmerge merge --refit_heads``: heads that fit the merged body, and are saved with it."""

import json
import shutil

import numpy
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fmerge.cli.app import main
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.evaluation import head_refit as refit
from fmerge.evaluation.evaluator import Evaluator
from fmerge.evaluation.head_refit import Refitting
from fmerge.merging.expert_fishers import Expert
from fmerge.modules import TextClassifier
from fmerge.modules.logistic import STRENGTH
from fmerge.runs import timing as measured
from fmerge.store import load_classifier, load_tokenizer
from fmerge.trainer import FMergeTrainer
from tests import hub_layout, tiny
from tests.cli.run import data_config, experts, fails, in_process
from tests.cli.test_commands import accuracy, body, rows, trials
from tests.compare import assert_same


def run(*args):
    main([str(arg) for arg in args])


SEARCH = ["--optimizer.search", "Dirichlet", "--optimizer.search.draws", "3"]


def merge(zoo, folder, output, when, *options, search=SEARCH):
    return [
        *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--base", zoo.base],
        *["--method", "TaskArithmetic", *search, "--output", output, "--refit_heads", when],
        *options,
    ]


def fixed(coefficients):
    at = ["--optimizer.search.coefficients", json.dumps(coefficients)]
    return ["--optimizer.search", "Fixed", *at]


def features(folder, zoo, task, split):
    """What enters the classifier, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = rows(zoo, task, split)
    with torch.no_grad():
        x = [model.bert(**tokenizer(t, return_tensors="pt")).pooler_output[0] for t, _ in examples]
    labels = [tiny.LABELS[task].index(label) for _, label in examples]
    return torch.stack(x).double().numpy(), numpy.array(labels)


def fitted(folder, zoo, task):
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=5000)
    )
    return pipeline.fit(*features(folder, zoo, task, "train"))


def table(output):
    return {
        row["name"]: row["scores"]
        for row in json.loads((output / "scores.json").read_text())["rows"]
    }


ROWS = [
    *["base", "base, heads refitted", "experts", "plain average"],
    *["plain average, heads refitted", "runner-up", "runner-up, heads refitted"],
    *["this merge", "this merge, heads refitted"],
]


@pytest.fixture(scope="module")
def runs(zoo, tmp_path_factory):
    """The same merge with heads that are kept, refitted at the end, and in all trials."""
    folder = tmp_path_factory.mktemp("refit")
    for when in ("off", "end", "trials"):
        run(*merge(zoo, folder, folder / when, when))
    return folder


def test_the_saved_head_is_the_logistic_regression_on_the_merged_body(runs, zoo):
    for task in zoo.tasks:
        folder = runs / "end" / "merged" / task
        pipeline = fitted(folder, zoo, task)
        x, _ = features(folder, zoo, task, "test")
        head = AutoModelForSequenceClassification.from_pretrained(folder).classifier
        logits = torch.nn.functional.linear(
            torch.from_numpy(x), head.weight.double(), head.bias.double()
        )
        expected = torch.from_numpy(pipeline.predict_proba(x))
        assert_same({"p": logits.detach().softmax(1)}, {"p": expected}, rtol=1e-4)
        assert_same(body(folder), body(runs / "off" / "merged" / task), rtol=0, atol=0)


def test_what_is_scored_is_what_is_saved(runs, zoo):
    scores = {when: table(runs / when) for when in ("off", "end", "trials")}
    assert list(scores["end"]) == list(scores["trials"]) == ROWS
    assert list(scores["off"]) == [ROWS[i] for i in (0, 1, 2, 3, 5, 7)]
    for task in zoo.tasks:
        for when in ("end", "trials"):
            folder = runs / when / "merged" / task
            found = scores[when]["this merge, heads refitted"][task]
            assert found == pytest.approx(accuracy(folder, zoo, task, "test"))
            best = max(trials(runs / when), key=lambda trial: trial["objective"])
            if when == "trials":
                own = accuracy(folder, zoo, task, "validation")
                assert best["metrics"][task] == pytest.approx(own)
        kept = accuracy(runs / "off" / "merged" / task, zoo, task, "test")
        assert scores["off"]["this merge"][task] == pytest.approx(kept)
        x, labels = features(zoo.base, zoo, task, "test")
        right = fitted(zoo.base, zoo, task).score(x, labels)
        assert scores["end"]["base, heads refitted"][task] == pytest.approx(right)
    # the search of end is that of off, and so are the rows that both have
    assert trials(runs / "end") == trials(runs / "off") != trials(runs / "trials")
    assert scores["off"] == {name: scores["end"][name] for name in scores["off"]}
    # in trials the coefficients are others, the models beside the merge the same
    for name in ROWS[:5]:
        assert scores["trials"][name] == scores["end"][name], name
    report = (runs / "trials" / "report.md").read_text()
    assert "fitted to the body on at most 512 of its training examples; the search scored" in report


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_with_the_same_trials(runs, zoo, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(runs / "trials", output)
    (output / "report.md").unlink()
    log = output / "trials.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    config = (output / "config.yaml").read_text()
    inputs = json.loads((output / "inputs.json").read_text())
    assert len(inputs["training data"]["colour"]) == 64  # a trial depends on them
    arguments = [
        *merge(zoo, runs, output, "trials", "--refit_examples", "512", "--baselines", "all")
    ]
    line = fails(capsys, *arguments, "--refit_heads", "end")
    assert "refit_heads was trials and is end; name another folder, or add --overwrite" in line
    assert "refit_examples was 512 and is 9" in fails(capsys, *arguments, "--refit_examples", "9")
    inputs["training data"]["colour"] = "other"
    (output / "inputs.json").write_text(json.dumps(inputs))
    assert "was begun with another training data.colour; name another" in fails(capsys, *arguments)
    shutil.copy(runs / "trials" / "inputs.json", output)
    assert (output / "config.yaml").read_text() == config
    run(*arguments)
    assert trials(output) == trials(runs / "trials")
    assert (output / "report.md").read_text() == (runs / "trials/report.md").read_text()


@pytest.mark.slow
def test_fishers_see_the_experts_own_heads(zoo, tmp_path):
    """The second trial's Fishers are taken after the first one's heads were refitted."""
    quick = ["--method", "DFMerge", "--baselines", "experts", "--optimizer.search.draws", "2"]
    run(*merge(zoo, tmp_path, tmp_path / "trials", "trials", *quick))
    searched = [trial for trial in trials(tmp_path / "trials") if "stage" not in trial]
    best = max(searched, key=lambda trial: trial["objective"])
    search = fixed(best["coefficients"])
    run(*merge(zoo, tmp_path, tmp_path / "off", "off", *quick[:4], search=search))
    for task in zoo.tasks:
        found, expected = (body(tmp_path / one / "merged" / task) for one in ("trials", "off"))
        assert_same(found, expected, rtol=0, atol=0)


def test_a_fit_that_fails_is_a_failed_trial(zoo, tmp_path, monkeypatch, capsys):
    whole, left = refit.fit_linear, iter(range(3))

    def failing(*args):
        if next(left, None) == 2:  # the first task's head of the second trial
            raise ValueError("did not converge")
        return whole(*args)

    monkeypatch.setattr(refit, "fit_linear", failing)
    run(*merge(zoo, tmp_path, tmp_path / "out", "trials", "--baselines", "experts"))
    log = trials(tmp_path / "out")
    assert [trial["status"] for trial in log] == ["ok", "failed", "ok", "ok"]  # the average last
    assert log[1]["reason"] == "task 'colour': did not converge"
    assert all((tmp_path / "out/merged" / task / "config.json").is_file() for task in zoo.tasks)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_merge_with_a_donor_reloads_to_the_very_logits(zoo, tmp_path, precision):
    donor = Expert(zoo.experts["animal"], donor=True)
    module = TextClassifier()
    files = TextFiles(**zoo.tasks["colour"], labels=tiny.LABELS["colour"])
    report = FMergeTrainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, precision=precision
    ).merge(
        module,
        MultiTask({"colour": files}, batch_size="auto" if precision == "32-true" else 7),
        experts={"colour": zoo.experts["colour"], "other": donor},
        output=tmp_path / "out",
        refit_heads="end",
        refit_examples=15,
        baselines="experts",
    )
    names = ["experts", "plain average", "plain average, heads refitted"]
    assert [row.name for row in report.rows] == names
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/merged").eval()
    own = AutoModelForSequenceClassification.from_pretrained(zoo.experts["colour"])
    assert not torch.allclose(loaded.classifier.weight, own.classifier.weight, atol=0.01)
    assert not torch.equal(loaded.classifier.weight, loaded.classifier.weight.bfloat16().float())
    tokens = tiny.tokenizer()(tiny.sentences(9, 3), padding=True, return_tensors="pt")
    with torch.no_grad():
        live = module.eval().task_model("colour")(**tokens).logits
        assert torch.equal(loaded(**tokens).logits, live)


def test_the_live_heads_come_back_whatever_happens(zoo, monkeypatch):
    data = MultiTask({
        task: TextFiles(**files, labels=tiny.LABELS[task]) for task, files in zoo.tasks.items()
    })
    module = TextClassifier()
    module.adopt(
        {task: load_classifier(path, task) for task, path in zoo.experts.items()},
        load_tokenizer(zoo.base),
    )
    heads = {task: module.task_model(task).classifier for task in zoo.tasks}
    before = {task: head.weight.clone() for task, head in heads.items()}
    trainer = FMergeTrainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    refitter = refit.Refitter(Evaluator(trainer, module, data), Refitting("end"), list(zoo.tasks))
    merged = {name: 0.9 * value for name, value in body(zoo.base).items()}
    found = refitter.fit(merged)
    assert all(torch.equal(heads[task].weight, before[task]) for task in heads)
    seen = {}

    def stopped(*args, **options):
        seen.update({task: head.weight.detach().clone() for task, head in heads.items()})
        raise MemoryError("none left")

    monkeypatch.setattr(FMergeTrainer, "validate", stopped)
    monkeypatch.setattr(refitter.evaluator.data, "batch_size", 1)
    with pytest.raises(UserError, match="out of memory"):
        refitter.score(merged, "validation", found)
    for task, head in heads.items():
        assert torch.equal(seen[task], found[task]["classifier.weight"])
        assert torch.equal(head.weight, before[task])
    goes_on = torch.nn.Sequential(heads["animal"], torch.nn.Tanh())
    module.task_model("animal").classifier = goes_on
    other = refit.Refitter(refitter.evaluator, Refitting("end"), ["animal"])
    with pytest.raises(UserError, match="'animal' does not end with its last linear layer"):
        other.fit(merged)


def test_what_cannot_be_refitted_is_refused(zoo, tmp_path, capsys):
    output = ["--output", tmp_path / "out"]
    both = ["merge", *experts(zoo), *output, "--refit_heads", "end"]
    line = fails(capsys, *both)
    assert "--refit_heads: is end, but there are no data (--data) to refit heads on" in line
    whole = merge(zoo, tmp_path, tmp_path / "out", "trials")
    line = fails(capsys, *whole, "--data.tasks.colour.init_args.train=null")
    assert line.endswith(
        "is trials, but task 'colour' has no train split to fit a head on; leave it off"
    )
    source = hub_layout.glue(tmp_path / "glue", "stsb", (6, 6, 4))
    scores = hub_layout.roberta(tmp_path / "scores", ["LABEL_0"], seed=3)
    donor = json.dumps({"path": hub_layout.roberta(tmp_path / "donor", seed=4), "donor": True})
    line = fails(
        capsys,
        *["merge", *output, f"--experts.stsb={scores}", f"--experts.other={donor}"],
        *["--data.tasks.stsb=Glue", "--data.tasks.stsb.init_args.task=stsb"],
        *[f"--data.tasks.stsb.init_args.source={source}", "--refit_heads", "trials"],
    )
    assert line.endswith("is trials, but task 'stsb' has no classes; leave it off")
    assert not (tmp_path / "out").exists()


def test_a_class_without_examples_is_warned_of(zoo, tmp_path, caplog):
    two = tmp_path / "two.csv"
    two.write_text("text,label\nred cat,warm\nsky,none\nfish,none\n")
    options = [f"--data.tasks.colour.init_args.train={two}", "--baselines", "experts"]
    search = ["--optimizer.search", "Fixed"]
    run(*merge(zoo, tmp_path, tmp_path / "out", "end", *options, search=search))
    assert "head of 'colour' will never answer cold, which none of the 3 training" in caplog.text
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/merged/colour")
    tokens = tiny.tokenizer()(tiny.sentences(9, 3), padding=True, return_tensors="pt")
    with torch.no_grad():
        assert (model.eval()(**tokens).logits.softmax(1)[:, 1] < 1e-8).all()


def test_a_dry_run_counts_the_passes(zoo, tmp_path, capsys, monkeypatch):
    """Every pass over a batch of 4 takes an hour."""
    hours = iter(range(0, 3600 * 1000, 3600))
    measure = measured.seconds_of_pass
    monkeypatch.setattr(
        "fmerge.runs.dry_run.seconds_of_pass",
        lambda *args, **options: measure(*args, **options, clock=lambda: next(hours)),
    )
    # 3 trials and the plain average on 13; 5 rows on 11; the base's heads on 20
    off = 2 * (4 * 4 + 5 * 3 + (5 + 3))
    for options, batches in (
        (["end"], off + 2 * 3 * (5 + 3) - 2 * 4 * (5 - 3)),
        (["trials"], off + 2 * 3 * (5 + 3) - 2 * 4 * (5 - 3) + 2 * 4 * 3),
        (["end", "--baselines", "experts"], 2 * (4 * 4 + 2 * 3 + 3 + 3)),
    ):
        run(
            *merge(
                zoo,
                tmp_path,
                tmp_path / "out",
                *options,
                "--refit_examples",
                "10",
                "--dry_run",
                "true",
            )
        )
        assert f"about {batches}.0 h" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_refit_as_one(zoo, tmp_path):
    """20 examples a task in batches of 4 and, drawn, 9: the processes have unequally many."""
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        in_process(
            *merge(zoo, tmp_path, output, "trials", "--refit_examples", "9"),
            *["--trainer.devices", processes],
            *["--trainer.strategy", "ddp" if processes > 1 else "auto"],
        )
        found.append(load_file(output / "merged/colour/model.safetensors"))
    assert trials(tmp_path / "1") == trials(tmp_path / "2")
    assert table(tmp_path / "1") == table(tmp_path / "2")
    assert_same(found[1], found[0], atol=1e-6)
