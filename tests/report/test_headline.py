"""The first sentences of a report: what was merged, what it retains and beats, what is open."""

import pytest

from fmerge.report.confidence import Estimate
from fmerge.report.headline import headline
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome, Trials
from fmerge.report.scores import Comparison, Row
from fmerge.search import Trial

ROWS = {
    "base": Row("base", {"a": 0.2, "b": 0.2}),
    "base, heads refitted": Row("base, heads refitted", {"a": 0.7, "b": 0.5}),
    "experts": Row("experts", {"a": 0.8, "b": 0.5}),
    "plain average": Row("plain average", {"a": 0.6, "b": 0.3}),
    "runner-up": Row("runner-up", {"a": 0.6, "b": 0.35}),
    "this merge": Row("this merge", {"a": 0.6, "b": 0.4}),
}
EXPERTS = {"a": "x/a", "b": "x/b"}


def said(rows, comparisons=(), base="z", trials=9, **options):
    best = Trial(4, {"a": 0.25, "b": 0.5}, 0.7)
    return headline(
        SearchOutcome(
            method="TIES", name="Sobol", best=best, trials=Trials([best] * trials), **options
        ),
        TestOutcome(rows=rows, comparisons=comparisons),
        Provenance(experts=EXPERTS, base=base),
    )


def against(name, low, value, high, own="this merge"):
    return Comparison(own, name, {}, Estimate(value, low, high, 0.01))


def test_what_is_beaten_by_intervals():
    found = [
        against("plain average", 0.01, 0.05, 0.09),
        against("runner-up", 0.01, 0.025, 0.04),
        against("base", 0.2, 0.3, 0.4),
        against("base, heads refitted", -0.14, -0.1, -0.06),
        against("base, fine-tuned", -0.03, 0.01, 0.05),
    ]
    # (0.6/0.8 + 0.4/0.5) / 2 = 77.5%
    assert said(list(ROWS.values()), found) == [
        "TIES merged `a` and `b`, by the best of 9 trials of Sobol; the merge has 50.0% test "
        "accuracy in the mean over tasks and retains 77.5% of the experts' scores; it beats the "
        "plain average (+5.0 points, +1.0 to +9.0), beats the base (+30.0 points, +20.0 to "
        "+40.0), IS BELOW 'base, heads refitted' (-10.0 points, -14.0 to -6.0) and is not shown "
        "to differ from 'base, fine-tuned' (+1.0 points, -3.0 to +5.0).",
        "Not shown: that another fine-tuning, seed or draw of test examples gives the same.",
    ]


def test_refitted_heads_are_what_was_saved():
    rows = [*ROWS.values(), Row("this merge, heads refitted", {"a": 0.8, "b": 0.5})]
    found = [
        against("plain average", 0.01, 0.05, 0.09),
        against("base, heads refitted", 0.01, 0.02, 0.03, "this merge, heads refitted"),
    ]
    first, _ = said(rows, found)
    assert "the merge with refitted heads has 65.0%" in first and "retains 100.0% of" in first
    assert "beats 'base, heads refitted'" in first and "plain average" not in first


@pytest.mark.parametrize(
    ("left", "base", "expected"),
    [
        (["base", "runner-up"], None, "how the base scores, as none was given, whether other"),
        (["base", "plain average"], "z", "as baselines were left out, how the plain average"),
        (["this merge", "runner-up"], "z", "whether another method is better and that another"),
    ],
)
def test_what_was_not_shown(left, base, expected):
    rows = [row for name, row in ROWS.items() if name not in left]
    assert expected in said(rows, base=base)[1]


def test_without_data_nothing_is_claimed():
    first, second = said([], trials=1)
    assert first == (
        "TIES merged `a` and `b`, by given coefficients; nothing was scored, as there were no data."
    )
    assert second.startswith("Not shown: how good the merge is;")
