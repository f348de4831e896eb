"""Names that a task can have, and those that are refused before anything is written."""

import pytest
import torch

from fmerge.data import MultiTask
from fmerge.data.task_names import check_task_names
from fmerge.errors import UserError

GOOD = [
    "class",
    "a b",
    "ünï",
    "a|b",
    "1",
    "no",
    "None",
    "import",
    "a=b",
    "-x",
    "[x]",
    "a:b",
    "感情",
]


def test_names_of_many_kinds_are_names_of_submodules():
    check_task_names(GOOD, "--data.tasks")
    torch.nn.ModuleDict({name: torch.nn.Identity() for name in GOOD})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (False, "has the name False of type bool, but a name is a text; put it in quotes"),
        (None, "has the name None of type NoneType"),
        (1, "has the name 1 of type int"),
        (1e3, "has the name 1000.0 of type float"),
        ("", "the name '' is empty"),
        (" a", "begins or ends with a space"),
        ("v1.5", "the name 'v1.5' has '.', which separates parts of names and paths"),
        ("..", "has '.'"),
        ("a/b", "has '/'"),
        ("a\\b", r"has '\\'"),
        ("a\nb", r"the name 'a\\nb' has a line break or another control character"),
        ("keys", "the name 'keys' is a word that PyTorch's modules have a meaning for"),
        ("train", "is a word that PyTorch's modules"),
        ("training", "is a word that PyTorch's modules"),
        ("é" * 60, "is longer than 100 bytes"),
    ],
)
def test_names_that_nothing_can_have_are_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        MultiTask({name: object()})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--data.tasks: ")
