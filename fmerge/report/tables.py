"""One model of a table and its three forms: rich for the terminal, Markdown, and HTML.

The HTML form is ``to_html`` of ``fmerge.report.html``. Names are what users call their tasks and
folders: each form escapes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from fmerge.report import markdown
from fmerge.report.confidence import Estimate

MISSING = "-"

_LONGEST = 24
"""Characters of a header in the terminal; a longer one would squeeze the numbers beside it."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows: a name or a formatted number.
        interval: Lower and upper end of a number's confidence interval, formatted.
        code: Whether the text is set as code.
        bold: Whether it stands out, such as a difference whose interval excludes 0.
        share: Length of the bar behind the text in HTML, in [0, 1].
        heat: How strongly the cell is coloured in HTML, in [-1, 1]; of two colours by its sign.
    """

    text: str
    interval: tuple[str, str] | None = None
    code: bool = False
    bold: bool = False
    share: float | None = None
    heat: float | None = None

    @property
    def joiner(self) -> str:
        """What stands between the ends of the interval in HTML: a dash would look like a minus."""
        return " to " if self.text[:1] in {"+", "-"} else "–"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its header.
        text: Whether its cells are text, aligned to the left; numbers are aligned to the right.
    """

    name: str
    text: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        cells: Its cells; the first one names the row.
        own: Whether it is highlighted, such as the row of the merge that was saved.
    """

    cells: Sequence[Cell]
    own: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its title.
        columns: Its columns.
        lines: Its rows, each with a cell a column.
        notes: Sentences below it, in which names may stand in backticks.
        sortable: Whether HTML sorts it by the column whose header is pressed.
    """

    title: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    sortable: bool = False


def percent(value: float, bar: bool = False) -> Cell:
    """Makes a cell of a share, in per cent.

    Args:
        value: The share.
        bar: Whether HTML shows it as a bar as well.

    Returns:
        Such as ``61.3``.
    """
    return Cell(f"{100 * value:.1f}", share=value if bar else None)


def heated(value: float, heat: float) -> Cell:
    """Makes a cell of a heat map.

    Args:
        value: A share.
        heat: How strongly the cell is coloured, in [-1, 1].

    Returns:
        The share in per cent.
    """
    return Cell(f"{100 * value:.1f}", heat=heat)


def score(estimate: Estimate) -> Cell:
    """Makes a cell of a score in per cent with its interval.

    Args:
        estimate: A share of one.

    Returns:
        Such as ``61.3``, with ``57.0`` and ``65.4``.
    """
    value, low, high = (f"{100 * number:.1f}" for number in estimate.ends())
    return Cell(value, interval=(low, high))


def difference(estimate: Estimate | None) -> Cell:
    """Makes a cell of a difference of scores in percentage points with its interval.

    Args:
        estimate: A difference of two shares of one, if it is known.

    Returns:
        Such as ``+1.5``, with ``-0.4`` and ``+3.3``; bold if the interval excludes 0; a dash
        if the difference is unknown.
    """
    if estimate is None:
        return Cell(MISSING)
    value, low, high = (f"{100 * number:+.1f}" for number in estimate.ends())
    return Cell(value, interval=(low, high), bold=estimate.decided)


def to_markdown(table: Table, level: int = 2) -> list[str]:
    """Renders a table as Markdown.

    Args:
        table: The table.
        level: Level of the heading above it.

    Returns:
        Lines: the heading, the table, and its notes.
    """
    header = [markdown.plain(column.name) for column in table.columns]
    rule = ["---" if column.text else "---:" for column in table.columns]
    rows = [[_markdown_cell(cell) for cell in line.cells] for line in table.lines]
    grid = ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]
    notes = [part for note in table.notes for part in ("", markdown.sentence(note))]
    return ["", f"{'#' * level} {markdown.plain(table.title)}", "", *grid, *notes]


def to_rich(table: Table, notes: bool = False) -> RichTable:
    """Renders a table for the terminal; intervals are left out.

    Args:
        table: The table.
        notes: Whether its notes stand below it.

    Returns:
        A rich table.
    """
    said = _printable(" ".join(table.notes)).replace("`", "")
    made = RichTable(
        title=Text(_printable(table.title), "table.title"),
        caption=Text(said, "table.caption") if notes else None,
    )
    for column in table.columns:
        # Text, not str: rich would read [brackets] in a name as markup
        made.add_column(
            Text(_shortened(_printable(column.name))),
            justify="left" if column.text else "right",
            no_wrap=not column.text,
            overflow="fold",
        )
    for line in table.lines:
        cells = [Text(_printable(cell.text), "bold" if cell.bold else "") for cell in line.cells]
        made.add_row(*cells, style="bold" if line.own else None)
    return made


def _markdown_cell(cell: Cell) -> str:
    text = markdown.code(cell.text) if cell.code else markdown.plain(cell.text)
    if cell.interval is not None:
        text = f"{text} ({cell.interval[0]} to {cell.interval[1]})"
    return f"**{text}**" if cell.bold else text


def _printable(text: str) -> str:
    """Replaces what would move the terminal's cursor, such as line ends and escape sequences."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _shortened(name: str) -> str:
    # tasks often share how they begin: the end tells them apart
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}…{name[-8:]}"
