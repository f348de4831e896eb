"""Every command on tiny models: what is written is what was computed."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fmerge.cli.app import main
from fmerge.methods import (
    DARE,
    DELLA,
    SCE,
    SLERP,
    TIES,
    TSVM,
    WUDI,
    Breadcrumbs,
    DFMerge,
    FisherMedian,
    FisherMerge,
    FisherTSV,
    IsoC,
    IsoCTS,
    Karcher,
    LiNeS,
    MergeMethod,
    ModelStock,
    MultiSLERP,
    NuSLERP,
    TaskArithmetic,
)
from fmerge.params import fingerprint, params_of
from fmerge.store import fisher_cache, read_fisher, write_fisher
from tests import oracle, tiny
from tests.cli.run import data_config, experts, in_process
from tests.compare import assert_same, relative_error


def run(*args):
    main([str(arg) for arg in args])


def body(path):
    model = AutoModelForSequenceClassification.from_pretrained(path)
    return {k: v.detach() for k, v in model.named_parameters() if k.startswith("bert.")}


def rows(zoo, task, split):
    lines = Path(zoo.tasks[task][split]).read_text().splitlines()[1:]
    return [tuple(line.rsplit(",", 1)) for line in lines]


def accuracy(folder, zoo, task, split):
    """Scores a saved folder with transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = rows(zoo, task, split)
    with torch.no_grad():
        right = [
            model.config.id2label[int(model(**tokenizer(t, return_tensors="pt")).logits.argmax())]
            == y
            for t, y in examples
        ]
    return sum(right) / len(right)


def trials(output):
    return [json.loads(line) for line in (output / "trials.jsonl").read_text().splitlines()]


def test_fit_saves_the_best_expert_twice(zoo, tmp_path):
    config = data_config(zoo, tmp_path, "colour")
    output = tmp_path / "run"
    run(
        *["fit", "--config", config, "--model.path", zoo.base, "--output", output],
        *["--model.learning_rate", "0.01", "--model.scheduler", "cosine"],
        *["--trainer.max_epochs", "3", "--trainer.accumulate_grad_batches", "2"],
    )
    checkpoint = torch.load(output / "checkpoints" / "best.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    saved = AutoModelForSequenceClassification.from_pretrained(output / "expert")
    assert saved.config.id2label == dict(enumerate(tiny.LABELS["colour"]))
    assert_same(
        dict(saved.named_parameters()),
        {name: state[f"models.colour.{name}"] for name, _ in saved.named_parameters()},
        rtol=0,
        atol=0,
    )
    assert relative_error(body(output / "expert"), body(zoo.base)) > 0.01
    best = float(checkpoint["callbacks"].popitem()[1]["best_model_score"])
    assert accuracy(output / "expert", zoo, "colour", "validation") == pytest.approx(best)
    assert yaml.safe_load((output / "config.yaml").read_text())["model"]["init_args"]["path"]
    assert {p.name for p in output.iterdir()} == {"expert", "checkpoints", "config.yaml"}


def test_fit_without_a_folder_says_that_no_expert_is_saved(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = data_config(zoo, tmp_path, "colour")
    run(
        *["fit", "--config", config, "--model.path", zoo.base],
        *["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"],
    )
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"--output is not set; its checkpoint: {last}" in capsys.readouterr().out
    assert last.is_file()


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_validate_and_test_score_a_saved_expert(zoo, tmp_path, capsys, kind):
    config = data_config(zoo, tmp_path, "colour")
    if kind == "folder":
        chosen = ["--model.path", zoo.experts["colour"]]
    else:
        model = AutoModelForSequenceClassification.from_pretrained(zoo.experts["colour"])
        state = {f"models.colour.{k}": v for k, v in model.state_dict().items()}
        hyper = {"path": zoo.base, "tasks": {"colour": tiny.LABELS["colour"]}}
        path = tmp_path / "best.ckpt"
        torch.save({"state_dict": state, "hyper_parameters": hyper}, path)
        chosen = ["--model.path", path]
    for command, split in (("validate", "validation"), ("test", "test")):
        run(command, "--config", config, *chosen)
        expected = accuracy(zoo.experts["colour"], zoo, "colour", split)
        assert f"{expected:.6f}" in capsys.readouterr().out


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("ending", ["safetensors", "h5"])
def test_fisher_is_the_definition(zoo, tmp_path, estimator, ending, capsys):
    config = data_config(zoo, tmp_path, "colour")
    output = tmp_path / f"fisher.{ending}"
    expert = zoo.experts["colour"]
    run(
        *["fisher", "--config", config, "--expert", expert, "--output", output],
        *["--split", "validation", "--estimator", estimator],
    )
    values, provenance = read_fisher(output)
    assert provenance["examples"] == 13 and provenance["estimator"] == estimator
    assert provenance["task"] == "colour" and provenance["split"] == "validation"
    assert "13 validation examples" in capsys.readouterr().out
    expected, _ = definition(zoo, "colour", expert, estimator)
    assert_same(values, expected)


def definition(zoo, task, expert, estimator, weights=None):
    model = AutoModelForSequenceClassification.from_pretrained(expert).double()
    model.load_state_dict(weights or {}, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(expert)
    examples = rows(zoo, task, "validation")

    def weigh(log_likelihoods, n):
        if estimator == "exact":
            return log_likelihoods.exp()
        return torch.eye(model.config.num_labels)[model.config.label2id[examples[n][1]]]

    return oracle.fisher(
        model.eval(),
        [tokenizer(text, return_tensors="pt") for text, _ in examples],
        lambda batch: model(**batch).logits.log_softmax(1),
        weigh,
    )


def test_the_saved_merge_is_the_formula_and_its_scores(zoo, tmp_path):
    output = tmp_path / "merge"
    run(
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
        *["--method", "TaskArithmetic", "--optimizer.search", "Dirichlet"],
        *["--optimizer.search.draws", "5", "--output", output],
    )
    *log, average = trials(output)
    assert [trial["trial"] for trial in log] == list(range(5))
    assert (average["trial"], average["stage"], average["coefficients"]) == (5, "average", {})
    best = max(log, key=lambda trial: trial["objective"])
    assert best["objective"] == pytest.approx(sum(best["metrics"].values()) / 2)
    tasks = list(zoo.experts)
    expected = TaskArithmetic().merge(
        body(zoo.base),
        [body(zoo.experts[task]) for task in tasks],
        [best["coefficients"][task] for task in tasks],
    )
    report = (output / "report.md").read_text()
    line = next(line for line in report.splitlines() if line.startswith("| this merge"))
    for task in tasks:
        folder = output / "merged" / task
        assert_same(body(folder), expected, rtol=0, atol=0)
        head = AutoModelForSequenceClassification.from_pretrained(folder).classifier
        own = AutoModelForSequenceClassification.from_pretrained(zoo.experts[task]).classifier
        assert torch.equal(head.weight, own.weight) and torch.equal(head.bias, own.bias)
        assert accuracy(folder, zoo, task, "validation") == pytest.approx(best["metrics"][task])
        assert f" {100 * accuracy(folder, zoo, task, 'test'):.1f} " in line
    for row in ("base", "base, heads refitted", "experts", "plain average"):
        assert f"| {row} |" in report
    assert (output / "search.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((output / "config.yaml").read_text())["base"] == zoo.base


def test_the_table_scores_every_row(zoo, tmp_path):
    output = tmp_path / "merge"
    run(
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
        *["--method", "Average", "--output", output],
    )
    table = {  # without the intervals
        line.split("|")[1].strip(): [cell.split()[0] for cell in line.split("|")[2:-1]]
        for line in (output / "report.md").read_text().splitlines()
        if line.startswith("| ") and " ---" not in line
    }
    tasks = list(zoo.experts)
    for k, task in enumerate(tasks):
        own = accuracy(zoo.experts[task], zoo, task, "test")
        average = accuracy(output / "merged" / task, zoo, task, "test")
        assert table["experts"][k] == f"{100 * own:.1f}"
        assert table["plain average"][k] == f"{100 * average:.1f}"
    assert table["experts"][-1] == "100.0"
    share = [float(table["plain average"][k]) / float(table["experts"][k]) for k in range(2)]
    assert float(table["plain average"][-1]) == pytest.approx(100 * sum(share) / 2, abs=0.3)
    assert "this merge" not in table  # it is the plain average


def test_a_merge_reloads_to_the_very_logits(zoo, tmp_path):
    from fmerge.data import MultiTask, TextFiles
    from fmerge.merging.expert_fishers import Expert
    from fmerge.merging.optimizer import MergeOptimizer
    from fmerge.modules import TextClassifier
    from fmerge.search import Fixed
    from fmerge.trainer import FMergeTrainer

    module = TextClassifier()
    data = MultiTask({
        t: TextFiles(**files, labels=tiny.LABELS[t]) for t, files in zoo.tasks.items()
    })
    trainer = FMergeTrainer(
        accelerator="cpu",
        logger=False,
        callbacks=[MergeOptimizer(Fixed())],
        enable_progress_bar=False,
    )
    report = trainer.merge(
        module,
        data,
        experts={task: Expert(path) for task, path in zoo.experts.items()},
        method=DFMerge(),
        base=zoo.base,
        output=tmp_path / "merge",
    )
    assert len(report.trials) == 1 and [row.name for row in report.rows][-1] == "this merge"
    module.eval()
    for task in zoo.experts:
        loaded = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "merge/merged" / task
        )
        tokens = tiny.tokenizer()(tiny.sentences(9, 3), padding=True, return_tensors="pt")
        with torch.no_grad():
            assert torch.equal(loaded(**tokens).logits, module.task_model(task)(**tokens).logits)


@pytest.mark.parametrize("curve", [0, 5])  # 0.5 and 0.25 are nodes of a curve of 5
def test_df_merge_takes_each_fisher_where_the_coefficient_puts_it(
    zoo, tmp_path, monkeypatch, curve
):
    monkeypatch.setattr(fisher_cache, "free_memory", lambda device: None)  # curves go to the disk
    output = tmp_path / "merge"
    tasks = list(zoo.experts)
    coefficients = {tasks[0]: 0.5, tasks[1]: 0.25}
    run(
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
        *["--method", "DFMerge", "--optimizer.search", "Fixed", "--output", output],
        *[
            "--optimizer.search.coefficients",
            json.dumps(coefficients),
            "--fisher.split",
            "validation",
            "--fisher.curve",
            curve,
        ],
    )
    assert not list(output.glob("**/.fisher*"))
    base = body(zoo.base)
    fishers = []
    for task in tasks:
        expert = body(zoo.experts[task])
        scaled = {k: base[k] + coefficients[task] * (expert[k] - base[k]) for k in base}
        fishers.append(definition(zoo, task, zoo.experts[task], "exact", scaled)[0])
    expected = DFMerge().merge(
        base, [body(zoo.experts[task]) for task in tasks], list(coefficients.values()), fishers
    )
    found = body(output / "merged" / tasks[0])
    # Fishers that are zero but for rounding turn into weights: compare where there is information
    for name, value in found.items():
        known = sum(fisher[name] for fisher in fishers) > 1e-7
        torch.testing.assert_close(value[known], expected[name][known], rtol=1e-3, atol=1e-4)
        assert known.any() or "key.bias" in name


@pytest.mark.slow
def test_fisher_files_and_computed_fishers_merge_alike(zoo, tmp_path):
    config = data_config(zoo, tmp_path)
    given = []
    for task, expert in zoo.experts.items():
        file = tmp_path / f"{task}.safetensors"
        run(
            *["fisher", "--config", config, "--task", task, "--expert", expert, "--output", file],
            *["--split", "validation"],
        )
        given.append(f"--experts.{task}={json.dumps({'path': expert, 'fisher': str(file)})}")
    settings = [
        "--method",
        "FisherMerge",
        "--optimizer.search",
        "Grid",
        "--optimizer.search.points",
        3,
    ]
    for name, chosen in (
        ("files", given),
        ("computed", [*experts(zoo), "--fisher.split=validation"]),
    ):
        run("merge", "--config", config, *chosen, *settings, "--output", tmp_path / name)
    assert trials(tmp_path / "files") == trials(tmp_path / "computed")
    tasks = list(zoo.experts)
    best = max(trials(tmp_path / "files"), key=lambda trial: trial["objective"])
    fishers = [read_fisher(tmp_path / f"{task}.safetensors")[0] for task in tasks]
    expected = FisherMerge().merge(
        None,
        [body(zoo.experts[task]) for task in tasks],
        [best["coefficients"][task] for task in tasks],
        [{k: fisher[k] for k in body(zoo.base)} for fisher in fishers],
    )
    assert_same(body(tmp_path / "files" / "merged" / tasks[0]), expected)


def test_the_target_alone_is_scored_and_comes_first(zoo, tmp_path):
    target = list(zoo.experts)[1]
    output = tmp_path / "merge"
    run(
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--method", "Isotropic"],
        *["--optimizer.search", "Grid", "--optimizer.search.points", "3"],
        *["--optimizer.target", target, "--output", output],
    )
    assert all(trial["objective"] == trial["metrics"][target] for trial in trials(output))
    assert f"by task `{target}`" in (output / "report.md").read_text()


def test_a_merge_without_data_is_built_and_saved(zoo, tmp_path):
    output = tmp_path / "merge"
    run("merge", *experts(zoo), "--output", output, "--method", "Average")
    both = [body(path) for path in zoo.experts.values()]
    expected = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
    for task in zoo.experts:
        assert_same(body(output / "merged" / task), expected)
    assert trials(output)[0]["objective"] is None
    assert not (output / "search.png").exists()
    report = (output / "report.md").read_text()
    assert "nothing was scored, as there were no data" in report and "Test" not in report
    first, second = zoo.experts
    # the distances of both, by layer and in all
    table = report[report.index("## Distances between the models by layer, %") :].splitlines()
    assert table[2] == f"| layer | {first} to {second} |"
    apart = sum(float((both[0][n] - both[1][n]).square().sum()) for n in both[0]) ** 0.5
    size = sum(float(one.square().sum()) for one in both[0].values()) ** 0.5
    whole = next(line for line in table if line.startswith("| all layers"))
    assert float(whole.split("|")[2]) == pytest.approx(100 * apart / size, abs=0.06)


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("method", "options", "of_base"),
    [
        (TIES(density=0.3, scale=0.5), ["density=0.3", "scale=0.5"], True),
        (DARE(drop=0.3, seed=5, election="ties"), ["drop=0.3", "seed=5", "election=ties"], True),
        (DELLA(drop=0.4, epsilon=0.1), ["drop=0.4", "epsilon=0.1"], True),
        (Breadcrumbs(bottom=0.5, top=0.02), ["bottom=0.5", "top=0.02"], True),
        (SLERP(), [], False),
        (Karcher(tolerance=1e-8), ["tolerance=1e-8"], False),
        (TSVM(scale=1.5), ["scale=1.5"], True),
        (IsoC(), [], True),
        (FisherMedian(), [], False),
        slow(IsoCTS(share=0.5), ["share=0.5"], True),
        slow(WUDI(scale=1.5), ["scale=1.5"], True),
        slow(FisherTSV(atoms=3), ["atoms=3"], True),
        (LiNeS(TIES(density=0.3), b=0.2), ["method=TIES", "method.density=0.3", "b=0.2"], True),
        slow(ModelStock(filter_wise=True), ["filter_wise=true"], True),
        slow(NuSLERP("rows", True), ["along=rows", "task_vectors=true"], True),
        slow(MultiSLERP(False), ["normalize_weights=false"], False),
        slow(SCE(density=0.4), ["density=0.4"], True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MergeMethod) else "",
)
def test_each_method_merges_what_it_says(zoo, tmp_path, method, options, of_base):
    tasks, name = list(zoo.experts), type(method).__name__
    coefficients = {tasks[0]: 0.6, tasks[1]: 0.2}
    models = [body(zoo.experts[task]) for task in tasks]
    fishers = [{key: value**2 for key, value in model.items()} for model in models]
    given = experts(zoo)
    if method.statistic:
        given = [with_squares_as_fisher(zoo, task, tmp_path) for task in tasks]
    run(
        *["merge", *given, "--output", tmp_path / "merge", "--method", name],
        *[f"--method.{option}" for option in options],
        *(["--base", zoo.base] if of_base else []),
        *["--optimizer.search", "Fixed", "--trainer.enable_progress_bar=false"],
        *["--optimizer.search.coefficients", json.dumps(coefficients)],
    )
    expected = method.merge(body(zoo.base), models, list(coefficients.values()), fishers)
    for task in tasks:
        assert_same(body(tmp_path / "merge/merged" / task), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_the_numbers_of_a_method_are_searched_and_its_facts_reported(zoo, tmp_path):
    tasks, output = list(zoo.experts), tmp_path / "merge"
    run(
        *["merge", "--config", data_config(zoo, tmp_path), "--base", zoo.base, "--output", output],
        *[with_squares_as_fisher(zoo, task, tmp_path) for task in tasks],
        *["--method", "LiNeS", "--method.method", "FisherTSV", "--method.a", "0.4"],
        *["--optimizer.search", "Sobol", "--optimizer.search.trials", "2"],
    )
    *found, average = trials(output)
    assert len(found) == 2 and average["stage"] == "average"
    assert all(list(trial["coefficients"]) == [*tasks, "LiNeS.a", "LiNeS.b"] for trial in found)
    assert len({trial["coefficients"]["LiNeS.a"] for trial in found}) == 2
    best = max(found, key=lambda trial: (trial["objective"], -trial["trial"]))["coefficients"]
    models = [body(zoo.experts[task]) for task in tasks]
    fishers = [{key: value**2 for key, value in model.items()} for model in models]
    method = LiNeS(FisherTSV(), best["LiNeS.a"], best["LiNeS.b"])
    expected = method.merge(body(zoo.base), models, [best[task] for task in tasks], fishers)
    assert_same(body(output / "merged" / tasks[0]), expected, rtol=0, atol=0)
    page = (output / "report.md").read_text()
    assert "curvature in the singular subspace: η =" in " ".join(page.split())


def with_squares_as_fisher(zoo, task, folder):
    """An expert's option, with a Fisher file that holds the squares of its weights."""
    model = AutoModelForSequenceClassification.from_pretrained(zoo.experts[task])
    weights = params_of(model)
    file = folder / f"{task}.safetensors"
    provenance = {"model": zoo.experts[task], "model_sha256": fingerprint(weights)}
    write_fisher(file, {name: weight**2 for name, weight in weights.items()}, provenance)
    return f"--experts.{task}=" + json.dumps({"path": zoo.experts[task], "fisher": str(file)})


@pytest.mark.slow
@pytest.mark.parametrize("search", ["Dirichlet", "AxSearch"])
def test_the_same_seed_gives_the_same_trials(zoo, tmp_path, search):
    search_options = ["trials=4", "initial_trials=2", "starts=false"]
    budget = {"AxSearch": [f"--optimizer.search.{option}" for option in search_options]}
    config = data_config(zoo, tmp_path)
    logs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = tmp_path / name
        run(
            *["merge", "--config", config, *experts(zoo), "--base", zoo.base, "--output", output],
            *["--method", "TaskArithmetic", "--optimizer.search", search],
            *budget.get(search, ["--optimizer.search.draws=4"]),
            *["--optimizer.search.seed", seed],
        )
        logs.append((output / "trials.jsonl").read_bytes())
    assert logs[0] == logs[1] != logs[2]
    assert all(math.isfinite(trial["objective"]) for trial in trials(tmp_path / "a"))


def flat(tree) -> list:
    """All leaves of nested lists and dictionaries."""
    if isinstance(tree, dict | list):
        return [leaf for one in (tree.values() if isinstance(tree, dict) else tree)
                for leaf in flat(one)]  # fmt: skip
    return [tree]


@pytest.mark.slow
def test_two_processes_merge_as_one(zoo, tmp_path):
    config = data_config(zoo, tmp_path)
    for processes, start in ((1, run), (2, in_process)):
        start(
            *["merge", "--config", config, *experts(zoo), "--base", zoo.base],
            *["--method", "DFMerge", "--optimizer.search", "Dirichlet"],
            *["--optimizer.search.draws", "3", "--output", tmp_path / str(processes)],
            *[
                "--trainer.devices",
                processes,
                "--trainer.strategy",
                "ddp" if processes > 1 else "auto",
            ],
        )
    one, two = (trials(tmp_path / str(n)) for n in (1, 2))
    assert [t["coefficients"] for t in one] == [t["coefficients"] for t in two]
    for a, b in zip(one, two, strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"])
    report = [(tmp_path / str(n) / "report.md").read_text().splitlines() for n in (1, 2)]
    assert report[0][-8:] == report[1][-8:]
    scores = [json.loads((tmp_path / str(n) / "scores.json").read_text()) for n in (1, 2)]
    for kind, one, two in ((k, *(s[k] for s in scores)) for k in ("rows", "comparisons")):
        assert kind and flat(one) == pytest.approx(flat(two))


def test_overwriting_replaces_the_run(zoo, tmp_path):
    output = tmp_path / "merge"
    for _ in range(2):
        run(
            *["merge", *experts(zoo), "--output", output, "--overwrite", "true"],
            *["--method", "Average"],
        )
    assert len(trials(output)) == 1
