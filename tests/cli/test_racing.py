"""Racing from the command line: what is kept has its full score, and a killed run goes on."""

import csv
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fmerge.cli.app import main
from fmerge.data.blocks import LEAST
from fmerge.evaluation.evaluator import Evaluator
from tests import tiny
from tests.cli.run import data_config, experts, fails, in_process
from tests.cli.test_kills import assert_same_folder, kill_at

RACING = ["--optimizer.racing", "true"]
SOBOL = ["--optimizer.search", "Sobol", "--optimizer.search.trials", "12"]
AX = [
    *["--optimizer.search", "AxSearch", "--optimizer.search.trials", "8"],
    *["--optimizer.search.initial_trials", "6", "--optimizer.search.noise", "none"],
]


@pytest.fixture(scope="module")
def learnt(zoo, tmp_path_factory) -> tiny.Zoo:
    """The zoo with answers that its experts know: 160 validation examples of one task, 90."""
    root, tasks = tmp_path_factory.mktemp("learnt"), {}
    for task, n in (("colour", 160), ("animal", 90)):
        model = AutoModelForSequenceClassification.from_pretrained(zoo.experts[task]).eval()
        words = AutoTokenizer.from_pretrained(zoo.experts[task])
        texts = tiny.sentences(n, 50)
        with torch.no_grad():
            found = model(**words(texts, padding=True, return_tensors="pt")).logits.argmax(1)
        path = root / f"{task}.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for i, (text, label) in enumerate(zip(texts, found.tolist(), strict=True)):
                labels = tiny.LABELS[task]
                rows.writerow([text, labels[label if i % 9 else i % len(labels)]])
        tasks[task] = {**zoo.tasks[task], "validation": str(path)}
    return tiny.Zoo(root, zoo.base, zoo.experts, tasks)


def merge(zoo, folder, output, *options):
    return [
        str(arg)
        for arg in [
            *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--base", zoo.base],
            *["--output", output, "--method", "TaskArithmetic", "--baselines", "experts"],
            *options,
        ]
    ]


def trials(output):
    """The search's trials, without the plain average that follows them."""
    found = [json.loads(line) for line in (output / "trials.jsonl").read_text().splitlines()]
    return [one for one in found if "stage" not in one]


@pytest.fixture(scope="module")
def both(learnt, tmp_path_factory):
    """One search without racing and with it."""
    root = tmp_path_factory.mktemp("both")
    main(merge(learnt, root, root / "full", *SOBOL))
    main(merge(learnt, root, root / "raced", *SOBOL, *RACING))
    return root / "full", root / "raced"


@pytest.mark.slow
def test_full_scores_are_those_without_racing_to_the_last_digit(both):
    full, raced = map(trials, both)
    assert {trial["status"] for trial in full} == {"ok"}
    stopped = [trial for trial in raced if trial["status"] == "stopped"]
    assert 3 <= len(stopped) <= 11 and raced[0]["status"] == "ok"
    best = max(t["objective"] for t in full)
    for one, other in zip(full, raced, strict=True):
        assert one["coefficients"] == other["coefficients"]
        if other["status"] == "ok":
            assert one == other
            continue
        seen = other["partial"]
        assert one["objective"] < best
        assert 2 * LEAST <= seen["examples"] < seen["of"] == 250
        # an estimate of the full score, as good as it says; more than that about new examples
        assert abs(one["objective"] - other["objective"]) < 4 * seen["error"]
        assert 0 < seen["error"] < other["error"]
        assert all(other["errors"][task] > seen["errors"][task] for task in seen["errors"])
    for name in ("scores.json", "merged/colour/model.safetensors"):
        assert (both[0] / name).read_bytes() == (both[1] / name).read_bytes()


@pytest.mark.slow
def test_the_report_tells_what_was_saved_and_which_split_did_what(both):
    raced = trials(both[1])
    stopped = [trial["partial"] for trial in raced if trial["status"] == "stopped"]
    saved = sum(250 - one["examples"] for one in stopped) / 250 / len(raced)
    report = (both[1] / "report.md").read_text()
    assert (
        f"- racing: {len(stopped)} of 12 trials were stopped early; {100 * saved:.1f}% of the "
        "examples of all trials were not scored\n" in report
    )
    assert (
        "- validation examples, used to choose: colour 160, animal 90; "
        "test examples, used to score: colour 11, animal 11\n" in report
    )
    assert "racing" not in (both[0] / "report.md").read_text()
    full = max(trials(both[0]), key=lambda trial: trial["objective"])
    assert f"the best is trial {full['trial']}\n" in report


@pytest.mark.slow
def test_bounds_and_the_worst_task_are_raced_to_the_same_best(learnt, tmp_path):
    options = [
        *SOBOL[:3],
        "6",
        "--optimizer.objective",
        "worst_retained",
        "--optimizer.keep",
        "0.8",
    ]
    best = []
    for name, racing in (("full", []), ("raced", RACING)):
        main(merge(learnt, tmp_path, tmp_path / name, *options, *racing))
        report = (tmp_path / name / "report.md").read_text()
        best.append(report[report.index("the best is trial") :].splitlines()[:2])
    assert best[0] == best[1]
    assert any(trial["status"] == "stopped" for trial in trials(tmp_path / "raced"))


@pytest.mark.slow
def test_a_killed_race_goes_on_to_the_very_trials(learnt, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "killed"
    main(merge(learnt, tmp_path, whole, *AX, *RACING))
    log = trials(whole)
    assert [trial["status"] for trial in log].count("stopped") >= 2
    arguments = merge(learnt, tmp_path, output, *AX, *RACING)
    # in a trial of the first run; in the blocks of what is recalled by the second one
    for times, after in ((20, False), (2, True)):
        assert kill_at(arguments, Evaluator, "right_answers", times, after)
        begun = (output / "trials.jsonl").read_text()
        assert (whole / "trials.jsonl").read_text().startswith(begun)
    assert 3 < len(trials(output)) < 8
    main(arguments)
    (output / ".fmerge.lock").unlink(missing_ok=True)
    (whole / ".fmerge.lock").unlink(missing_ok=True)
    assert_same_folder(output, whole)


@pytest.mark.slow
def test_a_finished_race_takes_more_trials(learnt, both, tmp_path):
    grown = tmp_path / "grown"
    shorter = [*SOBOL[:3], "5"]
    main(merge(learnt, tmp_path, grown, *shorter, *RACING))
    main(merge(learnt, tmp_path, grown, *SOBOL, *RACING))
    assert trials(grown) == trials(both[1])


@pytest.mark.slow
def test_two_processes_race_as_one(learnt, both, tmp_path):
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    in_process(*merge(learnt, tmp_path, tmp_path / "2", *SOBOL, *RACING, *ddp))
    assert trials(tmp_path / "2") == trials(both[1])


@pytest.mark.slow
def test_smaller_batches_and_found_ones_change_no_trial(learnt, both, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fmerge.evaluation.batch_size.find_batch_size", lambda run, most: (run(8), 8)[1]
    )
    auto = ["--data.batch_size", "auto"]
    main(merge(learnt, tmp_path, tmp_path / "auto", *SOBOL, *RACING, *auto))
    assert trials(tmp_path / "auto") == trials(both[1])
    sizes = json.loads((tmp_path / "auto" / "inputs.json").read_text())["batch sizes"]
    assert sizes["scores"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.limit_val_batches", "2"], "limit_val_batches is 2; leave one of the two out"),
        ([], "animal' is scored by accuracy, matthews; leave racing out"),
    ],
)
def test_what_cannot_be_raced_is_said(zoo, tmp_path, capsys, monkeypatch, options, message):
    if not options:
        monkeypatch.setattr("fmerge.data.TextFiles.metrics", ("accuracy", "matthews"))
    output = tmp_path / "out"
    line = fails(capsys, *merge(zoo, tmp_path, output, *SOBOL, *RACING, *options))
    assert line.startswith("fmerge: error: --optimizer.racing: ") and message in line
    assert not output.exists()


def test_racing_needs_data(zoo, tmp_path, capsys):
    arguments = ["merge", *experts(zoo), "--method", "Isotropic", "--output", tmp_path / "out"]
    assert "--optimizer.racing: needs data" in fails(capsys, *arguments, *RACING)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fisher.split", "train"], "the train split: colour 20, animal 20; none of them used"),
        (
            ["--fisher.split", "validation", "--fisher.examples", "12"],
            "the validation split: colour 12, animal 12; ALSO USED TO CHOOSE; "
            "--fisher.split train avoids this",
        ),
    ],
)
def test_the_report_says_where_fishers_were_estimated(zoo, tmp_path, options, told):
    output = tmp_path / "run"
    fixed = ["--method", "FisherMerge", "--optimizer.search", "Fixed"]
    main(merge(zoo, tmp_path, output, *fixed, *options))
    assert f"- Fishers: estimated on examples of {told}" in (output / "report.md").read_text()


def test_the_report_says_what_given_fishers_say(zoo, tmp_path):
    given = []
    for task, expert in zoo.experts.items():
        file = tmp_path / f"{task}.safetensors"
        config = ["--config", data_config(zoo, tmp_path, task), "--expert", expert]
        main(["fisher", *config, "--output", str(file), "--examples", "9"])
        given.append(f"--experts.{task}=" + json.dumps({"path": expert, "fisher": str(file)}))
    output = tmp_path / "run"
    fixed = ["--method", "FisherMerge", "--optimizer.search", "Fixed"]
    main(merge(zoo, tmp_path, output, *fixed, *given))
    report = (output / "report.md").read_text()
    assert f"`colour` {tmp_path / 'colour.safetensors'}, recorded as of 9 examples" in report


@pytest.mark.slow
def test_refitted_heads_race_with_the_scores_that_they_have_without(learnt, tmp_path):
    options = [*SOBOL[:3], "8", "--refit_heads", "trials", "--refit_examples", "40"]
    main(merge(learnt, tmp_path, tmp_path / "full", *options))
    main(merge(learnt, tmp_path, tmp_path / "raced", *options, *RACING))
    pairs = list(zip(trials(tmp_path / "full"), trials(tmp_path / "raced"), strict=True))
    full = [one == other for one, other in pairs if other["status"] == "ok"]
    assert len(full) >= 3 and all(full)
