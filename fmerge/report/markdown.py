"""Parts of Markdown, in which the names and paths of users are shown as they are."""

import re

from fmerge.report.confidence import Estimate


def plain(text: str) -> str:
    """Escapes text that Markdown would read as HTML, a link, an image, emphasis, a cell or a line.

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


def points(estimate: Estimate | None) -> str:
    """Writes a difference of scores with its interval.

    Args:
        estimate: The difference of two shares of one, if it is known.

    Returns:
        Such as ``+1.5 (-0.4 to +3.3)``, in percentage points; a dash if it is unknown.
    """
    if estimate is None:
        return "-"
    low, high = (f"{100 * end:+.1f}" for end in (estimate.low, estimate.high))
    return f"{100 * estimate.value:+.1f} ({low} to {high})"
