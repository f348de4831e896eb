"""What each search proposes, and that it does so again for the same seed."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.search import AxSearch, Dirichlet, Fixed, Grid, SearchSpace, Trial


def run(search, names, objective, fail_at=()):
    search.start(SearchSpace(names))
    while not search.finished:
        proposal = search.ask()
        assert list(proposal) == list(names)
        assert all(0 <= value <= 1 for value in proposal.values())
        index = len(search.history)
        if index in fail_at:
            search.tell(Trial(index, proposal, status="failed", reason="out of memory"))
        else:
            search.tell(Trial(index, proposal, objective(proposal), {}))
    return search.history


def bowl(proposal):
    """Highest, 0.8, at 0.2, 0.4, 0.6, …"""
    return 0.8 - sum((v - 0.2 * (i + 1)) ** 2 for i, v in enumerate(proposal.values()))


def test_fixed():
    assert [t.coefficients for t in run(Fixed({"b": 0.25, "a": 1.0}), ["a", "b"], bowl)] == [
        {"a": 1.0, "b": 0.25}
    ]
    assert run(Fixed(), ["a", "b", "c", "d"], bowl)[0].coefficients == dict.fromkeys("abcd", 0.25)


def test_grid_is_the_reference_line_of_51_points():
    trials = run(Grid(), ["a", "b"], bowl)
    assert len(trials) == 51
    assert trials[0].coefficients == {"a": 0.0, "b": 1.0}
    assert trials[10].coefficients == pytest.approx({"a": 0.2, "b": 0.8})
    assert trials[-1].coefficients == {"a": 1.0, "b": 0.0}


def test_dirichlet_is_even_on_the_simplex_and_seeded():
    trials = run(Dirichlet(draws=4000, seed=1), ["a", "b", "c"], bowl)
    draws = torch.tensor([list(t.coefficients.values()) for t in trials], dtype=torch.float64)
    torch.testing.assert_close(draws.sum(1), torch.ones(4000, dtype=torch.float64))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18
    assert (draws.mean(0) - 1 / 3).abs().max() < 0.02
    assert (draws.var(0) - 1 / 18).abs().max() < 0.004
    again, other = (run(Dirichlet(5, seed), ["a", "b", "c"], bowl) for seed in (1, 2))
    assert again == run(Dirichlet(5, 1), ["a", "b", "c"], bowl)
    assert again != other


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", ["ei", "nei", "ucb"])
def test_ax_finds_the_top_and_repeats_itself(acquisition):
    def search(seed):
        return AxSearch(trials=9, initial_trials=4, acquisition=acquisition, seed=seed)

    names = ["sst-2", "a/b"]  # names that would mean something to Ax
    ours = search(0)
    trials = run(ours, names, bowl, fail_at={2, 5})
    assert trials == run(search(0), names, bowl, fail_at={2, 5})
    assert len(trials) == 9 and [t.index for t in trials if t.status == "failed"] == [2, 5]
    assert trials[5].coefficients != trials[6].coefficients
    assert ours.best().objective > 0.75


def test_another_seed_gives_other_trials():
    one, other = (
        run(AxSearch(trials=7, initial_trials=6, seed=s), ["a", "b"], bowl) for s in (1, 2)
    )
    assert one[:5] == other[:5]  # the starts
    assert one[5] != other[5] and one[6] != other[6]


def test_ei_is_taken_over_the_best_score_plus_xi():
    """A large xi is out of reach near the best point, so the search looks elsewhere."""

    def next_point(xi):
        search = AxSearch(trials=6, initial_trials=5, acquisition="ei", xi=xi)
        return run(search, ["a", "b"], bowl)[-1].coefficients

    assert next_point(0.0) != next_point(0.3)


def test_ax_goes_on_when_every_initial_trial_failed():
    search = AxSearch(trials=6, initial_trials=2, starts=False)
    trials = run(search, ["a", "b"], bowl, fail_at={0, 1, 2})
    assert [t.status for t in trials] == ["failed"] * 3 + ["ok"] * 3
    assert len({tuple(t.coefficients.values()) for t in trials}) == 6


def test_best_is_the_earliest_of_equals_and_skips_failures():
    search = Fixed()
    search.start(SearchSpace(["a", "b"]))
    with pytest.raises(ValueError, match="none of the 0 trials"):
        search.best()
    scores = [0.5, None, 0.7, 0.7]
    for index, score in enumerate(scores):
        status = "failed" if score is None else "ok"
        search.tell(Trial(index, {"a": 0.1, "b": 0.2}, score, status=status))
    assert search.best().index == 2


@pytest.mark.parametrize(
    ("make", "names", "message"),
    [
        (lambda: Grid(), ["a", "b", "c"], r"line between two experts, but there are 3 \(a, b, c\)"),
        (lambda: Grid(points=1), ["a", "b"], "points is 1"),
        (lambda: Dirichlet(draws=0), ["a", "b"], "draws is 0"),
        (lambda: AxSearch(trials=5, initial_trials=6), ["a", "b"], "initial_trials is 6"),
        (lambda: Fixed({"a": 0.5, "b": float("nan")}), ["a", "b"], "'b' is nan"),
        (lambda: Fixed({"a": 0.5}), ["a", "b"], "given for a, but the experts are a, b"),
        (lambda: Fixed({"a": 0.0, "b": 0.0}), ["a", "b"], "all coefficients are 0"),
    ],
)
def test_what_cannot_be_searched_is_said(make, names, message):
    with pytest.raises(UserError, match=message):
        make().start(SearchSpace(names))


def test_a_record_holds_plain_values_in_order():
    trial = Trial(3, {"a": 0.5}, 0.75, {"a": 0.75})
    assert list(trial.as_record()) == ["trial", "status", "objective", "coefficients", "metrics"]
    failed = Trial(4, {"a": 0.5}, status="failed", reason="out of memory").as_record()
    assert failed["objective"] is None and failed["reason"] == "out of memory"
