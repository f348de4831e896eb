"""How errors are worded."""

import pytest

from fmerge.errors import shortened


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("one two", 7, "one two"),
        ("one\n two  three", 9, "one two …"),
        ("one two three", 8, "one …"),
        ("a/very/long/path", 8, "a/very …"),
        (ValueError("one two three"), 20, "one two three"),
    ],
)
def test_texts_of_others_end_with_a_word(text, most, expected):
    found = shortened(text, most)
    assert found == expected and len(found) <= most
