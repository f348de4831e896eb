"""Pieces of Markdown, in which names and paths that users give stay what they are."""

import re
from collections.abc import Sequence

from fmerge.report.confidence import Estimate


def plain(text: str) -> str:
    """Keeps text from being read as HTML, a link, an image, emphasis, or a new cell or line.

    Args:
        text: Any text.

    Returns:
        Markdown that shows it.
    """
    text = " ".join(text.split()) if re.search(r"[\r\n\t]", text) else text
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|\[\]*`]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def sentence(text: str) -> str:
    """Writes a sentence in which names may stand in backticks.

    Args:
        text: The sentence.

    Returns:
        Markdown that shows it, names as code.
    """
    parts = re.split(r"`([^`]+)`", text)
    return "".join(code(part) if i % 2 else plain(part) for i, part in enumerate(parts))


def code(text: str) -> str:
    """Sets text as code.

    Args:
        text: Any text.

    Returns:
        A code span that shows it; in a table's cell too.
    """
    text = " ".join(text.split()) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    inner = f" {text} " if text[0] == "`" or text[-1] == "`" else text
    return f"{fence}{inner}{fence}".replace("|", "\\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """Lays out a table.

    Args:
        header: Its first row.
        rows: The others; all cells are Markdown.
        texts: How many columns from the left are text; the others are numbers.

    Returns:
        Its lines.
    """
    lines = [header, [*["---"] * texts, *["---:"] * (len(header) - texts)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def percent(estimate: Estimate | None) -> str:
    """Writes a score with its interval.

    Args:
        estimate: A share of one, if it is known.

    Returns:
        Such as ``61.3 (57.0 to 65.4)``, in per cent; a dash where nothing is known.
    """
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def points(estimate: Estimate | None) -> str:
    """Writes a difference of scores with its interval.

    Args:
        estimate: The difference of two shares of one, if it is known.

    Returns:
        Such as ``+1.5 (-0.4 to +3.3)``, in percentage points; a dash where nothing is known.
    """
    if estimate is None:
        return "-"
    low, high = (f"{100 * end:+.1f}" for end in (estimate.low, estimate.high))
    return f"{100 * estimate.value:+.1f} ({low} to {high})"
