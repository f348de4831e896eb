"""Every path and name of fmerge that the documentation mentions exists."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# what a page names as gone: the first cell of a row under "| before | now |"
_FORMER = re.compile(r"(?m)^\| before \| now \|\n(?:\|.*\n)+")
_NAME = re.compile(r"(?<![\w./])fmerge(?:\.[A-Za-z_]\w*)+")
# a path that stands for many: tests/x/test_y.py, benchmarks/NAME.py
_PLACEHOLDER = re.compile(r"/[xy](?=[./])|test_y\b|/[A-Z]+\.")
_PATH = re.compile(r"(?<![\w./])(?:fmerge|tests|benchmarks|configs|docs)/[\w./-]+")


def present(text: str) -> str:
    """The page without the former names of its tables."""

    def without_first_cells(match: re.Match[str]) -> str:
        return re.sub(r"(?m)^\|[^|\n]*\|", "|", match[0])

    return _FORMER.sub(without_first_cells, text)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module_name = ".".join(parts[:count])
        try:
            found: object = import_module(module_name)
        except ModuleNotFoundError as error:
            # a missing dependency is not a missing module of ours
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_resolve(page):
    names = set(_NAME.findall(present(page.read_text(encoding="utf-8"))))
    assert [name for name in sorted(names) if not resolves(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page):
    found = _PATH.findall(present(page.read_text(encoding="utf-8")))
    paths = {path.rstrip(".") for path in found if not _PLACEHOLDER.search(path)}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_a_wrong_name_is_found():
    assert resolves("fmerge.fisher.register_rule")
    assert not resolves("fmerge.fisher.no_such_rule")
    assert not resolves("fmerge.no_such_module.Class")


def test_former_names_are_left_out():
    table = "| before | now |\n|---|---|\n| `fmerge.gone` | `fmerge.params` |\n"
    assert _NAME.findall(present(table)) == ["fmerge.params"]
