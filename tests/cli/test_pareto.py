"""Several objectives from the command line: the front's files, and trials built by their index."""

import json
import math
import shutil

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fmerge.cli.app import main
from fmerge.methods import TaskArithmetic
from fmerge.params import params_of
from fmerge.report.scores import RUNNER_UP
from tests.cli.run import experts, fails, in_process
from tests.cli.test_commands import assert_same, body
from tests.cli.test_goal import merge, trials

SEVERAL = ["--optimizer.objective", "[mean, tasks]"]
SOBOL = ["--optimizer.search", "Sobol", "--optimizer.search.trials", "8"]


def files(folder):
    """Every file but those of built trials, with its content and its time."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and "points" not in path.relative_to(folder).parts
    }


@pytest.fixture(scope="module")
def finished(zoo, tmp_path_factory):
    """A run for three objectives with a bound, and the arguments it was made with."""
    root = tmp_path_factory.mktemp("pareto")
    arguments = merge(zoo, root, root / "run", *SEVERAL, *SOBOL, "--optimizer.keep", "0.3")
    main(arguments)
    return root / "run", arguments


def test_the_front_is_that_of_the_log(zoo, finished):
    output, _ = finished
    log, saved = trials(output), json.loads((output / "pareto.json").read_text())
    tasks = list(zoo.experts)
    own = json.loads((output / "inputs.json").read_text())["experts' validation scores"]
    for trial in log:
        scores = trial["metrics"]
        mean = sum(scores.values()) / 2
        assert trial["objectives"] == pytest.approx({"mean": mean, **scores})
        assert trial["objective"] == trial["objectives"]["mean"]
        errors = trial["objective_errors"]
        assert [errors[task] for task in tasks] == [trial["errors"][task] for task in tasks]
        assert errors["mean"] == pytest.approx(math.hypot(*trial["errors"].values()) / 2)

    def kept(trial):
        return all(trial["metrics"][task] >= 0.3 * own[task] - 1e-6 for task in tasks)

    def values(trial):
        return tuple(trial["objectives"].values())

    good = [trial for trial in log if kept(trial)]
    assert good, "the bound is meant to leave some"
    front = {
        values(t): t
        for t in reversed(good)  # the earliest of equals is put in last
        if not any(
            all(a >= b for a, b in zip(values(o), values(t), strict=True))
            and values(o) != values(t)
            for o in good
        )
    }
    expected = [front[key] for key in sorted(front, reverse=True)]
    assert saved["front"] == expected
    assert saved["objectives"] == ["mean", *tasks] and saved["merged"] == expected[0]["trial"]
    report = (output / "report.md").read_text()
    assert f"the best is trial {saved['merged']}\n" in report
    for one in expected:
        percent = [f"{100 * value:.1f}" for value in values(one)]
        coefficients = ", ".join(f"{n} {v:.4f}" for n, v in one["coefficients"].items())
        assert f"| {' | '.join([str(one['trial']), *percent, coefficients])} |" in report
    assert (output / "pareto.png").read_bytes().startswith(b"\x89PNG")
    # merged/ is the first of the front
    check_weights(zoo, output / "merged", expected[0]["coefficients"])


def check_weights(zoo, folder, coefficients):
    """The very weights that assembling the coefficients gives, also by from_pretrained."""
    tasks = list(zoo.experts)
    bodies = [body(zoo.experts[task]) for task in tasks]
    merged = TaskArithmetic().merge(body(zoo.base), bodies, [coefficients[t] for t in tasks])
    for task in tasks:
        assert_same(body(folder / task), merged)
        read = AutoModelForSequenceClassification.from_pretrained(folder / task)
        stored = load_file(folder / task / "model.safetensors")
        for name, tensor in params_of(read).items():
            assert tensor.equal(stored[name])


def without_runner_up(rows):
    return [row for row in rows if not row["name"].startswith(RUNNER_UP)]


def test_a_trial_is_built_by_its_index(zoo, finished, capsys):
    output, arguments = finished
    kept = json.loads((output / "pareto.json").read_text())["merged"]
    other = (kept + 3) % 8
    before = files(output)
    main([*arguments, "--build", str(other)])
    assert files(output) == before
    point, trial = output / "points" / str(other), trials(output)[other]
    check_weights(zoo, point / "merged", trial["coefficients"])
    scores = json.loads((point / "scores.json").read_text())
    run = json.loads((output / "scores.json").read_text())
    expected = without_runner_up(run["rows"])
    assert scores["trial"] == other and scores["rows"][:-1] == expected[:-1]
    report = (point / "report.md").read_text()
    assert f"this is trial {other}, built by its index" in report
    assert "](../../search.png)" in report and "Pareto" not in report
    # the trial that was kept, once more: its scores and weights are those of the run
    main([*arguments, "--build", str(kept)])
    again = json.loads((output / "points" / str(kept) / "scores.json").read_text())
    assert again["rows"] == expected
    for task in zoo.experts:
        ours, theirs = (
            load_file(folder / "merged" / task / "model.safetensors")
            for folder in (output / "points" / str(kept), output)
        )
        assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert "Merged: " in capsys.readouterr().out


def test_a_wrong_index_names_the_front(zoo, finished, capsys):
    output, arguments = finished
    front = sorted(
        one["trial"] for one in json.loads((output / "pareto.json").read_text())["front"]
    )
    before = files(output)
    for index in ("9", "-1"):  # the ninth is the plain average's
        line = fails(capsys, *arguments, "--build", index)
        assert f"--build {index}: is not among its 9 trials in {output}" in line
        assert line.endswith(f"the front's are {', '.join(map(str, front))}")
    assert files(output) == before and not (output / "points" / "9").exists()


def test_a_build_is_of_the_run_that_is_there(zoo, finished, tmp_path, capsys):
    output, arguments = finished
    before = files(output)
    line = fails(capsys, *arguments, "--build", "1", "--data.batch_size", "5")
    assert "data.batch_size was 4 and is 5; give the command that it was made with" in line
    for option in ("overwrite", "dry_run"):
        line = fails(capsys, *arguments, "--build", "1", f"--{option}", "true")
        assert f"without --{option}; leave one of the two out" in line
    assert "holds this very run, finished" in fails(capsys, *arguments)
    assert files(output) == before
    elsewhere = merge(zoo, tmp_path, tmp_path / "none", *SEVERAL, *SOBOL)
    assert "holds no finished run to build a trial of" in fails(capsys, *elsewhere, "--build", "1")
    assert not (tmp_path / "none").exists()
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    (copy / "inputs.json").write_text(
        (copy / "inputs.json").read_text().replace('"base": "', '"base": "0')
    )
    there = [*arguments[: arguments.index("--output") + 1], str(copy)]
    there += arguments[arguments.index("--output") + 2 :]
    assert "begun with another base" in fails(capsys, *there, "--build", "1")


@pytest.mark.slow
def test_one_objective_and_more_trials(zoo, tmp_path, capsys):
    output = tmp_path / "run"
    search = ["--optimizer.search", "Sobol", "--optimizer.search.trials"]
    main(merge(zoo, tmp_path, output, *search, "3"))
    assert not (output / "pareto.json").exists() and "objectives" not in trials(output)[0]
    # trial 3 is the plain average
    line = fails(capsys, *merge(zoo, tmp_path, output, *search, "3"), "--build", "4")
    assert line.endswith("give one from 0 to 3")
    main(merge(zoo, tmp_path, output, *search, "3", "--build", "3"))
    equal = dict.fromkeys(zoo.experts, 1 / len(zoo.experts))
    check_weights(zoo, output / "points/3/merged", equal)
    main(merge(zoo, tmp_path, output, *search, "3", "--build", "1"))
    check_weights(zoo, output / "points/1/merged", trials(output)[1]["coefficients"])
    main(merge(zoo, tmp_path, output, *search, "4"))
    assert len(trials(output)) == 5 and (output / "points/1/report.md").is_file()
    main(merge(zoo, tmp_path, output, *search, "3", "--overwrite", "true"))
    assert not (output / "points").exists() and len(trials(output)) == 4


def test_a_merge_without_data_is_built_again(zoo, tmp_path):
    arguments = ["merge", *experts(zoo), "--method", "Isotropic", "--output", str(tmp_path / "out")]
    main(arguments)
    main([*arguments, "--build", "0"])
    for task in zoo.experts:
        ours, theirs = (
            load_file(tmp_path / "out" / place / task / "model.safetensors")
            for place in ("points/0/merged", "merged")
        )
        assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.objective", "[mean, median]"], "unknown value 'median'; known: mean, ret"),
        (["--optimizer.objective", "[mean, mean]"], "'mean' would be two of the objectives"),
        (["--optimizer.objective", "[]"], "objective: lists nothing to maximise"),
        ([*SEVERAL, "--optimizer.target", "colour"], "with a target one task counts alone"),
        (
            ["--optimizer.objective=[worst, tasks]", "--optimizer.weights={colour: 1, animal: 2}"],
            "weights: mean nothing to 'worst'",
        ),
        ([*SEVERAL, "--optimizer.search.acquisition", "ucb"], "'ucb' is of one objective"),
        (
            [*SEVERAL, "--optimizer.search.polish", "3"],
            "polish goes up along one objective, but there are 3 (mean, colour, animal)",
        ),
    ],
)
def test_objectives_that_do_not_fit_are_said(zoo, tmp_path, capsys, options, message):
    output = tmp_path / "out"
    search = ["--optimizer.search", "AxSearch"]
    assert message in fails(capsys, *merge(zoo, tmp_path, output, *search, *options))
    assert not output.exists()


def test_several_objectives_need_data(zoo, tmp_path, capsys):
    arguments = ["merge", *experts(zoo), "--method", "Isotropic", "--output", tmp_path / "out"]
    line = fails(capsys, *arguments, "--optimizer.objective", "[mean, worst]")
    assert "objective, weights and keep need data to score on" in line


@pytest.mark.slow
def test_two_processes_build_the_same_trial(zoo, tmp_path):
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    one, two = (merge(zoo, tmp_path, tmp_path / n, *SEVERAL, *SOBOL) for n in "12")
    main(one)
    in_process(*two, *ddp)
    main([*one, "--build", "2"])
    in_process(*two, *ddp, "--build", "2")
    fronts = [json.loads((tmp_path / n / "pareto.json").read_text())["front"] for n in "12"]
    assert [t["trial"] for t in fronts[0]] == [t["trial"] for t in fronts[1]]
    for task in zoo.experts:
        ours, theirs = (
            load_file(tmp_path / n / "points/2/merged" / task / "model.safetensors") for n in "12"
        )
        assert all(ours[name].equal(theirs[name]) for name in theirs)
    rows = [json.loads((tmp_path / n / "points/2/scores.json").read_text())["rows"] for n in "12"]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["scores"] == pytest.approx(theirs["scores"])
