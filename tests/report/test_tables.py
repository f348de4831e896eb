"""One table in three forms, read back by parsers: no name breaks a form, and no value changes."""

import io
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from fmerge.report.confidence import Estimate
from fmerge.report.html import to_html
from fmerge.report.tables import (
    Cell,
    Column,
    Line,
    Table,
    difference,
    percent,
    score,
    to_markdown,
    to_rich,
)

LONG = "a_task_with_a_name_of_more_than_sixty_characters_" + "x" * 30
NAMES = [
    *["a|b", "<b>", "[red]x[/red]", "*a*", "_a_", "`a", "a\\|b", "&lt;", "{{ 7 * 7 }}", "$x^2$"],
    *["a\nb", "\x1b[31mred", "[l](http://example.org)", "![i](x)", "# a", LONG],
]
SCORE, GAIN, LOSS = (
    Estimate(0.613, 0.57, 0.6544, 0.02),
    0.0151,
    Estimate(-0.02, -0.03, -0.01, 0.005),
)


class Cells(HTMLParser):
    """The cells of tables with their classes, and all tags."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self._open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        if tag in {"td", "th"}:
            self._open = False

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


def made_up(name):
    columns = [Column("", text=True), Column(name), Column("gain"), Column("kind", text=True)]
    lines = [
        Line([Cell(name), score(SCORE), difference(LOSS), Cell(name, code=True)], own=True),
        Line([Cell("other"), percent(0.0151, bar=True), difference(None), Cell("")]),
    ]
    return Table("A title", columns, lines, [f"A note on `x` and {name}"])


def shown(name):
    return " ".join(name.split())


def as_html(table):
    return Cells(to_html(table))


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_every_name_and_number(name):
    lines = to_markdown(made_up(name), level=3)
    found = Cells(MarkdownIt("gfm-like", {"linkify": False}).render("\n".join(lines)))
    # Markdown collapses white space, and has no control characters
    assert [[" ".join(cell.split()) for cell in row] for row in found.rows] == [
        ["", shown(name), "gain", "kind"],
        [shown(name), "61.3 (57.0 to 65.4)", "-2.0 (-3.0 to -1.0)", shown(name)],
        ["other", "1.5", "-", ""],
    ]
    assert {tag for tag, _ in found.tags} <= {
        *["h3", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "strong"]
    }
    assert [tag for tag, _ in found.tags].count("strong") == 1
    assert "**-2.0 (-3.0 to -1.0)**" in "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_html_shows_every_name_and_number(name):
    found = as_html(made_up(name))
    rows = [[cell.replace("\n", "") for cell in row] for row in found.rows]
    flat = name.replace("\n", "")
    assert rows == [
        ["", flat, "gain", "kind"],
        [flat, "61.357.0–65.4", "−2.0−3.0 to −1.0", flat],
        ["other", "1.5", "–", ""],
    ]
    assert {tag for tag, _ in found.tags} <= {
        *["h2", "div", "table", "thead", "tbody", "tr", "th", "td", "code", "small", "span", "p"]
    }
    classes = [attributes.get("class") for tag, attributes in found.tags if tag == "tr"]
    assert classes == [None, "own", None]
    kinds = [attributes["class"] for tag, attributes in found.tags if tag == "td"]
    assert kinds == ["number", "number decided", "text"] + ["number", "number", "text"]
    bars = [a["style"] for tag, a in found.tags if a.get("class") == "bar"]
    assert bars == ["--share: 1.5%"]
    # a word that would widen its column beyond the page is broken
    long = [tag for tag, a in found.tags if a.get("class") == "long"]
    assert len(long) == (3 if name == LONG else 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_terminal_shows_every_name_and_number(name):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(to_rich(made_up(name), notes=True))
    text = console.export_text()
    assert "\x1b" not in text and "A title" in text
    rows = [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in text.splitlines()
        if line[:1] in "│┃"
    ]
    plain = shown(name.replace("\x1b", " "))
    if name == LONG:
        assert rows[0] == ["", "a_task_with_a_n…xxxxxxxx", "gain", "kind"]
        # the names are folded; the numbers beside them are whole
        assert "".join(row[0] for row in rows[1:-1]) == LONG
        assert rows[1][1:3] == ["61.3", "-2.0"]
    else:
        assert rows[:2] == [["", plain, "gain", "kind"], [plain, "61.3", "-2.0", plain]]
    assert rows[-1] == ["other", "1.5", "-", ""]


def test_the_own_row_is_bold_in_the_terminal():
    table = to_rich(made_up("a"))
    assert [row.style for row in table.rows] == ["bold", None]
    assert table.caption is None


def test_bars_stay_in_their_cells():
    lines = [Line([Cell("a"), Cell("1.20", share=1.2), Cell("-0.20", share=-0.2)])]
    found = as_html(Table("t", [Column("", text=True), Column("b"), Column("c")], lines))
    bars = [a["style"] for tag, a in found.tags if a.get("class") == "bar"]
    assert bars == ["--share: 100.0%", "--share: 0.0%"]
    assert found.rows[1] == ["a", "1.20", "−0.20"]


def test_exponents_keep_their_hyphens():
    lines = [Line([Cell("a"), Cell("1.20e-04")])]
    found = as_html(Table("t", [Column("", text=True), Column("b")], lines))
    assert found.rows[1] == ["a", "1.20e-04"]
