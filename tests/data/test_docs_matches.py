"""Pieces of documentation: read without importing, half of them exchanged, none used twice."""

from collections import Counter

import pytest

from fmerge.data import DocsMatches, docs_matches
from fmerge.errors import UserError

FUNCTION = '''
def count_{word}(self, {word}, b, c, d, e):
    """Counts how often {word} is in `b`. Then more.

    Parameters
    ----------
    {word} : str
        The word {word} that is looked for.
        It is long.
    c : int, default=1
        Too short.
    """
    return [x for x in b if x == {word}]
'''
WORDS = (
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty"),
    *("knoll", "lagoon", "meadow", "notch"),
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few functions in the place of the real ones."""
    (tmp_path / "tinydocs" / "tests").mkdir(parents=True)
    (tmp_path / "tinydocs" / "__init__.py").write_text("raise ImportError")  # is not imported
    for word in WORDS:
        (tmp_path / "tinydocs" / f"{word}.py").write_text(FUNCTION.format(word=word))
    hidden = "def __eq__(self, o):\n    return self.args == o.args\n"
    (tmp_path / "tinydocs" / "tests" / "a.py").write_text(FUNCTION.format(word="never"))
    (tmp_path / "tinydocs" / "again.py").write_text(hidden + FUNCTION.format(word="amber"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docs_matches, "_SOURCES", {"tinydocs": [""]})
    docs_matches._pairs.cache_clear()
    yield
    docs_matches._pairs.cache_clear()


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("description", "count_{word}({word}, b, c)", "Counts how often {word} is in b"),
        ("parameter", "{word}", "The word {word} that is looked for"),
        ("code", "count_{word}({word}, b, c)", "return [x for x in b if x == {word}]"),
    ],
)
def test_half_of_the_pairs_are_exchanged(package, kind, first, second):
    data = DocsMatches(kind, train=6, validation=4, test=4, seed=3)
    found = [one for split in ("train", "validation", "test") for one in data.examples(split)]
    assert Counter(one["label"] for one in data.examples("train")) == {0: 3, 1: 3}
    text = first + ": " + second
    together = {text.format(word=word): word for word in WORDS}
    for one in found:
        assert (one["text"] in together) == (data.labels[one["label"]] == "together")
    for piece, parts in ((first, 0), (second, 1)):
        shown = Counter(one["text"].split(": ", 1)[parts] for one in found)
        assert shown == {piece.format(word=word): 1 for word in WORDS}  # each once, in any split


def test_the_seed_chooses(package):
    one, same, other = (DocsMatches("code", 6, 4, 4, seed).examples("train") for seed in (0, 0, 1))
    assert one == same and one != other


def test_errors(package):
    with pytest.raises(UserError, match="unknown kind 'cod'; known: code, description, parameter"):
        DocsMatches("cod")
    with pytest.raises(UserError, match="there are 14 examples of code, but 1,?600 are asked for"):
        DocsMatches("code").examples("train")
    with pytest.raises(UserError, match="test is 2, but must be even and 4 at least"):
        DocsMatches("code", test=2)
