"""The page in headless Chromium: what is drawn, said and sorted, and that nothing is asked for."""

import re
import shutil
from dataclasses import replace

import pytest

from fmerge.report.distances import LayerDistances
from fmerge.report.html import html
from fmerge.report.parts import SearchOutcome, Trials
from fmerge.report.reproduction import Reproduction
from fmerge.search import Belief, Trial
from tests.made_up_report import HOSTILE, made_up

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
]
TASKS = ["cola", "mrpc", "rte"]
REDO = Reproduction(command="fmerge merge --output <b>", seed=3, versions={"torch": "2.13"},
                    machine={"system": "Linux"}, seconds=75.0)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def searched(tasks):
    """A search with a model, times, distances and all else that a page shows."""
    report = made_up(tasks)
    beliefs = {task: [Belief(i / 4, 0.5, 0.01) for i in range(5)] for task in tasks}
    seconds = {i: 31.0 - i for i in range(31)}
    products = [[float(m == n) for n in range(3)] for m in range(3)]
    distances = LayerDistances(tasks, "base", {"l.0": products}, {"l.0": 4.0})
    return replace(
        report,
        search=replace(report.search, beliefs=beliefs, seconds=seconds),
        provenance=replace(report.provenance, distances=distances, redo=REDO),
    )


def learned():
    """Coefficients by layer, found by a stage."""
    report = made_up(TASKS[:2])
    values = {f"{task}/layer.{k}": 0.1 * k - 0.2 for task in TASKS[:2] for k in range(4)}
    best = Trial(31, values, 0.9, {task: 0.9 for task in TASKS[:2]}, stage="learn")
    trials = Trials([*report.trials, best])
    search = replace(report.search, best=best, trials=trials, sensitivity={}, pick=None)
    return replace(report, search=search)


def streamed():
    """A merge without data."""
    report = searched(TASKS)
    best = Trial(0, {task: 0.5 for task in TASKS})
    search = SearchOutcome(method="TIES", name="Fixed", best=best, trials=Trials([best]))
    return replace(report, search=search, tests=type(report.tests)())


def opened(browser, tmp_path, report, **options):
    """The page, and whatever it asked for or complained of."""
    path = tmp_path / "report.html"
    path.write_text(html(report), encoding="utf-8")
    page = browser.new_context(**options).new_page()
    heard = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(path.as_uri())
    assert heard == [path.as_uri()]
    return page, heard


@pytest.mark.parametrize("report", [searched(HOSTILE), learned(), streamed()],
                         ids=["searched", "learned", "streamed"])  # fmt: skip
@pytest.mark.parametrize("width", [1200, 360])
def test_a_page_is_whole_at_any_width(browser, tmp_path, report, width):
    page, heard = opened(browser, tmp_path, report, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("main h1").count() == 1 and len(heard) == 1
    assert page.locator("svg").count() == len(re.findall("<svg", html(report)))


def test_every_trial_is_drawn_and_says_its_values(browser, tmp_path):
    report = searched(TASKS)
    page, _ = opened(browser, tmp_path, report)
    labels = page.locator("svg").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert labels[0].startswith("The mean test score of each model with its 95% interval")
    said = page.locator("svg[aria-label^='The objective on the validation'] title")
    texts = said.all_text_contents()
    assert len(texts) == 31  # 30 trials, and the one that failed
    first = report.trials[0]
    told = [f"trial 0\nobjective {100 * first.objective:.1f}"]
    told += [f"{task} {100 * score:.1f}" for task, score in first.metrics.items()]
    told += [f"λ {name} {value:.4f}" for name, value in first.coefficients.items()]
    assert texts[0] == "\n".join(told) and texts[-1] == "trial 30: nan"
    # a trial is where its values are: the best is highest
    boxes = page.locator("#search-said0 use").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().y)"
    )
    scored = [trial.objective for trial in report.trials[:30]]
    assert boxes.index(min(boxes)) == scored.index(max(scored))
    rows = page.locator("svg[aria-label^='The mean test'] title").all_text_contents()
    for row in report.rows:
        assert any(
            one == f"{row.name}\nmean {100 * row.mean.value:.1f} ({100 * row.mean.low:.1f} to "
            f"{100 * row.mean.high:.1f})" for one in rows
        )  # fmt: skip
    assert page.locator("svg[aria-label^='Objective against']").count() == 3


def test_a_table_is_sorted_by_the_column_that_is_pressed(browser, tmp_path):
    report = searched(TASKS)
    page, _ = opened(browser, tmp_path, report)
    table = page.locator("table.sortable")

    def column(number):
        texts = table.locator(f"tbody tr > :nth-child({number})").all_text_contents()
        return [one.replace("−", "-") for one in texts]

    assert column(1) == [str(i) for i in range(31)]
    table.get_by_role("button", name="objective").click()
    scored = sorted(f"{100 * one.objective:.1f}" for one in report.trials[:30])
    assert column(3) == [*scored, "–"]  # the failed trial last, whichever way
    table.get_by_role("button", name="objective").press("Enter")
    assert column(3) == [*reversed(scored), "–"]
    head = table.locator("th", has_text="objective")
    assert head.get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="seconds").click()
    assert column(1) == [str(i) for i in reversed(range(31))]


def test_colours_follow_the_ground(browser, tmp_path):
    found = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, tmp_path, learned(), color_scheme=scheme)
        colour = "e => getComputedStyle(e).color"
        fill = "e => getComputedStyle(e).fill"
        found[scheme] = (
            page.locator("body").evaluate(colour),
            page.locator("svg text").first.evaluate(fill),
            page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor"),
        )
        assert found[scheme][0] == found[scheme][1]  # letters of pictures are the page's
    assert found["light"][0] == "rgb(31, 35, 40)" and found["dark"][0] == "rgb(230, 232, 235)"
    assert found["light"][2] == "rgb(255, 255, 255)" and found["dark"][2] == "rgb(20, 23, 27)"
    table = page.get_by_role("region", name="Coefficients by group of tensors")
    assert table.locator("td.warm, td.cool").count() == 6  # a coefficient of each expert is 0
    assert table.locator("td.cool").all_text_contents() == ["−0.2000"] * 2 + ["−0.1000"] * 2
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
