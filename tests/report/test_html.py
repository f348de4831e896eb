"""The report as HTML and Markdown and the model card: what is in them, and what no name is."""

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console

from fmerge.methods import DELLA
from fmerge.report.html import html
from fmerge.report.markdown import code, plain, sentence
from fmerge.report.merge_report import MergeReport
from fmerge.report.model_card import Loader, model_card, parameters_of
from fmerge.report.parts import Provenance, SearchOutcome, Trials
from fmerge.report.write import linked
from fmerge.search import Fixed, SearchSpace, Trial
from tests.made_up_report import HOSTILE, made_up

LOADING = ("src", "srcset", "href", "action", "data", "poster", "background", "style")


class Page(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return html(made_up(HOSTILE))


def test_no_name_becomes_a_tag(page):
    found = Page(page)
    # one script, ours, and the only one that the page's policy lets run
    script = (files("fmerge.report") / "templates" / "sort.js").read_text(encoding="utf-8")
    assert re.findall("<script(.*?)</script>", page, re.DOTALL) == [f">{script}"]
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [{}]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = found.tags[[tag for tag, _ in found.tags].index("meta") + 1][1]["content"]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not {"iframe", "object", "embed", "link", "base", "form"} & {
        tag for tag, _ in found.tags
    }
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in LOADING:
            value = attributes.get(name) or ""
            assert name == "style" or not value, value
            assert "http" not in value
        assert attributes.get("xlink:href", "#").startswith("#"), tag
    tags = [tag for tag, _ in found.tags]
    assert tags.count("svg") == 3 + len(HOSTILE) and "img" not in tags and "image" not in tags
    assert "url(" not in page and "@import" not in page
    for name in HOSTILE:
        # `a` in sentences is code; the tables have the names as they are
        assert found.text.count(name) >= 8, name
    assert "49" not in re.findall(r"runs/(\d+)", found.text)


def test_the_page_says_what_the_report_knows(page):
    report = made_up(HOSTILE)
    text = " ".join(Page(page).text.split())
    for row in report.rows:
        for one in (*row.estimates.values(), row.mean):
            ends = f"{100 * one.low:.1f}–{100 * one.high:.1f}"
            assert f"{100 * one.value:.1f}{ends}" in text
    for comparison in report.comparisons:
        one = comparison.mean
        assert f"{100 * one.value:+.1f}".replace("-", "−") in text
    for shares in report.provenance.fishers.layers.values():
        assert all(f"{100 * share:.1f}" in text for share in shares)
    assert f"The runner-up is trial {report.search.runner_up.index}," in text
    assert "cdcdcdcd" in text and "efefefef" in text and "abababab" in text


def test_decided_differences_stand_out(page):
    report = made_up(HOSTILE)
    every = [d for one in report.comparisons for d in (*one.differences.values(), one.mean)]
    decided = sum(one.decided for one in every)
    assert 0 < decided < len(every)
    marked = [
        tag for tag, attributes in Page(page).tags if "decided" in attributes.get("class", "")
    ]
    assert len(marked) == decided
    bold = sum(line.count("**") // 2 for line in report.markdown().splitlines())
    assert bold == decided


def test_a_merge_without_data_has_a_page_without_scores():
    search = Fixed()
    search.start(SearchSpace(["a", "b"]))
    search.tell(Trial(0, {"a": 0.25, "b": 0.75}))
    found = SearchOutcome(
        method="Average", name="Fixed", best=search.best(), trials=Trials(search.history)
    )
    report = MergeReport(search=found, provenance=Provenance(experts={"a": "x/y", "b": "z"}))
    found = Page(html(report))
    assert "x/y" in found.text and "0.2500" in found.text and "Test" not in found.text
    assert not {"img", "svg"} & {tag for tag, _ in found.tags}
    assert "nothing was scored, as there were no data" in found.text
    assert "Test accuracy" in model_card(made_up(["a"])) and "Test" not in model_card(report)


def test_the_same_report_is_the_same_file(page):
    assert html(made_up(HOSTILE)) == page


@pytest.mark.parametrize("document", ["report", "card"])
def test_no_name_gets_into_the_markdown(document):
    report = made_up(HOSTILE)
    text = report.markdown()
    if document == "card":
        text = model_card(report, Loader("BertModel"), HOSTILE[0]).split("\n---\n", 1)[1]
    found = Page(MarkdownIt("gfm-like", {"linkify": False}).render(text))
    tags = {tag for tag, _ in found.tags}
    assert not {"script", "a"} & tags
    images = [attributes["src"] for tag, attributes in found.tags if tag == "img"]
    assert images == (["search.png"] if document == "report" else [])
    assert HOSTILE[0] in found.text and HOSTILE[1] in found.text


@pytest.mark.parametrize("name", [*HOSTILE, "a\nb", "`", "a`b``c", " x ", "*a* _b_", "a\\|b", ""])
def test_names_show_as_they_are(name):
    for write in (code, plain):
        text = MarkdownIt("gfm-like", {"linkify": False}).render(f"| a |\n|---|\n| {write(name)} |")
        cell = re.search(r"<td>(.*?)</td>", text, re.DOTALL)[1]
        shown = " ".join(Page(cell).text.split())
        assert shown == " ".join(name.split())


def test_names_in_sentences_are_code():
    assert sentence("task `a_<b>` of *it*") == "task `a_<b>` of \\*it\\*"


def test_the_card_has_front_matter_that_hugging_face_reads():
    from huggingface_hub import ModelCard

    report = made_up(HOSTILE)
    text = model_card(report, Loader("BertForSequenceClassification"), HOSTILE[0])
    front = yaml.safe_load(text.split("---\n")[1])
    # the folders' names; the hub refuses a card that names a model as the base's folder is called
    assert front["base_model"] == ["expert"] and f"base/{HOSTILE[0]}" not in text
    assert front["tags"] == ["merge", "fmerge", "DFMerge"] and "language" not in front
    assert front["library_name"] == "transformers"
    assert ModelCard(text).data.to_dict()["base_model"] == front["base_model"]
    assert "BertForSequenceClassification.from_pretrained(folder)" in text
    for value in report.best.coefficients.values():
        assert f"| {value:.6g} |" in text
    assert "cd" * 32 in text and "ef" * 32 in text
    assert "from_pretrained" not in model_card(report)


def test_a_method_tells_its_parameters():
    assert parameters_of(DELLA(drop=0.25)) == {
        "drop": 0.25, "epsilon": 0.2, "seed": 0, "election": "ties", "scale": 1.0,
    }  # fmt: skip


def test_the_last_line_is_a_link_where_links_are_shown(tmp_path):
    path = tmp_path / "a [b]" / "report.html"
    with open("/dev/null", "w") as nowhere:
        terminal = Console(force_terminal=True, color_system="standard", file=nowhere, record=True)
        terminal.print(linked(path), soft_wrap=True)
        shown = terminal.export_text(styles=True)
        assert f";{path.as_uri()}\x1b\\" in shown and "%5Bb%5D" in path.as_uri()
        assert str(path) in shown
    import io

    file = io.StringIO()
    Console(file=file).print(linked(path), soft_wrap=True)
    assert file.getvalue() == f"{path}\n"


def test_a_card_names_models_by_hub_ids_and_folders_not_by_places(tmp_path, monkeypatch):
    (tmp_path / "experts" / "night").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    report = made_up(["a", "b", "c"])
    places = {"a": f"{tmp_path}/experts/night", "b": "owner/day", "c": "experts/night"}
    found = replace(report.provenance, experts=places, base="package:minilm/model", facts=[])
    report = replace(report, provenance=found)
    loader = Loader("BertModel", base=f"{tmp_path}/base")
    cards = [model_card(report, one, folders=f) for one, f in ((None, ()), (loader, ("a", "b")))]
    assert not any(str(tmp_path) in card or "experts/" in card for card in cards)
    front, adapter = (yaml.safe_load(card.split("---\n")[1]) for card in cards)
    assert front["base_model"] == ["model", "night", "owner/day"]
    assert front["base_model_relation"] == "merge" and adapter["base_model"] == ["base"]
    assert "Each of these folders has a model with the head of its task: `a`, `b`." in cards[1]
    assert "PeftModel.from_pretrained(base, folder, subfolder='a')" in cards[1]


def test_a_card_of_models_that_cannot_be_named_names_none():
    report = made_up(["a"])
    found = replace(report.provenance, experts={"a": "my runs/the best"}, base="")
    card = model_card(replace(report, provenance=found))
    front = yaml.safe_load(card.split("---\n")[1])
    assert not {"base_model", "base_model_relation"} & front.keys() and "| a | the best |" in card
