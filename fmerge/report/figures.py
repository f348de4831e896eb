"""Figures by matplotlib: as PNG files, and as SVG inside a page, with values shown on hover."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from fmerge.store import replacing_file

_SVG: Final = "http://www.w3.org/2000/svg"
_LINK: Final = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Ink:
    """The colours of a plot with a transparent background.

    Attributes:
        text: Letters and axes.
        trial: A trial.
        faint: A dominated trial, or one below its bounds.
        best: The best trial.
        quiet: A trial that was stopped or has failed.
    """

    text: str = "black"
    trial: str = "#4878a8"
    faint: str = "#c8d6e4"
    best: str = "#c2542d"
    quiet: str = "#808080"


_PAGE: Final = Ink("#1f2328", "#4878a8", "#c8d6e4", "#c2542d", "#7f8081")
"""Colours that stand for the page's own, which differ on a light and on a dark ground."""

_VARIABLES: Final = {
    _PAGE.text: "var(--text)",
    _PAGE.trial: "var(--trial)",
    _PAGE.faint: "var(--faint)",
    _PAGE.best: "var(--best)",
    _PAGE.quiet: "var(--quiet)",
}


@dataclass
class Pen:
    """What a plot is drawn with.

    Attributes:
        axes: Of matplotlib.
        ink: The colours.
        said: Of each series of points, by its id in the SVG, what a point says under the pointer.
    """

    axes: Any
    ink: Ink
    said: dict[str, Sequence[str]] = field(default_factory=dict)

    def points(
        self,
        x: Sequence[float],
        y: Sequence[float],
        style: str,
        said: Sequence[str],
        **options: Any,
    ) -> None:
        """Draws points, each of which says its values under the pointer.

        Args:
            x: Where they are; finite numbers.
            y: Likewise.
            style: Matplotlib's, with a marker.
            said: A text a point.
            **options: Matplotlib's, of a line.
        """
        name = f"said{len(self.said)}"
        self.said[name] = said
        self.axes.plot(x, y, style, gid=name, **options)


Draw = Callable[[Pen], None]
"""Draws a plot."""


def save(path: Path, draw: Draw, width: float, height: float) -> None:
    """Draws a plot into a PNG file.

    Args:
        path: The file.
        draw: Draws it.
        width: In inches.
        height: Likewise.
    """
    with figure_of(width, height) as (figure, axes):
        draw(Pen(axes, Ink()))
        legend(axes)
        with replacing_file(path) as temporary:
            figure.savefig(temporary, dpi=120, metadata={"Software": "fmerge"})


def inline(draw: Draw, name: str, text: str, size: tuple[float, float] = (5.2, 3.5)) -> str:
    """Draws a plot as an element of a page, in the page's colours.

    Args:
        draw: Draws it.
        name: What the ids in it begin with, another one for each plot of a page.
        text: What it shows, for those who do not see it.
        size: Width and height in inches: small, as letters shrink with it on a narrow screen.

    Returns:
        An ``svg`` element, with all names escaped.
    """
    with figure_of(*size, _PAGE.text) as (figure, axes):
        pen = Pen(axes, _PAGE)
        draw(pen)
        legend(axes)
        file = io.BytesIO()
        plain = {"Date": None, "Creator": None}  # the same picture, the same file
        figure.savefig(file, format="svg", transparent=True, metadata=plain)
    return _embedded(file.getvalue(), name, text, pen.said)


def legend(axes: Any) -> None:
    """Puts the legend above the axes: points may be anywhere inside.

    Args:
        axes: Of matplotlib.
    """
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        axes.legend(frameon=False, ncols=4, **place)


def short(name: str, most: int = 24) -> str:
    """Shortens a name for an axis.

    Args:
        name: The name.
        most: Its most characters.

    Returns:
        Its beginning.
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"


@contextmanager
def figure_of(width: float, height: float, text: str = "black") -> Iterator[tuple[Any, Any]]:
    """Makes a figure with one plot.

    Args:
        width: In inches.
        height: Likewise.
        text: The colour of letters and axes.

    Yields:
        Figure and axes of matplotlib.
    """
    # not pyplot: its global state would pick a window system
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    # names are the user's: a dollar in them begins no formula
    fixed = {"text.parse_math": False, "svg.hashsalt": "fmerge", "svg.fonttype": "none"}
    with matplotlib.rc_context({**dict.fromkeys(names, text), **fixed}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn for it
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def _embedded(svg: bytes, name: str, text: str, said: Mapping[str, Sequence[str]]) -> str:
    """Makes a file of matplotlib an element of a page that has others."""
    root = ElementTree.fromstring(svg)
    _say(root, said)
    for parent in list(root.iter()):
        for child in list(parent):
            # both speak of the whole document
            if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style", f"{{{_SVG}}}clipPath"}:
                parent.remove(child)
        parent.attrib.pop("clip-path", None)  # nothing is drawn beyond the axes
        for key, value in parent.attrib.items():
            if key == "id":
                parent.set(key, f"{name}-{value}")
            elif key == f"{{{_LINK}}}href":
                parent.set(key, f"#{name}-{value[1:]}")
            elif key == "style":
                parent.set(key, _coloured(value))
    for key in ("width", "height", "version"):  # the page sets its size
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", text)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    return ElementTree.tostring(root, encoding="unicode")


def _say(root: ElementTree.Element, said: Mapping[str, Sequence[str]]) -> None:
    for group in root.iter(f"{{{_SVG}}}g"):
        texts = said.get(group.get("id", ""))
        for use, one in zip(group.iter(f"{{{_SVG}}}use"), texts or (), strict=False):
            ElementTree.SubElement(use, f"{{{_SVG}}}title").text = one


def _coloured(style: str) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda one: _VARIABLES.get(one[0], one[0]), style)
