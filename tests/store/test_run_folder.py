"""Which run in a folder is resumed, which is refused, and what is said of it."""

import json
from dataclasses import asdict

import pytest
import yaml

from fmerge.errors import UserError
from fmerge.fisher import MERGE_DEFAULTS
from fmerge.store import RunFolder, run_folder
from fmerge.store.run_config import first_difference, resolved

CONFIG = """
experts: {a: x, b: y}
method: {class_path: Average}
optimizer:
  search: {class_path: Sobol, init_args: {trials: 4, seed: 0}}
output: here
"""
INPUTS = {"expert": {"a": "12", "b": "34"}, "base": None}
TRIAL = {"status": "ok", "objective": 0.5, "coefficients": {"a": 0.5}, "metrics": {"a": 0.5}}


def changed(config, **options):
    return yaml.safe_dump({**yaml.safe_load(config), **options})


def searching(trials):
    return changed(
        CONFIG,
        optimizer={"search": {"class_path": "Sobol", "init_args": {"trials": trials, "seed": 0}}},
    )


@pytest.fixture
def begun(tmp_path):
    """A run of two trials that was interrupted."""
    folder = RunFolder(tmp_path, CONFIG)
    folder.start(INPUTS)
    for number in range(2):
        folder.append({"trial": number, **TRIAL})
    return folder


def test_an_empty_folder_has_nothing_to_resume(tmp_path):
    assert not RunFolder(tmp_path, CONFIG).check(overwrite=False)
    assert not RunFolder(tmp_path / "new", CONFIG).check(overwrite=False)


def test_a_run_of_this_configuration_is_resumed_with_its_trials(begun, tmp_path):
    folder = RunFolder(tmp_path, changed(CONFIG, output="elsewhere", overwrite=True))
    assert folder.check(overwrite=False)
    assert folder.resume(INPUTS) == [{"trial": 0, **TRIAL}, {"trial": 1, **TRIAL}]
    assert not folder.check(overwrite=True)


def test_half_a_line_is_made_again(begun, tmp_path):
    log = tmp_path / "trials.jsonl"
    complete = log.read_bytes()
    log.write_bytes(complete + '{"trial": 2, "status": "ök'.encode()[:-2])
    assert len(RunFolder(tmp_path, CONFIG).resume(INPUTS)) == 2
    assert log.read_bytes() == complete
    log.write_bytes(complete + b'{"trial": 3}\n')
    with pytest.raises(UserError, match=r"trials.jsonl: line 3 is not the record of trial 2; mend"):
        RunFolder(tmp_path, CONFIG).resume(INPUTS)
    assert log.read_bytes() == complete + b'{"trial": 3}\n', "a refused log was changed"


def test_more_trials_are_no_difference_and_fewer_are(begun, tmp_path):
    assert RunFolder(tmp_path, searching(9)).check(overwrite=False)
    with pytest.raises(UserError, match="init_args.trials was 4 and is 3; name another folder"):
        RunFolder(tmp_path, searching(3)).check(overwrite=False)


def test_a_finished_run_is_resumed_for_more_trials_only(begun, tmp_path):
    with pytest.raises(UserError, match="holds no finished run to build a trial of"):
        begun.finished()
    (tmp_path / "report.md").write_text("finished")
    assert [one["trial"] for one in begun.finished()] == [0, 1]
    with pytest.raises(UserError, match="holds this very run, finished; ask for more trials"):
        begun.check(overwrite=False)
    more = RunFolder(tmp_path, searching(9))
    with pytest.raises(UserError, match="init_args.trials was 4 and is 9; give the command"):
        more.finished()
    assert more.check(overwrite=False) and len(more.resume(INPUTS)) == 2
    assert not (tmp_path / "report.md").exists(), "killed now, it would be taken for finished"


def test_other_options_and_other_inputs_are_named(begun, tmp_path):
    with pytest.raises(UserError, match="method.class_path was Average and is Sum; name another"):
        RunFolder(tmp_path, changed(CONFIG, method={"class_path": "Sum"})).check(overwrite=False)
    with pytest.raises(UserError, match="its run was begun with another expert.b; name another"):
        begun.resume({"expert": {"a": "12", "b": "56"}, "base": None})


def test_what_was_noted_outlives_an_interruption(begun, tmp_path):
    begun.note("own scores", {"a": 0.25})
    folder = RunFolder(tmp_path, CONFIG)
    folder.resume(INPUTS)
    assert folder.noted("own scores") == {"a": 0.25} and folder.noted("else") is None
    folder.start(INPUTS)
    assert folder.noted("own scores") is None


def test_starting_anew_removes_the_run_that_was_there(begun, tmp_path):
    for name in run_folder._RESULTS:
        (tmp_path / name).write_text("old")
    for name in ("merged", "points/3"):
        (tmp_path / name).mkdir(parents=True)
    begun.start(INPUTS)
    begun.settle()
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "config.yaml", "inputs.json", "trials.jsonl",
    ]  # fmt: skip
    assert (tmp_path / "trials.jsonl").read_text() == ""


# as fmerge 0.1 wrote it: --references, and no section fisher, which was not given
OLD = """
experts: {a: x, b: y}
method: {class_path: DFMerge}
references: all
output: here
"""
NEW = """
experts: {a: x, b: y}
method: {class_path: DFMerge}
baselines: all
fisher: {estimator: exact, split: validation, examples: 30, samples: 1, seed: 0,
         standard_error: false, fallback: vmap, curve: 0}
output: here
"""
DEFAULTS = {"fisher": asdict(MERGE_DEFAULTS)}


def test_a_run_of_the_version_before_is_resumed(tmp_path):
    RunFolder(tmp_path, OLD).start(INPUTS)
    assert RunFolder(tmp_path, NEW, DEFAULTS).check(overwrite=False)
    for before, after, message in [
        ("examples: 30", "examples: 40", "fisher.examples was 30 and is 40"),
        ("examples: 30, ", "", "fisher.examples was 30 and is None"),  # all, which null stands for
        ("baselines: all", "baselines: experts", "baselines was all and is experts"),
    ]:
        with pytest.raises(UserError, match=message):
            RunFolder(tmp_path, NEW.replace(before, after), DEFAULTS).check(overwrite=False)
    RunFolder(tmp_path, NEW, DEFAULTS).resume(INPUTS)
    assert (tmp_path / "config.yaml").read_text() == NEW


def test_a_section_that_was_given_is_not_completed(tmp_path):
    """The version before took all of training where --fisher.curve alone was given."""
    old = OLD + "fisher: {estimator: exact, split: train, samples: 1, curve: 5}\n"
    RunFolder(tmp_path, old).start(INPUTS)
    new = NEW.replace("curve: 0", "curve: 5")
    with pytest.raises(UserError, match="fisher.examples was None and is 30"):
        RunFolder(tmp_path, new, DEFAULTS).check(overwrite=False)


def test_configurations_are_flattened_under_present_names():
    tree = {"references": ["average"], "method": {"init_args": {}}, "base": None}
    found = resolved(tree, {"fisher": {"examples": 30}})
    assert found == {"baselines": ["average"], "method.init_args": {}, "fisher.examples": 30}
    assert first_difference(found, found | {"output": 1, "trainer.callbacks.a": 2}) == ""
    assert first_difference(found, found | {"base": "x"}) == "base was None and is x"
    # what is proposed depends on the size of a batch alone
    two = found | {"optimizer.parallel": 2, "optimizer.ray_address": "auto"}
    assert first_difference(found, two) == "optimizer.batch was 1 and is 2"
    assert first_difference(two, found | {"optimizer.batch": 2}) == ""
    assert first_difference(found, found | {"optimizer.batch": 1}) == ""


@pytest.mark.parametrize(
    "record",
    [
        [],
        {"trial": 1, **TRIAL},
        {"trial": 0, **TRIAL, "status": "none"},
        {"trial": 0, **TRIAL, "objective": True},
        {"trial": 0, **TRIAL, "metrics": {"a": "0.5"}},
        {"trial": 0, **TRIAL, "coefficients": None},
        {"trial": 0, **TRIAL, "status": "stopped"},
        {"trial": 0, **TRIAL, "status": "stopped", "partial": {"examples": 1, "of": 2}},
    ],
)
def test_what_is_not_the_record_of_a_trial_is_refused(begun, tmp_path, record):
    (tmp_path / "trials.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="line 1 is not the record of trial 0"):
        begun.resume(INPUTS)


def test_a_trial_that_was_stopped_early_is_a_record(begun, tmp_path):
    partial = {"examples": 16, "of": 64, "error": 0.1, "errors": {"a": 0.1}}
    record = {"trial": 0, **TRIAL, "status": "stopped", "partial": partial}
    (tmp_path / "trials.jsonl").write_text(json.dumps(record) + "\n")
    assert begun.resume(INPUTS) == [record]
