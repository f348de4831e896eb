"""Labels and texts of examples are checked, whichever class of the user's own read them."""

import pytest

from fmerge.data import MultiTask, TaskData
from fmerge.errors import UserError


class Own(TaskData):
    def __init__(self, labels, *examples):
        self._labels = labels
        self._examples = examples

    @property
    def labels(self):
        return self._labels

    def examples(self, split):
        return self._examples


GOOD = {"text": "a", "label": 1}
TWO = ["x", "y"]


@pytest.mark.parametrize(
    ("labels", "bad", "message"),
    [
        (TWO, {"text": "b", "label": None}, "its label is None; leave the example out"),
        (TWO, {"text": "b", "label": float("nan")}, "its label is nan"),
        (TWO, {"text": "b", "label": 2}, "its label is 2, but must lie in 0 to 1"),
        (TWO, {"text": "b", "label": -1}, "its label is -1, but must lie in 0 to 1"),
        (["score"], {"text": "b", "label": float("inf")}, "its label is inf"),
        ([], {"text": "b", "choices": ["u", "v"], "label": 2}, "its label is 2"),
        (TWO, {"text": None, "label": 0}, "its text is None, but must be a string"),
        (TWO, {"text": "b", "text_pair": 1.5, "label": 0}, "its text_pair is 1.5"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_unfit_examples_are_refused(labels, bad, message, split):
    with pytest.raises(UserError, match=f"task 't', {split} split, example 2: {message}"):
        MultiTask({"t": Own(labels, GOOD, bad)}).check_splits(split)


def test_fit_examples_are_read():
    for labels, label in ((TWO, 1), (["score"], 3.5), ([], (-1, -1)), (TWO, True)):
        MultiTask({"t": Own(labels, {"text": "a", "label": label})}).check_splits("train")
    MultiTask({"t": Own(TWO, {"pixels": [0.5]})}).check_splits("train")


def test_an_error_of_a_task_names_it():
    class Lacking(Own):
        def examples(self, split):
            raise UserError(f"no {split} split")

    with pytest.raises(UserError, match="task 't': no test split"):
        MultiTask({"t": Lacking(TWO)}).check_splits("test")
