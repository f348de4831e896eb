"""``fmerge merge`` by methods that are calibrated on examples."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fmerge.cli.app import main
from tests import tiny
from tests.cli.run import data_config, experts, fails, in_process
from tests.compare import assert_same
from tests.modules.layer_by_layer import calibrated
from tests.modules.test_calibration_pass import BERT, averaged


def run_on(text):
    return lambda model: model.bert(**tiny.tokenizer()(text, return_tensors="pt"))


def texts(file):
    return [line.rsplit(",", 1)[0] for line in Path(file).read_text().splitlines()[1:]]


def read(path):
    return AutoModelForSequenceClassification.from_pretrained(path).eval().double()


def test_a_calibrated_average_is_written(zoo, tmp_path):
    main([
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
        *["--method", "FeatCal", "--method.double", "true"],
        *["--baselines", "experts", "--output", str(tmp_path / "out")],
    ])
    models = [read(path) for path in zoo.experts.values()]
    for model in models[1:]:  # one shape of head, which no layer of the body reads
        model.classifier = models[0].classifier
    runs = [[run_on(text) for text in texts(files["validation"])] for files in zoo.tasks.values()]
    expected = calibrated(
        *(averaged(models), models, read(zoo.base), BERT, runs),
        **{"a": 0.3, "rho": 2.0, "r": 0.05, "c": True, "biases": True, "norms": True},
    )
    body = {k: v.detach() for k, v in expected.named_parameters() if k.startswith("bert.")}
    for task in zoo.tasks:
        found = load_file(tmp_path / f"out/merged/{task}/model.safetensors")
        assert_same({name: found[name] for name in body}, body, rtol=1e-4, atol=1e-5)
    report = (tmp_path / "out/report.md").read_text()
    assert "calibration: on examples of the validation split, without their labels: " in report


@pytest.mark.slow
def test_the_coefficients_of_the_start_are_searched(zoo, tmp_path):
    main([
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
        *["--method", "RegMeanPP", "--method.start", "TaskArithmetic", "--fisher.examples", "4"],
        *["--optimizer.search", "Sobol", "--optimizer.search.trials", "3"],
        *["--output", str(tmp_path / "out"), "--baselines", "experts"],
    ])
    trials = [json.loads(line) for line in (tmp_path / "out/trials.jsonl").read_text().splitlines()]
    assert len(trials) == 4 and all(trial["status"] == "ok" for trial in trials)


@pytest.mark.slow
def test_two_processes_calibrate_as_one(zoo, tmp_path):
    """13 examples a task in batches of 4: the processes have unequally many."""
    for processes in (1, 2):
        in_process(
            *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
            *["--method", "FeatCal", "--method.double", "true", "--baselines", "experts"],
            *["--output", tmp_path / str(processes), "--trainer.devices", processes],
            *["--trainer.strategy", "ddp" if processes > 1 else "auto"],
        )
    one, two = (load_file(tmp_path / f"{n}/merged/colour/model.safetensors") for n in (1, 2))
    assert_same(two, one, rtol=1e-4, atol=1e-5)


def test_what_is_refused(zoo, tmp_path, capsys):
    out = ["--output", tmp_path / "out"]
    line = fails(capsys, "merge", *experts(zoo), "--method", "RegMeanPP", *out)
    assert line.endswith("RegMeanPP: needs data to calibrate the merge on; give --data")
    config = data_config(zoo, tmp_path)
    line = fails(capsys, "merge", "--config", config, *experts(zoo), "--method", "FeatCal", *out)
    assert line.endswith("--base: is not set, but FeatCal needs the pretrained model")
    line = fails(
        capsys, "merge", "--config", config, *experts(zoo), "--method", "FeatCal", *out,
        "--method.start", "RegMeanPP", "--base", zoo.base,
    )  # fmt: skip
    assert "FeatCal: start is RegMeanPP, which is calibrated itself" in line
