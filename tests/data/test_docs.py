"""Documentation sentences: read without importing, clean, balanced, and in one split each."""

import itertools
import sys
from collections import Counter

import pytest

from fmerge.data import DocsText, DocsTopics
from fmerge.data.docs import TOPICS
from fmerge.data.documentation import WORDS, key, package_folder, sentences
from fmerge.errors import UserError

SOURCE = '''
"""Module for fitting. See e.g. Smith et al. for the history of this method.

It goes on
over two lines, with ``code`` and :func:`~a.b.links`.
"""

class Model:
    """Fit a linear model to the data given.

    Parameters
    ----------
    alpha : float
        Strength of the penalty that is put on large weights.

    Returns
    -------
    Too short.

    Examples
    --------
    This sentence stands in an example section of it.

    >>> This is code and not a sentence at all.

    - This is an item of a list of things.
    """

    def fit(self):
        """The value x = 3 is set before anything else happens."""
'''


def test_sentences_are_prose_without_mark_up(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.py").write_text(SOURCE)
    (tmp_path / "part" / "tests").mkdir()
    (tmp_path / "part" / "tests" / "b.py").write_text(
        '"""This sentence belongs to a test alone."""'
    )
    (tmp_path / "one.py").write_text('"""Another file that is named by itself here."""')
    assert list(sentences(tmp_path, ["part", "one.py"])) == [
        "See e.g. Smith et al. for the history of this method.",
        "It goes on over two lines, with code and a.b.links.",
        "Fit a linear model to the data given.",
        "Strength of the penalty that is put on large weights.",
        "Another file that is named by itself here.",
    ]


def test_names_and_numbers_tell_no_sentences_apart():
    one = "Construct a BertModel configuration with 12 layers."
    assert key(one) == key("Construct a GPT2 Model_x configuration with 3 layers.")
    assert key(one) != key("Construct a BertModel tokenizer with 12 layers.")


@pytest.mark.parametrize(
    "library",
    [pytest.param(one, marks=() if one == "sklearn" else pytest.mark.slow) for one in TOPICS],
)
def test_splits_are_balanced_disjoint_and_seeded(library):
    data = DocsTopics(library, train=60, validation=20, test=30)
    splits = {split: data.examples(split) for split in ("train", "validation", "test")}
    assert {s: len(rows) for s, rows in splits.items()} == {
        "train": 240,
        "validation": 80,
        "test": 120,
    }
    for rows in splits.values():
        assert len(set(Counter(row["label"] for row in rows).values())) == 1
        assert all(len(row["text"].split()) in WORDS for row in rows)
    keys = [key(row["text"]) for row in itertools.chain(*splits.values())]
    assert len(set(keys)) == len(keys)
    assert len(data.labels) == 4
    again, other = (DocsTopics(library, 60, 20, 30, seed=seed) for seed in (0, 1))
    assert again.examples("test") == splits["test"] != other.examples("test")


def test_texts_are_the_sentences_of_all_topics():
    plain, labelled = DocsText("sklearn", 240, 80, 120), DocsTopics("sklearn", 60, 20, 30)
    for split in ("train", "validation", "test"):
        texts = [{"text": one["text"]} for one in labelled.examples(split)]
        assert plain.examples(split) == texts
    assert plain.labels == [] and plain.metrics == ("inverse_perplexity",)
    with pytest.raises(UserError, match="^DocsText: validation is 6, but must be a multiple of 4"):
        DocsText("sklearn", validation=6)
    with pytest.raises(UserError, match="unknown library 'nope'"):
        DocsText("nope")


def test_nothing_is_imported():
    before = set(sys.modules)
    package_folder("networkx")
    list(sentences(package_folder("networkx"), ["classes"]))
    assert not {name for name in set(sys.modules) - before if name.startswith("networkx")}


def test_what_cannot_be_had_is_said():
    with pytest.raises(UserError, match="unknown library 'nope'; known: sklearn, sympy, torch"):
        DocsTopics("nope")
    with pytest.raises(UserError, match="sentences on .*, but 99999 are asked for"):
        DocsTopics("sklearn", train=99_997, validation=1, test=1).examples("train")
    with pytest.raises(UserError, match="'nope', whose documentation is wanted"):
        package_folder("nope")
