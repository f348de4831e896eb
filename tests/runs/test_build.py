"""Which trial of a finished run can be built, and what a refusal offers instead."""

import json
from types import SimpleNamespace

import pytest

from fmerge.errors import UserError
from fmerge.runs.build import find_trial


def records(*statuses):
    return [{"trial": i, "status": status} for i, status in enumerate(statuses)]


def folder(path, *statuses):
    return SimpleNamespace(path=path, finished=lambda: records(*statuses))


def refusal(*arguments, **options):
    with pytest.raises(UserError) as refused:
        find_trial(*arguments, **options)
    return str(refused.value)


def test_a_trial_that_succeeded_is_found_with_all_records(tmp_path):
    run = folder(tmp_path, "ok", "failed", "ok")
    assert find_trial(run, 2) == records("ok", "failed", "ok")


@pytest.mark.parametrize("option", ["overwrite", "dry_run"])
def test_what_does_not_go_with_it_is_refused_first(tmp_path, option):
    def finished():
        raise AssertionError("the run was read")

    line = refusal(SimpleNamespace(path=tmp_path, finished=finished), 0, **{option: True})
    assert line == (
        f"--build: makes a trial of the run that is there, without --{option}; leave one of the "
        "two out"
    )


@pytest.mark.parametrize(
    ("statuses", "index", "what", "choices"),
    [
        (["ok", "ok", "ok"], 3, "is not among its 3 trials", "give one from 0 to 2"),
        (["ok", "ok", "ok"], -1, "is not among its 3 trials", "give one from 0 to 2"),
        (["ok", "failed", "ok"], 1, "failed", "give one from 0 to 2, but those that failed"),
        (["ok", "ok", "failed"], 2, "failed", "give one from 0 to 1"),
        (["failed", "ok"], 0, "failed", "give one from 1 to 1, but those that failed"),
    ],
)
def test_others_are_refused_with_the_choices(tmp_path, statuses, index, what, choices):
    line = refusal(folder(tmp_path, *statuses), index)
    assert line == f"--build {index}: {what} in {tmp_path}; {choices}"


def test_a_front_is_what_is_offered(tmp_path):
    front = {"front": [{"trial": trial} for trial in (2, 0)]}
    (tmp_path / "pareto.json").write_text(json.dumps(front))
    run = folder(tmp_path, "ok", "ok", "ok")
    line = refusal(run, 7)
    assert line == f"--build 7: is not among its 3 trials in {tmp_path}; the front's are 0, 2"
    assert find_trial(run, 1)  # any other trial can be built all the same


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"front": [{}]}'])
def test_a_damaged_front_is_named(tmp_path, text):
    (tmp_path / "pareto.json").write_text(text)
    line = refusal(folder(tmp_path, "ok"), 7)
    assert line == f"{tmp_path / 'pareto.json'}: is damaged; begin anew with --overwrite true"
