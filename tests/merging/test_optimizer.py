"""The search as a callback: what it refuses, what it maximises, and how it runs its trials."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.pool import InProcess
from fmerge.methods import (
    DARE,
    SLERP,
    TIES,
    TSVM,
    Average,
    DFMerge,
    FisherMerge,
    Isotropic,
    RegMean,
    TaskArithmetic,
)
from fmerge.search import AxSearch, Dirichlet, Fixed, Grid, Sobol, Trial
from fmerge.search.objective import Objective, Partial, Scores
from fmerge.search.space import SearchSpace

TASKS = ["x", "y"]


class Assembler:
    """The merge of coefficients is these numbers."""

    def of(self, method):
        return self

    def assemble(self, coefficients):
        return {"w": torch.tensor(list(coefficients.values()), dtype=torch.float64)}


def trainer(first=True, proposals=None):
    """Of one process, or of a second one that receives proposals."""
    received = iter(proposals or [])
    broadcast = (lambda own: own) if first else (lambda own: next(received))
    return SimpleNamespace(is_global_zero=first, strategy=SimpleNamespace(broadcast=broadcast))


def run(score, search=None, stop=lambda: 0, **options):
    search = search or Sobol(trials=4, seed=3)
    search.start(SearchSpace(("x", "y")))
    logged = []
    best = MergeOptimizer().optimize(
        trainer(**options), search, InProcess(Assembler(), score), logged.append, stop
    )
    return best, logged, search


def squared(body):
    """Best where both coefficients are a half."""
    return Scores({"x": 1.0}, -float((body["w"] - 0.5).square().sum()), 0.25, {"x": 0.5})


@pytest.mark.parametrize(
    ("optimizer", "method", "scored", "message"),
    [
        (MergeOptimizer(Sobol()), Average(), True, "Sobol: Average has no coefficients to search"),
        (MergeOptimizer(groups=2), Average(), True, "groups: Average has no coefficients to div"),
        (MergeOptimizer(Grid()), Isotropic(), False, "Grid: needs data to score its trials on"),
        (MergeOptimizer(racing=True), Isotropic(), False, "racing: needs data to score on"),
        (MergeOptimizer(keep=0.9), Isotropic(), False, "weights and keep need data to score on"),
        (MergeOptimizer(objective="worst"), Isotropic(), False, "objective, weights and keep need"),
        (MergeOptimizer(weights={"x": 1, "y": 2}), Isotropic(), False, "weights and keep need"),
        (MergeOptimizer(Dirichlet(), objective=["mean", "worst"], racing=True), Isotropic(), True,
         "racing: stops what cannot be best by one objective, but there are 2"),
        (MergeOptimizer(objective=["tasks", "tasks"]), Isotropic(), True, "'x' would be two"),
        (MergeOptimizer(target="z"), Isotropic(), True, "unknown task 'z' as target"),
        (MergeOptimizer(keep={"z": 0.9}), Isotropic(), True, "keep: unknown task 'z'"),
        (MergeOptimizer(keep=1.5), Isotropic(), True, r"keep: is 1.5 for 'x', but must lie in"),
        (MergeOptimizer(Fixed({"x": 1.0})), Isotropic(), True, "coefficients are given for x, but"),
        (MergeOptimizer(bounds=[1, 0]), TaskArithmetic(), True, r"bounds: are \[1, 0\] for"),
        (MergeOptimizer(bounds={"z": [0, 1]}), TaskArithmetic(), True, "unknown expert .z."),
        (MergeOptimizer(bounds={"x": [-1, 1]}), Isotropic(), True, "Isotropic: divides by the sum"),
        (MergeOptimizer(Fixed(), bounds=[0, 2]), Isotropic(), True, "bounds: are of a search, but"),
        (MergeOptimizer(Fixed({"x": 1, "y": -0.2})), FisherMerge(), True, "that of 'y' is -0.2 or"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(optimizer, method, scored, message):
    with pytest.raises(UserError, match=message):
        optimizer.check(method, TASKS, TASKS, scored)


def test_given_coefficients_stand_for_a_search():
    def check(given, method=TaskArithmetic(), **options):  # noqa: B008 - it has no state
        return MergeOptimizer(**options).check(method, TASKS, TASKS, True, given=given)

    search = check({"y": -0.2, "x": 1.6})
    assert type(search) is Fixed and search.ask() == {"x": 1.6, "y": -0.2}
    for given, options, message in (
        ({"x": 0.5, "z": 0.5}, {}, "coefficients are given for x, z, but the experts are x, y"),
        ({"x": 0.0, "y": 0.0}, {}, "all coefficients are 0"),
        ({"x": 1.0, "y": 1.0}, {"search": Sobol()}, "--coefficients: are given, and so is --opt"),
        ({"x": 1.0, "y": 1.0}, {"method": Average()}, "--coefficients: Average uses none; .* Iso"),
        ({"x": 1.0, "y": -1.0}, {"method": TIES()}, "TIES: divides by the sum of the coeffici"),
    ):
        with pytest.raises(UserError, match=message):
            check(given, **options)


def test_negative_coefficients_by_method():
    for method in (TaskArithmetic(), DFMerge(), TSVM(), DARE()):
        MergeOptimizer(bounds=[-1, 1]).check(method, TASKS, TASKS, True)
    for method in (FisherMerge(), RegMean(), SLERP(), DARE(election="ties")):
        with pytest.raises(UserError, match="divides by the sum of the coefficients"):
            MergeOptimizer(bounds=[-1, 1]).check(method, TASKS, TASKS, True)


def test_a_grid_is_refused_for_three_experts_but_waits_for_the_groups():
    with pytest.raises(UserError, match="between two experts, but there are 3"):
        MergeOptimizer(Grid()).check(Isotropic(), ["x", "y", "z"], TASKS, True)
    MergeOptimizer(Grid(), groups=2).check(Isotropic(), ["x", "y", "z"], TASKS, True)


@pytest.mark.parametrize(
    ("method", "scored", "kind"),
    [(Isotropic(), True, AxSearch), (Isotropic(), False, Fixed), (Average(), True, Fixed)],
)
def test_the_search_that_is_left_out(method, scored, kind):
    assert type(MergeOptimizer().check(method, TASKS, TASKS, scored)) is kind


def test_a_search_is_started_on_experts_and_their_objective():
    given = Sobol(trials=2)
    found = MergeOptimizer(given, objective=["mean", "worst"]).check(
        TaskArithmetic(), ["x", "y", "donor"], TASKS, True
    )
    assert found is given and given.names == ("x", "y", "donor")
    assert given.objectives == ("mean", "worst")


def test_the_space_is_experts_times_groups():
    names = ["embed.w", "layer.0.w", "layer.1.w"]
    space = MergeOptimizer(groups=2).space(Isotropic(), TASKS, names)
    assert space.names == ("x/block0", "x/block1", "y/block0", "y/block1")
    assert space.groups == {"block0": ["embed.w", "layer.0.w"], "block1": ["layer.1.w"]}
    assert space.scale_invariant
    whole = MergeOptimizer().space(TaskArithmetic(), TASKS, names)
    assert whole.names == ("x", "y") and not whole.scale_invariant


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, False),
        ({"objective": "worst"}, False),
        ({"objective": "worst_retained"}, True),
        ({"objective": ["mean", "retained"]}, True),
        ({"keep": 0.9}, True),
    ],
)
def test_the_experts_scores_are_needed_for_shares(options, needed):
    assert MergeOptimizer(**options).needs_experts == needed


def test_one_goal_by_value():
    metrics, own = {"x": 0.6, "y": 0.9}, {"x": 0.8, "y": 1.0}
    goal = MergeOptimizer(weights={"x": 3, "y": 1}, objective="retained").goal(TASKS, own)
    # (3 · 0.75 + 0.9) / 4
    assert goal.of(metrics, {}).objective == pytest.approx(0.7875)
    assert goal.bounds == {} and goal.parts == {}
    target = MergeOptimizer(target="y").goal(TASKS)
    assert target.of(metrics, {}).objective == 0.9


def test_bounds_are_shares_of_the_experts_scores():
    own = {"x": 0.8, "y": 0.5}
    assert MergeOptimizer(keep=0.9).goal(TASKS, own).bounds == pytest.approx({"x": 0.72, "y": 0.45})
    assert MergeOptimizer(keep={"y": 0.5}).goal(TASKS, own).bounds == {"y": 0.25}
    assert MergeOptimizer(keep=0.9).goal(TASKS).bounds == {}  # not known yet
    with pytest.raises(UserError, match="the expert of 'y' scores 0 on its validation split"):
        MergeOptimizer(keep={"y": 0.5}).goal(TASKS, {"x": 0.8, "y": 0.0})
    # a bound on the other task does not ask for this one's
    MergeOptimizer(keep={"x": 0.5}).goal(TASKS, {"x": 0.8, "y": 0.0})
    with pytest.raises(UserError, match="the expert of 'y' scores 0"):
        MergeOptimizer(objective=["mean", "worst_retained"]).goal(TASKS, {"x": 0.8, "y": 0.0})


def test_several_goals_are_parts_and_the_first_decides():
    own = {"x": 0.8, "y": 0.5}
    goal = MergeOptimizer(objective=["worst", "retained"], keep=0.5).goal(TASKS, own)
    assert list(goal.parts) == ["worst", "retained"] and goal.bounds == {"x": 0.4, "y": 0.25}
    found = goal.of({"x": 0.4, "y": 0.5}, {})
    assert found.objective == 0.4
    assert found.objectives == pytest.approx({"worst": 0.4, "retained": 0.75})
    tasks = MergeOptimizer(objective="tasks").goal(TASKS).of({"x": 0.1, "y": 0.2}, {})
    assert tasks.objectives == {"x": 0.1, "y": 0.2} and tasks.objective == 0.1


def test_every_proposal_becomes_a_logged_trial():
    best, logged, search = run(squared)
    listed = Sobol(trials=4, seed=3)
    listed.start(SearchSpace(("x", "y")))
    proposals = [dict(zip("xy", point, strict=True)) for point in listed._proposals]
    assert [record["coefficients"] for record in logged] == proposals
    assert logged == [trial.as_record() for trial in search.history]
    values = [-sum((c - 0.5) ** 2 for c in one.values()) for one in proposals]
    assert [record["objective"] for record in logged] == pytest.approx(values)
    assert best.index == values.index(max(values))
    assert (best.error, best.errors, best.metrics) == (0.25, {"x": 0.5}, {"x": 1.0})


def test_failed_trials_are_logged_and_passed_over():
    errors = iter([UserError("not finite"), ValueError("sum"), MemoryError("full"), None])

    def score(body):
        if (error := next(errors)) is not None:
            raise error
        return squared(body)

    best, logged, _ = run(score)
    assert [one["status"] for one in logged] == ["failed"] * 3 + ["ok"] and best.index == 3
    assert [one.get("reason") for one in logged] == ["not finite", "sum", "full", None]
    assert logged[0]["objective"] is None


@pytest.mark.parametrize(
    "reason",
    [
        lambda i: "a batch cannot be made",
        lambda i: f"TIES at {{'x': {0.1 * i}}}: tensor 'w' holds {i + 1} NaN",
        lambda i: f"out of memory: tried to allocate {i}.50 GiB",
        lambda i: "",
    ],
)
def test_a_search_whose_first_trials_fail_alike_stops(reason):
    search, tried = Sobol(trials=8), itertools.count()

    def score(body):
        raise UserError(reason(next(tried)))

    with pytest.raises(UserError) as stopped:
        run(score, search)
    assert str(stopped.value) == (
        "3 trials have failed alike and none has succeeded, so that the other 5 were not tried: "
        f"{reason(2)}"
    )
    assert [trial.status for trial in search.history] == ["failed"] * 3


@pytest.mark.parametrize(
    ("reasons", "tried"),
    [
        (["full", "full", "odd", "full", "full", "full", "full"], 8),  # not the first ones alike
        ([None, "full", "full", "full", "full", "full", "full"], 8),  # one has succeeded
        (["full", "full", None, "full", "full", "full", "full"], 8),
    ],
)
def test_a_search_with_some_success_or_several_failures_goes_on(reasons, tried):
    errors = iter([*reasons, None])

    def score(body):
        if (reason := next(errors)) is not None:
            raise UserError(reason)
        return squared(body)

    _, logged, _ = run(score, Sobol(trials=8))
    assert len(logged) == tried


def test_a_resumed_search_tries_anew_before_it_stops():
    class Resumed(Sobol):
        def start(self, *given):
            super().start(*given)
            for i in range(3):
                self.tell(Trial(i, self.ask(), status="failed", reason="full"))

    best, logged, search = run(squared, Resumed(trials=8))
    assert len(logged) == 5 and best.status == "ok"

    def score(body):
        raise UserError("full")

    search = Resumed(trials=8)
    with pytest.raises(UserError, match="3 trials have failed alike .* other 2 were not tried"):
        run(score, search)
    assert len(search.history) == 6


def test_other_errors_are_bugs():
    with pytest.raises(ZeroDivisionError):
        run(lambda body: 1 / 0)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (Scores({"x": math.nan}, math.nan), "the objective is nan"),
        (Scores({"x": 1.0}, 1.0, objectives={"mean": 1.0, "x": math.inf}), "the objective is inf"),
    ],
)
def test_an_objective_that_is_no_number_is_a_failure_and_the_first_is_told(scores, reason):
    search = Sobol(trials=2)
    with pytest.raises(UserError) as none:
        run(lambda body: scores, search)
    assert str(none.value) == (
        f"none of the 2 trials gave a finite score; the first failed with: {reason}"
    )
    assert [trial.status for trial in search.history] == ["failed"] * 2
    assert search.history[0].metrics == scores.metrics and search.history[0].objective is None


def test_a_pruned_trial_is_no_best():
    partial = Partial(16, 100, 0.1)
    found = iter([Scores({"x": 0.9}, 0.9, partial=partial), Scores({"x": 0.2}, 0.2)])
    best, logged, _ = run(lambda body: next(found), Sobol(trials=2))
    assert [one["status"] for one in logged] == ["stopped", "ok"] and best.index == 1
    assert logged[0]["partial"] == {"examples": 16, "of": 100, "error": 0.1, "errors": {}}


def test_a_merge_without_data_is_built_once():
    best, logged, _ = run(lambda body: Scores(), Fixed({"x": 0.25, "y": 0.75}))
    assert best.coefficients == {"x": 0.25, "y": 0.75} and best.objective is None
    assert logged[0]["reason"] == "built without data to score it on"


def test_a_signal_ends_it_after_the_trial_that_runs():
    signals = iter([0, 0, 15])
    search = Sobol(trials=4, seed=3)
    with pytest.raises(SystemExit) as end:
        run(squared, search, stop=lambda: next(signals))
    assert end.value.code == 128 + 15 and len(search.history) == 2


def test_a_search_that_was_replayed_makes_the_rest():
    search = Sobol(trials=4, seed=3)
    whole = run(squared)[2].history
    search.start(SearchSpace(("x", "y")))
    for trial in whole[:3]:
        search.replay(trial)
    logged = []
    MergeOptimizer().optimize(trainer(), search, InProcess(Assembler(), squared), logged.append)
    assert logged == [whole[3].as_record()]


def test_other_processes_receive_proposals_and_log_nothing():
    proposals = [{"x": 0.1, "y": 0.2}, {"x": 0.5, "y": 0.5}]
    batches = [[one] for one in proposals]
    best, logged, search = run(squared, Sobol(trials=2), first=False, proposals=batches)
    assert logged == [] and [trial.coefficients for trial in search.history] == proposals
    assert best.index == 1


def test_an_objective_names_itself_as_the_goal():
    assert MergeOptimizer().goal(TASKS) == Objective("mean")


def test_a_search_may_be_named():
    assert isinstance(MergeOptimizer("Fixed").search, Fixed)
    assert isinstance(MergeOptimizer(Sobol).search, Sobol)
    for wrong, message in (
        ("Axsearch", "search: unknown name 'Axsearch'; known: AxSearch, Dirichlet"),
        ({"a": 0.5}, r"search: is {'a': 0.5}, but must be a Search or the name of one; known: "),
    ):
        with pytest.raises(UserError, match=message):
            MergeOptimizer(wrong)
