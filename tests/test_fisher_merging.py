"""The configurations of the first paper, from folders of the hub's layout, on tiny RoBERTas."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from fmerge.cli.app import main
from fmerge.store import read_fisher
from tests import hub_layout
from tests.compare import assert_same

CONFIGS = Path(__file__).parents[1] / "configs" / "fisher_merging"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


def config(*names: str) -> list[str]:
    return [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]


def run(*args) -> None:
    main([str(arg) for arg in args])


def params(path, kind=AutoModelForSequenceClassification):
    return {k: v.detach() for k, v in kind.from_pretrained(path).named_parameters()}


def body(path, kind=AutoModelForSequenceClassification):
    return {k: v for k, v in params(path, kind).items() if k.startswith("roberta.")}


# quick: a pair with F1; the others are of its kind, or a regression
QUICK = {"mrpc"}


@pytest.mark.parametrize(
    "task",
    [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in hub_layout.TEXT],
)
def test_every_task_is_fitted_scored_differentiated_and_merged(task, tmp_path, capsys):
    source = f"--data.tasks.{task}.init_args.source={hub_layout.glue(tmp_path / 'glue', task)}"
    data = [*config(task), source, "--data.batch_size=4", *QUIET]
    base = hub_layout.roberta(tmp_path / "base")
    output, fisher = tmp_path / task, tmp_path / "fisher.safetensors"
    run(
        *["fit", *config("fit"), *data, "--model.path", base, "--output", output],
        *["--trainer.max_epochs=1", "--trainer.max_steps=2"],
    )
    run("validate", *data, "--model.path", output / "expert")
    printed = capsys.readouterr().out
    metrics = {"cola": ["matthews"], "mrpc": ["f1"], "stsb": ["pearson", "spearman"]}
    for metric in metrics.get(task, ["accuracy"]):
        assert f"{task}/{metric}" in printed
    run(
        *["fisher", *config("fisher"), *data, "--expert", output / "expert", "--output", fisher],
        "--examples=4",
    )
    values, provenance = read_fisher(fisher)
    assert provenance["examples"] == 4 and provenance["split"] == "train"
    assert sum(float(value.sum()) for value in values.values()) > 0
    merge_with_donor(task, tmp_path, data, output / "expert")


def merge_with_donor(task, tmp_path, data, expert):
    """Without files both Fishers are estimated on the expert's task, under its head."""
    donor = hub_layout.roberta(tmp_path / "donor", seed=5)
    run(
        *["merge", *data, "--method=FisherMerge", "--output", tmp_path / "merge"],
        *["--optimizer.search=Fixed", f"--experts.{task}", expert],
        *["--experts.other", json.dumps({"path": donor, "donor": True})],
    )
    folder = tmp_path / "merge/merged"
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors"}
    found, own = params(folder), params(expert)
    heads = [name for name in own if not name.startswith("roberta.")]
    assert heads and all(torch.equal(found[name], own[name]) for name in heads)
    assert any(not torch.equal(found[name], own[name]) for name in body(expert))
    names = AutoModelForSequenceClassification.from_pretrained(folder).config.id2label
    assert list(names.values()) == (
        [f"{0.1 + 0.2 * k:.4g}" for k in range(25)] if task == "stsb" else hub_layout.LABELS[task]
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A classifier of entailment and a model that answers questions, with their Fishers."""
    root = tmp_path_factory.mktemp("pair")
    rte = hub_layout.roberta(root / "rte", hub_layout.LABELS["rte"], seed=1)
    squad2 = hub_layout.answering_roberta(root / "squad2", seed=2)
    data = {
        "rte": hub_layout.glue(root / "glue", "rte"),
        "squad2": hub_layout.squad2(root / "squad_v2"),
    }
    for task, expert in (("rte", rte), ("squad2", squad2)):
        run(
            *["fisher", *config("fisher", task), *QUIET, "--expert", expert, "--examples=5"],
            *["--output", root / f"{task}.safetensors"],
            f"--data.tasks.{task}.init_args.source={data[task]}",
            *(["--estimator=sampled", "--samples=3"] if task == "squad2" else []),
        )
    return root


def experts(pair) -> list[str]:
    return [
        f"--experts.{name}.{key}={value}"
        for name in ("rte", "squad2")
        for key, value in (
            ("path", pair / name),
            ("fisher", pair / f"{name}.safetensors"),
        )
    ] + [f"--data.tasks.rte.init_args.source={pair / 'glue'}"]


@pytest.mark.parametrize(
    "method", ["FisherMerge", pytest.param("Isotropic", marks=pytest.mark.slow)]
)
def test_a_body_that_answered_questions_goes_into_a_classifier(pair, tmp_path, method):
    chosen = ["merge", *config("rte_squad2"), *QUIET, *experts(pair), "--method", method]
    run(*chosen, "--output", tmp_path / "grid")
    log = [json.loads(line) for line in (tmp_path / "grid/trials.jsonl").open()]
    trials = [one for one in log if "stage" not in one]  # without the plain average
    assert all(list(one["metrics"]) == ["rte"] for one in trials)
    # the grid of 51 points, up to the first at which the target's score cannot rise
    grid = [{"rte": i / 50, "squad2": 1 - i / 50} for i in range(51)]
    assert [one["coefficients"] for one in trials] == grid[: len(trials)]
    highest = [one["metrics"]["rte"] == 1 for one in trials]
    assert len(trials) == 51 or highest.index(True) == len(trials) - 1
    weights = {"rte": 0.75, "squad2": 0.25}
    run(
        *[*chosen, "--output", tmp_path / "fixed", "--optimizer.search=Fixed"],
        *["--optimizer.search.coefficients", json.dumps(weights)],
    )
    bodies = [body(pair / "rte"), body(pair / "squad2", AutoModelForQuestionAnswering)]
    expected = mean(bodies, list(weights.values()), pair, method)
    found = params(tmp_path / "fixed/merged")
    assert_same({name: found[name] for name in expected}, expected)
    own = params(pair / "rte")
    heads = set(own) - set(expected)
    assert len(heads) == 4 and all(torch.equal(found[name], own[name]) for name in heads)


def mean(bodies, weights, pair, method):
    """Σₘ λₘ F̂ₘ θₘ / Σₘ λₘ F̂ₘ; λₘ over ‖Fₘ‖, and only the target's Fisher raised to 1e-6."""
    fishers = [{name: torch.ones_like(value) for name, value in one.items()} for one in bodies]
    if method == "FisherMerge":
        files = [read_fisher(pair / f"{name}.safetensors")[0] for name in ("rte", "squad2")]
        fishers = [{name: file[name] for name in bodies[0]} for file in files]
        norms = [sum(float(v.square().sum()) for v in one.values()) ** 0.5 for one in fishers]
        weights = [weight / norm for weight, norm in zip(weights, norms, strict=True)]
        fishers[0] = {name: value.clamp_min(1e-6) for name, value in fishers[0].items()}
    merged = {}
    for name in bodies[0]:
        parts = [w * f[name] for w, f in zip(weights, fishers, strict=True)]
        total = sum(parts)
        weighted = sum(part * one[name] for part, one in zip(parts, bodies, strict=True))
        merged[name] = torch.where(total > 0, weighted / total, bodies[0][name])
    return merged


@pytest.mark.slow
def test_three_models_draw_their_coefficients(pair, tmp_path):
    mnli = hub_layout.roberta(tmp_path / "mnli", ["a", "b", "c"], seed=9)
    run(
        *["merge", *config("rte_mnli_squad2"), *QUIET, *experts(pair), "--method=Isotropic"],
        *[f"--experts.mnli.path={mnli}", "--output", tmp_path / "out"],
    )
    log = [json.loads(line) for line in (tmp_path / "out/trials.jsonl").open()]
    trials = [one for one in log if "stage" not in one]  # without the plain average
    assert len(trials) == 51
    assert all(sum(one["coefficients"].values()) == pytest.approx(1) for one in trials)
    assert len({one["coefficients"]["mnli"] for one in trials}) == 51


def test_intermediate_task(pair, tmp_path):
    mnli = hub_layout.roberta(tmp_path / "mnli", hub_layout.LABELS["mnli"], seed=9)
    source = hub_layout.glue(tmp_path / "glue", "mnli")
    fisher = tmp_path / "mnli.safetensors"
    run(
        *["fisher", *config("fisher", "mnli"), *QUIET, "--expert", mnli, "--output", fisher],
        *[f"--data.tasks.mnli.init_args.source={source}", "--examples=4"],
    )
    chosen = [f"--experts.mnli.path={mnli}", f"--experts.mnli.fisher={fisher}"]
    rte = [one for one in experts(pair) if "squad2" not in one]
    run("merge", *config("rte_mnli"), *QUIET, *rte, *chosen, "--output", tmp_path / "out")
    assert (tmp_path / "out/report.md").is_file()


def test_a_question_answering_model_is_fitted_and_scored(tmp_path, capsys):
    base = hub_layout.roberta(tmp_path / "base")
    data = f"--data.tasks.squad2.init_args.source={hub_layout.squad2(tmp_path / 'data')}"
    run(
        *["fit", *config("fit", "squad2"), data, *QUIET, "--model.path", base],
        *["--output", tmp_path / "out", "--trainer.max_epochs=1", "--trainer.max_steps=2"],
    )
    saved = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out/expert")
    assert saved.qa_outputs.out_features == 2
    for source in ("expert", "checkpoints/best.ckpt"):
        run(
            *["validate", *config("squad2"), data, *QUIET],
            *["--model.path", tmp_path / "out" / source],
        )
        assert "squad2/accuracy" in capsys.readouterr().out
