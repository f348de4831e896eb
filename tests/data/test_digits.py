"""The digits of scikit-learn, and what the changes do to them."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fmerge.data import Digits
from fmerge.data.digits import CHANGES
from fmerge.errors import UserError


def grey(example):
    return np.asarray(example["image"]).astype(int)


def test_every_digit_is_in_one_split():
    task = Digits()
    splits = [task.examples(split) for split in ("train", "validation", "test")]
    assert [len(one) for one in splits] == [1078, 269, 450]
    assert task.labels == list("0123456789")
    found = sorted((one["label"], grey(one).tobytes()) for split in splits for one in split)
    digits = load_digits()
    shipped = [(pixels * 255 / 16).round().astype(int).tobytes() for pixels in digits.images]
    assert found == sorted(zip(digits.target.tolist(), shipped, strict=True))


def test_changes_keep_splits_and_labels():
    plain = Digits(seed=3).examples("test")
    changed = {name: Digits(name, seed=3).examples("test") for name in CHANGES if name != "none"}
    for name, found in changed.items():
        assert [one["label"] for one in found] == [one["label"] for one in plain], name
    assert (grey(changed["inverted"][0]) == 255 - grey(plain[0])).all()
    shifted = grey(changed["shifted"][0])
    assert (shifted[1:, 1:] == grey(plain[0])[:-1, :-1]).all()
    assert not shifted[0].any() and not shifted[:, 0].any()
    assert not (grey(changed["rotated"][0]) == grey(plain[0])).all()


def test_an_unknown_change_is_refused():
    with pytest.raises(UserError, match="Digits: unknown change 'x'; known: inverted, none, rota"):
        Digits("x")
