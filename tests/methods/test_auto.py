"""What ``Auto`` chooses from, and that it is no formula."""

from pathlib import Path

import pytest
import torch

import fmerge
from fmerge.errors import UserError
from fmerge.methods import TIES, Auto, FeatCal, LiNeS, TaskArithmetic

ONE = {"w": torch.ones(2)}


def test_the_default_portfolio():
    method = Auto()
    assert list(method.methods) == [
        *("Average", "TaskArithmetic", "TIES", "IsoC", "TSVM", "FisherMerge"),
        *("RegMean", "RegMeanPP", "FeatCal"),
    ]
    assert method.needs_base and method.statistic == "fisher"
    calibrated = method.methods["FeatCal"]
    assert isinstance(calibrated.start, TaskArithmetic)
    assert calibrated.uses_coefficients and calibrated.usual_coefficient == 0.3


def test_without_a_base_it_is_smaller():
    method = Auto()
    method.with_base(False)
    assert list(method.methods) == ["Average", "FisherMerge", "RegMean", "RegMeanPP"]
    assert not method.needs_base and method.statistic == "fisher"


def test_a_wrapper_has_the_usual_coefficient_of_what_it_wraps():
    assert LiNeS().usual_coefficient == 0.3
    assert FeatCal(TIES()).usual_coefficient is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Auto([]), "portfolio: is empty, so that there is nothing to choose from"),
        (lambda: Auto(["Foo"]).methods, "portfolio: unknown method 'Foo'; known: Auto, Average, B"),
        (lambda: Auto(["Auto"]).methods, "portfolio: unknown method 'Auto'"),
        (lambda: Auto(["no.such.Method"]).methods, "portfolio: no.such.Method cannot be imported"),
        (lambda: Auto(leaders=0), "leaders: is 0"),
        (lambda: FeatCal(Auto()), "FeatCal: start is Auto, which is no formula but chooses one"),
        (lambda: LiNeS(Auto()), "LiNeS: method is Auto, which is no formula but chooses one"),
        (
            lambda: fmerge.merge([ONE, ONE], "Auto", base=ONE),
            "method: Auto chooses by scores; merge by FMergeTrainer.merge, with data",
        ),
    ],
)
def test_what_it_cannot_be_is_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_page_has_its_parameters():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    _, needs = [line for line in page.splitlines() if line.startswith("| `Auto` |")]
    assert "`portfolio`, `leaders` (2), `steps` (60)" in needs
    assert (Auto().leaders, Auto().steps) == (2, 60)
    assert f"for at most `--method.steps` ({Auto().steps})" in page


def test_it_is_no_formula():
    with pytest.raises(ValueError, match="Auto chooses a method by scores"):
        Auto().merge(ONE, [ONE], [1.0], [ONE])
