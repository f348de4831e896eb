"""What a search says beside its best: the second best, what nothing beats, what matters."""

import pytest
import torch

from fmerge.search import AxSearch, Fixed, SearchSpace, Trial, ax_client, non_dominated_trials


def searched(*trials):
    search = Fixed()
    search.start(SearchSpace(["a", "b"]))
    for index, (coefficient, *rest) in enumerate(trials):
        search.tell(Trial(index, {"a": coefficient, "b": 0.5}, *rest))
    return search


def test_the_runner_up_is_another_merge_than_the_best():
    search = searched((0.1, 0.5), (0.2, 0.9), (0.2, 0.9), (0.3, 0.8), (0.4, 0.8), (0.5, None))
    assert search.best().index == 1 and search.runner_up().index == 3
    assert searched((0.1, 0.5), (0.1, 0.5)).runner_up() is None
    failed = Trial(1, {"a": 0.9}, status="failed", reason="nan")
    search = searched((0.1, 0.5))
    search.tell(failed)
    assert search.runner_up() is None


def test_the_runner_up_keeps_the_bounds_first():
    metrics = [{"x": value} for value in (0.9, 0.5, 0.8)]
    search = searched((0.1, 0.2, metrics[0]), (0.2, 0.9, metrics[1]), (0.3, 0.1, metrics[2]))
    search.bounds = {"x": 0.7}
    assert search.best().index == 0 and search.runner_up().index == 2


def test_what_no_trial_beats():
    scores = [(0.9, 0.1), (0.5, 0.5), (0.5, 0.4), (0.1, 0.9), (0.9, 0.1), (0.4, 0.5)]
    trials = [Trial(i, {}, 0.5, {"a": a, "b": b}) for i, (a, b) in enumerate(scores)]
    trials.append(Trial(6, {}, metrics={"a": 1.0, "b": 1.0}, status="failed"))
    assert [trial.index for trial in non_dominated_trials(trials)] == [0, 1, 3]
    assert non_dominated_trials([]) == [] and non_dominated_trials([Trial(0, {})]) == []


def test_the_model_tells_what_the_objective_depends_on(monkeypatch):
    monkeypatch.setattr(ax_client, "_SENSITIVITY_POINTS", 400)
    # the variance of cₖ(x − 1/2)² goes with cₖ²: parts of 1/5 and 4/5, and nothing of the third
    generator = torch.Generator().manual_seed(0)
    search = AxSearch(trials=30, initial_trials=5, starts=False)
    search.start(SearchSpace(["small", "great-one", "none"]))
    for index in range(20):
        point = torch.rand(3, generator=generator).tolist()
        objective = 0.8 - 0.2 * (point[0] - 0.5) ** 2 - 0.4 * (point[1] - 0.5) ** 2
        search.replay(Trial(index, dict(zip(search.names, point, strict=True)), objective))
    state = torch.get_rng_state()
    found = search.sensitivity()
    assert torch.equal(torch.get_rng_state(), state)
    assert found == search.sensitivity()
    assert list(found) == ["small", "great-one", "none"]
    assert list(found.values()) == pytest.approx([0.2, 0.8, 0.0], abs=0.12)
    beliefs, best = search.beliefs(), search.best().coefficients
    assert torch.equal(torch.get_rng_state(), state)
    for name in search.names:
        values = [one.value for one in beliefs[name]]
        assert len(values) == 25 and (values[0], values[-1]) == (0.0, 1.0)
        for one in beliefs[name]:
            point = {**best, name: one.value}
            terms = (0.2 * (point["small"] - 0.5) ** 2, 0.4 * (point["great-one"] - 0.5) ** 2)
            assert one.mean == pytest.approx(0.8 - sum(terms), abs=0.01) and 0 < one.error < 0.02


def test_without_a_model_nothing_is_told():
    assert Fixed().sensitivity() == Fixed().beliefs() == {}
    search = AxSearch(trials=5, initial_trials=4)
    search.start(SearchSpace(["a", "b"]))
    assert search.sensitivity() == search.beliefs() == {}
