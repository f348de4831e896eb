"""Searches for several objectives: fronts, the acquisition, its replay, and what is refused."""

import json

import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume

from fmerge.errors import UserError
from fmerge.search import AxSearch, Fixed, RandomSearch, SearchSpace, Trial
from fmerge.search.ax_client import AxClient
from fmerge.search.objective import Objective, objectives_of

TASKS = ["sst-2", "b", "c"]


def surface(point):
    """Each task is best at 0.8 of its own expert, and the others spoil it."""
    scores = {}
    for task, own in point.items():
        others = sum(value**2 for name, value in point.items() if name != task)
        scores[task] = 0.9 - 0.5 * (own - 0.8) ** 2 - 0.35 * others / (len(point) - 1)
    return scores


def goal(tasks, aims, bounds=None):
    parts = objectives_of(aims, None, tasks)
    first = next(iter(parts.values()))
    return Objective(first.kind, first.weights, parts=parts, bounds=bounds or {})


def begun(search, tasks, of):
    search.start(SearchSpace(tasks), of)
    return search


def run(search, of, failing=()):
    while not search.finished:
        index, point = len(search.history), search.ask()
        if index in failing:
            search.tell(Trial(index, point, status="failed", reason="out of memory"))
            continue
        s = of.of(surface(point), dict.fromkeys(point, 0.02))
        search.tell(
            Trial(
                index, point, s.objective, s.metrics, error=s.error, errors=s.errors,
                objectives=s.objectives, objective_errors=s.objective_errors,
            )
        )  # fmt: skip
    return search


def read_back(trial):
    return Trial.from_record(json.loads(json.dumps(trial.as_record())))


def hypervolume(search):
    front = torch.tensor([list(trial.objectives.values()) for trial in search.front()])
    return Hypervolume(torch.full((front.shape[1],), 0.4)).compute(front)


def listed(bounds=None, **points):
    """A search that was told objectives x and y, and the score of a task."""
    search = begun(Fixed(), ["a", "b"], goal(["x", "y"], ["tasks"], bounds))
    for index, (x, y) in enumerate(points.values()):
        status = "ok" if x is not None else "failed"
        found = {} if x is None else {"x": x, "y": y}
        search.tell(Trial(index, {}, x, found, status, objectives=found))
    return search


def test_the_front_and_its_best_by_hand():
    search = listed(a=(0.5, 0.9), b=(None, None), c=(0.8, 0.3), d=(0.8, 0.4), e=(0.4, 0.4))
    assert [trial.index for trial in search.front()] == [3, 0]
    assert search.best().index == 3  # c is as good by the first objective, and not on the front
    # equal points count once, as the earliest
    search = listed(a=(0.2, 0.9), b=(0.6, 0.6), c=(0.6, 0.6), d=(0.2, 0.9))
    assert [trial.index for trial in search.front()] == [1, 0] and search.best().index == 1


def test_a_front_keeps_the_bounds_or_falls_short_by_least():
    points = {"a": (0.9, 0.1), "b": (0.5, 0.5), "c": (0.6, 0.45), "d": (0.7, 0.2)}
    search = listed({"y": 0.4}, **points)
    assert [trial.index for trial in search.front()] == [2, 1] and search.best().index == 2
    search = listed({"y": 0.6}, **points)
    assert [trial.index for trial in search.front()] == [1] and search.best().index == 1


def test_one_objective_has_no_front():
    search = Fixed()
    search.start(SearchSpace(["a", "b"]))
    search.tell(Trial(0, search.ask(), 0.5, {"a": 0.5}))
    assert search.front() == [] and "objectives" not in search.history[0].as_record()


@pytest.mark.slow
def test_ax_finds_a_better_front_than_random_search():
    tasks, of = TASKS[:2], goal(TASKS[:2], ["tasks"])
    ours, random = 0.0, 0.0
    for seed in range(6):
        ax = AxSearch(trials=20, initial_trials=6, seed=seed)
        ours += hypervolume(run(begun(ax, tasks, of), of))
        random += hypervolume(run(begun(RandomSearch(20, seed), tasks, of), of))
    assert ours > 1.03 * random, (ours, random)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aims", "noise", "bounds"),
    [
        (["mean", "worst"], "binomial", {"b": 0.45}),
        (["tasks"], "infer", {}),
    ],
)
def test_same_seed_same_trials_also_after_a_replay(aims, noise, bounds):
    of = goal(TASKS, aims, bounds)

    def search():
        made = AxSearch(trials=8, initial_trials=6, noise=noise, starts=False, seed=3)
        return begun(made, TASKS, of)

    whole = run(search(), of, failing={2, 6})
    assert len({tuple(trial.coefficients.values()) for trial in whole.history}) == 8
    for cut in (0, 7):
        resumed = search()
        for trial in whole.history[:cut]:
            resumed.replay(read_back(trial))
        assert run(resumed, of, failing={2, 6}).history == whole.history
    assert whole.pick().trial in whole.history


def test_bounds_that_no_trial_keeps_do_not_end_the_search():
    of = goal(TASKS[:2], ["mean", "worst"], {"b": 0.99})
    search = run(begun(AxSearch(trials=6, initial_trials=5), TASKS[:2], of), of)
    assert len(search.history) == 6 and len(search.front()) == 1
    assert search.front()[0].metrics["b"] == max(t.metrics["b"] for t in search.history)


@pytest.mark.slow
def test_the_weights_of_the_objectives_change_from_trial_to_trial(monkeypatch):
    from botorch.acquisition.multi_objective import parego

    seen, whole = [], parego.get_chebyshev_scalarization

    def spy(weights, Y):
        seen.append(tuple(weights.tolist()))
        return whole(weights, Y)

    monkeypatch.setattr(parego, "get_chebyshev_scalarization", spy)
    of = goal(TASKS, ["tasks"])
    run(begun(AxSearch(trials=9, initial_trials=7, seed=1), TASKS, of), of)
    assert len(set(seen)) == 2
    assert all(len(one) == 3 and sum(one) == pytest.approx(1) and min(one) >= 0 for one in seen)


@pytest.mark.parametrize(
    ("noise", "told"),
    [
        ("infer", {"mean": 0.6, "worst": 0.5}),
        ("none", {"mean": (0.6, 0.0), "worst": (0.5, 0.0)}),
        ("binomial", {"mean": (0.6, 0.02), "worst": (0.5, 0.03)}),
    ],
)
def test_the_model_is_told_the_error_of_each_objective(monkeypatch, noise, told):
    calls = []
    monkeypatch.setattr(AxClient, "complete", lambda self, *values: calls.append(values))
    search = begun(AxSearch(noise=noise), ["a", "b"], goal(["a", "b"], ["mean", "worst"]))
    search.tell(
        Trial(
            0, search.ask(), 0.6, {"a": 0.5, "b": 0.7}, error=0.02,
            objectives={"mean": 0.6, "worst": 0.5}, objective_errors={"mean": 0.02, "worst": 0.03},
        )
    )  # fmt: skip
    assert calls[0][1:] == (told, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acquisition": "ei"}, r"acquisition 'ei' is of one objective, but there are 2 \(mean"),
        ({"acquisition": "ucb"}, "acquisition 'ucb' is of one objective"),
        ({"polish": 2}, "polish goes up along one objective"),
    ],
)
def test_what_is_of_one_objective_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        begun(AxSearch(**options), ["a", "b"], goal(["a", "b"], ["mean", "worst"]))
    begun(AxSearch(**options), ["a", "b"], Objective())


def test_a_log_of_other_objectives_is_refused():
    search = begun(RandomSearch(4), ["a", "b"], goal(["a", "b"], ["mean", "worst"]))
    with pytest.raises(UserError, match=r"trial 0 has the objectives \(one\), but .* mean, worst"):
        search.replay(Trial(0, {"a": 0.1, "b": 0.2}, 0.5, {"a": 0.5}))
