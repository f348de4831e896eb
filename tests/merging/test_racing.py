"""Trials pruned on parts of a split, with answers that are made up."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fmerge.errors import UserError
from fmerge.merging.racing import Race, check_racing, race_facts
from fmerge.search import Sobol, Trial
from fmerge.search.objective import Objective, Partial
from fmerge.search.space import SearchSpace

PER_BLOCK = 16


class Evaluator:
    """Answers by task: a fixed list of right and wrong, given out in blocks of 16."""

    def __init__(self, sizes):
        self.sizes, self.answers, self.asked = sizes, {}, []
        self.trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda own: own))

    def right_answers(self, module, split, tasks, block):
        assert module == "the module" and split == "validation"
        self.asked.append(block)
        found = {}
        for task in tasks:
            low, high = block * PER_BLOCK, min((block + 1) * PER_BLOCK, self.sizes[task])
            if low < high:
                found[task] = self.answers[task][low:high]
        return found

    def errors(self, metrics, split):
        return dict.fromkeys(metrics, 0.125)


class Track:
    """A race of merges, each of which is its answers."""

    def __init__(self, goal=None, trials=9, **sizes):
        self.evaluator, self.search, self.events = Evaluator(sizes), Sobol(trials=trials), []
        self.search.start(SearchSpace(tuple(sizes)))
        self.goal = goal or Objective()
        self.race = Race(
            self.evaluator, "the module", self.search, self.goal, list(sizes), self.live
        )

    @contextmanager
    def live(self, body):
        self.evaluator.answers = body
        self.events.append("in")
        yield
        self.events.append("out")

    def run(self, **answers):
        """Scores one trial as the optimizer does, and returns its scores."""
        self.evaluator.asked.clear()
        scores = self.race.score(answers)
        status = "ok" if scores.partial is None else "stopped"
        index = len(self.search.history)
        self.search.tell(
            Trial(index, {"x": index}, scores.objective, scores.metrics, status,
                  partial=scores.partial)
        )  # fmt: skip
        return scores


def right(n, of):
    return [i < n for i in range(of)]


def test_the_first_trial_is_scored_in_full():
    track = Track(x=96)
    scores = track.run(x=right(60, 96))
    assert track.evaluator.asked == [0, 1, 2, 3, 4, 5] and track.events == ["in", "out"]
    assert scores.metrics == {"x": 0.625} and scores.objective == 0.625 and scores.partial is None
    assert (scores.error, scores.errors) == (0.125, {"x": 0.125})


def test_a_trial_that_cannot_be_the_best_is_pruned_at_the_first_look():
    track = Track(x=96)
    track.run(x=[True] * 96)
    scores = track.run(x=[False] * 96)
    assert track.evaluator.asked == [0]
    assert (scores.objective, scores.metrics) == (0.0, {"x": 0.0})
    assert (scores.partial.examples, scores.partial.of) == (16, 96)


def test_a_pruned_trials_score_is_estimated_by_what_the_best_one_did():
    track = Track(x=96, y=96)
    track.run(x=right(88, 96), y=[True] * 96)
    # of the incumbent's 88 right answers 16 were seen, 4 of them right; 8 unseen that it had wrong
    scores = track.run(x=right(4, 96), y=right(8, 96))
    assert track.evaluator.asked == [0]
    expected = {"x": (4 + 72 * 4 / 16 + 8 / 2) / 96, "y": (8 + 80 * 8 / 16) / 96}
    assert scores.metrics == pytest.approx(expected)
    assert scores.objective == pytest.approx(sum(expected.values()) / 2)
    assert (scores.partial.examples, scores.partial.of) == (32, 192)


def test_an_equal_and_a_better_trial_are_scored_in_full():
    track = Track(x=96)
    track.run(x=right(60, 96))
    assert track.run(x=right(60, 96)).partial is None
    better = track.run(x=right(84, 96))
    assert better.objective == 0.875 and better.partial is None
    # which is the one to be compared with from now on
    worse = track.run(x=[False] * 32 + [True] * 64)
    assert worse.partial is not None and track.search.best().index == 2
    assert list(track.race._answers) == [2]


def test_a_pruned_trial_is_never_what_others_are_compared_with():
    track = Track(x=96)
    track.run(x=right(96, 96))
    track.run(x=[False] * 96)
    assert track.run(x=[True] * 96).partial is None
    assert set(track.race._answers) <= {0, 2}


def test_a_split_of_few_blocks_ends_with_the_last_of_them():
    track = Track(x=32, y=16)
    first = track.run(x=right(20, 32), y=right(4, 16))
    assert first.metrics == {"x": 0.625, "y": 0.25}
    second = track.run(x=right(20, 32), y=right(4, 16))
    assert track.evaluator.asked == [0, 1] and second.partial is None
    # what was seen in full is no estimate, however bad
    single = Track(x=16)
    single.run(x=[True] * 16)
    bad = single.run(x=[False] * 16)
    assert bad.partial is None and bad.objective == 0.0


def test_the_decision_is_the_first_processes():
    track = Track(x=96)
    track.run(x=[True] * 96)
    track.evaluator.trainer.strategy.broadcast = lambda own: False
    assert track.run(x=[False] * 96).partial is None and len(track.evaluator.asked) == 6


def test_bounds_are_a_reason_to_prune():
    goal = Objective("mean", {"y": 1.0}, bounds={"x": 0.9})
    track = Track(goal, x=96, y=96)
    track.run(x=[True] * 96, y=[False] * 96)
    assert track.run(x=[False] * 96, y=[True] * 96).partial is not None


def test_an_interrupted_race_scores_its_best_trial_once_more():
    whole, resumed = Track(x=96), Track(x=96)
    answers = {0: {"x": right(30, 96)}, 1: {"x": right(90, 96)}}
    for one in answers.values():
        whole.run(**one)
    for trial in whole.search.history:
        resumed.search.replay(trial)
    assembled = []

    def assemble(coefficients):
        assembled.append(coefficients)
        return answers[coefficients["x"]]

    resumed.race.recall(SimpleNamespace(assemble=assemble))
    assert assembled == [{"x": 1}] and resumed.race._answers == {1: {"x": right(90, 96)}}
    assert resumed.run(x=[False] * 96) == whole.run(x=[False] * 96)


def test_nothing_is_scored_again_where_no_trial_follows():
    def assemble(coefficients):
        raise AssertionError

    empty = Track(x=96)
    empty.race.recall(SimpleNamespace(assemble=assemble))
    finished = Track(trials=1, x=96)
    finished.run(x=[True] * 96)
    finished.race.recall(SimpleNamespace(assemble=assemble))


def test_accuracies_are_rounded_as_the_metric_rounds_them():
    # 1/3 in float32, so that a race gives the objective to the last digit
    assert Track(x=96).run(x=right(32, 96)).metrics["x"] == 0.3333333432674408


@pytest.mark.parametrize("limit", [0.5, 10, 1])
def test_a_part_of_the_split_is_refused(limit):
    data = SimpleNamespace(tasks=["x"], metrics={"x": ["accuracy"]})
    with pytest.raises(UserError, match=f"but limit_val_batches is {limit}; leave one"):
        check_racing(SimpleNamespace(limit_val_batches=limit), data)
    check_racing(SimpleNamespace(limit_val_batches=1.0), data)


@pytest.mark.parametrize("metrics", [["f1"], ["accuracy", "f1"]])
def test_other_metrics_are_refused(metrics):
    data = SimpleNamespace(tasks=["x", "y"], metrics={"x": ["accuracy"], "y": metrics})
    with pytest.raises(UserError, match=f"task 'y' is scored by {', '.join(metrics)}; leave"):
        check_racing(SimpleNamespace(limit_val_batches=1.0), data)


def test_what_racing_saved():
    full, failed = Trial(0, {}, 0.5), Trial(1, {}, status="failed")
    assert race_facts([full, failed]) == "racing: no trial was stopped early"
    stopped = [
        Trial(i, {}, 0.1, status="stopped", partial=Partial(seen, 100, 0.0))
        for i, seen in enumerate((25, 75), 2)
    ]
    # ¾ and ¼ of a trial, of the three that were scored
    assert race_facts([full, failed, *stopped]) == (
        "racing: 2 of 4 trials were stopped early; 33.3% of the examples of all trials were not "
        "scored"
    )
