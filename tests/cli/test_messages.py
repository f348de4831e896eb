"""Parsing errors in one line, without running a command."""

from types import ModuleType

import pytest

from fmerge import data, methods, modules, search
from fmerge.cli.classes import CLASSES
from fmerge.cli.messages import one_line
from fmerge.errors import classes_of
from fmerge.methods import Average, MergeMethod

TASKS = ", ".join(sorted(classes_of(*CLASSES["tasks"])))


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
    found = classes_of(*CLASSES[kind])
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


def union(kinds, *errors, given):
    lines = "".join(f"    - {one}\n" for one in errors)
    return (
        f'Parser key "{kinds[0]}":\n  Does not validate against any of the Union subtypes\n'
        f"  Subtypes: {kinds[1]}\n  Errors:\n{lines}    - Expected a <class 'NoneType'>\n"
        f"  Given value type: <class 'dict'>\n  Given value: {given}"
    )


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            union(("fisher.examples", "[int, None]"), "Expected a <class 'int'>", given="many"),
            "--fisher.examples: expected a whole number, but found 'many'",
        ),
        (
            union(
                ("optimizer.groups", "[...]"), "Expected a typing.Literal['whole', 'kind']",
                "Expected a <class 'int'>", "Expected a <class 'dict'>", given="['a']",
            ),
            "--optimizer.groups: expected 'whole' or 'kind' or a whole number or a mapping, but "
            "found '['a']'",
        ),
        (
            union(
                ("optimizer.objective", "[...]"), "Expected a typing.Literal['mean', 'worst']",
                "Expected a <class 'list'>", given="meen",
            ),
            "--optimizer.objective: unknown value 'meen'; known: mean, worst, or a list of them",
        ),
        (
            union(
                ("model", "[...]"),
                "Problem with given class_path 'nowhere.Mine':\n        No module named 'nowhere'",
                given="{'class_path': 'nowhere.Mine'}",
            ),
            "--model: cannot import the class 'nowhere.Mine' (No module named 'nowhere'); known: "
            + ", ".join(sorted(classes_of(modules, modules.TaskModule))),
        ),
        (
            union(
                ("data.tasks", "[...]"),
                "Expected an instantiatable class, but fmerge.data.TaskData is abstract",
                given="{'a': {'class_pth': 'TextFiles'}}",
            ),
            "--data.tasks: names no class that fits, but found '{'a': {'class_pth': 'TextFiles'}}'"
            f"; give class_path; known: {TASKS}",
        ),
        (
            union(
                ("model", "[...]"),
                "Import path torch.nn.Linear does not correspond to a subclass of LightningModule",
                given="torch.nn.Linear",
            ),
            "--model: must be a LightningModule, but found 'torch.nn.Linear'; for a network, "
            "derive a class from fmerge.modules.OwnModule whose network(self, outputs) "
            "makes it (docs/own_modules.md)",
        ),
        (
            union(
                ("model", "[...]"),
                "Expected an instantiatable class, but fmerge.modules.OwnModule is abstract",
                given="fmerge.modules.OwnModule",
            ),
            "--model: OwnModule lacks network; write it",
        ),
        (
            union(("base", "[...]"), "Expected a <class 'str'>", given="x" * 500),
            f"--base: expected a text, but found '{'x' * 100}…'",
        ),
        (
            union(
                ("data.tasks", "[...]"), "Expected a dot import path string: Foo",
                given="NestedArg(key='a', val='Foo')",
            ),
            f"--data.tasks: unknown class 'Foo'; known: {TASKS}",
        ),
        (
            union(("method", "[...]"), "Expected a <class 'x'>", given="NestedArg(key='density')"),
            "--method.density: name the class first, with --method; known: "
            + ", ".join(sorted(classes_of(methods, MergeMethod))),
        ),
        (
            'Parser key "experts":\n  Expected a <class \'dict\'>. Got value: [1,\n 2]',
            "--experts: expected a mapping, but found '[1, 2]'",
        ),
        (
            "Parser key \"baselines\":\n"
            "  Expected a typing.Literal['all', 'experts']. Got value: no",
            "--baselines: unknown value 'no'; known: all, experts",
        ),
        (
            "Parser key \"labels\":\n  Expected a <class 'str'>. Got value: False - Expected a "
            "<class 'NoneType'>",
            "--labels: expected a text, but found 'False'; YAML reads no, off, yes and on so: "
            "write the word in quotes",
        ),
    ],
)  # fmt: skip
def test_dumps_of_types_become_one_line(message, line):
    assert one_line(message, []) == line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Option 'dens' is not accepted",
            "--a.dens: TIES has no such option; did you mean density? known: density, scale",
        ),
        ("Option 'x' is not accepted", "--a.x: TIES has no such option; known: density, scale"),
        (
            "Parser key \"density\":\n  Expected a <class 'float'>. Got value: big",
            "--a.density: expected a number, but found 'big'",
        ),
        (
            "the following arguments are required: scale",
            "TIES: scale: required but not given; --help tells what it takes",
        ),
    ],
)
def test_an_entry_of_a_class_is_named_with_its_place(message, line):
    found = one_line(message, ["density", "scale"], lambda key: f"--a.{key}", "TIES")
    assert found == line
