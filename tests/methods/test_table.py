"""docs/methods.md lists every method, with its own parameters and defaults."""

import inspect
import re
from pathlib import Path

import pytest

from fmerge import methods

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
NAMES = sorted(set(methods.__all__) - {"MergeMethod", "Gram", "Grams"})


def rows(name):
    return [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_and_needs_are_in_the_table(name):
    method = getattr(methods, name)
    formula, needs = rows(name)
    _, _, inputs, parameters, *_ = (cell.strip() for cell in needs.split("|"))
    assert formula.count("|") == 4
    assert ("base" in inputs) == method.needs_base
    assert ("F at" in inputs) == ("fisher" in (method.statistic or ""))
    assert ("G at" in inputs) == (method.statistic == "gram")
    written = dict(re.findall(r"`(\w+)` \(([^)]+)\)", parameters))
    signature = inspect.signature(method).parameters.values()
    assert list(written) == [parameter.name for parameter in signature]
    for parameter in signature:
        default, text = parameter.default, written[parameter.name]
        if isinstance(default, bool | str):
            assert text == str(default).lower()
        else:
            assert float(text) == default


def test_methods_without_coefficients_are_named():
    without = {name for name in NAMES if not getattr(methods, name).uses_coefficients}
    assert without == {"Average"} and "All but `Average` have coefficients" in PAGE
