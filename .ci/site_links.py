"""A hook of mkdocs: links to files outside of docs/ become names of those files.

The pages are read in the repository too, where such links work; a site has no such pages.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the links of one page.

    Args:
        markdown: The page's text.
        page: The page; mkdocs gives it.

    Returns:
        The text with ``label (`file`)`` in the place of such links.

    Raises:
        ValueError: If a link leads to no file.
    """

    def named(link: re.Match[str]) -> str:
        label, path = link.groups()
        if not (ROOT / path).exists():
            raise ValueError(f"{page.file.src_path}: links to ../{path}, but there is no such file")
        return f"`{path}`" if label in path else f"{label} (`{path}`)"

    return _OUTSIDE.sub(named, markdown)
