"""The public names: what they cost, that they are there, and that their examples run."""

import doctest
import importlib
import os
import shutil
import subprocess
import sys

import pytest

import fmerge

NAMES = sorted(set(fmerge.__all__) - {"__version__"})


def in_process(code: str) -> str:
    """Runs code in a Python of its own; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def folder(zoo, tmp_path, monkeypatch):
    """The paths of the examples."""
    monkeypatch.chdir(tmp_path)
    for name, task in zip("ab", zoo.experts, strict=True):
        shutil.copytree(zoo.experts[task], f"path/to/model_{name}")
        for split, file in zoo.tasks[task].items():
            shutil.copy(file, f"{name}_{split}.csv")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_the_example_in_the_docstring_runs(name, folder):
    public = getattr(fmerge, name)
    test = doctest.DocTestParser().get_doctest(public.__doc__, {}, name, None, 0)
    assert test.examples
    told: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
    assert tried == len(test.examples) and not failed, "".join(told)


def test_import_loads_nothing_else():
    code = "import sys, fmerge; print({'torch', 'numpy', 'lightning'} & set(sys.modules))"
    assert in_process(code) == "set()\n"


@pytest.mark.slow  # a process each, which imports torch and Lightning anew
@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_the_first_that_is_used(name):
    assert in_process(f"import fmerge; print(fmerge.{name} is not None)") == "True\n"


def test_names_are_listed_before_they_are_imported():
    code = "import fmerge; print(set(fmerge.__all__) <= set(dir(fmerge)))"
    assert in_process(code) == "True\n"


def test_the_stub_has_the_same_names():
    stub = (os.path.dirname(fmerge.__file__)) + "/__init__.pyi"
    names: dict[str, object] = {}
    with open(stub) as file:
        exec(compile(file.read(), stub, "exec"), names)
    assert sorted(names["__all__"]) == sorted(fmerge.__all__)
    for name in NAMES:
        assert names[name] is getattr(fmerge, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fmerge' has no attribute 'mrege'"):
        _ = fmerge.mrege


@pytest.mark.parametrize(
    ("module", "name", "public"),
    [
        ("fmerge.trainer", "FMergeTrainer", "Trainer"),
        ("fmerge.merge_optimizer", "MergeOptimizer", "MergeOptimizer"),
    ],
)
def test_former_paths_lead_to_the_same(module, name, public):
    assert getattr(importlib.import_module(module), name) is getattr(fmerge, public)


def test_the_former_path_of_main():
    assert (
        importlib.import_module("fmerge.cli").main is importlib.import_module("fmerge.cli.app").main
    )
