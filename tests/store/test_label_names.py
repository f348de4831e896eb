"""Names of a checkpoint's labels and of a task's: numbers are compared as numbers."""

from types import SimpleNamespace

import pytest

from fmerge.errors import UserError
from fmerge.store.labels import is_whole, label_order, plain_number


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1.0", "1"), ("+1", "1"), (" 10 ", "10"), ("-0", "0"), ("-3.00", "-3"), ("01", "01"),
     ("1.5", "1.5"), ("1.", "1."), ("1e3", "1e3"), ("a1", "a1"), ("", "")],
)  # fmt: skip
def test_whole_numbers_are_written_in_one_way(text, plain):
    assert plain_number(text) == plain
    assert is_whole(plain) == (plain in {"1", "10", "0", "-3"})


def order(own, labels):
    return label_order(SimpleNamespace(id2label=dict(enumerate(own))), labels, "expert")


def test_outputs_are_found_by_the_numbers_that_name_them():
    by_text = sorted(str(i) for i in range(12))
    numbers = [str(i) for i in range(12)]
    assert order(by_text, numbers) == [by_text.index(name) for name in numbers]
    assert order(["2.0", "1.0"], ["1", "2"]) == [1, 0]
    assert order(["1", "-1", "0"], ["-1", "0", "1"]) == [1, 2, 0]
    assert order(["True", "False"], ["false", "true"]) == [1, 0]
    with pytest.raises(UserError, match=r"its labels are \['1', '2'\], but the task's are"):
        order(["1", "2"], ["-1", "2"])
