"""The parser's messages and what it lists, without running a command."""

from types import ModuleType

import pytest

from fmerge import data, methods, modules, search
from fmerge.cli.parser import _CLASSES, one_line
from fmerge.errors import classes_of
from fmerge.methods import Average, MergeMethod


@pytest.mark.parametrize(
    ("kind", "among", "never"),
    [
        ("method", {"Average", "TIES", "DFMerge"}, {"MergeMethod", "Gram", "Grams"}),
        ("search", {"AxSearch", "Fixed", "Sobol"}, {"Search", "Trial", "non_dominated_trials"}),
        ("tasks", {"Glue", "TextFiles"}, {"TaskData", "MultiTask", "Split", "Example"}),
        ("model", {"TextClassifier", "RankChoice"}, {"TaskModule", "HeadedModule", "FisherPass"}),
    ],
)
def test_choices_are_the_public_classes_that_can_be_made(kind, among, never):
    room = {"method": methods, "search": search, "tasks": data, "model": modules}[kind]
    found = classes_of(*_CLASSES[kind])
    assert among <= found.keys() and not never & found.keys()
    assert found.keys() <= set(room.__all__)
    unknown = f'Parser key "{kind}":\n  Expected a dot import path string: Foo'
    assert one_line(unknown, []) == (
        f"--{kind}: unknown class 'Foo'; known: {', '.join(sorted(found))}"
    )


def test_private_and_foreign_classes_are_no_choices():
    room = ModuleType("room")
    room.Average, room.Private, room.number = Average, Average, 3  # type: ignore[attr-defined]
    room.MergeMethod, room.Other = MergeMethod, dict  # type: ignore[attr-defined]
    room.__all__ = ["Average", "MergeMethod", "Other", "number"]  # type: ignore[attr-defined]
    assert classes_of(room, MergeMethod) == {"Average": Average}


@pytest.mark.parametrize(
    ("message", "options", "line"),
    [
        (
            "unrecognized arguments: --references=all",
            ["--baselines"],
            "--references: no such option; it is called --baselines now",
        ),
        (
            "Subcommand 'merge' does not accept option 'references'",
            ["--baselines"],
            "--references: no such option of merge; it is called --baselines now",
        ),
        (
            "unrecognized arguments: --refrences",
            ["--baselines", "--reference"],
            "--refrences: no such option; did you mean --reference?",
        ),
        ("unrecognized arguments: --zzz", ["--baselines"], "--zzz: no such option; see --help"),
        (
            "the following arguments are required: merge.experts, output",
            [],
            "--experts, --output: required but not given; --help tells what it takes",
        ),
    ],
)
def test_one_line(message, options, line):
    assert one_line(message, options) == line
