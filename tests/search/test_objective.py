"""Objectives, their errors and their bounds, against numbers worked by hand."""

import math
from dataclasses import replace

import pytest

from fmerge.errors import UserError
from fmerge.search.objective import (
    Objective,
    binomial_error,
    check_keep,
    check_own,
    check_weights,
    objectives_of,
    shortfalls,
)

SCORES = {"a": 0.6, "b": 0.4, "c": 0.9}
OWN = {"a": 0.8, "b": 0.5, "c": 0.9}
ERRORS = {"a": 0.03, "b": 0.04, "c": 0.12}


@pytest.mark.parametrize(
    ("objective", "value", "error"),
    [
        # (0.6 + 0.4 + 0.9) / 3; √(9 + 16 + 144) = 13
        (Objective(), 1.9 / 3, 0.13 / 3),
        # (2·0.6 + 1·0.4) / 3; √(36 + 16) / 3
        (Objective(weights={"a": 2, "b": 1}), 1.6 / 3, math.sqrt(0.0052) / 3),
        (Objective(weights={"b": 1.0}), 0.4, 0.04),
        # (0.75 + 0.8 + 1) / 3
        (
            Objective("retained", own=OWN),
            0.85,
            math.hypot(0.03 / 0.8, 0.04 / 0.5, 0.12 / 0.9) / 3,
        ),
        # (3·0.75 + 1·1) / 4
        (
            Objective("retained", {"a": 3, "c": 1}, OWN),
            0.8125,
            math.hypot(3 * 0.03 / 0.8, 0.12 / 0.9) / 4,
        ),
        (Objective("worst"), 0.4, 0.04),
        (Objective("worst_retained", own=OWN), 0.75, 0.03 / 0.8),
        (Objective("worst", {"c": 1.0}), 0.9, 0.12),
    ],
)
def test_objectives_by_hand(objective, value, error):
    scores = objective.of(SCORES, ERRORS)
    assert scores.objective == pytest.approx(value, rel=1e-12)
    assert scores.error == pytest.approx(error, rel=1e-12)
    assert scores.metrics == SCORES and scores.errors == ERRORS


def test_an_error_needs_those_of_all_tasks_that_count():
    some = {"a": 0.03, "c": 0.12}
    assert Objective().of(SCORES, some).error is None
    assert Objective("worst").of(SCORES, some).error is None  # b is the worst
    assert Objective(weights={"a": 1, "c": 1}).of(SCORES, some).error is not None


def test_several_objectives_by_hand():
    parts = objectives_of(["retained", "worst", "tasks"], {"a": 2, "b": 1, "c": 1}, list(SCORES))
    parts = {name: replace(part, own=OWN) for name, part in parts.items()}
    scores = replace(parts["retained"], parts=parts).of(SCORES, ERRORS)
    # (2·0.75 + 0.8 + 1) / 4; the weights mean nothing to the worst task, b
    assert scores.objectives == pytest.approx({"retained": 0.825, "worst": 0.4, **SCORES})
    assert scores.objective == scores.objectives["retained"]
    retained = math.hypot(2 * 0.03 / 0.8, 0.04 / 0.5, 0.12 / 0.9) / 4
    expected = {"retained": retained, "worst": 0.04, **ERRORS}
    assert (
        scores.objective_errors == pytest.approx(expected) and scores.error == expected["retained"]
    )
    some = replace(parts["retained"], parts=parts).of(SCORES, {"a": 0.03})
    assert some.objective_errors == {"a": 0.03}


def test_one_objective_is_what_it_was():
    assert objectives_of("mean", None, ["a"]) == {"mean": Objective()}
    assert objectives_of(["worst"], None, ["a"], "a") == {"worst": Objective("worst", {"a": 1.0})}
    weights = {"a": 3, "b": 0}
    assert objectives_of("mean", weights, ["a", "b"]) == {"mean": Objective("mean", {"a": 3.0})}
    assert Objective().of(SCORES, ERRORS).objectives == {}


@pytest.mark.parametrize("kind", ["mean", "retained", "worst", "worst_retained"])
def test_a_score_that_is_no_number_spoils_the_objective(kind):
    for task in SCORES:
        assert math.isnan(Objective(kind, own=OWN).of(SCORES | {task: math.nan}, {}).objective)


def test_without_data_there_is_no_objective():
    assert Objective().of({}, {}).objective is None


def test_shortfalls():
    bounds = {"a": 0.7, "b": 0.4, "c": 0.9 + 1e-7}  # c: below the rounding of a float32
    assert shortfalls(SCORES, bounds) == {"a": pytest.approx(0.1)}
    assert shortfalls({"a": math.nan}, {"a": 0.1}) == {"a": math.inf}
    assert shortfalls({}, {"a": 0.1}) == {"a": math.inf}
    assert shortfalls(SCORES, {}) == {}


def test_binomial_errors():
    assert binomial_error(0.8, 100) == pytest.approx(0.04)
    assert binomial_error(0.5, 25) == pytest.approx(0.1)
    # half an example of 10 is wrong: √(0.05 · 0.95 / 10)
    assert binomial_error(1.0, 10) == pytest.approx(math.sqrt(0.00475))
    assert binomial_error(0.0, 10) == pytest.approx(math.sqrt(0.00475))


def test_weights_and_shares_are_settled():
    tasks = ["a", "b"]
    assert check_weights(None, tasks, None, "worst") is None
    assert check_weights(None, tasks, "b", "worst") == {"b": 1.0}
    assert check_weights({"b": 0, "a": 3}, tasks, None, "mean") == {"a": 3.0}
    assert check_keep(None, tasks) == {}
    assert check_keep(0.9, tasks) == {"a": 0.9, "b": 0.9}
    assert check_keep({"b": 1}, tasks) == {"b": 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_weights({"a": 1}, ["a", "b"], None, "mean"), "given for a, but the tasks"),
        (lambda: check_weights({"a": -1}, ["a"], None, "mean"), "must be numbers from 0"),
        (lambda: check_weights({"a": math.nan}, ["a"], None, "mean"), "must be numbers from 0"),
        (lambda: check_weights({"a": 0}, ["a"], None, "mean"), "not all 0"),
        (lambda: check_weights({"a": 1}, ["a"], None, "worst"), "mean nothing to 'worst'"),
        (lambda: check_weights({"a": 1}, ["a"], "a", "mean"), "do not go with a target"),
        (lambda: check_weights(None, ["a"], "x", "mean"), "unknown task 'x' as target"),
        (lambda: objectives_of([], None, ["a"]), "lists nothing to maximise"),
        (lambda: objectives_of(["tasks", "mean"], None, ["mean"]), "'mean' would be two"),
        (lambda: objectives_of(["mean", "worst"], None, ["a"], "a"), "leave the target out"),
        (lambda: objectives_of(["worst"], {"a": 1}, ["a"]), "mean nothing to 'worst'"),
        (lambda: check_keep({"x": 0.9}, ["a"]), "unknown task 'x'; known: a"),
        (lambda: check_keep(97, ["a"]), "is 97 for 'a'"),
        (lambda: check_keep(0.0, ["a"]), "is 0.0 for 'a'"),
        (lambda: check_own({"a": 0.0}, ["a"]), "expert of 'a' scores 0"),
        (lambda: check_own({"a": math.nan}, ["a"]), "expert of 'a' scores nan"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (Objective(), "the mean over tasks"),
        (Objective(weights={"a": 1.0}), "task `a`"),
        (Objective(weights={"a": 2.0, "b": 0.5}), "the mean over tasks, weights a 2, b 0.5"),
        (Objective("retained"), "the mean share of the expert's score retained"),
        (Objective("retained", {"a": 1.0}), "the share of the expert's score retained on task `a`"),
        (Objective("worst"), "the worst task's score"),
        (Objective("worst_retained"), "the worst task's share of the expert's score retained"),
    ],
)
def test_names_for_the_report(objective, text):
    assert str(objective) == text
