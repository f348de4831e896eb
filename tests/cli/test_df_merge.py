"""The configurations of configs/df_merge as they are shipped, on tiny T5s and made-up rows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM

from fmerge.cli.app import main
from fmerge.store import read_fisher
from tests import tiny
from tests.cli.run import ROOT, fails
from tests.compare import assert_same, relative_error
from tests.data import six

CONFIGS = ROOT / "configs" / "df_merge"
QUICK = [
    *["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.batch_size=2"],
    "--trainer.enable_progress_bar=false",
]


def run(command, *args):
    main([command, *configs("model"), *map(str, args), *QUICK])


def configs(*names):
    return [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]


def random_t5(seed):
    torch.manual_seed(seed)
    return AutoModelForSeq2SeqLM.from_config(tiny.t5_config())


def t5(folder, seed) -> str:
    base, model = (random_t5(one) for one in (0, seed))
    tiny.moved_near(model, base).save_pretrained(folder)
    tiny.text_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The folders that the configurations name: data as save_to_disk writes them, and weights."""
    folder = tmp_path_factory.mktemp("df_merge")
    for task in six.TASKS:
        six.saved_folder(task, folder / ".dataset")
    story = folder / ".dataset/story_cloze"
    shutil.move(story, folder / "moved")
    story.joinpath("2016").mkdir(parents=True)
    shutil.move(folder / "moved", story / "2016/dataset")
    t5(folder / "base", 0)
    for seed, task in enumerate(six.TASKS, start=1):
        t5(folder / "runs/df_merge/t5-base" / task / "expert", seed)
    return folder


@pytest.fixture
def place(experiment, monkeypatch):
    monkeypatch.chdir(experiment)
    return experiment


def source(task):
    if task == "story_cloze":  # its own configuration says where
        return []
    return [f"--data.tasks.{task}.init_args.source=.dataset/{task}"]


def scores(table) -> dict[str, float]:
    """Reads Lightning's table of metrics."""
    cells = [line.split("│")[1:3] for line in table.splitlines() if line.count("│") == 3]
    return {name.strip(): float(value) for name, value in cells}


FITTED = {"paws", "qasc"}  # of two choices and of eight


def weights(folder):
    return dict(AutoModelForSeq2SeqLM.from_pretrained(folder).named_parameters())


@pytest.mark.parametrize(
    "task",
    [pytest.param(one, marks=() if one in FITTED else pytest.mark.slow) for one in six.TASKS],
)
def test_fit_validate_and_fisher_of_each_task(task, place, tmp_path, capsys):
    data = [*configs(f"tasks/{task}"), *source(task)]
    run(
        *["fit", *configs("fit"), *data, "--model.path=base", f"--output={tmp_path / 'run'}"],
        *["--trainer.max_steps=2", "--trainer.val_check_interval=1"],
    )
    expert = tmp_path / "run/expert"
    assert relative_error(weights(expert), weights("base")) > 1e-5
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert settings["checkpoint"]["monitor"] == "val/loss"
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    lowest = float(best["callbacks"].popitem()[1]["best_model_score"])
    capsys.readouterr()
    run("validate", *data, f"--model.path={expert}")
    shown = scores(capsys.readouterr().out)
    assert shown["val/loss"] == pytest.approx(lowest, rel=1e-5) and f"{task}/accuracy" in shown
    file = tmp_path / "fisher.safetensors"
    run("fisher", *data, f"--expert={expert}", "--examples=2", f"--output={file}")
    values, provenance = read_fisher(file)
    assert set(values) == set(weights(expert)) and provenance["task"] == task
    assert all(float(value.min()) >= 0 for value in values.values())
    assert sum(float(value.sum()) for value in values.values()) > 0


def test_the_mixture_draws_a_batch_of_every_task_each_step(place, tmp_path, monkeypatch):
    from fmerge.modules import RankChoice

    steps = []
    training_step = RankChoice.training_step

    def record(self, batch, batch_idx):
        steps.append((batch_idx, {task: len(one["labels"]) for task, one in batch.items()}))
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(RankChoice, "training_step", record)
    # paws is made the longest: seven rows, as its test split has
    longest = ["--data.tasks.paws.init_args.splits={train: test}", "--trainer.val_check_interval=4"]
    run(
        *["fit", *configs("fit", "mixture", "tasks/all_saved"), "--model.path=base", *longest],
        *["--trainer.max_steps=8", f"--output={tmp_path / 'run'}"],
    )
    assert [index for index, _ in steps] == [0, 1, 2, 3, 0, 1, 2, 3]  # an epoch: paws, once
    assert all(set(sizes) == set(six.TASKS) for _, sizes in steps)
    assert sum(sizes["paws"] for _, sizes in steps) == 2 * 7
    assert sum(sizes["qasc"] for _, sizes in steps) == 2 * (2 + 2 + 1 + 2)  # begun anew
    assert (tmp_path / "run/expert/model.safetensors").is_file()


def test_a_fit_goes_on_from_its_last_checkpoint(place, tmp_path):
    arguments = [
        *["fit", *configs("fit", "tasks/paws"), *source("paws"), "--model.path=base"],
        *["--trainer.val_check_interval=1", f"--output={tmp_path / 'run'}"],
    ]
    run(*arguments, "--trainer.max_steps=1")
    last = tmp_path / "run/checkpoints/last.ckpt"
    run(*arguments, "--trainer.max_steps=3", f"--ckpt_path={last}")
    assert torch.load(last, weights_only=True)["global_step"] == 3


VARIANTS = {
    "ei": [],
    "ucb": ["--optimizer.search.acquisition=ucb"],
    "drawn": ["--fisher.estimator=sampled", "--optimizer.search.seed=1", "--fisher.seed=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "variant"), [("DFMerge", "ei"), ("DFMerge", "drawn"), ("TaskArithmetic", "ucb")]
)
def test_merge_of_all_six(method, variant, place, tmp_path):
    output = tmp_path / "merge"
    run(
        *["merge", *configs("tasks/all_saved", "merge"), "--base=base", f"--method={method}"],
        *["--optimizer.search.trials=3", "--optimizer.search.initial_trials=2"],
        *["--fisher.examples=1", f"--output={output}", "--baselines=experts"],
        *VARIANTS[variant],
    )
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert settings["optimizer"]["search"]["init_args"]["acquisition"] == (
        "ucb" if variant == "ucb" else "ei"
    )
    log = [json.loads(line) for line in (output / "trials.jsonl").read_text().splitlines()]
    trials = [one for one in log if "stage" not in one]  # without the plain average
    assert len(trials) == 3 and set(trials[0]["coefficients"]) == set(six.TASKS)
    for trial in trials:
        assert trial["objective"] == pytest.approx(sum(trial["metrics"].values()) / 6)
    rows = json.loads((output / "scores.json").read_text())["rows"]
    assert all(set(row["scores"]) == set(six.TASKS) for row in rows) and len(rows) == 2
    merged = weights(next(output.glob("merged/**/model.safetensors")).parent)
    if method == "TaskArithmetic":
        best = max(trials, key=lambda trial: trial["objective"])["coefficients"]
        expected = dict(weights("base"))
        for task, coefficient in best.items():
            expert = weights(f"runs/df_merge/t5-base/{task}/expert")
            for name, origin in weights("base").items():
                expected[name] = expected[name] + coefficient * (expert[name] - origin)
        assert_same(merged, expected)
    else:
        assert relative_error(merged, weights("base")) > 0.01


def test_any_model_is_scored_on_any_split(place, capsys):
    expert = "runs/df_merge/t5-base/qasc/expert"
    data = [*configs("tasks/paws"), *source("paws"), f"--model.path={expert}"]
    run("test", *data)
    tested = scores(capsys.readouterr().out)
    run("validate", *data, "--data.tasks.paws.init_args.splits={validation: test}")
    validated = scores(capsys.readouterr().out)
    assert validated["val/loss"] == tested["test/loss"] > 0


def test_a_task_of_your_own_from_yaml_alone(place, tmp_path, capsys):
    rows = tmp_path / "my.csv"
    rows.write_text("question,answer\nred sky,yes\nblue dog,no\ngreen,no\n")
    task = {
        "class_path": "Prompted",
        "init_args": {
            "source": str(rows),
            "text": "Is it {{ question }}?",
            "choices": ["yes", "no"],
            "label": "{{ answer }}",
        },
    }
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"data": {"tasks": {"mine": task}}}))
    run("validate", "--config", config, "--model.path=base")
    assert "mine/accuracy" in capsys.readouterr().out
    task["init_args"]["choices"] = "{{ ['yes', 'no', 'so'] }}"
    config.write_text(yaml.safe_dump({"data": {"tasks": {"mine": task}}}))
    run("validate", "--config", config, "--model.path=base")
    assert "mine/accuracy" in capsys.readouterr().out


def test_mistakes_are_one_line(place, tmp_path, capsys):
    all_six = configs("model", "tasks/all_saved")
    for change, message in [
        (["--data.tasks.paws.init_args.template=pows"], "unknown template 'pows'"),
        (["--data.tasks.paws.init_args.label=nope"], "no column 'nope'"),
        (["--data.tasks.paws.init_args.label=label + 1"], "row 2 of validation: label: 2 is none"),
        (["--data.tasks.paws.init_args.text={{ x.__class__ }}"], "no column 'x'"),
        (["--data.tasks.paws.init_args.text={% macro"], "template paws: text: line 1"),
    ]:
        line = fails(capsys, "validate", *all_six, "--model.path=base", *QUICK, *change)
        assert message in line, line
    assert not list(Path(tmp_path).iterdir())
