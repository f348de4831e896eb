"""docs/methods.md lists every method, with its own parameters and defaults."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from fmerge import methods
from tests.compare import assert_same

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
NAMES = sorted(set(methods.__all__) - {"MergeMethod", "Gram", "Grams", "Auto"})


def rows(name):
    return [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_and_needs_are_in_the_table(name):
    method = getattr(methods, name)
    formula, needs, *_ = rows(name)
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
        if default is None:  # a method that is made when none is given
            assert text == type(getattr(method(), parameter.name)).__name__
        elif isinstance(default, bool | str):
            assert text == str(default).lower()
        else:
            assert float(text) == default


def test_methods_without_coefficients_are_named():
    without = {name for name in NAMES if not getattr(methods, name).uses_coefficients}
    # but for the coefficients of a start
    assert without == {"Average", "FeatCal", "ModelStock", "RegMeanPP"}
    text = "All but `Average`, `ModelStock`, `RegMeanPP` and `FeatCal` have coefficients"
    assert text in " ".join(PAGE.split())


def test_the_composition_of_the_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    made = {}
    exec(code, made)
    base = {"h.0.w": torch.zeros(2), "h.1.w": torch.zeros(2)}
    expert = {"h.0.w": torch.tensor([1.0, 2.0]), "h.1.w": torch.tensor([3.0, 4.0])}
    # 0.5 and 0.6 times the task vector: of four entries, a density of 0.2 leaves the largest, 2.4
    merged = made["method"].merge(base, [expert], [1.0])
    assert_same(merged, {"h.0.w": torch.zeros(2), "h.1.w": torch.tensor([0.0, 2.4])})


def test_the_compositions_of_the_page_are_those_of_the_classes():
    for name in ("TIES", "DARE", "DELLA", "Breadcrumbs", "LiNeS"):
        *_, transform, inner = (cell for cell in rows(name)[2].split("|") if cell.strip())
        method = getattr(methods, name)()
        assert f"`{type(method.transform).__name__}`" in transform
        assert f"`{type(method.method).__name__}`" in inner
